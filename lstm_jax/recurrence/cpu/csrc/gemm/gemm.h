// C = C + A * B from packed panels, at the speed of the registers.
//
// Every element of a product is one sum over its depth in order, whatever the
// micro-kernel it is in: results do not depend on how the work is cut or shared. Depth
// is in lanes.
#ifndef LSTM_JAX_GEMM_GEMM_H_
#define LSTM_JAX_GEMM_GEMM_H_

#include "gemm/amx.h"
#include "gemm/microkernel.h"

namespace lstm {
namespace LSTM_ISA {

// What a sum starts from.
alignas(64) constexpr float kZeros[kNr] = {};

LSTM_INLINE MatrixC<const float> Zeros() { return {kZeros, 0, 0}; }

// The most panels that a micro-kernel of so many rows has registers for. Few rows alone
// would wait for their own sums.
constexpr int PanelsAtOnce(int rows) {
  return 8 * rows <= kMr * 2 ? 4 : 4 * rows <= kMr * 2 ? 2 : 1;
}

// `panels` panels of kRows rows.
template <Lanes kKind, int kRows>
void MicroKernelRow(PackedA a, PackedB b, int64_t depth, Prefetch prefetch,
                    int64_t panels, MatrixC<const float> c_in, MatrixC<float> c_out) {
  constexpr int kAtOnce = PanelsAtOnce(kRows);
  const auto prefetch_of = [&](int64_t panel) {
    return Prefetch{prefetch.data + panel * b.panel_step, prefetch.step};
  };
  int64_t p = 0;
  for (; p + kAtOnce <= panels; p += kAtOnce) {
    MicroKernel<kKind, kRows, kAtOnce>(a, b.From(p), depth, prefetch_of(p),
                                       c_in.At(0, p), c_out.At(0, p));
  }
  for (; p < panels; ++p) {
    MicroKernel<kKind, kRows, 1>(a, b.From(p), depth, prefetch_of(p), c_in.At(0, p),
                                 c_out.At(0, p));
  }
}

using MicroKernelFunction = void (*)(PackedA, PackedB, int64_t, Prefetch, int64_t,
                                     MatrixC<const float>, MatrixC<float>);

// The micro-kernel of so many rows, of 1 to kRows.
template <Lanes kKind, int kRows>
struct MicroKernels {
  static MicroKernelFunction Of(int rows) {
    return rows == kRows ? MicroKernelRow<kKind, kRows>
                         : MicroKernels<kKind, kRows - 1>::Of(rows);
  }
};

template <Lanes kKind>
struct MicroKernels<kKind, 0> {
  static MicroKernelFunction Of(int) { return nullptr; }
};

template <Lanes kKind>
void GemmInRegisters(PackedA a, int64_t rows, PackedB b, int64_t depth, int64_t panels,
                     MatrixC<const float> c_in, MatrixC<float> c_out) {
  // Tiles of nearly equal heights.
  const int64_t tiles = (rows + kMr - 1) / kMr;
  const int low = static_cast<int>(rows / tiles);
  const int64_t higher = rows % tiles;
  const MicroKernelFunction kernel[2] = {
      MicroKernels<kKind, kMr>::Of(low),
      higher ? MicroKernels<kKind, kMr>::Of(low + 1) : nullptr};
  // One row of tiles reads the panels but once: it may take several side by side.
  const int64_t at_once = tiles == 1 ? panels : 1;
  const int64_t piece = tiles == 1 ? depth : kKc;
  for (int64_t p = 0; p < panels; p += at_once) {
    MatrixC<const float> start = c_in.At(0, p);
    const MatrixC<float> end = c_out.At(0, p);
    for (int64_t k = 0; k < depth; k += piece) {
      const int64_t size = depth - k < piece ? depth - k : piece;
      const float* panel = b.From(p).data + k * kNr;
      const PackedA part = {a.data + k / kNr * a.panel_step, a.panel_step};
      int64_t row = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const bool high = tile < higher;
        // Pieces follow each other in memory. Each tile asks for its part of the next.
        const Prefetch prefetch =
            tiles == 1
                ? Prefetch{panel + tuning::kPrefetchRows * kNr, kNr}
                : Prefetch{panel + (size + size * tile / tiles) * kNr, kNr / tiles + 1};
        kernel[high](part.From(row), {panel, b.panel_step}, size, prefetch, at_once,
                     start.At(row, 0), end.At(row, 0));
        row += low + high;
      }
      start = AsInput(end);
    }
  }
}

// c_out = c_in + a * b, for `rows` rows and `panels` panels. The depth is in lanes.
// `c_in` may be `c_out` itself.
template <class Scalar>
void Gemm(PackedA a, int64_t rows, PackedB b, int64_t depth, int64_t panels,
          MatrixC<const float> c_in, MatrixC<float> c_out) {
#if LSTM_AMX
  if constexpr (kPaired<Scalar>) {
    return GemmInTiles(a, rows, b, depth, panels, c_in, c_out);
  }
#endif
  GemmInRegisters<kLanes<Scalar>>(a, rows, b, depth, panels, c_in, c_out);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GEMM_GEMM_H_
