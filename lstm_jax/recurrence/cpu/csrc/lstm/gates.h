// The matrices of gates: in memory [rows, 4 units], gate after gate; in panels block of
// units after block, and of each block i, f, g and o.
#ifndef LSTM_JAX_LSTM_GATES_H_
#define LSTM_JAX_LSTM_GATES_H_

#include "gemm/pack_b.h"

namespace lstm {
namespace LSTM_ISA {

// Blocks of kWidth units.
LSTM_INLINE int64_t UnitBlocks(int64_t units) { return CeilDiv(units, kWidth); }

// The depth of a product over all gates: those of whole blocks.
LSTM_INLINE int64_t GateDepth(int64_t units) { return 4 * kWidth * UnitBlocks(units); }

// Panel `panel` of a matrix of 4 `units` columns: gates i and f, or g and o, of a block
// of kWidth units.
LSTM_INLINE Columns GateColumns(int64_t units, int64_t panel) {
  const int64_t unit = panel / 2 * kWidth;
  const int64_t gate = panel % 2 * 2;
  const int count = Count(units - unit);
  return {{gate * units + unit, (gate + 1) * units + unit}, {count, count}};
}

// kWidth lanes of a row of gates in the order of whole blocks: i, f, g and o of the
// first block of units, then of the second. `index` counts times kWidth lanes.
template <class Scalar>
LSTM_INLINE Vec GateLanes(const Scalar* row, int64_t units, int64_t index) {
  constexpr int kGates = kKr<Scalar>;  // that kWidth lanes hold
  const int64_t unit = index * kGates / 4 * kWidth;
  const Scalar* from = row + index * kGates % 4 * units + unit;
  const int count = Count(units - unit);
  if constexpr (kGates == 2) {
    alignas(64) Scalar numbers[2 * kWidth];
    StoreAll(numbers, LoadUpTo(from, count));
    StoreAll(numbers + kWidth, LoadUpTo(from + units, count));
    return Load(reinterpret_cast<const float*>(numbers));
  } else {
    return LoadUpTo(from, count);
  }
}

// Panel `panel` of the transpose of a matrix [rows, 4 units] of gates; `to` is the
// first panel.
template <class Scalar>
void PackGatesTransposed(const Scalar* from, int64_t rows, int64_t units, int64_t panel,
                         float* to) {
  const int64_t depth = GateDepth(units) / kKr<Scalar>;
  const auto lanes_of = [&](int64_t row, int64_t index) {
    return GateLanes(from + row * 4 * units, units, index);
  };
  PackTransposed(panel * kNr, rows, depth / kWidth, lanes_of, to + panel * depth * kNr);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_GATES_H_
