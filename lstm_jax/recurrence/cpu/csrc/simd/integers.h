// Whole numbers: what the code of every instruction set counts with.
//
// As all of it, this stands in the namespace of its instruction set: a function
// outside, which the linker may take from any of them, could bring instructions to a
// processor that has not got them.
#ifndef LSTM_JAX_SIMD_INTEGERS_H_
#define LSTM_JAX_SIMD_INTEGERS_H_

#include <cstdint>

#define LSTM_INLINE inline __attribute__((always_inline))

namespace lstm {
namespace LSTM_ISA {

LSTM_INLINE constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
LSTM_INLINE constexpr int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }

LSTM_INLINE constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// Part `rank` of `count` things cut into `parts` nearly equal parts.
LSTM_INLINE Range Part(int64_t count, int rank, int parts) {
  return {count * rank / parts, count * (rank + 1) / parts};
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_SIMD_INTEGERS_H_
