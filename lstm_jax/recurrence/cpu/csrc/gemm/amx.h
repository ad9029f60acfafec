// Products of pairs of bfloat16 in the tile registers of AMX.
#ifndef LSTM_JAX_GEMM_AMX_H_
#define LSTM_JAX_GEMM_AMX_H_

#include "gemm/operands.h"
#include "tuning.h"

namespace lstm {
namespace LSTM_ISA {

#if LSTM_AMX

// Rows of a tile, and lanes in a row.
constexpr int kTile = 16;

// Which of its eight registers a thread has set up: 0 to 3 for C, 4 and 5 for A, 6 and
// 7 for B. The upper half has the rows of 0, 1 and 4, the lower one those of 2, 3
// and 5.
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
      __builtin_prefetch(from + row * kNr + v * kWidth, 0, 3);
    }
  }
}

// Up to 32 rows by one panel.
inline void TwoRowsOfTiles(PackedA a, int upper, const float* b, int64_t depth,
                           MatrixC<const float> c_in, MatrixC<float> c_out) {
  const MatrixC<const float> in_lower = c_in.At(upper, 0);
  const MatrixC<float> out_lower = c_out.At(upper, 0);
  const ptrdiff_t in_step = 4 * c_in.row_step, out_step = 4 * c_out.row_step;
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
  _tile_loadd(0, c_in.data, in_step);
  _tile_loadd(1, c_in.data + kTile, in_step);
  _tile_loadd(2, in_lower.data, in_step);
  _tile_loadd(3, in_lower.data + kTile, in_step);
  for (int64_t k = 0; k < depth; k += kTile) {
    const float* a_lane = a.data + k / kNr * a.panel_step + k % kNr;
    PrefetchRows(b + tuning::kAmxPrefetchRows * kNr, kTile);
    _tile_loadd(6, b, 4 * kNr);
    _tile_loadd(4, a_lane, 4 * kNr);
    _tile_loadd(7, b + kTile, 4 * kNr);
    _tile_loadd(5, a_lane + upper * kNr, 4 * kNr);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    b += kTile * kNr;
  }
  _tile_stored(0, c_out.data, out_step);
  _tile_stored(1, c_out.data + kTile, out_step);
  _tile_stored(2, out_lower.data, out_step);
  _tile_stored(3, out_lower.data + kTile, out_step);
  asm volatile("" ::: "memory");
}

// Up to 16 rows by two panels.
inline void OneRowOfTiles(PackedA a, PackedB b, int64_t depth,
                          MatrixC<const float> c_in, MatrixC<float> c_out) {
  const ptrdiff_t in_step = 4 * c_in.row_step, out_step = 4 * c_out.row_step;
  const MatrixC<const float> in_second = c_in.At(0, 1);
  const MatrixC<float> out_second = c_out.At(0, 1);
  const float* first = b.data;
  const float* second = b.From(1).data;
  asm volatile("" ::: "memory");
  _tile_loadd(0, c_in.data, in_step);
  _tile_loadd(1, c_in.data + kTile, in_step);
  _tile_loadd(2, in_second.data, in_step);
  _tile_loadd(3, in_second.data + kTile, in_step);
  for (int64_t k = 0; k < depth; k += kTile) {
    const float* a_lane = a.data + k / kNr * a.panel_step + k % kNr;
    PrefetchRows(first + tuning::kAmxPrefetchRows * kNr, kTile);
    PrefetchRows(second + tuning::kAmxPrefetchRows * kNr, kTile);
    _tile_loadd(4, a_lane, 4 * kNr);
    _tile_loadd(6, first, 4 * kNr);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, first + kTile, 4 * kNr);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, second, 4 * kNr);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, second + kTile, 4 * kNr);
    _tile_dpbf16ps(3, 4, 7);
    first += kTile * kNr;
    second += kTile * kNr;
  }
  _tile_stored(0, c_out.data, out_step);
  _tile_stored(1, c_out.data + kTile, out_step);
  _tile_stored(2, out_second.data, out_step);
  _tile_stored(3, out_second.data + kTile, out_step);
  asm volatile("" ::: "memory");
}

// Up to 16 rows by one panel.
inline void OneTile(PackedA a, const float* b, int64_t depth, MatrixC<const float> c_in,
                    MatrixC<float> c_out) {
  asm volatile("" ::: "memory");
  _tile_loadd(0, c_in.data, 4 * c_in.row_step);
  _tile_loadd(1, c_in.data + kTile, 4 * c_in.row_step);
  for (int64_t k = 0; k < depth; k += kTile) {
    const float* a_lane = a.data + k / kNr * a.panel_step + k % kNr;
    _tile_loadd(4, a_lane, 4 * kNr);
    _tile_loadd(6, b, 4 * kNr);
    _tile_loadd(7, b + kTile, 4 * kNr);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    b += kTile * kNr;
  }
  _tile_stored(0, c_out.data, 4 * c_out.row_step);
  _tile_stored(1, c_out.data + kTile, 4 * c_out.row_step);
  asm volatile("" ::: "memory");
}

// The product of lanes of pairs; the arguments are those of Gemm.
inline void GemmInTiles(PackedA a, int64_t rows, PackedB b, int64_t depth,
                        int64_t panels, MatrixC<const float> c_in,
                        MatrixC<float> c_out) {
  if (rows <= kTile) {
    // The lower half are the same rows of a second panel.
    const int height = static_cast<int>(rows);
    TileRegisters::SetUp(height, height);
    int64_t p = 0;
    for (; p + 2 <= panels; p += 2) {
      OneRowOfTiles(a, b.From(p), depth, c_in.At(0, p), c_out.At(0, p));
    }
    if (p < panels) {
      OneTile(a, b.From(p).data, depth, c_in.At(0, p), c_out.At(0, p));
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
      TwoRowsOfTiles(a.From(row), upper, b.From(p).data, depth, c_in.At(row, p),
                     c_out.At(row, p));
    }
  }
}

LSTM_INLINE void ReleaseTiles() { TileRegisters::Release(); }

#else

LSTM_INLINE void ReleaseTiles() {}

#endif

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GEMM_AMX_H_
