// Layer normalisation: of the gates of a row, all together, and of its c.
#ifndef LSTM_JAX_LSTM_LAYER_NORM_H_
#define LSTM_JAX_LSTM_LAYER_NORM_H_

#include <cmath>

#include "lstm/gates.h"
#include "lstm/step.h"
#include "memory/arena.h"

namespace lstm {
namespace LSTM_ISA {

// The sum of a vector's lanes, half by half.
template <int kLanes, class V>
LSTM_INLINE float TotalOfLanes(V v) {
  if constexpr (kLanes > 4) {
    typedef float Half __attribute__((vector_size(2 * kLanes)));
    Half low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return TotalOfLanes<kLanes / 2>(low + high);
  } else {
    return (v[0] + v[2]) + (v[1] + v[3]);
  }
}

LSTM_INLINE float Total(Vec v) { return TotalOfLanes<kWidth>(v); }

// The sum of `vectors` vectors. Four sums need not wait for each other.
template <class At>
LSTM_INLINE float TotalOf(int64_t vectors, At at) {
  Vec a = {}, b = {}, c = {}, d = {};
  int64_t n = 0;
  for (; n + 4 <= vectors; n += 4) {
    a += at(n);
    b += at(n + 1);
    c += at(n + 2);
    d += at(n + 3);
  }
  for (; n < vectors; ++n) a += at(n);
  return Total((a + b) + (c + d));
}

// Of `size` numbers in so many vectors: `at` has zeros beyond them, `live` zeros of
// a vector what is beyond.
template <class At, class Live>
LSTM_INLINE RowNorm NormOf(int64_t size, int64_t vectors, At at, Live live) {
  constexpr float kEpsilon = 1e-5f;
  const float count = static_cast<float>(size);
  const float mean = TotalOf(vectors, at) / count;
  const float squares = TotalOf(vectors, [&](int64_t n) {
    const Vec apart = live(n, at(n) - mean);
    return apart * apart;
  });
  return {mean, 1 / std::sqrt(squares / count + kEpsilon)};
}

// The gates of a row, in panels: vector n is gate n % 4 of block n / 4 of units.
template <class Float>
struct GateRow {
  Float* data;
  ptrdiff_t panel_step;

  Float* At(int64_t n) const { return data + n / 2 * panel_step + n % 2 * kWidth; }
};

template <class Scalar>
class GateNorm {
 public:
  GateNorm(const Variant<Scalar>& variant, const Sizes& sizes)
      : v_(variant),
        s_(sizes),
        vectors_(4 * UnitBlocks(sizes.units)),
        whole_(sizes.gates.count == 4 && sizes.units % kWidth == 0) {}

  void Allocate(Arena& arena) {
    for (float*& scale : scales_) scale = arena.Floats(vectors_ * kWidth);
  }

  // Scales in the order of the gates in panels.
  void Pack() {
    for (int part = 0; part < 2; ++part) {
      for (int64_t n = 0; n < vectors_; ++n) {
        Store(scales_[part] + n * kWidth, GateOfRow(v_.norm_scale + part * s_.columns(),
                                                    s_, n % 4, n / 4 * kWidth));
      }
    }
  }

  int64_t vectors() const { return vectors_; }

  // to = start + scale * what `row` is normalised to, of what inputs contribute (part
  // 0) or h (part 1).
  template <class Float>
  void Apply(int part, GateRow<float> row, GateRow<Float> start,
             GateRow<float> to) const {
    const RowNorm norm = Of(row);
    for (int64_t n = 0; n < vectors_; ++n) {
      const Vec normed = (Load(row.At(n)) - norm.mean) * norm.scale;
      Store(to.At(n), Load(start.At(n)) + Scale(part, n) * normed);
    }
  }

  // Normalises a row where it stands; returns what it was multiplied by.
  float Normalise(GateRow<float> row) const {
    const RowNorm norm = Of(row);
    for (int64_t n = 0; n < vectors_; ++n) {
      Store(row.At(n), Live(n, (Load(row.At(n)) - norm.mean) * norm.scale));
    }
    return norm.scale;
  }

  // The gradient of what was normalised to `row`, and multiplied by `factor`: from that
  // of pre-activations, `at(n)`, to `put(n, gradient)`.
  template <class At, class Put>
  LSTM_INLINE void Back(int part, GateRow<float> row, float factor, At at,
                        Put put) const {
    const float share = 1 / static_cast<float>(s_.columns());
    const auto gradient = [&](int64_t n) { return Scale(part, n) * at(n); };
    Vec sum[2] = {}, product[2] = {};
    for (int64_t n = 0; n < vectors_; n += 2) {
      for (int k = 0; k < 2; ++k) {
        const Vec d = gradient(n + k);
        sum[k] += d;
        product[k] += d * Load(row.At(n + k));
      }
    }
    const float plain = Total(sum[0] + sum[1]) * share;
    const float along = Total(product[0] + product[1]) * share;
    for (int64_t n = 0; n < vectors_; ++n) {
      const Vec back = gradient(n) - plain - Load(row.At(n)) * along;
      put(n, Live(n, factor * back));
    }
  }

 private:
  RowNorm Of(GateRow<float> row) const {
    return NormOf(
        s_.columns(), vectors_, [&](int64_t n) { return Load(row.At(n)); },
        [&](int64_t n, Vec v) { return Live(n, v); });
  }

  LSTM_INLINE Vec Scale(int part, int64_t n) const {
    return Load(scales_[part] + n * kWidth);
  }

  LSTM_INLINE Vec Live(int64_t n, Vec v) const {
    if (whole_) return v;
    const bool there = s_.gates.place[n % 4] != kNoGate;
    return there ? LiveBlock(v, s_.units, n / 4) : Vec{};
  }

  const Variant<Scalar>& v_;
  const Sizes& s_;
  const int64_t vectors_;
  const bool whole_;
  float* scales_[2] = {nullptr, nullptr};
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_LAYER_NORM_H_
