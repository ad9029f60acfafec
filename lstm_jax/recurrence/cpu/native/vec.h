// Vectors of kWidth floats, in the compiler's own extension: one source for every
// instruction set. LSTM_ISA names the namespace, so that no symbol of one instruction
// set can be linked in place of another's.
#ifndef LSTM_JAX_VEC_H_
#define LSTM_JAX_VEC_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

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

LSTM_INLINE Vec Broadcast(float x) { return x - Vec{}; }

LSTM_INLINE IntVec Bits(Vec v) { return reinterpret_cast<IntVec>(v); }

LSTM_INLINE Vec FromBits(IntVec bits) { return reinterpret_cast<Vec>(bits); }

LSTM_INLINE Vec Select(IntVec condition, Vec on_true, Vec on_false) {
  return condition ? on_true : on_false;
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

// bfloat16, rounded to the nearest and to even; NaN stays NaN.
LSTM_INLINE uint16_t ToBFloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

LSTM_INLINE float ToFloat(float x) { return x; }

LSTM_INLINE float ToFloat(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

LSTM_INLINE void Assign(float* to, float x) { *to = x; }

LSTM_INLINE void Assign(BFloat16* to, float x) { to->bits = ToBFloat16(x); }

// A vector's value after it went through the Scalar type.
template <class Scalar>
LSTM_INLINE Vec Round(Vec v);

template <>
LSTM_INLINE Vec Round<float>(Vec v) {
  return v;
}

template <>
LSTM_INLINE Vec Round<BFloat16>(Vec v) {
  const IntVec bits = Bits(v);
  const IntVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) & ~0xffff;
  return Select(v == v, FromBits(rounded), v);
}

// Loads and stores of the first `count` of kWidth elements, of either type.
template <class Scalar>
LSTM_INLINE Vec LoadSome(const Scalar* from, int count) {
  float values[kWidth] = {};
  for (int n = 0; n < count; ++n) values[n] = ToFloat(from[n]);
  return Load(values);
}

template <class Scalar>
LSTM_INLINE void StoreSome(Scalar* to, Vec v, int count) {
  float values[kWidth];
  Store(values, v);
  for (int n = 0; n < count; ++n) Assign(to + n, values[n]);
}

LSTM_INLINE Vec LoadUpTo(const float* from, int count) {
  return count >= kWidth ? Load(from) : LoadSome(from, count);
}

LSTM_INLINE Vec LoadUpTo(const BFloat16* from, int count) {
  return count >= kWidth ? LoadSome(from, kWidth) : LoadSome(from, count);
}

LSTM_INLINE void StoreUpTo(float* to, Vec v, int count) {
  if (count >= kWidth) {
    Store(to, v);
  } else {
    StoreSome(to, v, count);
  }
}

LSTM_INLINE void StoreUpTo(BFloat16* to, Vec v, int count) {
  if (count >= kWidth) {
    StoreSome(to, v, kWidth);
  } else {
    StoreSome(to, v, count);
  }
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_VEC_H_
