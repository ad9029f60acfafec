#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace lstm {

// LSTM_ISAS is set by the build: X(baseline) X(avx2) ..., the slowest first.
#define X(isa)                   \
  namespace isa {                \
  extern const Kernels kKernels; \
  }
LSTM_ISAS
#undef X

namespace {

bool Supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx2")) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
  if (!std::strcmp(name, "avx512")) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  }
#endif
  return true;
}

const Kernels* const kAll[] = {
#define X(isa) &isa::kKernels,
    LSTM_ISAS
#undef X
};

}  // namespace

const Kernels* KernelsNamed(const char* name) {
  for (const Kernels* kernels : kAll) {
    if (!std::strcmp(name, kernels->name) && Supported(name)) return kernels;
  }
  return nullptr;
}

const Kernels& BestKernels() {
  static const Kernels* const best = [] {
    const char* wanted = std::getenv("LSTM_JAX_ISA");
    const Kernels* found = wanted ? KernelsNamed(wanted) : nullptr;
    if (found) return found;
    for (const Kernels* kernels : kAll) {
      if (Supported(kernels->name)) found = kernels;
    }
    return found;
  }();
  return *best;
}

int ThreadLimit(int available) {
  const char* wanted = std::getenv("LSTM_JAX_NUM_THREADS");
  const int threads = wanted ? std::atoi(wanted) : 0;
  if (threads > 0) return threads;
  return available > 1 ? available : 1;
}

}  // namespace lstm
