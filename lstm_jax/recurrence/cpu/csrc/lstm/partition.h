// How a call is cut: over threads, and over time.
#ifndef LSTM_JAX_LSTM_PARTITION_H_
#define LSTM_JAX_LSTM_PARTITION_H_

#include "gemm/microkernel.h"
#include "tuning.h"

namespace lstm {
namespace LSTM_ISA {

LSTM_INLINE double Operations(const Sizes& s) {
  return 8.0 * s.steps * s.rows * s.units * (s.inputs + s.outputs);
}

// A thread that is missing is missing to the end: it is worth some percent of a call's
// time to wait for it.
LSTM_INLINE int64_t JoinTimeoutMicroseconds(const Sizes& s) {
  return tuning::kJoinTimeout +
         static_cast<int64_t>(tuning::kJoinTimeoutPerOperation * Operations(s));
}

// One thread where a step or a call is too short for two.
LSTM_INLINE int ChooseThreads(const Sizes& s, int limit) {
  const double step = 8.0 * s.rows * s.units * s.outputs;
  if (step < tuning::kStepWorth || Operations(s) < tuning::kCallWorth) return 1;
  const int64_t most = s.indivisible() ? s.rows : Max(s.rows, CeilDiv(s.units, kNr));
  return static_cast<int>(Min(limit, most));
}

// Whether threads split the rows, each running all steps of its own, or the units of
// every step, and meet after each.
LSTM_INLINE bool SplitByRows(const Sizes& s, int threads) {
  const int64_t bytes = 16 * s.units * (s.inputs + s.outputs);
  const int64_t worth =
      bytes <= tuning::kSmallWeights ? tuning::kRowsWorthSmall : tuning::kRowsWorth;
  return s.indivisible() || s.rows >= worth * threads;
}

// A part of a step: some blocks of columns, for some of the rows.
struct Piece {
  Range blocks;
  Range rows;
};

// The share of one thread in `blocks` blocks of `rows` rows: whole blocks, and where
// their number cannot be shared, some rows of the first and of the last one.
class UnitSplit {
 public:
  UnitSplit(int64_t blocks, int64_t rows, int rank, int threads) {
    Add(Cut(blocks, rows, rank, threads), Cut(blocks, rows, rank + 1, threads), rows);
  }

  const Piece* begin() const { return pieces_; }
  const Piece* end() const { return pieces_ + count_; }

 private:
  // Where the share of a thread begins, in rows of blocks.
  static int64_t Cut(int64_t blocks, int64_t rows, int rank, int threads) {
    const int64_t at = blocks * rows * rank / threads;
    return at - at % rows % tuning::kFewestRows;
  }

  void Add(int64_t begin, int64_t end, int64_t rows) {
    while (begin < end) {
      const int64_t block = begin / rows, row = begin % rows;
      // Up to the end of the last whole block, or of this one.
      const int64_t whole = row == 0 ? Max(end / rows - block, 1) : 1;
      const int64_t stop = Min(end, (block + whole) * rows);
      pieces_[count_++] = {{block, block + whole},
                           {row, whole > 1 ? rows : row + stop - begin}};
      begin = stop;
    }
  }

  Piece pieces_[3];
  int count_ = 0;
};

// Steps in a block of about `rows` rows, in blocks of nearly equal size.
LSTM_INLINE int64_t BlockSteps(const Sizes& s, int64_t rows) {
  const int64_t most = Min(Max(rows / s.rows, 1), s.steps);
  return CeilDiv(s.steps, CeilDiv(s.steps, most));
}

// Steps whose inputs are projected together.
LSTM_INLINE int64_t ProjectedSteps(const Sizes& s, int threads) {
  if (!SplitByRows(s, threads)) return BlockSteps(s, tuning::kProjectedRows);
  const int64_t fit = tuning::kProjectedBytes / (16 * s.units);
  return BlockSteps(s, threads * Max(fit, tuning::kProjectedMicroKernels * kMr));
}

// Steps whose gradients of pre-activations are kept together.
LSTM_INLINE int64_t GradientSteps(const Sizes& s) {
  return BlockSteps(s,
                    Max(tuning::kBlockRows, s.units * tuning::kBlockRowsPer8Units / 8));
}

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_PARTITION_H_
