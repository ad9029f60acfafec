// The doors to XLA: buffers are checked here, and only here.
#include "xla/ffi/api/ffi.h"

#include <sched.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "dispatch.h"
#include "pool.h"
#include "team.h"

namespace lstm {
namespace {

namespace ffi = xla::ffi;
using ffi::AnyBuffer;
using ffi::DataType;

class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool pool) : pool_(std::move(pool)) {}
  int threads() const override { return static_cast<int>(pool_.num_threads()); }
  void Schedule(std::function<void()> task) override {
    pool_.Schedule(std::move(task));
  }

 private:
  ffi::ThreadPool pool_;
};

// As many threads as XLA's own, but no more than there are processors for this process.
int Available(const Pool& pool) {
  const int threads = pool.threads();
#ifdef CPU_COUNT
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) < threads) {
    return CPU_COUNT(&set);
  }
#endif
  return threads;
}

// Compares buffers with what they should be, and remembers the first that is not.
class Checker {
 public:
  using Dims = std::initializer_list<int64_t>;

  // The buffer's data; null if the buffer is empty, which only `optional` ones may be.
  template <class T>
  T* Check(const char* name, const AnyBuffer& buffer, DataType type, Dims dims,
           bool optional = false) {
    if (optional && buffer.element_count() == 0) return nullptr;
    bool same =
        buffer.element_type() == type && buffer.dimensions().size() == dims.size();
    for (size_t n = 0; same && n < dims.size(); ++n) {
      same = buffer.dimensions()[n] == dims.begin()[n];
    }
    if (!same) Fail(name, buffer, type, dims);
    return static_cast<T*>(buffer.untyped_data());
  }

  void Require(bool condition, const char* message) {
    if (!condition && error_.empty()) error_ = message;
  }

  ffi::Error Result() const {
    return error_.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(error_);
  }
  bool failed() const { return !error_.empty(); }

 private:
  template <class List>
  static std::string Text(int type, const List& dims) {
    std::string text = "dtype " + std::to_string(type) + " [";
    for (const int64_t dim : dims) text += std::to_string(dim) + ",";
    text.back() = ']';
    return text;
  }

  void Fail(const char* name, const AnyBuffer& buffer, DataType type, Dims dims) {
    if (!error_.empty()) return;
    error_ = std::string("lstm_jax: buffer ") + name + ": expected " +
             Text(static_cast<int>(type), dims) + ", got " +
             Text(static_cast<int>(buffer.element_type()), buffer.dimensions()) + ".";
  }

  std::string error_;
};

template <class Scalar>
constexpr DataType kType = DataType::F32;
template <>
constexpr DataType kType<BFloat16> = DataType::BF16;

// What both passes are given.
struct Inputs {
  AnyBuffer xs, kernel, recurrent, bias, projection, h, c, valid, reset, reset_h,
      reset_c;
};

AnyBuffer Arg(const ffi::RemainingArgs& args, size_t n) {
  return *args.get<AnyBuffer>(n);
}

ffi::Result<AnyBuffer> Ret(const ffi::RemainingRets& rets, size_t n) {
  return *rets.get<AnyBuffer>(n);
}

Inputs InputsOf(const ffi::RemainingArgs& args) {
  return {Arg(args, 0), Arg(args, 1), Arg(args, 2), Arg(args, 3),
          Arg(args, 4), Arg(args, 5), Arg(args, 6), Arg(args, 7),
          Arg(args, 8), Arg(args, 9), Arg(args, 10)};
}

// Fills the fields that both problems have.
template <class Problem, class Scalar = std::remove_const_t<
                             std::remove_pointer_t<decltype(Problem::xs)>>>
void CheckInputs(const Inputs& in, bool reverse, Checker& check, Problem& p) {
  check.Require(in.xs.dimensions().size() == 3 && in.h.dimensions().size() == 2 &&
                    in.c.dimensions().size() == 2,
                "lstm_jax: expected xs [T,B,I], h [B,P] and c [B,H].");
  if (check.failed()) return;
  const int64_t T = in.xs.dimensions()[0], B = in.xs.dimensions()[1];
  const int64_t I = in.xs.dimensions()[2], P = in.h.dimensions()[1];
  const int64_t H = in.c.dimensions()[1];
  const bool projected = in.projection.element_count() > 0;
  p.sizes = {T, B, I, H, P, projected, reverse};
  check.Require(T > 0 && B > 0 && I > 0 && H > 0 && P > 0,
                "lstm_jax: expected sizes of at least 1.");
  check.Require(projected || P == H, "lstm_jax: without a projection, P is H.");
  constexpr DataType kScalar = kType<Scalar>;
  p.xs = check.Check<Scalar>("xs", in.xs, kScalar, {T, B, I});
  p.weights = {
      check.Check<Scalar>("kernel", in.kernel, kScalar, {I, 4 * H}),
      check.Check<Scalar>("recurrent_kernel", in.recurrent, kScalar, {P, 4 * H}),
      check.Check<Scalar>("bias", in.bias, kScalar, {4 * H}, true),
      check.Check<Scalar>("projection_kernel", in.projection, kScalar, {H, P}, true)};
  p.state = {check.Check<Scalar>("h", in.h, kScalar, {B, P}),
             check.Check<float>("c", in.c, DataType::F32, {B, H})};
  p.controls = {
      check.Check<bool>("valid", in.valid, DataType::PRED, {T, B}, true),
      check.Check<bool>("reset", in.reset, DataType::PRED, {T, B}, true),
      {check.Check<Scalar>("reset_h", in.reset_h, kScalar, {B, P}, true),
       check.Check<float>("reset_c", in.reset_c, DataType::F32, {B, H}, true)}};
  const State<Scalar>& reset_state = p.controls.reset_state;
  check.Require(!p.controls.reset || (reset_state.h && reset_state.c),
                "lstm_jax: reset needs a reset state.");
}

