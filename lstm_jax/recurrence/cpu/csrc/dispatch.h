// The choice of an instruction set when the program runs.
#ifndef LSTM_JAX_DISPATCH_H_
#define LSTM_JAX_DISPATCH_H_

#include <string>
#include <vector>

#include "problem.h"

namespace lstm {

// An instruction set of this machine's kind, as isas.def describes it.
struct Isa {
  const char* name;
  const Kernels* kernels;  // null where the compiler did not know the set
  bool runs;
  bool pays;
};

// All of them, the slowest first.
const std::vector<Isa>& KnownIsas();

// The kernels of a name; null if it is not known, was not compiled or does not run
// here.
const Kernels* KernelsNamed(const std::string& name);

struct Choice {
  const Kernels* kernels;  // null if there is an error
  std::string error;
};

// The kernels that are wanted by name, or the best that run here where `wanted` is null
// or empty.
Choice ChooseKernels(const char* wanted);

// The choice of this process: what the environment variable LSTM_JAX_ISA asks for.
const Choice& ChosenKernels();

}  // namespace lstm

#endif  // LSTM_JAX_DISPATCH_H_
