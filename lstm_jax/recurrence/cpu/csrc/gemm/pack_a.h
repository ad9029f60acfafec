// Packing A: rows of a matrix in memory, or its columns, into panels.
#ifndef LSTM_JAX_GEMM_PACK_A_H_
#define LSTM_JAX_GEMM_PACK_A_H_

#include "gemm/operands.h"
#include "simd/transpose.h"

namespace lstm {
namespace LSTM_ISA {

// kWidth lanes of one row of numbers, of which `count` are left.
template <class Scalar>
LSTM_INLINE Vec RowLanes(const Scalar* from, int64_t count) {
  if constexpr (kPaired<Scalar>) {
    // Pairs in memory may begin at an odd number: they are no floats there.
    Vec lanes = {};
    if (count >= 2 * kWidth) {
      std::memcpy(&lanes, from, sizeof(lanes));
    } else if (count > 0) {
      std::memcpy(&lanes, from, sizeof(Scalar) * count);
    }
    return lanes;
  } else {
    return LoadUpTo(from, Count(count));
  }
}

// A: rows [first, last) of a matrix in memory, into panels of `panel_rows`
// rows. `to` is row `first` of the first panel.
template <class Scalar>
void PackRows(const Scalar* from, int64_t first, int64_t last, int64_t columns,
              int64_t panel_rows, float* to) {
  constexpr int64_t kNumbers = kWidth * kKr<Scalar>;
  for (int64_t row = first; row < last; ++row) {
    const Scalar* line = from + row * columns;
    for (int64_t n = 0; n * kNumbers < columns; ++n) {
      Store(to + (n / 2 * panel_rows + row - first) * kNr + n % 2 * kWidth,
            RowLanes(line + n * kNumbers, columns - n * kNumbers));
    }
  }
}

// A: the transpose of rows of numbers. Group `group` of kWidth lanes of its
// depth comes from rows that `row_at` points to, or that are zeros where it is null; it
// may be asked for kWidth * kKr of them. A has `columns` rows, in panels of
// `panel_rows`.
template <class Scalar, class RowAt>
LSTM_INLINE void PackAcross(RowAt row_at, int64_t columns, int64_t panel_rows,
                            int64_t group, float* to) {
  constexpr int kPer = kKr<Scalar>;
  const Scalar* rows[kWidth * kPer];
  for (int n = 0; n < kWidth * kPer; ++n) rows[n] = row_at(group * kWidth * kPer + n);
  to += group / 2 * panel_rows * kNr + group % 2 * kWidth;
  for (int64_t column = 0; column < columns; column += kWidth) {
    const int count = Count(columns - column);
    const auto load = [&](int n) {
      return rows[n] ? LoadUpTo(rows[n] + column, count) : Vec{};
    };
    Vec lanes[kWidth];
    for (int n = 0; n < kWidth; ++n) {
      lanes[n] = load(n * kPer);
      if constexpr (kPer == 2) lanes[n] = InterleavePairs(lanes[n], load(n * kPer + 1));
    }
    Transpose(lanes);
    for (int n = 0; n < count; ++n) Store(to + (column + n) * kNr, lanes[n]);
  }
}

// Block `block` of kWidth numbers in a row of A in panels.
template <class Scalar>
LSTM_INLINE float* BlockOfA(float* panels, int64_t panel_rows, int64_t block,
                            int64_t row) {
  const int64_t lane = block * (kWidth / kKr<Scalar>);
  return panels + (lane / kNr * panel_rows + row) * kNr + lane % kNr;
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GEMM_PACK_A_H_
