// Rows of floats as rows of whole numbers, each with a scale of its own.
#ifndef LSTM_JAX_QUANTIZED_ROWS_H_
#define LSTM_JAX_QUANTIZED_ROWS_H_

#include "gemm/pack_a.h"
#include "memory/arena.h"
#include "simd/activations.h"

namespace lstm {
namespace LSTM_ISA {

LSTM_INLINE int32_t* Integers(Arena& arena, int64_t count) {
  return reinterpret_cast<int32_t*>(arena.Floats(count));
}

// The sizes of floats as whole numbers, which are ordered as the sizes are; NaN is
// above infinity.
LSTM_INLINE IntVec SizeBits(Vec v) { return Bits(v) & INT32_MAX; }

LSTM_INLINE IntVec Larger(IntVec a, IntVec b) { return a > b ? a : b; }

LSTM_INLINE IntVec LoadInts(const int32_t* from) {
  return Bits(Load(reinterpret_cast<const float*>(from)));
}

LSTM_INLINE void StoreInts(int32_t* to, IntVec v) {
  Store(reinterpret_cast<float*>(to), FromBits(v));
}

LSTM_INLINE int32_t LargestLane(IntVec v) {
  int32_t lanes[kWidth], largest = 0;
  std::memcpy(lanes, &v, sizeof(v));
  for (const int32_t lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// What a row is multiplied with, and what takes that back. One that is too small for
// its reciprocal is a row of zeros, and so is one that is not finite, whose scale makes
// NaN of them.
class RowScale {
 public:
  LSTM_INLINE explicit RowScale(int32_t largest_bits) {
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof(largest));
    usable_ = largest >= 0x1p-119f && largest < __builtin_inff();
    inverse_ = 127.0f / largest;
    scale_ = largest * static_cast<float>(1.0 / 127);
  }

  LSTM_INLINE float scale() const { return scale_; }

  // To the nearest, and to even; the whole number stands in the low bits.
  LSTM_INLINE IntVec Steps(Vec v) const {
    if (!usable_) return IntVec{};
    return Bits(v * inverse_ + kRounder) - Bits(Broadcast(kRounder));
  }

 private:
  bool usable_;
  float inverse_;
  float scale_;
};

// One row of A, of `size` numbers; `block_at(n)` are the kWidth of block n.
template <class BlockAt>
LSTM_INLINE float PackQuantized(int32_t largest, int64_t size, BlockAt block_at,
                                float* panels, int64_t panel_rows, int64_t row) {
  const RowScale scale(largest);
  for (int64_t block = 0; block * kWidth < size; ++block) {
    StoreIntegers(BlockOfA<int8_t>(panels, panel_rows, block, row),
                  scale.Steps(block_at(block)));
  }
  return scale.scale();
}

// The same of a row in memory.
LSTM_INLINE float PackQuantizedRow(const float* from, int64_t size, float* panels,
                                   int64_t panel_rows, int64_t row) {
  const auto block_at = [&](int64_t block) { return LoadBlock(from, 0, size, block); };
  IntVec largest = {};
  for (int64_t block = 0; block * kWidth < size; ++block) {
    largest = Larger(largest, SizeBits(block_at(block)));
  }
  return PackQuantized(LargestLane(largest), size, block_at, panels, panel_rows, row);
}

// Where the sums of one row and one block of units are, and the scales of the row.
struct Sums {
  const float* from_x;
  float* from_h;
  float x_scale;
  float h_scale;
};

LSTM_INLINE Vec ToFloats(const float* sums, const float* scale) {
  return __builtin_convertvector(Bits(Load(sums)), Vec) * Load(scale);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_ROWS_H_
