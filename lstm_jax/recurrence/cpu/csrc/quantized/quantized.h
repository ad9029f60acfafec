// The kernel in 8 bits of one instruction set. It is compiled apart, since it must not
// take products into sums.
#ifndef LSTM_JAX_QUANTIZED_QUANTIZED_H_
#define LSTM_JAX_QUANTIZED_QUANTIZED_H_

#include "problem.h"

namespace lstm {
namespace LSTM_ISA {

// One problem, or the two directions of a layer.
void RunQuantized(const QuantizedProblem* problems, int count, Executor& executor);

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_QUANTIZED_H_
