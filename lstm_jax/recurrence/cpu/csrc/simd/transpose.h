// The transpose of kWidth vectors.
#ifndef LSTM_JAX_SIMD_TRANSPOSE_H_
#define LSTM_JAX_SIMD_TRANSPOSE_H_

#include "simd/vec.h"

namespace lstm {
namespace LSTM_ISA {

// Places of two vectors that alternate, from the first halves and from the second.
#if LSTM_WIDTH == 16
#define LSTM_FIRST_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define LSTM_SECOND_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LSTM_WIDTH == 8
#define LSTM_FIRST_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define LSTM_SECOND_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LSTM_FIRST_HALVES 0, 4, 1, 5
#define LSTM_SECOND_HALVES 2, 6, 3, 7
#endif

// kWidth rows of kWidth lanes become columns.
LSTM_INLINE void Transpose(Vec (&rows)[kWidth]) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  // Each stage shuffles all rows as one deals cards; after log2(kWidth) stages every
  // lane is in its place.
#pragma GCC unroll 4
  for (int stage = 1; stage < kWidth; stage *= 2) {
    Vec next[kWidth];
#pragma GCC unroll 8
    for (int n = 0; n < kWidth / 2; ++n) {
      const Vec a = rows[n], b = rows[n + kWidth / 2];
      next[2 * n] = __builtin_shufflevector(a, b, LSTM_FIRST_HALVES);
      next[2 * n + 1] = __builtin_shufflevector(a, b, LSTM_SECOND_HALVES);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kWidth; ++n) rows[n] = next[n];
  }
#else
  float values[kWidth][kWidth];
  for (int row = 0; row < kWidth; ++row) {
    Store(values[row], rows[row]);
  }
  for (int row = 0; row < kWidth; ++row) {
    for (int n = 0; n < kWidth; ++n) rows[row][n] = values[n][row];
  }
#endif
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_SIMD_TRANSPOSE_H_
