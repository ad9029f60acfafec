// The choice of an instruction set, and of a number of threads, when the program runs.
#ifndef LSTM_JAX_DISPATCH_H_
#define LSTM_JAX_DISPATCH_H_

#include "problem.h"

namespace lstm {

// The kernels that are best on this processor, or those that the environment variable
// LSTM_JAX_ISA names, where the processor has them. The same from call to call.
const Kernels& BestKernels();

// The kernels of a name, or null.
const Kernels* KernelsNamed(const char* name);

// LSTM_JAX_NUM_THREADS where that is set, else `available`; at least 1.
int ThreadLimit(int available);

}  // namespace lstm

#endif  // LSTM_JAX_DISPATCH_H_