template <class Problem>
ffi::Error RunOnPool(const Checker& check, const Problem& problem,
                     ffi::ThreadPool threads, void (*kernel)(const Problem&, Crew&)) {
  if (check.failed()) return check.Result();
  XlaPool pool(std::move(threads));
  Crew crew(&pool, ThreadLimit(Available(pool)));
  try {
    kernel(problem, crew);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "lstm_jax: out of memory.");
  }
  return ffi::Error::Success();
}

int64_t Blocks(int64_t units) {
  const int64_t width = BestKernels().width;
  return (units + width - 1) / width;
}

struct ForwardOutputs {
  AnyBuffer ys, cs, last_h, last_c, tape, entering;
};

template <class Scalar>
ffi::Error ForwardAs(ffi::ThreadPool threads, bool reverse, const Inputs& in,
                     const ForwardOutputs& out,
                     void (*kernel)(const ForwardProblem<Scalar>&, Crew&)) {
  Checker check;
  ForwardProblem<Scalar> p = {};
  CheckInputs(in, reverse, check, p);
  const Sizes& s = p.sizes;
  constexpr DataType kScalar = kType<Scalar>;
  constexpr DataType kFloat = DataType::F32;
  const int64_t T = s.steps, B = s.rows, H = s.units, P = s.outputs;
  p.ys = check.Check<Scalar>("ys", out.ys, kScalar, {T, B, P}, true);
  p.cs = check.Check<float>("cs", out.cs, kFloat, {T, B, H}, true);
  p.last_h = check.Check<Scalar>("last h", out.last_h, kScalar, {B, P});
  p.last_c = check.Check<float>("last c", out.last_c, kFloat, {B, H});
  p.tape =
      check.Check<float>("tape", out.tape, kFloat,
                         {T, Blocks(H), B, kTapeEntries<Scalar> * BestKernels().width}, true);
  p.entering =
      check.Check<Scalar>("entering h", out.entering, kScalar, {T, B, P}, true);
  return RunOnPool(check, p, std::move(threads), kernel);
}

ffi::Error ForwardImpl(ffi::ThreadPool threads, bool reverse, ffi::RemainingArgs args,
                       ffi::RemainingRets rets) {
  const Inputs in = InputsOf(args);
  const ForwardOutputs out = {*Ret(rets, 0), *Ret(rets, 1), *Ret(rets, 2),
                              *Ret(rets, 3), *Ret(rets, 4), *Ret(rets, 5)};
  const Kernels& best = BestKernels();
  if (in.xs.element_type() == DataType::BF16) {
    return ForwardAs(std::move(threads), reverse, in, out, best.forward_bf16);
  }
  return ForwardAs(std::move(threads), reverse, in, out, best.forward_f32);
}

struct Saved {
  AnyBuffer ys, entering, tape, d_ys, d_cs, d_last_h, d_last_c;
};

struct BackwardOutputs {
  AnyBuffer xs, kernel, recurrent, bias, projection, h, c, reset_h, reset_c;
};

