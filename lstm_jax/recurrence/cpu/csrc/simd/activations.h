// The gate functions: at most 3e-7 off, relative to the result, wherever it is normal.
#ifndef LSTM_JAX_SIMD_ACTIVATIONS_H_
#define LSTM_JAX_SIMD_ACTIVATIONS_H_

#include "simd/vec.h"

namespace lstm {
namespace LSTM_ISA {

constexpr float kLog2E = 1.44269504f;
// log(2) in two parts: n * kLn2High is exact for the n that occur.
constexpr float kLn2High = 0.693145752f;
constexpr float kLn2Low = 1.42860677e-6f;
// Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
constexpr float kRounder = 12582912.0f;

// 2^n and r with exp(x) = 2^n * exp(r) and |r| <= log(2) / 2.
struct Reduced {
  Vec power;
  Vec r;
};

LSTM_INLINE Reduced Reduce(Vec x) {
  const Vec shifted = x * kLog2E + kRounder;
  const Vec n = shifted - kRounder;
  // The integer stands in the low bits of `shifted`.
  const IntVec exponent = (Bits(shifted) << 23) + (127 << 23);
  Vec r = x - n * kLn2High;
  r = r - n * kLn2Low;
  return {FromBits(exponent), r};
}

// (exp(r) - 1) / r, for |r| <= log(2) / 2: 1.4e-8 off at most. The first two terms are
// the Taylor series', and the others were fitted.
LSTM_INLINE Vec ExpM1OverR(Vec r) {
  Vec p = r * 1.39406126e-3f + 8.36649071e-3f;
  p = p * r + 4.16664034e-2f;
  p = p * r + 1.66665435e-1f;
  p = p * r + 0.5f;
  return p * r + 1.0f;
}

LSTM_INLINE Vec Sigmoid(Vec x) {
  // Above 89, 2^n is infinity and the result 0; below -87 the result is 1.
  const Reduced e = Reduce(AtLeast(AtMost(-x, 89.0f), -87.0f));
  const Vec exp_minus_x = (e.r * ExpM1OverR(e.r) + 1.0f) * e.power;
  return Divide(Broadcast(1.0f), 1.0f + exp_minus_x);
}

LSTM_INLINE Vec Tanh(Vec x) {
  const IntVec sign = Bits(x) & INT32_MIN;
  const Vec magnitude = FromBits(Bits(x) ^ sign);
  // From 9.02 on, tanh rounds to 1.
  const Reduced e = Reduce(2.0f * AtMost(magnitude, 10.0f));
  // exp(2x) - 1, without cancellation where x is small.
  const Vec m1 = e.power * (e.r * ExpM1OverR(e.r)) + (e.power - 1.0f);
  return FromBits(Bits(Divide(m1, m1 + 2.0f)) | sign);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_SIMD_ACTIVATIONS_H_
