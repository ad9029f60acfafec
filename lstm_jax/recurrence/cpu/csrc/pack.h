// Matrices from memory into panels.
#ifndef LSTM_JAX_PACK_H_
#define LSTM_JAX_PACK_H_

#include "product.h"

namespace lstm {
namespace LSTM_ISA {

LSTM_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
LSTM_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }

// How many of the next kWidth numbers there are, if `left` are left.
LSTM_INLINE int Count(int64_t left) { return static_cast<int>(Max(Min(left, kWidth), 0)); }

// Block `block` of kWidth numbers in a row of [rows, size].
template <class Scalar>
LSTM_INLINE Vec LoadBlock(const Scalar* from, int64_t row, int64_t size, int64_t block) {
  const int64_t column = block * kWidth;
  return LoadUpTo(from + row * size + column, Count(size - column));
}

// Block `block` of a row of `size` numbers, without what a product left in the lanes beyond
// them.
LSTM_INLINE Vec LiveBlock(Vec v, int64_t size, int64_t block) {
  return LiveLanes(v, Count(size - block * kWidth));
}

// A block of numbers to memory; to nowhere, if that is null.
template <class Scalar>
LSTM_INLINE void StoreBlock(Scalar* to, int64_t row, int64_t size, int64_t block, Vec v) {
  if (!to) return;
  const int64_t column = block * kWidth;
  StoreUpTo(to + row * size + column, v, Count(size - column));
}

// Blocks of kWidth units.
LSTM_INLINE int64_t UnitBlocks(int64_t units) { return CeilDiv(units, kWidth); }

// The depth of a product over all gates: those of whole blocks.
LSTM_INLINE int64_t GateDepth(int64_t units) { return 4 * kWidth * UnitBlocks(units); }

// Where the two vectors of a panel stand in a row of a weight matrix.
struct Columns {
  int64_t start[2];
  int count[2];  // how many columns there are, at most kWidth
};

// Panel `panel` of a matrix of 4 `units` columns: gates i and f, or g and o, of a block
// of kWidth units.
LSTM_INLINE Columns GateColumns(int64_t units, int64_t panel) {
  const int64_t unit = panel / 2 * kWidth;
  const int64_t gate = panel % 2 * 2;
  const int count = static_cast<int>(units - unit < kWidth ? units - unit : kWidth);
  return {{gate * units + unit, (gate + 1) * units + unit}, {count, count}};
}

// Panel `panel` of a matrix of `columns` columns.
LSTM_INLINE Columns PlainColumns(int64_t columns, int64_t panel) {
  const int64_t first = panel * kPanel;
  const auto count = [](int64_t left) {
    return static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth);
  };
  return {{first, first + kWidth},
          {count(columns - first), count(columns - first - kWidth)}};
}

// Panels and rows packed together: so what is read of a row is not so short that finding
// it takes longer than reading it, and what is written of a panel neither.
constexpr int64_t kPackedTogether = 16;
constexpr int64_t kRowsPackedTogether = 8;

// The lanes of a right factor in kWidth columns, of which there are `count`, from `at`
// on; `left` rows of numbers are left.
template <class Scalar>
LSTM_INLINE Vec LanesOfRows(const Scalar* at, int64_t row_step, int64_t left, int count) {
  if (left <= 0) return Vec{};
  const Vec first = LoadUpTo(at, count);
  if constexpr (kPaired<Scalar>) {
    return RightLanes(first, left > 1 ? LoadUpTo(at + row_step, count) : Vec{});
  }
  return first;
}

// A right factor: `panels` panels of `rows` rows of numbers; `columns` says where they
// stand in a row.
template <class Scalar>
void PackPanels(const Scalar* from, int64_t rows, int64_t row_step,
                const Columns* columns, int64_t panels, float* to) {
  constexpr int kPer = kPerLane<Scalar>;
  const int64_t lanes = Lanes<Scalar>(rows);
  const auto pack = [&](int64_t panel, int64_t lane) {
    const Scalar* line = from + lane * kPer * row_step;
    const Columns& c = columns[panel];
    float* packed = to + (panel * lanes + lane) * kPanel;
    for (int v = 0; v < 2; ++v) {
      Store(packed + v * kWidth, LanesOfRows(line + c.start[v], row_step,
                                             rows - lane * kPer, c.count[v]));
    }
  };
  for (int64_t first = 0; first < lanes; first += kRowsPackedTogether) {
    const int64_t last = Min(first + kRowsPackedTogether, lanes);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t lane = first; lane < last; ++lane) pack(panel, lane);
    }
  }
}

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

// The same of a row of gates in the order of whole blocks: i, f, g and o of the first
// block of units, then of the second. `index` counts times kWidth lanes.
template <class Scalar>
LSTM_INLINE Vec GateLanes(const Scalar* row, int64_t units, int64_t index) {
  constexpr int kGates = kPerLane<Scalar>;  // that kWidth lanes hold
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

// A right factor: the panel of a transpose whose columns are kPanel rows of the matrix,
// from `row` on. `lanes_of(row, index)` are kWidth lanes of a row; there are `size` times
// so many.
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
      for (int n = 0; n < kWidth; ++n) Store(to + n * kPanel + v * kWidth, lanes[n]);
    }
    to += kWidth * kPanel;
  }
}

