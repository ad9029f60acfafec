// The gate functions to the bit as lstm_jax/cells/bitwise.py has them. What is compiled
// here never takes a product into a sum (-ffp-contract=off), and divides in full.
#ifndef LSTM_JAX_QUANTIZED_GATES_H_
#define LSTM_JAX_QUANTIZED_GATES_H_

#include "simd/activations.h"

namespace lstm {
namespace LSTM_ISA {

LSTM_INLINE Vec ExactSigmoid(Vec x) {
  const Reduced e = Reduce(AtLeast(AtMost(-x, 87.0f), -87.0f));
  const Vec exp_minus_x = (e.r * ExpM1OverR(e.r) + 1.0f) * e.power;
  return 1.0f / (exp_minus_x + 1.0f);
}

LSTM_INLINE Vec ExactTanh(Vec x) {
  const IntVec sign = Bits(x) & INT32_MIN;
  const Reduced e = Reduce(2.0f * AtMost(FromBits(Bits(x) ^ sign), 10.0f));
  const Vec m1 = (e.r * ExpM1OverR(e.r)) * e.power + (e.power - 1.0f);
  return FromBits(Bits(m1 / (m1 + 2.0f)) | sign);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_GATES_H_
