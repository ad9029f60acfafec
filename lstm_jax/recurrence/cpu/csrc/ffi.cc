// The doors to XLA: buffers are checked here, and only here.
#include "ffi.h"

#include <string_view>

namespace lstm {
namespace {

// What both passes are given.
struct Inputs {
  AnyBuffer xs, kernel, recurrent, bias, projection, h, c, valid, reset, reset_h,
      reset_c, peephole, recurrent_mask, output_mask, keep_h, keep_c, diagonal,
      norm_scale, norm_shift, cell_norm;
};

constexpr size_t kInputs = 20;

Inputs InputsOf(const Buffers& b) {
  return {b.Arg(0),  b.Arg(1),  b.Arg(2),  b.Arg(3),  b.Arg(4),  b.Arg(5),  b.Arg(6),
          b.Arg(7),  b.Arg(8),  b.Arg(9),  b.Arg(10), b.Arg(11), b.Arg(12), b.Arg(13),
          b.Arg(14), b.Arg(15), b.Arg(16), b.Arg(17), b.Arg(18), b.Arg(19)};
}

// What a call says beside its buffers.
struct Attributes {
  int64_t reverse;         // bit n is direction n's
  std::string_view gates;  // the letters of those that there are, in their order
  int64_t heads;
  bool standard, coupled, linear_candidate, linear_output;
  float clip, cell_clip, zoneout_h, zoneout_c;
};

GateOrder OrderOf(std::string_view gates) {
  constexpr std::string_view kLetters = "ifgo";
  GateOrder order = {static_cast<int>(gates.size()), {}};
  for (int gate = 0; gate < 4; ++gate) {
    const size_t place = gates.find(kLetters[gate]);
    order.place[gate] =
        place == std::string_view::npos ? kNoGate : static_cast<int>(place);
  }
  return order;
}

// How many peepholes there are: of all gates but g.
int64_t Peepholes(const GateOrder& gates) {
  return gates.count - (gates.place[2] == kNoGate ? 0 : 1);
}

template <class Scalar>
void CheckVariant(const Inputs& in, const Attributes& step, Checker& check,
                  const Sizes& s, Variant<Scalar>& v) {
  v.standard = step.standard;
  v.coupled = step.coupled;
  v.linear_candidate = step.linear_candidate;
  v.linear_output = step.linear_output;
  v.clip = step.clip;
  v.cell_clip = step.cell_clip;
  v.zoneout_h = step.zoneout_h;
  v.zoneout_c = step.zoneout_c;
  const int64_t T = s.steps, B = s.rows, H = s.units, P = s.outputs;
  v.peephole = check.Check<Scalar>("peephole", in.peephole, kType<Scalar>,
                                   {Peepholes(s.gates), H}, true);
  v.diagonal = check.Check<Scalar>("diagonal", in.diagonal, kType<Scalar>,
                                   {s.gates.count, H}, true);
  const auto mask = [&](const char* name, const AnyBuffer& buffer) {
    return check.Check<float>(name, buffer, DataType::F32, {B, P}, true);
  };
  v.recurrent_mask = mask("recurrent mask", in.recurrent_mask);
  v.output_mask = mask("output mask", in.output_mask);
  v.keep_h = check.Check<bool>("keep h", in.keep_h, DataType::PRED, {T, B, P}, true);
  v.keep_c = check.Check<bool>("keep c", in.keep_c, DataType::PRED, {T, B, H}, true);
  const auto norm = [&](const char* name, const AnyBuffer& buffer, int64_t columns) {
    return check.Check<Scalar>(name, buffer, kType<Scalar>, {2, columns}, true);
  };
  v.norm_scale = norm("norm scale", in.norm_scale, s.columns());
  v.norm_shift = norm("norm shift", in.norm_shift, s.columns());
  v.cell_norm = norm("cell norm", in.cell_norm, H);
  check.Require(!v.norm_scale == !v.cell_norm && (v.norm_scale || !v.norm_shift),
                "lstm_jax: expected scales of gates and of c, or none.");
}

// Fills the fields that both problems have.
template <class Problem, class Scalar = std::remove_const_t<
                             std::remove_pointer_t<decltype(Problem::xs)>>>
void CheckInputs(const Inputs& in, const Attributes& step, bool reverse, Checker& check,
                 Problem& p) {
  check.Require(in.xs.dimensions().size() == 3 && in.h.dimensions().size() == 2 &&
                    in.c.dimensions().size() == 2,
                "lstm_jax: expected xs [T,B,I], h [B,P] and c [B,H].");
  if (check.failed()) return;
  const int64_t T = in.xs.dimensions()[0], B = in.xs.dimensions()[1];
  const int64_t I = in.xs.dimensions()[2], P = in.h.dimensions()[1];
  const int64_t H = in.c.dimensions()[1];
  const bool projected = in.projection.element_count() > 0;
  const bool normed = in.norm_scale.element_count() > 0;
  p.sizes = {T,      B,         I, H, P, projected, reverse, OrderOf(step.gates),
             normed, step.heads};
  const int64_t columns = p.sizes.columns();
  check.Require(T > 0 && B > 0 && I > 0 && H > 0 && P > 0,
                "lstm_jax: expected sizes of at least 1.");
  check.Require(step.heads > 0 && P % step.heads == 0 && H % step.heads == 0,
                "lstm_jax: expected heads that divide P and H.");
  check.Require(projected || P == H, "lstm_jax: without a projection, P is H.");
  constexpr DataType kScalar = kType<Scalar>;
  p.xs = check.Check<Scalar>("xs", in.xs, kScalar, {T, B, I});
  p.weights = {
      check.Check<Scalar>("kernel", in.kernel, kScalar, {I, columns}),
      check.Check<Scalar>("recurrent_kernel", in.recurrent, kScalar, {P, columns},
                          true),
      check.Check<Scalar>("bias", in.bias, kScalar, {columns}, true),
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
  CheckVariant(in, step, check, p.sizes, p.variant);
  check.Require(!normed || p.weights.recurrent,
                "lstm_jax: a diagonal is not normalised.");
  check.Require(!p.weights.recurrent != !p.variant.diagonal,
                "lstm_jax: expected a recurrent kernel, or a diagonal.");
}

template <class Scalar>
void CheckForward(const Buffers& buffers, const Attributes& step, bool reverse,
                  Checker& check, ForwardProblem<Scalar>& p) {
  CheckInputs(InputsOf(buffers), step, reverse, check, p);
  const Sizes& s = p.sizes;
  constexpr DataType kScalar = kType<Scalar>;
  constexpr DataType kFloat = DataType::F32;
  const int64_t T = s.steps, B = s.rows, H = s.units, P = s.outputs;
  const int64_t padded = PaddedUnits(H);
  p.ys = check.Check<Scalar>("ys", buffers.Ret(0), kScalar, {T, B, P}, true);
  p.cs = check.Check<float>("cs", buffers.Ret(1), kFloat, {T, B, H}, true);
  p.last_h = check.Check<Scalar>("last h", buffers.Ret(2), kScalar, {B, P});
  p.last_c = check.Check<float>("last c", buffers.Ret(3), kFloat, {B, H});
  p.gates = check.Check<GateBits<Scalar>>("gates", buffers.Ret(4), kGates<Scalar>,
                                          {T, B, 4 * padded}, true);
  p.cells = check.Check<uint32_t>("cells", buffers.Ret(5), DataType::U32,
                                  {T, B, padded}, true);
  check.Require(!p.gates == !p.cells,
                "lstm_jax: expected both gates and cells, or none.");
  p.entering =
      check.Check<Scalar>("entering h", buffers.Ret(6), kScalar, {T, B, P}, true);
}

template <class Scalar>
void CheckBackward(const Buffers& buffers, const Attributes& step, bool reverse,
                   Checker& check, BackwardProblem<Scalar>& p) {
  CheckInputs(InputsOf(buffers), step, reverse, check, p);
  const Sizes& s = p.sizes;
  constexpr DataType kScalar = kType<Scalar>;
  constexpr DataType kFloat = DataType::F32;
  const int64_t T = s.steps, B = s.rows, I = s.inputs, H = s.units, P = s.outputs;
  const int64_t padded = PaddedUnits(H);
  const auto arg = [&](size_t n) { return buffers.Arg(kInputs + n); };
  p.ys = check.Check<Scalar>("ys", arg(0), kScalar, {T, B, P}, true);
  p.entering = check.Check<Scalar>("entering h", arg(1), kScalar, {T, B, P}, true);
  const bool plain = !p.controls.valid && !p.controls.reset &&
                     !p.variant.recurrent_mask && !p.variant.output_mask;
  check.Require(p.entering || (p.ys && plain),
                "lstm_jax: expected ys, or with controls and masks the h that enter.");
  p.gates = check.Check<GateBits<Scalar>>("gates", arg(2), kGates<Scalar>,
                                          {T, B, 4 * padded});
  p.cells = check.Check<uint32_t>("cells", arg(3), DataType::U32, {T, B, padded});
  p.d_ys = check.Check<Scalar>("d_ys", arg(4), kScalar, {T, B, P}, true);
  p.d_cs = check.Check<float>("d_cs", arg(5), kFloat, {T, B, H}, true);
  p.d_last_h = check.Check<Scalar>("d_last_h", arg(6), kScalar, {B, P});
  p.d_last_c = check.Check<float>("d_last_c", arg(7), kFloat, {B, H});
  const auto ret = [&](size_t n) { return buffers.Ret(n); };
  p.d_xs = check.Check<Scalar>("d_xs", ret(0), kScalar, {T, B, I}, true);
  p.d_kernel = check.Check<Scalar>("d_kernel", ret(1), kScalar, {I, s.columns()}, true);
  p.d_recurrent = check.Check<Scalar>("d_recurrent_kernel", ret(2), kScalar,
                                      {P, s.columns()}, true);
  p.d_bias = check.Check<Scalar>("d_bias", ret(3), kScalar, {s.columns()}, true);
  p.d_projection =
      check.Check<Scalar>("d_projection_kernel", ret(4), kScalar, {H, P}, true);
  check.Require(s.projected || !p.d_projection, "lstm_jax: there is no projection.");
  p.d_h = check.Check<Scalar>("d_h", ret(5), kScalar, {B, P}, true);
  p.d_c = check.Check<float>("d_c", ret(6), kFloat, {B, H}, true);
  p.d_reset_h = check.Check<Scalar>("d_reset_h", ret(7), kScalar, {B, P}, true);
  p.d_reset_c = check.Check<float>("d_reset_c", ret(8), kFloat, {B, H}, true);
  p.d_peephole =
      check.Check<Scalar>("d_peephole", ret(9), kScalar, {Peepholes(s.gates), H}, true);
  p.d_diagonal =
      check.Check<Scalar>("d_diagonal", ret(10), kScalar, {s.gates.count, H}, true);
  p.d_norm_scale =
      check.Check<Scalar>("d_norm_scale", ret(11), kScalar, {2, s.columns()}, true);
  p.d_cell_norm = check.Check<Scalar>("d_cell_norm", ret(12), kScalar, {2, H}, true);
  check.Require(s.normed || (!p.d_norm_scale && !p.d_cell_norm),
                "lstm_jax: nothing is normalised.");
}

bool InBFloat16(const ffi::RemainingArgs& args) {
  return (*args.get<AnyBuffer>(0)).element_type() == DataType::BF16;
}

// A pass, in the dtype that its first buffer has.
template <size_t kArgs, size_t kRets, class CheckProblem, class Floats, class Pairs>
ffi::Error RunInDtype(ffi::ThreadPool threads, int64_t reverse,
                      const ffi::RemainingArgs& args, const ffi::RemainingRets& rets,
                      CheckProblem check, Floats Kernels::* f32,
                      Pairs Kernels::* bf16) {
  if (!Counted<kArgs, kRets>(args, rets))
    return ffi::Error::InvalidArgument(kWrongCount);
  const Choice& choice = ChosenKernels();
  if (!choice.kernels) return ffi::Error::InvalidArgument(choice.error);
  if (InBFloat16(args)) {
    return RunChecked<kArgs, kRets>(std::move(threads), reverse, args, rets, check,
                                    choice.kernels->*bf16);
  }
  return RunChecked<kArgs, kRets>(std::move(threads), reverse, args, rets, check,
                                  choice.kernels->*f32);
}

ffi::Error ForwardCall(ffi::ThreadPool threads, const Attributes& attributes,
                       ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const auto check = [&](const Buffers& buffers, bool backwards, Checker& checker,
                         auto& problem) {
    CheckForward(buffers, attributes, backwards, checker, problem);
  };
  return RunInDtype<kInputs, 7>(std::move(threads), attributes.reverse, args, rets,
                                check, &Kernels::forward_f32, &Kernels::forward_bf16);
}

ffi::Error BackwardCall(ffi::ThreadPool threads, const Attributes& attributes,
                        ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const auto check = [&](const Buffers& buffers, bool backwards, Checker& checker,
                         auto& problem) {
    CheckBackward(buffers, attributes, backwards, checker, problem);
  };
  return RunInDtype<kInputs + 8, 13>(std::move(threads), attributes.reverse, args, rets,
                                     check, &Kernels::backward_f32,
                                     &Kernels::backward_bf16);
}

auto StepBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attrs<Attributes>()
      .RemainingArgs()
      .RemainingRets();
}

}  // namespace
}  // namespace lstm

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(lstm::Attributes,
                                      xla::ffi::StructMember<int64_t>("reverse"),
                                      xla::ffi::StructMember<std::string_view>("gates"),
                                      xla::ffi::StructMember<int64_t>("heads"),
                                      xla::ffi::StructMember<bool>("standard"),
                                      xla::ffi::StructMember<bool>("coupled"),
                                      xla::ffi::StructMember<bool>("linear_candidate"),
                                      xla::ffi::StructMember<bool>("linear_output"),
                                      xla::ffi::StructMember<float>("clip"),
                                      xla::ffi::StructMember<float>("cell_clip"),
                                      xla::ffi::StructMember<float>("zoneout_h"),
                                      xla::ffi::StructMember<float>("zoneout_c"));

