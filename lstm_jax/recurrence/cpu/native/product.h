// Matrix products from packed panels, at the speed of the registers.
//
// A panel is kPanel = 2 kWidth columns of a matrix, row after row, so that a product
// reads it from front to back. All matrices in scratch memory are kept in panels:
// [columns / kPanel][rows][kPanel].
//
// Every element of a product is one sum over k in order, whatever the tile it is in:
// results do not depend on how the work is cut or shared.
#ifndef LSTM_JAX_PRODUCT_H_
#define LSTM_JAX_PRODUCT_H_

#include "vec.h"

namespace lstm {
namespace LSTM_ISA {

constexpr int kPanel = 2 * kWidth;
// Rows of the largest tile; its sums fill three quarters of the registers.
constexpr int kTileRows = 3 * kRegisters / 8;
// Rows of a panel that stay in the first-level cache while tiles go over them.
constexpr int kDepth = 256 * 8 / kWidth;
// How many rows of a panel are asked for ahead of their use, where they are used once.
constexpr int kRowsAhead = 40;

// The left factor: element (row, k) is at data[row * row_step + k / kPanel * panel_step
// + k % kPanel].
struct Left {
  const float* data;
  ptrdiff_t row_step;
  ptrdiff_t panel_step;

  Left From(int64_t row) const { return {data + row * row_step, row_step, panel_step}; }
};

// Where sums start from or go to: element (row, panel, column) is at data[row *
// row_step
// + panel * panel_step + column]. With steps of 0 it is the same for all rows.
template <class Float>
struct Sums {
  Float* data;
  ptrdiff_t row_step;
  ptrdiff_t panel_step;

  Sums At(int64_t row, int64_t panel) const {
    return {data + row * row_step + panel * panel_step, row_step, panel_step};
  }
};

// What to ask the caches for while a tile is computed, line by line: what comes from
// far then comes in time, which the processor's own guess does not achieve.
struct Ahead {
  const float* data;
  ptrdiff_t step;  // a row of the tile's depth
};

// One tile: kRows rows by kPanels panels, all sums in registers. With kAcross, the left
// factor is a panel of kTileRows columns, read across: element (row, k) is at
// data[k * kTileRows + row].
template <int kRows, int kPanels, bool kAcross>
LSTM_INLINE void Tile(Left left, const float* right, ptrdiff_t right_step,
                      int64_t depth, Ahead ahead, Vec (&sums)[kRows][2 * kPanels]) {
  const float* a = left.data;
  const auto step = [&](ptrdiff_t k) __attribute__((always_inline)) {
    const auto element = [&](int row) __attribute__((always_inline)) {
      return Broadcast(kAcross ? a[k * kTileRows + row] : a[row * left.row_step + k]);
    };
    const auto column = [&](int v) __attribute__((always_inline)) {
      return Load(right + v / 2 * right_step + v % 2 * kWidth);
    };
    // The smaller side of the tile is loaded first, and kept: so all fits the
    // registers.
    if constexpr (kRows < 2 * kPanels) {
      Vec x[kRows];
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) x[row] = element(row);
#pragma GCC unroll 16
      for (int v = 0; v < 2 * kPanels; ++v) {
        const Vec b = column(v);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) sums[row][v] += x[row] * b;
      }
    } else {
      Vec b[2 * kPanels];
#pragma GCC unroll 16
      for (int v = 0; v < 2 * kPanels; ++v) b[v] = column(v);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const Vec x = element(row);
#pragma GCC unroll 16
        for (int v = 0; v < 2 * kPanels; ++v) sums[row][v] += x * b[v];
      }
    }
    __builtin_prefetch(ahead.data, 0, 2);
    ahead.data += ahead.step;
    right += kPanel;
  };
  for (; depth >= kPanel; depth -= kPanel) {
#pragma GCC unroll 4
    for (int k = 0; k < kPanel; ++k) step(k);
    a += kAcross ? kPanel * kTileRows : left.panel_step;
  }
  for (int64_t k = 0; k < depth; ++k) step(k);
}

template <int kRows, int kPanels>
void TileToSums(Left left, const float* right, ptrdiff_t right_step, int64_t depth,
                Ahead ahead, Sums<const float> from, Sums<float> to) {
  Vec sums[kRows][2 * kPanels];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const float* start = from.data + row * from.row_step + p * from.panel_step;
      sums[row][2 * p] = Load(start);
      sums[row][2 * p + 1] = Load(start + kWidth);
    }
  }
  Tile<kRows, kPanels, false>(left, right, right_step, depth, ahead, sums);
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      float* end = to.data + row * to.row_step + p * to.panel_step;
      Store(end, sums[row][2 * p]);
      Store(end + kWidth, sums[row][2 * p + 1]);
    }
  }
}

// The most panels that a tile of so many rows has registers for. Few rows alone would
// wait for their own sums.
constexpr int PanelsAtOnce(int rows) {
  return 8 * rows <= kTileRows * 2 ? 4 : 4 * rows <= kTileRows * 2 ? 2 : 1;
}

