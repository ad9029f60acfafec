// The operands of C += A * B: how they are kept, in lanes of 32 bits.
//
// A lane is one float. Where the processor multiplies pairs of bfloat16, and the
// numbers are bfloat16, it is two of them that follow each other in depth: A is then as
// it is in memory, two by two, and B has two rows in each of its own. Of numbers of 8
// bits there are as many in a lane as the processor multiplies at once, and C is whole
// numbers, bit by bit in the places of floats. All else about a product is the same.
//
// A panel is kNr columns of lanes, row after row, so that a product reads it from front
// to back. All matrices in a workspace are kept in panels: [columns / kNr][rows][kNr].
#ifndef LSTM_JAX_GEMM_OPERANDS_H_
#define LSTM_JAX_GEMM_OPERANDS_H_

#include <cstddef>
#include <cstring>

#include "simd/dot.h"
#include "simd/load_store.h"

namespace lstm {
namespace LSTM_ISA {

constexpr int kNr = 2 * kWidth;

// A: lane (row, k) is at data[row * kNr + k / kNr * panel_step
// + k % kNr]. That rows are a constant apart saves the products many registers.
struct PackedA {
  const float* data;
  ptrdiff_t panel_step;

  PackedA From(int64_t row) const { return {data + row * kNr, panel_step}; }
  // From the first lane of a panel on.
  PackedA FromLane(int64_t lane) const {
    return {data + lane / kNr * panel_step, panel_step};
  }
};

// B: lane (k, column) of panel p is at data[p * panel_step + k * kNr
// + column].
struct PackedB {
  const float* data;
  ptrdiff_t panel_step;

  PackedB From(int64_t panel) const { return {data + panel * panel_step, panel_step}; }
  PackedB FromLane(int64_t lane) const { return {data + lane * kNr, panel_step}; }
};

// C, where sums start from or go to: element (row, panel, column) is at data[row *
// row_step
// + panel * panel_step + column]. With steps of 0 it is the same for all rows.
template <class Float>
struct MatrixC {
  Float* data;
  ptrdiff_t row_step;
  ptrdiff_t panel_step;

  MatrixC At(int64_t row, int64_t panel) const {
    return {data + row * row_step + panel * panel_step, row_step, panel_step};
  }
};

LSTM_INLINE MatrixC<const float> AsInput(MatrixC<float> c) {
  return {c.data, c.row_step, c.panel_step};
}

#if LSTM_AVX512_BF16
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

template <class Scalar>
constexpr bool kPaired = kHasPairs && std::is_same_v<Scalar, BFloat16>;

template <class Scalar>
constexpr bool kIntegers = std::is_same_v<Scalar, int8_t>;

// What a lane is.
enum class Lanes { kFloat, kPair, kIntegers };

template <class Scalar>
constexpr Lanes kLanes = kIntegers<Scalar> ? Lanes::kIntegers
                         : kPaired<Scalar> ? Lanes::kPair
                                           : Lanes::kFloat;

template <class Scalar>
constexpr int kKr = kIntegers<Scalar> ? kIntegersPerLane
                    : kPaired<Scalar> ? 2
                                      : 1;

// How many lanes deep a product over `depth` numbers is. Pairs come in whole tiles,
// and numbers of 8 bits in whole blocks, as they are made.
template <class Scalar>
LSTM_INLINE int64_t DepthInLanes(int64_t depth) {
  if (kIntegers<Scalar>) return CeilDiv(depth, kWidth) * (kWidth / kKr<Scalar>);
  return kPaired<Scalar> ? CeilDiv(depth, 2 * kWidth) * kWidth : depth;
}

// The lane at `from` in all places, bit by bit.
LSTM_INLINE Vec BroadcastLane(const float* from) {
  int32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return FromBits(bits - IntVec{});
}

// sum + a * b, or where lanes are several numbers, the sum and all their products.
template <Lanes kKind>
LSTM_INLINE Vec MultiplyAdd(Vec sum, Vec a, Vec b) {
  if constexpr (kKind == Lanes::kIntegers) {
    return FromBits(Dot(Bits(sum), Bits(a), Bits(b)));
  }
#if LSTM_AVX512_BF16
  if constexpr (kKind == Lanes::kPair) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                  reinterpret_cast<__m512bh>(a),
                                                  reinterpret_cast<__m512bh>(b)));
  }
#endif
  return sum + a * b;
}

// kWidth numbers that follow each other in depth: of A.
template <class Scalar>
LSTM_INLINE void StoreA(float* to, Vec v) {
  if constexpr (kPaired<Scalar>) {
    StoreAll(reinterpret_cast<BFloat16*>(to), v);
  } else {
    Store(to, Round<Scalar>(v));
  }
}

template <class Scalar>
LSTM_INLINE Vec LoadA(const float* from) {
  if constexpr (kPaired<Scalar>)
    return LoadAll(reinterpret_cast<const BFloat16*>(from));
  return Load(from);
}

// One row of lanes of B from two rows of numbers.
LSTM_INLINE Vec InterleavePairs(Vec even, Vec odd) {
  return FromBits((Bits(even) >> 16 & 0xffff) | Bits(odd));
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GEMM_OPERANDS_H_
