// The gate functions to the bit as lstm_jax/cells/bitwise.py has them. What is compiled
// here never takes a product into a sum (-ffp-contract=off), and divides in full.
#ifndef LSTM_JAX_QUANTIZED_GATES_H_
#define LSTM_JAX_QUANTIZED_GATES_H_

#include "simd/activations.h"

namespace lstm {
namespace LSTM_ISA {

// 2^n and 2^f - 1 with 2^y = 2^n * 2^f and |f| <= 1/2.
struct Exp2Parts {
  Vec power;
  Vec m1;
};

LSTM_INLINE Exp2Parts Exp2(Vec y) {
  const Vec shifted = y + kRounder;
  const Vec f = y - (shifted - kRounder);
  Vec p = f * 1.33335392e-3f + 9.66624543e-3f;
  p = f * p + 5.55050038e-2f;
  p = f * p + 2.40223512e-1f;
  p = f * p + 6.93147123e-1f;
  return {FromBits((Bits(shifted) << 23) + (127 << 23)), f * p};
}

LSTM_INLINE Vec OneOverSigmoid(Vec x) {
  const Exp2Parts e = Exp2(AtLeast(AtMost(x * -kLog2E, 125.0f), -125.0f));
  return (e.m1 + 1.0f) * e.power + 1.0f;
}

// tanh(x) * sigmoid(gate), with what OneOverSigmoid makes of the gate.
LSTM_INLINE Vec TanhOver(Vec x, Vec one_over_sigmoid) {
  const IntVec sign = Bits(x) & INT32_MIN;
  const Vec size = FromBits(Bits(x) ^ sign);
  const Exp2Parts e = Exp2(AtMost(size * (2 * kLog2E), 29.0f));
  const Vec m1 = e.m1 * e.power + (e.power - 1.0f);
  return FromBits(Bits(m1) | sign) / ((m1 + 2.0f) * one_over_sigmoid);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_GATES_H_
