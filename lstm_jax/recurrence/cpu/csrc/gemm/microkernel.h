// The micro-kernel: kRows rows by kPanels panels of C, all sums in registers.
#ifndef LSTM_JAX_GEMM_MICROKERNEL_H_
#define LSTM_JAX_GEMM_MICROKERNEL_H_

#include "gemm/operands.h"
#include "tuning.h"

namespace lstm {
namespace LSTM_ISA {

// Rows of the largest micro-kernel; its sums fill three quarters of the registers.
constexpr int kMr = tuning::MicroKernelRows(kRegisters);
// Rows of a panel of B that stay in the first-level cache while micro-kernels go over
// them.
constexpr int kKc = tuning::MicroKernelDepth(kWidth);

// What to ask the caches for while a micro-kernel runs, line by line: what comes from
// far then comes in time, which the processor's own guess does not achieve.
struct Prefetch {
  const float* data;
  ptrdiff_t step;  // for each lane of depth
};

template <Lanes kKind, int kRows, int kPanels>
class Accumulators {
 public:
  LSTM_INLINE void Load(MatrixC<const float> c) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        const float* from = c.data + row * c.row_step + p * c.panel_step;
        sums_[row][2 * p] = LSTM_ISA::Load(from);
        sums_[row][2 * p + 1] = LSTM_ISA::Load(from + kWidth);
      }
    }
  }

  LSTM_INLINE void Store(MatrixC<float> c) const {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        float* to = c.data + row * c.row_step + p * c.panel_step;
        LSTM_ISA::Store(to, sums_[row][2 * p]);
        LSTM_ISA::Store(to + kWidth, sums_[row][2 * p + 1]);
      }
    }
  }

  // Adds one lane of depth; `a` and `b` are where it begins. The smaller side is loaded
  // first, and kept: so all fits the registers.
  LSTM_INLINE void Add(const float* a, const float* b, ptrdiff_t panel_step) {
    if constexpr (kRows < kVectors) {
      AddByColumns(a, b, panel_step);
    } else {
      AddByRows(a, b, panel_step);
    }
  }

 private:
  static constexpr int kVectors = 2 * kPanels;

  LSTM_INLINE static Vec Column(const float* b, ptrdiff_t panel_step, int v) {
    return LSTM_ISA::Load(b + v / 2 * panel_step + v % 2 * kWidth);
  }

  LSTM_INLINE void AddByColumns(const float* a, const float* b, ptrdiff_t panel_step) {
    Vec lanes[kRows];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) lanes[row] = BroadcastLane(a + row * kNr);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Vec column = Column(b, panel_step, v);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        sums_[row][v] = MultiplyAdd<kKind>(sums_[row][v], lanes[row], column);
      }
    }
  }

  LSTM_INLINE void AddByRows(const float* a, const float* b, ptrdiff_t panel_step) {
    Vec columns[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) columns[v] = Column(b, panel_step, v);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vec lane = BroadcastLane(a + row * kNr);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sums_[row][v] = MultiplyAdd<kKind>(sums_[row][v], lane, columns[v]);
      }
    }
  }

  Vec sums_[kRows][kVectors];
};

template <Lanes kKind, int kRows, int kPanels>
void MicroKernel(PackedA a, PackedB b, int64_t depth, Prefetch prefetch,
                 MatrixC<const float> c_in, MatrixC<float> c_out) {
  Accumulators<kKind, kRows, kPanels> sums;
  sums.Load(c_in);
  const float* a_lane = a.data;
  const float* b_lane = b.data;
  const auto step = [&](ptrdiff_t k) __attribute__((always_inline)) {
    sums.Add(a_lane + k, b_lane, b.panel_step);
    __builtin_prefetch(prefetch.data, 0, 2);
    prefetch.data += prefetch.step;
    b_lane += kNr;
  };
  for (; depth >= kNr; depth -= kNr) {
#pragma GCC unroll 4
    for (int k = 0; k < kNr; ++k) step(k);
    a_lane += a.panel_step;
  }
  for (int64_t k = 0; k < depth; ++k) step(k);
  sums.Store(c_out);
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GEMM_MICROKERNEL_H_
