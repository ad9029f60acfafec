// Packing B: a matrix in memory, or its transpose, into panels.
#ifndef LSTM_JAX_GEMM_PACK_B_H_
#define LSTM_JAX_GEMM_PACK_B_H_

#include "gemm/pack_a.h"
#include "tuning.h"

namespace lstm {
namespace LSTM_ISA {

// Where the two vectors of a panel stand in a row of a weight matrix.
struct Columns {
  int64_t start[2];
  int count[2];  // how many columns there are, at most kWidth
};

// Panel `panel` of a matrix of `columns` columns.
LSTM_INLINE Columns PlainColumns(int64_t columns, int64_t panel) {
  const int64_t first = panel * kNr;
  return {{first, first + kWidth},
          {Count(columns - first), Count(columns - first - kWidth)}};
}

// The lanes of B in kWidth columns, of which there are `count`, from `at`
// on; `left` rows of numbers are left.
template <class Scalar>
LSTM_INLINE Vec LanesOfRows(const Scalar* at, int64_t row_step, int64_t left,
                            int count) {
  if (left <= 0) return Vec{};
  if constexpr (kIntegers<Scalar>) {
    constexpr int kPer = kKr<Scalar>;
    const bool whole = left >= kPer && count >= kWidth;
    IntVec rows[kPer];
#pragma GCC unroll 4
    for (int n = 0; n < kPer; ++n) {
      rows[n] = whole      ? LoadIntegers(at + n * row_step)
                : n < left ? LoadIntegersUpTo(at + n * row_step, count)
                           : IntVec{};
    }
    return FromBits(Interleave(rows));
  } else {
    const Vec first = LoadUpTo(at, count);
    if constexpr (kPaired<Scalar>) {
      return InterleavePairs(first, left > 1 ? LoadUpTo(at + row_step, count) : Vec{});
    }
    return first;
  }
}

// B: `panels` panels of `rows` rows of numbers; `columns` says where they
// stand in a row.
template <class Scalar>
void PackPanels(const Scalar* from, int64_t rows, int64_t row_step,
                const Columns* columns, int64_t panels, float* to) {
  constexpr int kPer = kKr<Scalar>;
  const int64_t lanes = DepthInLanes<Scalar>(rows);
  const auto pack = [&](int64_t panel, int64_t lane) {
    const Scalar* line = from + lane * kPer * row_step;
    const Columns& c = columns[panel];
    float* packed = to + (panel * lanes + lane) * kNr;
    for (int v = 0; v < 2; ++v) {
      Store(packed + v * kWidth,
            LanesOfRows(line + c.start[v], row_step, rows - lane * kPer, c.count[v]));
    }
  };
  for (int64_t first = 0; first < lanes; first += tuning::kPackedRows) {
    const int64_t last = Min(first + tuning::kPackedRows, lanes);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t lane = first; lane < last; ++lane) pack(panel, lane);
    }
  }
}

// B: the panel of a transpose whose columns are kNr rows of the matrix,
// from `row` on. `lanes_of(row, index)` are kWidth lanes of a row; there are `size`
// times so many.
template <class LanesOf>
LSTM_INLINE void PackTransposed(int64_t row, int64_t rows, int64_t size,
                                LanesOf lanes_of, float* to) {
  for (int64_t index = 0; index < size; ++index) {
    for (int v = 0; v < 2; ++v) {
      Vec lanes[kWidth];
      for (int n = 0; n < kWidth; ++n) {
        const int64_t here = row + v * kWidth + n;
        lanes[n] = here < rows ? lanes_of(here, index) : Vec{};
      }
      Transpose(lanes);
      for (int n = 0; n < kWidth; ++n) Store(to + n * kNr + v * kWidth, lanes[n]);
    }
    to += kWidth * kNr;
  }
}

// The depth, in lanes, of a product over `numbers` numbers in whole vectors.
template <class Scalar>
LSTM_INLINE int64_t WholeDepthInLanes(int64_t numbers) {
  return CeilDiv(numbers, kWidth * kKr<Scalar>) * kWidth;
}

// The same of a matrix [rows, columns], of that depth.
template <class Scalar>
void PackRowsTransposed(const Scalar* from, int64_t rows, int64_t columns,
                        int64_t panel, float* to) {
  constexpr int64_t kNumbers = kWidth * kKr<Scalar>;
  const int64_t depth = WholeDepthInLanes<Scalar>(columns);
  const auto lanes_of = [&](int64_t row, int64_t index) {
    return RowLanes(from + row * columns + index * kNumbers,
                    columns - index * kNumbers);
  };
  PackTransposed(panel * kNr, rows, depth / kWidth, lanes_of, to + panel * depth * kNr);
}

// A panel of B from an A of pairs: kNr of its columns, from block `block` of kWidth on.
// Where lanes are single, what is packed as A is packed as B too.
template <class Scalar>
void RepackAAsB(float* a, int64_t panel_rows, int64_t block, int64_t rows, float* to) {
  const int64_t lanes = DepthInLanes<Scalar>(rows);
  for (int v = 0; v < 2; ++v) {
    const float* at = BlockOfA<Scalar>(a, panel_rows, block + v, 0);
    const auto load = [&](int64_t row) {
      return row < rows ? LoadA<Scalar>(at + row * kNr) : Vec{};
    };
    for (int64_t lane = 0; lane < lanes; ++lane) {
      Store(to + lane * kNr + v * kWidth,
            InterleavePairs(load(2 * lane), load(2 * lane + 1)));
    }
  }
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GEMM_PACK_B_H_