template <class Scalar>
ffi::Error BackwardAs(ffi::ThreadPool threads, bool reverse, const Inputs& in,
                      const Saved& saved, const BackwardOutputs& out,
                      void (*kernel)(const BackwardProblem<Scalar>&, Crew&)) {
  Checker check;
  BackwardProblem<Scalar> p = {};
  CheckInputs(in, reverse, check, p);
  const Sizes& s = p.sizes;
  constexpr DataType kScalar = kType<Scalar>;
  constexpr DataType kFloat = DataType::F32;
  const int64_t T = s.steps, B = s.rows, I = s.inputs, H = s.units, P = s.outputs;
  p.ys = check.Check<Scalar>("ys", saved.ys, kScalar, {T, B, P}, true);
  p.entering =
      check.Check<Scalar>("entering h", saved.entering, kScalar, {T, B, P}, true);
  check.Require(p.entering || (p.ys && !p.controls.valid && !p.controls.reset),
                "lstm_jax: expected ys, or with controls the h that enter the steps.");
  p.tape = check.Check<float>("tape", saved.tape, kFloat,
                              {T, Blocks(H), B, kTapeEntries<Scalar> * BestKernels().width});
  p.d_ys = check.Check<Scalar>("d_ys", saved.d_ys, kScalar, {T, B, P}, true);
  p.d_cs = check.Check<float>("d_cs", saved.d_cs, kFloat, {T, B, H}, true);
  p.d_last_h = check.Check<Scalar>("d_last_h", saved.d_last_h, kScalar, {B, P});
  p.d_last_c = check.Check<float>("d_last_c", saved.d_last_c, kFloat, {B, H});
  p.d_xs = check.Check<Scalar>("d_xs", out.xs, kScalar, {T, B, I}, true);
  p.d_kernel = check.Check<Scalar>("d_kernel", out.kernel, kScalar, {I, 4 * H}, true);
  p.d_recurrent = check.Check<Scalar>("d_recurrent_kernel", out.recurrent, kScalar,
                                      {P, 4 * H}, true);
  p.d_bias = check.Check<Scalar>("d_bias", out.bias, kScalar, {4 * H}, true);
  p.d_projection =
      check.Check<Scalar>("d_projection_kernel", out.projection, kScalar, {H, P}, true);
  check.Require(s.projected || !p.d_projection, "lstm_jax: there is no projection.");
  p.d_h = check.Check<Scalar>("d_h", out.h, kScalar, {B, P}, true);
  p.d_c = check.Check<float>("d_c", out.c, kFloat, {B, H}, true);
  p.d_reset_h = check.Check<Scalar>("d_reset_h", out.reset_h, kScalar, {B, P}, true);
  p.d_reset_c = check.Check<float>("d_reset_c", out.reset_c, kFloat, {B, H}, true);
  return RunOnPool(check, p, std::move(threads), kernel);
}

ffi::Error BackwardImpl(ffi::ThreadPool threads, bool reverse, ffi::RemainingArgs args,
                        ffi::RemainingRets rets) {
  const Inputs in = InputsOf(args);
  const Saved saved = {Arg(args, 11), Arg(args, 12), Arg(args, 13), Arg(args, 14),
                       Arg(args, 15), Arg(args, 16), Arg(args, 17)};
  const BackwardOutputs out = {*Ret(rets, 0), *Ret(rets, 1), *Ret(rets, 2),
                               *Ret(rets, 3), *Ret(rets, 4), *Ret(rets, 5),
                               *Ret(rets, 6), *Ret(rets, 7), *Ret(rets, 8)};
  const Kernels& best = BestKernels();
  if (in.xs.element_type() == DataType::BF16) {
    return BackwardAs(std::move(threads), reverse, in, saved, out, best.backward_bf16);
  }
  return BackwardAs(std::move(threads), reverse, in, saved, out, best.backward_f32);
}

// Refuses a call with another number of buffers before any of them is looked at.
template <ffi::Error (*kImpl)(ffi::ThreadPool, bool, ffi::RemainingArgs,
                              ffi::RemainingRets),
          size_t kArgs, size_t kRets>
ffi::Error Counted(ffi::ThreadPool threads, bool reverse, ffi::RemainingArgs args,
                   ffi::RemainingRets rets) {
  if (args.size() != kArgs || rets.size() != kRets) {
    return ffi::Error::InvalidArgument("lstm_jax: wrong number of buffers.");
  }
  return kImpl(std::move(threads), reverse, args, rets);
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<bool>("reverse")
      .RemainingArgs()
      .RemainingRets();
}

}  // namespace
}  // namespace lstm

#define LSTM_EXPORT extern "C" __attribute__((visibility("default")))

LSTM_EXPORT XLA_FFI_Error* lstm_jax_forward(XLA_FFI_CallFrame*);
LSTM_EXPORT XLA_FFI_Error* lstm_jax_backward(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_jax_forward,
                              (lstm::Counted<lstm::ForwardImpl, 11, 6>),
                              lstm::Binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_jax_backward,
                              (lstm::Counted<lstm::BackwardImpl, 18, 9>),
                              lstm::Binding());

// What Python asks.
LSTM_EXPORT int lstm_jax_width() { return lstm::BestKernels().width; }

LSTM_EXPORT const char* lstm_jax_isa() { return lstm::BestKernels().name; }

LSTM_EXPORT void lstm_jax_sigmoid(const float* x, float* y, int64_t size) {
  lstm::BestKernels().sigmoid(x, y, size);
}

LSTM_EXPORT void lstm_jax_tanh(const float* x, float* y, int64_t size) {
  lstm::BestKernels().tanh(x, y, size);
}
