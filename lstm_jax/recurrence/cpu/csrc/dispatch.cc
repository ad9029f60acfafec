#include "dispatch.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lstm {

// Set by the build: X(baseline) X(avx2) ..., those that the compiler knows.
#define X(isa)                   \
  namespace isa {                \
  extern const Kernels kKernels; \
  }
LSTM_COMPILED_ISAS
#undef X

namespace {

#if defined(__x86_64__)

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}

bool HasAvxVnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return HasAvx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool HasAvx512Vnni() { return HasAvx512() && __builtin_cpu_supports("avx512vnni"); }

bool HasAvx512BFloat16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return HasAvx512Vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// The system has to be asked for the tile registers, once a process.
bool HasAmx() {
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

bool IsIntel() { return __builtin_cpu_is("intel"); }

#elif defined(__aarch64__)

bool HasDotProducts() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1 << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProducts;
#elif defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

#endif

const Kernels* Compiled(const std::string& name) {
  const Kernels* const all[] = {
#define X(isa) &isa::kKernels,
      LSTM_COMPILED_ISAS
#undef X
  };
  for (const Kernels* kernels : all) {
    if (name == kernels->name) return kernels;
  }
  return nullptr;
}

std::string Joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const std::vector<Isa>& KnownIsas() {
#if defined(__x86_64__)
#define ISA_X86_64(name, width, registers, flags, runs, pays) \
  {#name, Compiled(#name), runs, pays},
#define ISA_AARCH64(...)
#else
#define ISA_X86_64(...)
#define ISA_AARCH64(name, width, registers, flags, runs, pays) \
  {#name, Compiled(#name), runs, pays},
#endif
  static const auto* const isas = new std::vector<Isa>{
#include "isas.def"
  };
#undef ISA_X86_64
#undef ISA_AARCH64
  return *isas;
}

const Kernels* KernelsNamed(const std::string& name) {
  for (const Isa& isa : KnownIsas()) {
    if (name == isa.name && isa.runs) return isa.kernels;
  }
  return nullptr;
}

Choice ChooseKernels(const char* wanted) {
  const bool any = wanted == nullptr || *wanted == '\0';
  const Kernels* found = any ? nullptr : KernelsNamed(wanted);
  std::vector<std::string> known, here;
  for (const Isa& isa : KnownIsas()) {
    known.push_back(isa.name);
    if (!isa.kernels || !isa.runs) continue;
    here.push_back(isa.name);
    if (any && isa.pays) found = isa.kernels;
  }
  if (found) return {found, ""};
  const std::string got = any ? "" : std::string(", got '") + wanted + "'";
  return {nullptr,
          "LSTM_JAX_ISA: expected an instruction set that was compiled and runs "
          "here (" +
              Joined(here) + ")" + got + "; known are " + Joined(known) + "."};
}

const Choice& ChosenKernels() {
  static const auto* const choice =
      new Choice(ChooseKernels(std::getenv("LSTM_JAX_ISA")));
  return *choice;
}

}  // namespace lstm
