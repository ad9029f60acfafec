#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace lstm {

// LSTM_ISAS is set by the build: X(baseline) X(avx2) ..., the slowest first.
#define X(isa)                   \
  namespace isa {                \
  extern const Kernels kKernels; \
  }
LSTM_ISAS
#undef X

namespace {

#if defined(__x86_64__)

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}

bool HasAvx512BFloat16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return HasAvx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// The system has to be asked for the tile registers, once a process.
bool HasTiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return HasAvx512BFloat16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
         (d >> 22 & 1) && (d >> 24 & 1) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

bool Supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx2")) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
  if (!std::strcmp(name, "avx512")) return HasAvx512();
  if (!std::strcmp(name, "avx512bf16")) return HasAvx512BFloat16();
  if (!std::strcmp(name, "amx")) return HasTiles();
#endif
  return true;
}

// Intel's processors multiply pairs of bfloat16 at half the rate of floats, but in tiles.
bool Pays(const char* name) {
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx512bf16")) return !__builtin_cpu_is("intel");
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
      if (Supported(kernels->name) && Pays(kernels->name)) found = kernels;
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
