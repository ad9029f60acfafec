// How the factors of a product are kept: in lanes of 32 bits.
//
// A lane is one float. Where the processor multiplies pairs of bfloat16, and the numbers
// are bfloat16, it is two of them that follow each other in depth: the left factor is
// then as it is in memory, two by two, and the right one has two rows in each of its
// own. All else about a product is the same, and half as deep.
//
// A panel is kPanel columns of lanes, row after row, so that a product reads it from front
// to back. All matrices in scratch memory are kept in panels: [columns / kPanel][rows]
// [kPanel].
#ifndef LSTM_JAX_LANES_H_
#define LSTM_JAX_LANES_H_

#include "vec.h"

namespace lstm {
namespace LSTM_ISA {

constexpr int kPanel = 2 * kWidth;

// The left factor: lane (row, k) is at data[row * kPanel + k / kPanel * panel_step
// + k % kPanel]. That rows are a constant apart saves the products many registers.
struct Left {
  const float* data;
  ptrdiff_t panel_step;

  Left From(int64_t row) const { return {data + row * kPanel, panel_step}; }
};

// The right factor: lane (k, column) of panel p is at data[p * panel_step + k * kPanel
// + column].
struct Right {
  const float* data;
  ptrdiff_t panel_step;

  Right From(int64_t panel) const { return {data + panel * panel_step, panel_step}; }
};

// Where sums start from or go to: element (row, panel, column) is at data[row * row_step
// + panel * panel_step + column]. With steps of 0 it is the same for all rows.
template <class Float>
struct Sums {
  Float* data;
  ptrdiff_t row_step;
  ptrdiff_t panel_step;

  Sums At(int64_t row, int64_t panel) const {
    return {data + row * row_step + panel * panel_step, row_step, panel_step};
  }
};

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

template <class Scalar>
constexpr bool kPaired = kHasPairs && std::is_same_v<Scalar, BFloat16>;

template <class Scalar>
constexpr int kPerLane = kPaired<Scalar> ? 2 : 1;

LSTM_INLINE constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many lanes deep a product over `depth` numbers is. Pairs come in whole tiles.
template <class Scalar>
LSTM_INLINE int64_t Lanes(int64_t depth) {
  return kPaired<Scalar> ? CeilDiv(depth, 2 * kWidth) * kWidth : depth;
}

// The lane at `from` in all places, bit by bit.
LSTM_INLINE Vec BroadcastLane(const float* from) {
  int32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return FromBits(bits - IntVec{});
}

// sum + a * b, or where lanes are pairs, the sum and both products.
template <bool kPairs>
LSTM_INLINE Vec MultiplyAdd(Vec sum, Vec a, Vec b) {
#if defined(__AVX512BF16__)
  if constexpr (kPairs) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                  reinterpret_cast<__m512bh>(a),
                                                  reinterpret_cast<__m512bh>(b)));
  }
#endif
  return sum + a * b;
}

// kWidth numbers that follow each other in depth: a left factor's.
template <class Scalar>
LSTM_INLINE void StoreLeft(float* to, Vec v) {
  if constexpr (kPaired<Scalar>) {
    StoreAll(reinterpret_cast<BFloat16*>(to), v);
  } else {
    Store(to, Round<Scalar>(v));
  }
}

template <class Scalar>
LSTM_INLINE Vec LoadLeft(const float* from) {
  if constexpr (kPaired<Scalar>) return LoadAll(reinterpret_cast<const BFloat16*>(from));
  return Load(from);
}

// One row of lanes of a right factor, from one row of numbers or from two.
LSTM_INLINE Vec RightLanes(Vec even, Vec odd) {
  return FromBits((Bits(even) >> 16 & 0xffff) | Bits(odd));
}

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

#endif  // LSTM_JAX_LANES_H_
