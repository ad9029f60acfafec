// Vectors of kWidth floats, in the compiler's own extension: one source for every
// instruction set. LSTM_ISA names the namespace, so that no symbol of one instruction
// set can be linked in place of another's.
#ifndef LSTM_JAX_SIMD_VEC_H_
#define LSTM_JAX_SIMD_VEC_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

// What the compiler may use. It may have been told more than a set asks for, as by
// -march=native: what needs wide vectors is for the sets that have them.
#if LSTM_WIDTH == 16 && defined(__AVX512F__)
#define LSTM_AVX512 1
#endif
#if LSTM_AVX512 && defined(__AVX512BF16__)
#define LSTM_AVX512_BF16 1
#endif
#if LSTM_AVX512_BF16 && defined(__AMX_BF16__)
#define LSTM_AMX 1
#endif

#if LSTM_AVX512
#include <immintrin.h>
#endif

#include "simd/integers.h"

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
#if LSTM_AVX512
  // A division of 16 floats takes 16 cycles. This is an estimate of 14 bits and one
  // step of Newton's, less than 1 ulp off.
  // (With a mask of all lanes: the plain form starts from what is not defined, of which
  // GCC 12 warns.)
  const Vec estimate = reinterpret_cast<Vec>(_mm512_maskz_rcp14_ps(0xffff, b));
  const Vec first = a * estimate;
  const Vec quotient = first + estimate * (a - b * first);
  return Select(b > 0x1p127f, Vec{}, quotient);
#else
  return a / b;
#endif
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_SIMD_VEC_H_
