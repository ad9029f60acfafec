// Vectors in memory: as floats, as bfloat16, and in 16 bits of fixed point; whole ones,
// and the last of a row, which may not be full.
#ifndef LSTM_JAX_SIMD_LOAD_STORE_H_
#define LSTM_JAX_SIMD_LOAD_STORE_H_

#include <type_traits>

#include "problem.h"
#include "simd/vec.h"

namespace lstm {
namespace LSTM_ISA {

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
#if LSTM_AVX512_BF16
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(to, &rounded, sizeof(rounded));
#else
  StoreShorts(to, Bits(Round<BFloat16>(v)) >> 16);
#endif
}

#if LSTM_AVX512
LSTM_INLINE __mmask16 LowLanes(int count) {
  return static_cast<__mmask16>((1 << count) - 1);
}
#endif

// Loads and stores of the first `count` of kWidth elements, of either type.
template <class Scalar>
LSTM_INLINE Vec LoadUpTo(const Scalar* from, int count) {
  if (count >= kWidth) return LoadAll(from);
#if LSTM_AVX512
  if constexpr (std::is_same_v<Scalar, float>) {
    return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(LowLanes(count), from));
  }
#endif
  float values[kWidth] = {};
  for (int n = 0; n < count; ++n) values[n] = ToFloat(from[n]);
  return Load(values);
}

template <class Scalar>
LSTM_INLINE void StoreUpTo(Scalar* to, Vec v, int count) {
  if (count >= kWidth) return StoreAll(to, v);
#if LSTM_AVX512
  if constexpr (std::is_same_v<Scalar, float>) {
    return _mm512_mask_storeu_ps(to, LowLanes(count), reinterpret_cast<__m512>(v));
  }
#endif
  Scalar values[kWidth];
  StoreAll(values, v);
  for (int n = 0; n < count; ++n) to[n] = values[n];
}

// Block `block` of kWidth of `size` truth values, as a condition of all bits.
LSTM_INLINE IntVec LoadBools(const bool* from, int64_t size, int64_t block) {
  typedef uint8_t ByteVec __attribute__((vector_size(kWidth)));
  const int64_t first = block * kWidth;
  const int64_t left = size - first;
  ByteVec bytes = {};
  if (left >= kWidth) {
    std::memcpy(&bytes, from + first, kWidth);
  } else if (left > 0) {
    std::memcpy(&bytes, from + first, left);
  }
  return __builtin_convertvector(bytes, IntVec) != 0;
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

// How many of the next kWidth numbers there are, if `left` are left.
LSTM_INLINE int Count(int64_t left) {
  return static_cast<int>(Max(Min(left, kWidth), 0));
}

// Block `block` of kWidth numbers in a row of [rows, size].
template <class Scalar>
LSTM_INLINE Vec LoadBlock(const Scalar* from, int64_t row, int64_t size,
                          int64_t block) {
  const int64_t column = block * kWidth;
  return LoadUpTo(from + row * size + column, Count(size - column));
}

// Block `block` of a row of `size` numbers, without what a product left in the lanes
// beyond them.
LSTM_INLINE Vec LiveBlock(Vec v, int64_t size, int64_t block) {
  return LiveLanes(v, Count(size - block * kWidth));
}

// A block of numbers to memory; to nowhere, if that is null.
template <class Scalar>
LSTM_INLINE void StoreBlock(Scalar* to, int64_t row, int64_t size, int64_t block,
                            Vec v) {
  if (!to) return;
  const int64_t column = block * kWidth;
  StoreUpTo(to + row * size + column, v, Count(size - column));
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_SIMD_LOAD_STORE_H_
