// Numbers below the normal ones as zeros, for a while: on a thread of XLA they are, and
// on another thread they may not be.
#ifndef LSTM_JAX_QUANTIZED_DENORMALS_H_
#define LSTM_JAX_QUANTIZED_DENORMALS_H_

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lstm {
namespace LSTM_ISA {

class WithoutDenormals {
 public:
#if defined(__x86_64__)
  WithoutDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~WithoutDenormals() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  WithoutDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t{1} << 24)));
  }
  ~WithoutDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#endif
  WithoutDenormals(const WithoutDenormals&) = delete;
  WithoutDenormals& operator=(const WithoutDenormals&) = delete;

 private:
#if defined(__x86_64__)
  unsigned before_;
#else
  uint64_t before_;
#endif
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_DENORMALS_H_
