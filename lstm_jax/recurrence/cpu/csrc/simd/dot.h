// Sums of products of whole numbers of 8 bits, from -127 to 127: exact on every
// processor.
//
// A lane of 32 bits holds four of them, or two that are widened to 16 bits, where the
// only instruction for four (vpmaddubsw) saturates sums of two products. Some take one
// side without a sign: that side, A, is then kOffset too large, and sums start from
// what takes that away again.
#ifndef LSTM_JAX_SIMD_DOT_H_
#define LSTM_JAX_SIMD_DOT_H_

#include "simd/load_store.h"

#if LSTM_AVX512 && defined(__AVX512VNNI__)
#define LSTM_VNNI 512
#elif LSTM_WIDTH == 8 && defined(__AVXVNNI__)
#define LSTM_VNNI 256
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lstm {
namespace LSTM_ISA {

#if LSTM_VNNI || defined(__aarch64__)
constexpr int kIntegersPerLane = 4;
#else
constexpr int kIntegersPerLane = 2;
#endif

#if LSTM_VNNI
constexpr int kOffset = 128;
#else
constexpr int kOffset = 0;
#endif

// For each lane, the sum and the products of the numbers of a and b.
LSTM_INLINE IntVec Dot(IntVec sum, IntVec a, IntVec b) {
#if LSTM_VNNI == 512
  return reinterpret_cast<IntVec>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                      reinterpret_cast<__m512i>(a),
                                                      reinterpret_cast<__m512i>(b)));
#elif LSTM_VNNI == 256
  return reinterpret_cast<IntVec>(_mm256_dpbusd_avx_epi32(
      reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(a),
      reinterpret_cast<__m256i>(b)));
#elif LSTM_AVX512
  return sum + reinterpret_cast<IntVec>(_mm512_madd_epi16(
                   reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__x86_64__) && LSTM_WIDTH == 8
  return sum + reinterpret_cast<IntVec>(_mm256_madd_epi16(
                   reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__x86_64__)
  return sum + reinterpret_cast<IntVec>(_mm_madd_epi16(reinterpret_cast<__m128i>(a),
                                                       reinterpret_cast<__m128i>(b)));
#else
  const int8x16_t x = reinterpret_cast<int8x16_t>(a);
  const int8x16_t y = reinterpret_cast<int8x16_t>(b);
#if defined(__ARM_FEATURE_DOTPROD)
  return reinterpret_cast<IntVec>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), x, y));
#else
  // Sums of two products are at most 2 * 127^2 in size, which 16 bits hold.
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y));
  const int16x8_t high = vmull_high_s8(x, y);
  return reinterpret_cast<IntVec>(
      vpadalq_s16(reinterpret_cast<int32x4_t>(sum), vpaddq_s16(low, high)));
#endif
#endif
}

// Numbers of A that are all one: what adds up the columns of B.
LSTM_INLINE IntVec Ones() {
  return (kIntegersPerLane == 4 ? 0x01010101 : 0x00010001) - IntVec{};
}

typedef int8_t ByteVec __attribute__((vector_size(kWidth)));
typedef int8_t UnalignedByteVec
    __attribute__((vector_size(kWidth), aligned(1), may_alias));

// (By name where there is an instruction: GCC 12 does not find it.)
LSTM_INLINE IntVec LoadIntegers(const int8_t* from) {
#if LSTM_AVX512
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<IntVec>(_mm512_maskz_cvtepi8_epi32(0xffff, bytes));
#elif defined(__AVX2__) && LSTM_WIDTH == 8
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<IntVec>(_mm256_cvtepi8_epi32(bytes));
#else
  const ByteVec bytes = *reinterpret_cast<const UnalignedByteVec*>(from);
  return __builtin_convertvector(bytes, IntVec);
#endif
}

// The first `count` of kWidth numbers in memory, and zeros.
LSTM_INLINE IntVec LoadIntegersUpTo(const int8_t* from, int count) {
  if (count >= kWidth) return LoadIntegers(from);
  int8_t bytes[kWidth] = {};
  for (int n = 0; n < count; ++n) bytes[n] = from[n];
  return LoadIntegers(bytes);
}

// kWidth lanes of B from as many rows as a lane has numbers.
LSTM_INLINE IntVec Interleave(const IntVec (&rows)[kIntegersPerLane]) {
#if LSTM_VNNI || defined(__aarch64__)
  return (rows[0] & 0xff) | (rows[1] & 0xff) << 8 | (rows[2] & 0xff) << 16 |
         rows[3] << 24;
#else
  return (rows[0] & 0xffff) | rows[1] << 16;
#endif
}

// kWidth numbers of A that follow each other in depth, where lane `to` begins.
LSTM_INLINE void StoreIntegers(float* to, IntVec v) {
#if LSTM_VNNI == 512
  const __m512i bytes = reinterpret_cast<__m512i>(v + kOffset);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm512_maskz_cvtepi32_epi8(0xffff, bytes));
#elif LSTM_VNNI || defined(__aarch64__)
  *reinterpret_cast<UnalignedByteVec*>(to) =
      __builtin_convertvector(v + kOffset, ByteVec);
#else
  StoreShorts(to, v);
#endif
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_SIMD_DOT_H_
