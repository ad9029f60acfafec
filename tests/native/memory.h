// One direction's memory, in buffers of exactly their size.
#ifndef LSTM_JAX_TESTS_MEMORY_H_
#define LSTM_JAX_TESTS_MEMORY_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "oracle.h"
#include "problem.h"

namespace lstm {

template <class Scalar>
Scalar To(float x);
template <>
inline float To<float>(float x) {
  return x;
}
template <>
inline BFloat16 To<BFloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float From(float x) { return x; }
inline float From(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// A buffer of exactly its size, in the type of the kernels; null if it is empty.
template <class Scalar>
class Buffer {
 public:
  explicit Buffer(const Floats& values) : values_(values.size()) {
    for (size_t n = 0; n < values.size(); ++n) values_[n] = To<Scalar>(values[n]);
  }
  Scalar* data() { return values_.empty() ? nullptr : values_.data(); }
  Floats Read() const {
    Floats result(values_.size());
    for (size_t n = 0; n < result.size(); ++n) result[n] = From(values_[n]);
    return result;
  }

 private:
  std::vector<Scalar> values_;
};

template <class Scalar>
class Memory {
 public:
  // What is saved between the passes holds `fill` in every byte before it is written.
  Memory(const Case& test, int fill)
      : test_(test),
        a_(test.arguments),
        g_(test.arguments),
        d_bias_(Floats(test.sizes.columns())),
        ys_(Floats(test.sizes.steps * test.sizes.rows * test.sizes.outputs)),
        entering_(Floats(KeepsEntering(test) ? ys_.Read().size() : 0)),
        last_h_(Floats(test.sizes.rows * test.sizes.outputs)),
        d_ys_(test.d_ys),
        d_h_(test.d_h),
        last_c_(test.sizes.rows * test.sizes.units),
        d_c_(test.d_c),
        gates_(test.sizes.steps * test.sizes.rows * 4 * PaddedUnits(test.sizes.units)),
        cells_(gates_.size() / 4) {
    std::memset(gates_.data(), fill, gates_.size() * sizeof(gates_[0]));
    std::memset(cells_.data(), fill, cells_.size() * sizeof(cells_[0]));
  }

  ForwardProblem<Scalar> Forward() {
    ForwardProblem<Scalar> p = {};
    Fill(p);
    p.ys = ys_.data();
    p.last_h = last_h_.data();
    p.last_c = last_c_.data();
    p.gates = gates_.data();
    p.cells = cells_.data();
    p.entering = entering_.data();
    return p;
  }

  BackwardProblem<Scalar> Backward() {
    BackwardProblem<Scalar> p = {};
    Fill(p);
    p.ys = ys_.data();
    p.entering = entering_.data();
    p.gates = gates_.data();
    p.cells = cells_.data();
    p.d_ys = d_ys_.data();
    p.d_last_h = d_h_.data();
    p.d_last_c = d_c_.data();
    p.d_xs = g_.xs.data();
    p.d_kernel = g_.kernel.data();
    (test_.diagonal ? p.d_diagonal : p.d_recurrent) = g_.recurrent.data();
    p.d_bias = d_bias_.data();
    p.d_projection = g_.projection.data();
    p.d_h = g_.h.data();
    p.d_c = g_.c.data();
    p.d_reset_h = g_.reset_h.data();
    p.d_reset_c = g_.reset_c.data();
    p.d_peephole = g_.peephole.data();
    p.d_norm_scale = g_.norm_scale.data();
    p.d_cell_norm = g_.cell_norm.data();
    return p;
  }

  Floats Outputs() const { return ys_.Read(); }

  std::vector<uint32_t> Saved() const {
    std::vector<uint32_t> saved(gates_.begin(), gates_.end());
    saved.insert(saved.end(), cells_.begin(), cells_.end());
    return saved;
  }

  Arguments Gradients() const {
    Arguments grads = {g_.xs.Read(),         g_.kernel.Read(),
                       g_.recurrent.Read(),  Bias(),
                       g_.projection.Read(), g_.h.Read(),
                       g_.c.Read(),          g_.reset_h.Read(),
                       g_.reset_c.Read(),    g_.peephole.Read(),
                       g_.norm_scale.Read(), NormShift(),
                       g_.cell_norm.Read()};
    if (!test_.diagonal) KeepBlocks(test_.sizes, grads.recurrent);
    return grads;
  }

 private:
  static bool KeepsEntering(const Case& test) {
    return test.controls || test.variant.recurrent_mask || test.variant.output_mask;
  }

  // What is shifted has the gradient of the bias, twice.
  Floats Bias() const {
    return test_.arguments.bias.empty() ? Floats() : d_bias_.Read();
  }
  Floats NormShift() const {
    Floats shift;
    if (test_.arguments.norm_shift.empty()) return shift;
    const Floats bias = d_bias_.Read();
    for (int part = 0; part < 2; ++part)
      shift.insert(shift.end(), bias.begin(), bias.end());
    return shift;
  }

  struct Buffers {
    explicit Buffers(const Arguments& a)
        : xs(a.xs),
          kernel(a.kernel),
          recurrent(a.recurrent),
          bias(a.bias),
          projection(a.projection),
          h(a.h),
          reset_h(a.reset_h),
          peephole(a.peephole),
          norm_scale(a.norm_scale),
          norm_shift(a.norm_shift),
          cell_norm(a.cell_norm),
          c(a.c),
          reset_c(a.reset_c) {}
    Buffer<Scalar> xs, kernel, recurrent, bias, projection, h, reset_h, peephole,
        norm_scale, norm_shift, cell_norm;
    Buffer<float> c, reset_c;
  };

  template <class Problem>
  void Fill(Problem& p) {
    p.sizes = test_.sizes;
    p.xs = a_.xs.data();
    p.weights = {a_.kernel.data(), a_.recurrent.data(), a_.bias.data(),
                 a_.projection.data()};
    if (test_.diagonal) p.weights.recurrent = nullptr;
    p.state = {a_.h.data(), a_.c.data()};
    const Variant<float>& v = test_.variant;
    p.variant = {v.standard,
                 v.coupled,
                 v.linear_candidate,
                 v.linear_output,
                 v.clip,
                 v.cell_clip,
                 v.zoneout_h,
                 v.zoneout_c,
                 test_.diagonal ? a_.recurrent.data() : nullptr,
                 a_.peephole.data(),
                 v.recurrent_mask,
                 v.output_mask,
                 v.keep_h,
                 v.keep_c,
                 a_.norm_scale.data(),
                 a_.norm_shift.data(),
                 a_.cell_norm.data()};
    if (test_.controls) {
      p.controls = {
          test_.valid.get(), test_.reset.get(), {a_.reset_h.data(), a_.reset_c.data()}};
    }
  }

  const Case& test_;
  Buffers a_, g_;
  Buffer<Scalar> d_bias_, ys_, entering_, last_h_, d_ys_, d_h_;
  Floats last_c_, d_c_;
  std::vector<GateBits<Scalar>> gates_;
  std::vector<uint32_t> cells_;
};

}  // namespace lstm

#endif  // LSTM_JAX_TESTS_MEMORY_H_
