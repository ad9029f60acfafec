// Matrix products from packed panels, at the speed of the registers.
//
// Every element of a product is one sum over its depth in order, whatever the tile it
// is in: results do not depend on how the work is cut or shared. Depth is in lanes.
#ifndef LSTM_JAX_PRODUCT_H_
#define LSTM_JAX_PRODUCT_H_

#include "tiles.h"

namespace lstm {
namespace LSTM_ISA {

// Rows of the largest tile; its sums fill three quarters of the registers.
constexpr int kTileRows = 3 * kRegisters / 8;
// Rows of a panel that stay in the first-level cache while tiles go over them.
constexpr int kDepth = 256 * 8 / kWidth;
// How many rows of a panel are asked for ahead of their use, where they are used once.
constexpr int kRowsAhead = 40;

// What to ask the caches for while a tile is computed, line by line: what comes from
// far then comes in time, which the processor's own guess does not achieve.
struct Ahead {
  const float* data;
  ptrdiff_t step;  // a row of the tile's depth
};

// One tile: kRows rows by kPanels panels, all sums in registers.
template <bool kPairs, int kRows, int kPanels>
void Tile(Left left, Right right, int64_t depth, Ahead ahead, Sums<const float> from,
          Sums<float> to) {
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
  const float* a = left.data;
  const float* b_row = right.data;
  const auto step = [&](ptrdiff_t k) __attribute__((always_inline)) {
    const auto lane = [&](int row) __attribute__((always_inline)) {
      return BroadcastLane(a + row * kPanel + k);
    };
    const auto column = [&](int v) __attribute__((always_inline)) {
      return Load(b_row + v / 2 * right.panel_step + v % 2 * kWidth);
    };
    // The smaller side of the tile is loaded first, and kept: so all fits the
    // registers.
    if constexpr (kRows < 2 * kPanels) {
      Vec x[kRows];
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) x[row] = lane(row);
#pragma GCC unroll 16
      for (int v = 0; v < 2 * kPanels; ++v) {
        const Vec b = column(v);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) {
          sums[row][v] = MultiplyAdd<kPairs>(sums[row][v], x[row], b);
        }
      }
    } else {
      Vec b[2 * kPanels];
#pragma GCC unroll 16
      for (int v = 0; v < 2 * kPanels; ++v) b[v] = column(v);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const Vec x = lane(row);
#pragma GCC unroll 16
        for (int v = 0; v < 2 * kPanels; ++v) {
          sums[row][v] = MultiplyAdd<kPairs>(sums[row][v], x, b[v]);
        }
      }
    }
    __builtin_prefetch(ahead.data, 0, 2);
    ahead.data += ahead.step;
    b_row += kPanel;
  };
  for (; depth >= kPanel; depth -= kPanel) {
#pragma GCC unroll 4
    for (int k = 0; k < kPanel; ++k) step(k);
    a += left.panel_step;
  }
  for (int64_t k = 0; k < depth; ++k) step(k);
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

LSTM_INLINE Ahead AheadOf(Ahead ahead, int64_t panel, Right right) {
  return {ahead.data + panel * right.panel_step, ahead.step};
}

// `panels` panels of one row of tiles.
template <bool kPairs, int kRows>
void TileRow(Left left, Right right, int64_t depth, Ahead ahead, int64_t panels,
             Sums<const float> from, Sums<float> to) {
  constexpr int kAtOnce = PanelsAtOnce(kRows);
  int64_t p = 0;
  for (; p + kAtOnce <= panels; p += kAtOnce) {
    Tile<kPairs, kRows, kAtOnce>(left, right.From(p), depth, AheadOf(ahead, p, right),
                                 from.At(0, p), to.At(0, p));
  }
  for (; p < panels; ++p) {
    Tile<kPairs, kRows, 1>(left, right.From(p), depth, AheadOf(ahead, p, right),
                           from.At(0, p), to.At(0, p));
  }
}

using TileRowFunction = void (*)(Left, Right, int64_t, Ahead, int64_t,
                                 Sums<const float>, Sums<float>);

template <bool kPairs, int kRows>
struct TileRows {
  static TileRowFunction Of(int rows) {
    return rows == kRows ? TileRow<kPairs, kRows>
                         : TileRows<kPairs, kRows - 1>::Of(rows);
  }
};

template <bool kPairs>
struct TileRows<kPairs, 0> {
  static TileRowFunction Of(int) { return nullptr; }
};

template <bool kPairs>
void MultiplyInRegisters(Left left, int64_t rows, Right right, int64_t depth,
                         int64_t panels, Sums<const float> from, Sums<float> to) {
  // Tiles of nearly equal heights.
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int low = static_cast<int>(rows / tiles);
  const int64_t higher = rows % tiles;
  const TileRowFunction tile_row[2] = {
      TileRows<kPairs, kTileRows>::Of(low),
      higher ? TileRows<kPairs, kTileRows>::Of(low + 1) : nullptr};
  // One row of tiles reads the panels but once: it may take several side by side.
  const int64_t at_once = tiles == 1 ? panels : 1;
  const int64_t piece = tiles == 1 ? depth : kDepth;
  for (int64_t p = 0; p < panels; p += at_once) {
    Sums<const float> start = from.At(0, p);
    const Sums<float> end = to.At(0, p);
    for (int64_t k = 0; k < depth; k += piece) {
      const int64_t size = depth - k < piece ? depth - k : piece;
      const float* panel = right.From(p).data + k * kPanel;
      const Left part = {left.data + k / kPanel * left.panel_step, left.panel_step};
      int64_t row = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const bool high = tile < higher;
        // Pieces follow each other in memory. Each tile asks for its part of the next.
        const Ahead ahead = tiles == 1
                                ? Ahead{panel + kRowsAhead * kPanel, kPanel}
                                : Ahead{panel + (size + size * tile / tiles) * kPanel,
                                        kPanel / tiles + 1};
        tile_row[high](part.From(row), {panel, right.panel_step}, size, ahead, at_once,
                       start.At(row, 0), end.At(row, 0));
        row += low + high;
      }
      start = {end.data, end.row_step, end.panel_step};
    }
  }
}

// to = from + left * right, for `rows` rows and `panels` panels.
//
// The depth is in lanes. `from` may be `to` itself.
template <class Scalar>
void Multiply(Left left, int64_t rows, Right right, int64_t depth, int64_t panels,
              Sums<const float> from, Sums<float> to) {
#if defined(__AMX_BF16__)
  if constexpr (kPaired<Scalar>) {
    return MultiplyInTiles(left, rows, right, depth, panels, from, to);
  }
#endif
  MultiplyInRegisters<kPaired<Scalar>>(left, rows, right, depth, panels, from, to);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_PRODUCT_H_
