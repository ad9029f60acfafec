// Vectors of kWidth floats, in the compiler's own extension: one source for every
// instruction set. LSTM_ISA names the namespace, so that no symbol of one instruction
// set can be linked in place of another's.
#ifndef LSTM_JAX_VEC_H_
#define LSTM_JAX_VEC_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "problem.h"

#define LSTM_INLINE inline __attribute__((always_inline))

namespace lstm {
namespace LSTM_ISA {

constexpr int kWidth = LSTM_WIDTH;
// Vector registers there are; a tile of a product uses three quarters of them.
constexpr int kRegisters = LSTM_REGISTERS;

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef float UnalignedVec
    __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

LSTM_INLINE Vec Load(const float* from) {
  return *reinterpret_cast<const UnalignedVec*>(from);
}

LSTM_INLINE void Store(float* to, Vec v) { *reinterpret_cast<UnalignedVec*>(to) = v; }

LSTM_INLINE IntVec Bits(Vec v) { return reinterpret_cast<IntVec>(v); }

LSTM_INLINE Vec FromBits(IntVec bits) { return reinterpret_cast<Vec>(bits); }

LSTM_INLINE Vec Broadcast(float x) { return x - Vec{}; }

LSTM_INLINE Vec Select(IntVec condition, Vec on_true, Vec on_false) {
  return condition ? on_true : on_false;
}

alignas(64) constexpr int32_t kLaneNumbers[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                 8, 9, 10, 11, 12, 13, 14, 15};

// The first `count` lanes of v, and zeros. What stands beyond the last unit must be 0
// and not something times 0, which is NaN where the something is not finite.
LSTM_INLINE Vec LiveLanes(Vec v, int count) {
  IntVec numbers;
  std::memcpy(&numbers, kLaneNumbers, sizeof(numbers));
  return Select(numbers < count, v, Vec{});
}

// What is beyond the limit becomes the limit; NaN stays NaN.
LSTM_INLINE Vec AtMost(Vec x, float limit) {
  return Select(x > limit, Broadcast(limit), x);
}

LSTM_INLINE Vec AtLeast(Vec x, float limit) {
  return Select(x < limit, Broadcast(limit), x);
}

// a / b, for a of at most 2^24 in size and b of at least 1; 0 where b is infinity.
LSTM_INLINE Vec Divide(Vec a, Vec b) {
#if defined(__AVX512F__)
  // A division of 16 floats takes 16 cycles. This is an estimate of 14 bits and one
  // step of Newton's, less than 1 ulp off.
  const Vec estimate = reinterpret_cast<Vec>(_mm512_rcp14_ps(b));
  const Vec first = a * estimate;
  const Vec quotient = first + estimate * (a - b * first);
  return Select(b > 0x1p127f, Vec{}, quotient);
#else
  return a / b;
#endif
}

LSTM_INLINE float ToFloat(float x) { return x; }

LSTM_INLINE float ToFloat(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Vectors of kWidth 16-bit numbers, in memory and out of it.
typedef uint16_t ShortVec __attribute__((vector_size(2 * kWidth)));
typedef uint16_t UnalignedShortVec
    __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));

LSTM_INLINE IntVec LoadShorts(const void* from) {
  const ShortVec v = *static_cast<const UnalignedShortVec*>(from);
  return __builtin_convertvector(v, IntVec);
}

// Keeps the low 16 bits of each.
LSTM_INLINE void StoreShorts(void* to, IntVec v) {
  *static_cast<UnalignedShortVec*>(to) = __builtin_convertvector(v, ShortVec);
}

// A vector's value after it went through the Scalar type: to bfloat16, to the nearest
// and to even. NaN stays NaN.
template <class Scalar>
LSTM_INLINE Vec Round(Vec v) {
  if constexpr (std::is_same_v<Scalar, float>) {
    return v;
  } else {
    const IntVec bits = Bits(v);
    const IntVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) & ~0xffff;
    return Select(v == v, FromBits(rounded), FromBits(bits | 0x400000));
  }
}

LSTM_INLINE Vec LoadAll(const float* from) { return Load(from); }

LSTM_INLINE Vec LoadAll(const BFloat16* from) {
  return FromBits(LoadShorts(from) << 16);
}

LSTM_INLINE void StoreAll(float* to, Vec v) { Store(to, v); }

LSTM_INLINE void StoreAll(BFloat16* to, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(to, &rounded, sizeof(rounded));
#else
  StoreShorts(to, Bits(Round<BFloat16>(v)) >> 16);
#endif
}

// Loads and stores of the first `count` of kWidth elements, of either type.
template <class Scalar>
LSTM_INLINE Vec LoadUpTo(const Scalar* from, int count) {
  if (count >= kWidth) return LoadAll(from);
  float values[kWidth] = {};
  for (int n = 0; n < count; ++n) values[n] = ToFloat(from[n]);
  return Load(values);
}

template <class Scalar>
LSTM_INLINE void StoreUpTo(Scalar* to, Vec v, int count) {
  if (count >= kWidth) return StoreAll(to, v);
  Scalar values[kWidth];
  StoreAll(values, v);
  for (int n = 0; n < count; ++n) to[n] = values[n];
}

// Gates where they may lose some bits: 16 bits of fixed point, of [0, 1] or [-1, 1].
LSTM_INLINE void StoreUnit(void* to, Vec v) {
  StoreShorts(to, __builtin_convertvector(v * 65535.0f + 0.5f, IntVec));
}

LSTM_INLINE Vec LoadUnit(const void* from) {
  return __builtin_convertvector(LoadShorts(from), Vec) * (1.0f / 65535.0f);
}

LSTM_INLINE void StoreSymmetric(void* to, Vec v) { StoreUnit(to, v * 0.5f + 0.5f); }

LSTM_INLINE Vec LoadSymmetric(const void* from) { return LoadUnit(from) * 2.0f - 1.0f; }

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_VEC_H_
