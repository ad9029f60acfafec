// The matrices of gates: in memory [rows, G units], gate after gate, of those that
// there are; in panels block of units after block, and of each block i, f, g and o.
#ifndef LSTM_JAX_LSTM_GATES_H_
#define LSTM_JAX_LSTM_GATES_H_

#include "gemm/pack_b.h"

namespace lstm {
namespace LSTM_ISA {

// Blocks of kWidth units.
LSTM_INLINE int64_t UnitBlocks(int64_t units) { return CeilDiv(units, kWidth); }

// The depth of a product over all gates: those of whole blocks.
LSTM_INLINE int64_t GateDepth(int64_t units) { return 4 * kWidth * UnitBlocks(units); }

// Panel `panel` of a matrix of gates: i and f, or g and o, of a block of kWidth units.
LSTM_INLINE Columns GateColumns(int64_t units, int64_t panel,
                                const GateOrder& gates = kAllGates) {
  const int64_t unit = panel / 2 * kWidth;
  const int* place = gates.place + panel % 2 * 2;
  Columns columns = {};
  for (int v = 0; v < 2; ++v) {
    if (place[v] == kNoGate) continue;
    columns.start[v] = place[v] * units + unit;
    columns.count[v] = Count(units - unit);
  }
  return columns;
}

// kWidth numbers of gate `gate` in a row of gates, from unit `unit` on.
template <class Scalar>
LSTM_INLINE Vec GateOfRow(const Scalar* row, const Sizes& s, int gate, int64_t unit) {
  const int place = s.gates.place[gate];
  if (place == kNoGate) return Vec{};
  return LoadUpTo(row + place * s.units + unit, Count(s.units - unit));
}

// kWidth lanes of a row of gates in the order of whole blocks: i, f, g and o of the
// first block of units, then of the second. `index` counts times kWidth lanes.
template <class Scalar>
LSTM_INLINE Vec GateLanes(const Scalar* row, const Sizes& s, int64_t index) {
  constexpr int kGates = kKr<Scalar>;  // that kWidth lanes hold
  const int64_t unit = index * kGates / 4 * kWidth;
  const int gate = static_cast<int>(index * kGates % 4);
  if constexpr (kGates == 2) {
    alignas(64) Scalar numbers[2 * kWidth];
    StoreAll(numbers, GateOfRow(row, s, gate, unit));
    StoreAll(numbers + kWidth, GateOfRow(row, s, gate + 1, unit));
    return Load(reinterpret_cast<const float*>(numbers));
  } else {
    return GateOfRow(row, s, gate, unit);
  }
}

// Panel `panel` of the transpose of a matrix of `rows` rows of gates; `to` is the first
// panel.
template <class Scalar>
void PackGatesTransposed(const Scalar* from, int64_t rows, const Sizes& s,
                         int64_t panel, float* to) {
  const int64_t depth = GateDepth(s.units) / kKr<Scalar>;
  const auto lanes_of = [&](int64_t row, int64_t index) {
    return GateLanes(from + row * s.columns(), s, index);
  };
  PackTransposed(panel * kNr, rows, depth / kWidth, lanes_of, to + panel * depth * kNr);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_GATES_H_
