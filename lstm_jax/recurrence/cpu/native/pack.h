// Matrices from memory into panels.
#ifndef LSTM_JAX_PACK_H_
#define LSTM_JAX_PACK_H_

#include "product.h"

namespace lstm {
namespace LSTM_ISA {

LSTM_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of kWidth units.
LSTM_INLINE int64_t UnitBlocks(int64_t units) { return CeilDiv(units, kWidth); }

// The depth of a product over all gates: those of whole blocks.
LSTM_INLINE int64_t GateDepth(int64_t units) { return 4 * kWidth * UnitBlocks(units); }

// Panels packed together: so what is read of a row is not so short that finding it
// takes longer than reading it.
constexpr int64_t kPackedTogether = 4;

// `panels` panels of `rows` rows; `columns` says where they stand in a row.
template <class Scalar>
void PackPanels(const Scalar* from, int64_t rows, int64_t row_step,
                const Columns* columns, int64_t panels, float* to) {
  constexpr int64_t kRowsAheadHere = 8;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int v = 0; v < 2; ++v) {
        const Scalar* at = from + columns[panel].start[v];
        __builtin_prefetch(at + kRowsAheadHere * row_step);
        Store(to + (panel * rows + row) * kPanel + v * kWidth,
              LoadUpTo(at, columns[panel].count[v]));
      }
    }
    from += row_step;
  }
}

// One panel of the transpose of a matrix with the columns of the gates: kPanel of its
// rows from `row` on, side by side, at depths in the order of the panels of the gates.
template <class Scalar>
void PackGatesTransposed(const Scalar* from, int64_t row, int64_t rows, int64_t units,
                         float* to) {
  const int here = static_cast<int>(rows - row < kPanel ? rows - row : kPanel);
  const int64_t gates = 4 * units;
  for (int64_t panel = 0; panel < 2 * UnitBlocks(units); ++panel) {
    const Columns columns = GateColumns(units, panel);
    for (int v = 0; v < 2; ++v) {
      for (int n = 0; n < kPanel; ++n) {
        float values[kWidth] = {};
        if (n < here) {
          const Scalar* line = from + (row + n) * gates + columns.start[v];
          Store(values, LoadUpTo(line, columns.count[v]));
        }
        for (int k = 0; k < kWidth; ++k) to[k * kPanel + n] = values[k];
      }
      to += kWidth * kPanel;
    }
  }
}

// The same of a matrix of plain columns.
template <class Scalar>
void PackTransposed(const Scalar* from, int64_t row, int64_t rows, int64_t columns,
                    float* to) {
  for (int64_t k = 0; k < columns; ++k) {
    for (int n = 0; n < kPanel; ++n) {
      to[k * kPanel + n] = row + n < rows ? ToFloat(from[(row + n) * columns + k]) : 0;
    }
  }
}

// Rows [first, last) of a matrix in memory into the rows of all its panels, which have
// `panel_rows` rows. `to` is row `first` of the first panel.
template <class Scalar>
void PackRows(const Scalar* from, int64_t first, int64_t last, int64_t columns,
              int64_t panel_rows, float* to) {
  const int64_t panels = CeilDiv(columns, kPanel);
  for (int64_t row = first; row < last; ++row) {
    const Scalar* line = from + row * columns;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const Columns place = PlainColumns(columns, panel);
      float* at = to + panel * panel_rows * kPanel + (row - first) * kPanel;
      for (int v = 0; v < 2; ++v) {
        if (place.count[v] > 0) {
          Store(at + v * kWidth, LoadUpTo(line + place.start[v], place.count[v]));
        }
      }
    }
  }
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_PACK_H_
