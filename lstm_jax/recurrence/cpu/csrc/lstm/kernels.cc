// The kernels, compiled once for each instruction set. The build says which:
// LSTM_ISA names it, LSTM_WIDTH and LSTM_REGISTERS describe its registers.
#include "lstm/backward.h"
#include "lstm/forward.h"
#include "lstm/run.h"
#include "lstm/variant_step.h"
#include "quantized/quantized.h"

#define LSTM_TEXT_OF(name) #name
#define LSTM_TEXT(name) LSTM_TEXT_OF(name)

namespace lstm {
namespace LSTM_ISA {
namespace {

// The directions of a layer have the same step.
template <class Scalar>
void RunForward(const ForwardProblem<Scalar>* problems, int count, Executor& executor) {
  if (problems[0].variant.standard) {
    RunAll<Scalar, Forward<Scalar, StandardStep<Scalar>>>(problems, count, executor);
  } else {
    RunAll<Scalar, Forward<Scalar, VariantStep<Scalar>>>(problems, count, executor);
  }
}

template <class Scalar>
void RunBackward(const BackwardProblem<Scalar>* problems, int count,
                 Executor& executor) {
  if (problems[0].variant.standard) {
    RunAll<Scalar, Backward<Scalar, StandardStep<Scalar>>>(problems, count, executor);
  } else {
    RunAll<Scalar, Backward<Scalar, VariantStep<Scalar>>>(problems, count, executor);
  }
}

template <class Function>
void Map(const float* x, float* y, int64_t size, Function function) {
  for (int64_t n = 0; n < size; n += kWidth) {
    const int count = static_cast<int>(Min(size - n, kWidth));
    StoreUpTo(y + n, function(LoadUpTo(x + n, count)), count);
  }
}

void MapSigmoid(const float* x, float* y, int64_t size) {
  Map(x, y, size, [](Vec v) { return Sigmoid(v); });
}

void MapTanh(const float* x, float* y, int64_t size) {
  Map(x, y, size, [](Vec v) { return Tanh(v); });
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {
    LSTM_TEXT(LSTM_ISA),   RunForward<float>, RunBackward<float>, RunForward<BFloat16>,
    RunBackward<BFloat16>, RunQuantized,      MapSigmoid,         MapTanh,
};

}  // namespace LSTM_ISA
}  // namespace lstm
