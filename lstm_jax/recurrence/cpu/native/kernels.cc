// The kernels, compiled once for each instruction set. The build says which:
// LSTM_ISA names it, LSTM_WIDTH and LSTM_REGISTERS describe its registers.
#include "backward.h"
#include "forward.h"

#define LSTM_TEXT_OF(name) #name
#define LSTM_TEXT(name) LSTM_TEXT_OF(name)

namespace lstm {
namespace LSTM_ISA {
namespace {

template <class Scalar>
void RunForward(const ForwardProblem<Scalar>& problem, Crew& crew) {
  Forward<Scalar>(problem, crew.limit()).Run(crew);
}

template <class Scalar>
void RunBackward(const BackwardProblem<Scalar>& problem, Crew& crew) {
  Backward<Scalar>(problem, crew.limit()).Run(crew);
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
    LSTM_TEXT(LSTM_ISA),  kWidth,
    RunForward<float>,    RunBackward<float>,
    RunForward<BFloat16>, RunBackward<BFloat16>,
    MapSigmoid,           MapTanh,
};

}  // namespace LSTM_ISA
}  // namespace lstm
