// The door to XLA of what is quantised.
#include "ffi.h"

namespace lstm {
namespace {

// The arguments of one direction, in their order.
enum Arg : size_t {
  kXs,
  kKernel,
  kKernelScale,
  kRecurrent,
  kRecurrentScale,
  kBias,
  kProjection,
  kProjectionScale,
  kH,
  kC,
  kValid,
  kReset,
  kResetH,
  kResetC,
  kArgs
};
constexpr size_t kRets = 4;

QuantizedMatrix CheckMatrix(const Buffers& buffers, Checker& check, const char* name,
                            size_t first, int64_t rows, int64_t columns,
                            bool optional = false) {
  return {check.Check<int8_t>(name, buffers.Arg(first), DataType::S8, {rows, columns},
                              optional),
          check.Check<float>(name, buffers.Arg(first + 1), DataType::F32, {columns},
                             optional)};
}

void CheckQuantized(const Buffers& buffers, bool reverse, Checker& check,
                    QuantizedProblem& p) {
  constexpr DataType kFloat = DataType::F32, kBool = DataType::PRED;
  const AnyBuffer xs = buffers.Arg(kXs), h = buffers.Arg(kH), c = buffers.Arg(kC);
  check.Require(xs.dimensions().size() == 3 && h.dimensions().size() == 2 &&
                    c.dimensions().size() == 2,
                "lstm_jax: expected xs [T,B,I], h [B,P] and c [B,H].");
  if (check.failed()) return;
  const int64_t T = xs.dimensions()[0], B = xs.dimensions()[1];
  const int64_t I = xs.dimensions()[2], P = h.dimensions()[1], H = c.dimensions()[1];
  const bool projected = buffers.Arg(kProjection).element_count() > 0;
  p.sizes = {T, B, I, H, P, projected, reverse, kAllGates, false, 1};
  check.Require(T > 0 && B > 0 && I > 0 && H > 0 && P > 0,
                "lstm_jax: expected sizes of at least 1.");
  check.Require(projected || P == H, "lstm_jax: without a projection, P is H.");
  p.xs = check.Check<float>("xs", xs, kFloat, {T, B, I});
  p.weights = {
      CheckMatrix(buffers, check, "kernel", kKernel, I, 4 * H),
      CheckMatrix(buffers, check, "recurrent_kernel", kRecurrent, P, 4 * H),
      CheckMatrix(buffers, check, "projection_kernel", kProjection, H, P, true),
      check.Check<float>("bias", buffers.Arg(kBias), kFloat, {4 * H}, true)};
  p.state = {check.Check<float>("h", h, kFloat, {B, P}),
             check.Check<float>("c", c, kFloat, {B, H})};
  p.controls = {
      check.Check<bool>("valid", buffers.Arg(kValid), kBool, {T, B}, true),
      check.Check<bool>("reset", buffers.Arg(kReset), kBool, {T, B}, true),
      {check.Check<float>("reset_h", buffers.Arg(kResetH), kFloat, {B, P}, true),
       check.Check<float>("reset_c", buffers.Arg(kResetC), kFloat, {B, H}, true)}};
  const State<float>& reset_state = p.controls.reset_state;
  check.Require(!p.controls.reset || (reset_state.h && reset_state.c),
                "lstm_jax: reset needs a reset state.");
  p.ys = check.Check<float>("ys", buffers.Ret(0), kFloat, {T, B, P}, true);
  p.cs = check.Check<float>("cs", buffers.Ret(1), kFloat, {T, B, H}, true);
  p.last_h = check.Check<float>("last h", buffers.Ret(2), kFloat, {B, P});
  p.last_c = check.Check<float>("last c", buffers.Ret(3), kFloat, {B, H});
}

ffi::Error QuantizedCall(ffi::ThreadPool threads, int64_t reverse,
                         ffi::RemainingArgs args, ffi::RemainingRets rets) {
  if (!Counted<kArgs, kRets>(args, rets))
    return ffi::Error::InvalidArgument(kWrongCount);
  const Choice& choice = ChosenKernels();
  if (!choice.kernels) return ffi::Error::InvalidArgument(choice.error);
  return RunChecked<kArgs, kRets>(std::move(threads), reverse, args, rets,
                                  CheckQuantized, choice.kernels->quantized);
}

}  // namespace
}  // namespace lstm

LSTM_EXPORT XLA_FFI_Error* lstm_jax_quantized(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_jax_quantized, lstm::QuantizedCall, lstm::Binding());