LSTM_EXPORT XLA_FFI_Error* lstm_jax_forward(XLA_FFI_CallFrame*);
LSTM_EXPORT XLA_FFI_Error* lstm_jax_backward(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_jax_forward, lstm::ForwardCall, lstm::StepBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_jax_backward, lstm::BackwardCall,
                              lstm::StepBinding());

// What Python asks. The instruction set of this process; null if LSTM_JAX_ISA asks for
// one that cannot be had, and then why.
LSTM_EXPORT const char* lstm_jax_isa() {
  const lstm::Choice& choice = lstm::ChosenKernels();
  return choice.kernels ? choice.kernels->name : nullptr;
}

LSTM_EXPORT const char* lstm_jax_isa_error() {
  return lstm::ChosenKernels().error.c_str();
}

// The names of all that are known, one number after the other; null after the last.
LSTM_EXPORT const char* lstm_jax_known_isa(int number) {
  const auto& isas = lstm::KnownIsas();
  return static_cast<size_t>(number) < isas.size() ? isas[number].name : nullptr;
}

LSTM_EXPORT int lstm_jax_supports(const char* isa) {
  return lstm::KernelsNamed(isa) != nullptr;
}

// y = f(x), of `size` floats.
LSTM_EXPORT void lstm_jax_sigmoid(const float* x, float* y, int64_t size) {
  lstm::ChosenKernels().kernels->sigmoid(x, y, size);
}

LSTM_EXPORT void lstm_jax_tanh(const float* x, float* y, int64_t size) {
  lstm::ChosenKernels().kernels->tanh(x, y, size);
}
