// The kernel in 8 bits, compiled once for each instruction set, with -ffp-contract=off.
#include "lstm/run.h"
#include "quantized/forward.h"
#include "quantized/quantized.h"

namespace lstm {
namespace LSTM_ISA {

void RunQuantized(const QuantizedProblem* problems, int count, Executor& executor) {
  RunAll<int8_t, QuantizedForward>(problems, count, executor);
}

}  // namespace LSTM_ISA
}  // namespace lstm