// Panel `panel` of the transpose of a matrix [rows, 4 units] of gates; `to` is the first
// panel.
template <class Scalar>
void PackGatesTransposed(const Scalar* from, int64_t rows, int64_t units, int64_t panel,
                         float* to) {
  const int64_t depth = GateDepth(units) / kPerLane<Scalar>;
  const auto lanes_of = [&](int64_t row, int64_t index) {
    return GateLanes(from + row * 4 * units, units, index);
  };
  PackTransposed(panel * kPanel, rows, depth / kWidth, lanes_of,
                 to + panel * depth * kPanel);
}

// The depth, in lanes, of a product over `numbers` numbers in whole vectors.
template <class Scalar>
LSTM_INLINE int64_t WholeLanes(int64_t numbers) {
  return CeilDiv(numbers, kWidth * kPerLane<Scalar>) * kWidth;
}

// The same of a matrix [rows, columns], of that depth.
template <class Scalar>
void PackRowsTransposed(const Scalar* from, int64_t rows, int64_t columns, int64_t panel,
                        float* to) {
  constexpr int64_t kNumbers = kWidth * kPerLane<Scalar>;
  const int64_t depth = WholeLanes<Scalar>(columns);
  const auto lanes_of = [&](int64_t row, int64_t index) {
    return RowLanes(from + row * columns + index * kNumbers, columns - index * kNumbers);
  };
  PackTransposed(panel * kPanel, rows, depth / kWidth, lanes_of,
                 to + panel * depth * kPanel);
}

// A left factor: rows [first, last) of a matrix in memory, into panels of `panel_rows`
// rows. `to` is row `first` of the first panel.
template <class Scalar>
void PackRows(const Scalar* from, int64_t first, int64_t last, int64_t columns,
              int64_t panel_rows, float* to) {
  constexpr int64_t kNumbers = kWidth * kPerLane<Scalar>;
  for (int64_t row = first; row < last; ++row) {
    const Scalar* line = from + row * columns;
    for (int64_t n = 0; n * kNumbers < columns; ++n) {
      Store(to + (n / 2 * panel_rows + row - first) * kPanel + n % 2 * kWidth,
            RowLanes(line + n * kNumbers, columns - n * kNumbers));
    }
  }
}

// A left factor: the transpose of rows of numbers. Group `group` of kWidth lanes of its
// depth comes from rows that `row_at` points to, or that are zeros where it is null; it
// may be asked for kWidth * kPerLane of them. The factor has `columns` rows, in panels of
// `panel_rows`.
template <class Scalar, class RowAt>
LSTM_INLINE void PackAcross(RowAt row_at, int64_t columns, int64_t panel_rows, int64_t group,
                            float* to) {
  constexpr int kPer = kPerLane<Scalar>;
  const Scalar* rows[kWidth * kPer];
  for (int n = 0; n < kWidth * kPer; ++n) rows[n] = row_at(group * kWidth * kPer + n);
  to += group / 2 * panel_rows * kPanel + group % 2 * kWidth;
  for (int64_t column = 0; column < columns; column += kWidth) {
    const int count = Count(columns - column);
    const auto load = [&](int n) {
      return rows[n] ? LoadUpTo(rows[n] + column, count) : Vec{};
    };
    Vec lanes[kWidth];
    for (int n = 0; n < kWidth; ++n) {
      lanes[n] = load(n * kPer);
      if constexpr (kPer == 2) lanes[n] = RightLanes(lanes[n], load(n * kPer + 1));
    }
    Transpose(lanes);
    for (int n = 0; n < count; ++n) Store(to + (column + n) * kPanel, lanes[n]);
  }
}

// Block `block` of kWidth numbers in a row of a left factor in panels.
template <class Scalar>
LSTM_INLINE float* LeftAt(float* panels, int64_t panel_rows, int64_t block, int64_t row) {
  const int64_t lane = block * (kWidth / kPerLane<Scalar>);
  return panels + (lane / kPanel * panel_rows + row) * kPanel + lane % kPanel;
}

// A panel of a right factor from a left one of pairs: kPanel of its columns, from block
// `block` of kWidth on. Where lanes are single, a left factor is a right one too.
template <class Scalar>
void PackRight(float* left, int64_t panel_rows, int64_t block, int64_t rows, float* to) {
  const int64_t lanes = Lanes<Scalar>(rows);
  for (int v = 0; v < 2; ++v) {
    const float* at = LeftAt<Scalar>(left, panel_rows, block + v, 0);
    const auto load = [&](int64_t row) {
      return row < rows ? LoadLeft<Scalar>(at + row * kPanel) : Vec{};
    };
    for (int64_t lane = 0; lane < lanes; ++lane) {
      Store(to + lane * kPanel + v * kWidth,
            RightLanes(load(2 * lane), load(2 * lane + 1)));
    }
  }
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_PACK_H_