LSTM_INLINE Ahead AheadOf(Ahead ahead, int64_t panel, ptrdiff_t right_step) {
  return {ahead.data + panel * right_step, ahead.step};
}

// `panels` panels of one row of tiles.
template <int kRows>
void TileRow(Left left, const float* right, ptrdiff_t right_step, int64_t depth,
             Ahead ahead, int64_t panels, Sums<const float> from, Sums<float> to) {
  constexpr int kAtOnce = PanelsAtOnce(kRows);
  int64_t p = 0;
  for (; p + kAtOnce <= panels; p += kAtOnce) {
    TileToSums<kRows, kAtOnce>(left, right + p * right_step, right_step, depth,
                               AheadOf(ahead, p, right_step), from.At(0, p),
                               to.At(0, p));
  }
  for (; p < panels; ++p) {
    TileToSums<kRows, 1>(left, right + p * right_step, right_step, depth,
                         AheadOf(ahead, p, right_step), from.At(0, p), to.At(0, p));
  }
}

using TileRowFunction = void (*)(Left, const float*, ptrdiff_t, int64_t, Ahead, int64_t,
                                 Sums<const float>, Sums<float>);

template <int kRows>
struct TileRows {
  static TileRowFunction Of(int rows) {
    return rows == kRows ? TileRow<kRows> : TileRows<kRows - 1>::Of(rows);
  }
};

template <>
struct TileRows<0> {
  static TileRowFunction Of(int) { return nullptr; }
};

// to = from + left * right, for `rows` rows and `panels` panels.
//
// `right` holds panels of `depth` rows. `from` may be `to` itself.
inline void Multiply(Left left, int64_t rows, const float* right, int64_t depth,
                     int64_t panels, Sums<const float> from, Sums<float> to) {
  // Tiles of nearly equal heights.
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int low = static_cast<int>(rows / tiles);
  const int64_t higher = rows % tiles;
  const TileRowFunction tile_row[2] = {
      TileRows<kTileRows>::Of(low),
      higher ? TileRows<kTileRows>::Of(low + 1) : nullptr};
  const ptrdiff_t right_step = depth * kPanel;
  // One row of tiles reads the panels but once: it may take several side by side.
  const int64_t at_once = tiles == 1 ? panels : 1;
  const int64_t piece = tiles == 1 ? depth : kDepth;
  for (int64_t p = 0; p < panels; p += at_once) {
    Sums<const float> start = from.At(0, p);
    const Sums<float> end = to.At(0, p);
    for (int64_t k = 0; k < depth; k += piece) {
      const int64_t size = depth - k < piece ? depth - k : piece;
      const float* panel = right + p * right_step + k * kPanel;
      const Left part = {left.data + k / kPanel * left.panel_step, left.row_step,
                         left.panel_step};
      int64_t row = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const bool high = tile < higher;
        // Pieces follow each other in memory. Each tile asks for its part of the next.
        const Ahead ahead = tiles == 1
                                ? Ahead{panel + kRowsAhead * kPanel, kPanel}
                                : Ahead{panel + (size + size * tile / tiles) * kPanel,
                                        kPanel / tiles + 1};
        tile_row[high](part.From(row), panel, right_step, size, ahead, at_once,
                       start.At(row, 0), end.At(row, 0));
        row += low + high;
      }
      start = {end.data, end.row_step, end.panel_step};
    }
  }
}

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

// Adds left^T * right to rows of a matrix in memory, or sets them: a weight gradient.
//
// `left` is packed by PackAcross: one panel of kTileRows columns, `depth` rows. `to`
// points to the first of `rows` rows, `row_step` apart.
inline void MultiplyAcross(const float* left, const float* right, int64_t depth,
                           int rows, Columns columns, bool add, float* to,
                           int64_t row_step) {
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < 2; ++v) {
      __builtin_prefetch(to + row * row_step + columns.start[v], 1);
    }
  }
  Vec sums[kTileRows][2];
#pragma GCC unroll 16
  for (int row = 0; row < kTileRows; ++row) sums[row][0] = sums[row][1] = Vec{};
  Tile<kTileRows, 1, true>({left, 0, 0}, right, 0, depth,
                           {left + depth * kTileRows, kTileRows}, sums);
  float spilled[kTileRows][2][kWidth];
#pragma GCC unroll 16
  for (int row = 0; row < kTileRows; ++row) {
    Store(spilled[row][0], sums[row][0]);
    Store(spilled[row][1], sums[row][1]);
  }
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < 2; ++v) {
      float* end = to + row * row_step + columns.start[v];
      Vec sum = Load(spilled[row][v]);
      if (add) sum += LoadUpTo(end, columns.count[v]);
      StoreUpTo(end, sum, columns.count[v]);
    }
  }
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_PRODUCT_H_
