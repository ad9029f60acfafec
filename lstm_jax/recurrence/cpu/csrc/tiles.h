// Products of pairs of bfloat16 in the tile registers of AMX.
#ifndef LSTM_JAX_TILES_H_
#define LSTM_JAX_TILES_H_

#include "lanes.h"

namespace lstm {
namespace LSTM_ISA {

#if defined(__AMX_BF16__)

// Rows of a tile, and lanes in a row.
constexpr int kTile = 16;
// How many rows of a panel are asked for ahead of their use.
constexpr int kTileRowsAhead = 64;

// Which of its eight registers a thread has set up: 0 to 3 for sums, 4 and 5 for the left
// factor, 6 and 7 for the right one. The upper half has the rows of 0, 1 and 4, the lower
// one those of 2, 3 and 5.
class TileRegisters {
 public:
  // Setting them up takes as long as a small product.
  static void SetUp(int upper, int lower) {
    int& now = Now();
    const int wanted = upper * 64 + lower;
    if (now == wanted) return;
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int n = 0; n < 8; ++n) {
      config.row_bytes[n] = 4 * kTile;
      const bool is_lower = n == 2 || n == 3 || n == 5;
      config.rows[n] = static_cast<uint8_t>(n > 5 ? kTile : is_lower ? lower : upper);
    }
    // The intrinsic says that it reads but the first bytes.
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
    now = wanted;
  }

  // For whoever runs on this thread next.
  static void Release() {
    if (Now() == 0) return;
    _tile_release();
    Now() = 0;
  }

 private:
  static int& Now() {
    static thread_local int now = 0;
    return now;
  }
};

LSTM_INLINE void PrefetchRows(const float* from, int rows) {
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < 2; ++v) {
      __builtin_prefetch(from + row * kPanel + v * kWidth, 0, 3);
    }
  }
}

// Up to 32 rows by one panel.
inline void TwoRowsOfTiles(Left left, int upper, const float* right, int64_t depth,
                           Sums<const float> from, Sums<float> to) {
  const Sums<const float> from_lower = from.At(upper, 0);
  const Sums<float> to_lower = to.At(upper, 0);
  const ptrdiff_t from_step = 4 * from.row_step, to_step = 4 * to.row_step;
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
  _tile_loadd(0, from.data, from_step);
  _tile_loadd(1, from.data + kTile, from_step);
  _tile_loadd(2, from_lower.data, from_step);
  _tile_loadd(3, from_lower.data + kTile, from_step);
  for (int64_t k = 0; k < depth; k += kTile) {
    const float* a = left.data + k / kPanel * left.panel_step + k % kPanel;
    PrefetchRows(right + kTileRowsAhead * kPanel, kTile);
    _tile_loadd(6, right, 4 * kPanel);
    _tile_loadd(4, a, 4 * kPanel);
    _tile_loadd(7, right + kTile, 4 * kPanel);
    _tile_loadd(5, a + upper * kPanel, 4 * kPanel);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    right += kTile * kPanel;
  }
  _tile_stored(0, to.data, to_step);
  _tile_stored(1, to.data + kTile, to_step);
  _tile_stored(2, to_lower.data, to_step);
  _tile_stored(3, to_lower.data + kTile, to_step);
  asm volatile("" ::: "memory");
}

// Up to 16 rows by two panels.
inline void OneRowOfTiles(Left left, Right right, int64_t depth, Sums<const float> from,
                          Sums<float> to) {
  const ptrdiff_t from_step = 4 * from.row_step, to_step = 4 * to.row_step;
  const Sums<const float> from_second = from.At(0, 1);
  const Sums<float> to_second = to.At(0, 1);
  const float* first = right.data;
  const float* second = right.From(1).data;
  asm volatile("" ::: "memory");
  _tile_loadd(0, from.data, from_step);
  _tile_loadd(1, from.data + kTile, from_step);
  _tile_loadd(2, from_second.data, from_step);
  _tile_loadd(3, from_second.data + kTile, from_step);
  for (int64_t k = 0; k < depth; k += kTile) {
    const float* a = left.data + k / kPanel * left.panel_step + k % kPanel;
    PrefetchRows(first + kTileRowsAhead * kPanel, kTile);
    PrefetchRows(second + kTileRowsAhead * kPanel, kTile);
    _tile_loadd(4, a, 4 * kPanel);
    _tile_loadd(6, first, 4 * kPanel);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, first + kTile, 4 * kPanel);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, second, 4 * kPanel);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, second + kTile, 4 * kPanel);
    _tile_dpbf16ps(3, 4, 7);
    first += kTile * kPanel;
    second += kTile * kPanel;
  }
  _tile_stored(0, to.data, to_step);
  _tile_stored(1, to.data + kTile, to_step);
  _tile_stored(2, to_second.data, to_step);
  _tile_stored(3, to_second.data + kTile, to_step);
  asm volatile("" ::: "memory");
}

// Up to 16 rows by one panel.
inline void OneTile(Left left, const float* right, int64_t depth,
                    Sums<const float> from, Sums<float> to) {
  asm volatile("" ::: "memory");
  _tile_loadd(0, from.data, 4 * from.row_step);
  _tile_loadd(1, from.data + kTile, 4 * from.row_step);
  for (int64_t k = 0; k < depth; k += kTile) {
    const float* a = left.data + k / kPanel * left.panel_step + k % kPanel;
    _tile_loadd(4, a, 4 * kPanel);
    _tile_loadd(6, right, 4 * kPanel);
    _tile_loadd(7, right + kTile, 4 * kPanel);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    right += kTile * kPanel;
  }
  _tile_stored(0, to.data, 4 * to.row_step);
  _tile_stored(1, to.data + kTile, 4 * to.row_step);
  asm volatile("" ::: "memory");
}

// The product of lanes of pairs; the arguments are those of Multiply.
inline void MultiplyInTiles(Left left, int64_t rows, Right right, int64_t depth,
                            int64_t panels, Sums<const float> from, Sums<float> to) {
  if (rows <= kTile) {
    // The lower half are the same rows of a second panel.
    const int height = static_cast<int>(rows);
    TileRegisters::SetUp(height, height);
    int64_t p = 0;
    for (; p + 2 <= panels; p += 2) {
      OneRowOfTiles(left, right.From(p), depth, from.At(0, p), to.At(0, p));
    }
    if (p < panels) {
      OneTile(left, right.From(p).data, depth, from.At(0, p), to.At(0, p));
    }
    return;
  }
  // Nearly equal heights, so that few times anything has to be set up again.
  const int64_t passes = CeilDiv(rows, 2 * kTile);
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t row = rows * pass / passes;
      const int height = static_cast<int>(rows * (pass + 1) / passes - row);
      const int upper = (height + 1) / 2;
      TileRegisters::SetUp(upper, height - upper);
      TwoRowsOfTiles(left.From(row), upper, right.From(p).data, depth, from.At(row, p),
                     to.At(row, p));
    }
  }
}

LSTM_INLINE void ReleaseTiles() { TileRegisters::Release(); }

#else

LSTM_INLINE void ReleaseTiles() {}

#endif

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_TILES_H_
