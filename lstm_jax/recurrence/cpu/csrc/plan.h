// How a call is cut: over threads, and over time.
#ifndef LSTM_JAX_PLAN_H_
#define LSTM_JAX_PLAN_H_

#include "pack.h"
#include "team.h"

namespace lstm {
namespace LSTM_ISA {

struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// Part `rank` of `count` things cut into `parts` nearly equal parts.
LSTM_INLINE Range Part(int64_t count, int rank, int parts) {
  return {count * rank / parts, count * (rank + 1) / parts};
}

// A barrier costs a fraction of a microsecond, a thread some more to come: below so
// many operations a step, or in all, one thread is faster than two.
constexpr double kStepWorth = 1e5;
constexpr double kCallWorth = 2e6;
// With so many rows for each thread, the threads share the rows and never wait for
// each other; with fewer, they share the units and meet at every step, so that each
// reads but its own part of the weights. Weights that stay in the second-level cache
// of each are read fast enough for few rows.
constexpr int64_t kRowsWorth = 64;
constexpr int64_t kRowsWorthSmall = 4;
constexpr int64_t kSmallWeights = 256 << 10;

LSTM_INLINE double Operations(const Sizes& s) {
  return 8.0 * s.steps * s.rows * s.units * (s.inputs + s.outputs);
}

// A thread that is missing is missing to the end: it is worth some percent of a call's
// time to wait for it.
LSTM_INLINE int64_t PatienceMicroseconds(const Sizes& s) {
  return 50 + static_cast<int64_t>(1e-7 * Operations(s));
}

LSTM_INLINE int ChooseThreads(const Sizes& s, int limit) {
  const double step = 8.0 * s.rows * s.units * s.outputs;
  if (step < kStepWorth || Operations(s) < kCallWorth) return 1;
  const int64_t most = s.projected ? s.rows : Max(s.rows, CeilDiv(s.units, kPanel));
  return static_cast<int>(Min(limit, most));
}

LSTM_INLINE bool ShareRows(const Sizes& s, int threads) {
  const int64_t bytes = 16 * s.units * (s.inputs + s.outputs);
  const int64_t worth = bytes <= kSmallWeights ? kRowsWorthSmall : kRowsWorth;
  return s.projected || s.rows >= worth * threads;
}

// A part of a step: some blocks of columns, for some of the rows.
struct Piece {
  Range blocks;
  Range rows;
};

// The share of one thread in `blocks` blocks of `rows` rows: whole blocks, and where
// their number cannot be shared, some rows of the first and of the last one.
class Share {
 public:
  Share(int64_t blocks, int64_t rows, int rank, int threads) {
    Add(Cut(blocks, rows, rank, threads), Cut(blocks, rows, rank + 1, threads), rows);
  }

  const Piece* begin() const { return pieces_; }
  const Piece* end() const { return pieces_ + count_; }

 private:
  // A product of fewer rows takes as long.
  static constexpr int64_t kFewestRows = 4;

  // Where the share of a thread begins, in rows of blocks.
  static int64_t Cut(int64_t blocks, int64_t rows, int rank, int threads) {
    const int64_t at = blocks * rows * rank / threads;
    return at - at % rows % kFewestRows;
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

// Rows of a panel in scratch memory. An odd number, since panels an even number of
// cache lines apart would compete for few places in the caches.
LSTM_INLINE int64_t PanelRows(int64_t rows) { return rows | 1; }

// Hands out parts of one block of scratch memory. Built twice: once to measure, with a
// null pointer, and once to use.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}

  float* Floats(int64_t count) { return Of<float>(count); }

  template <class Scalar>
  Scalar* Of(int64_t count) {
    const size_t start = used_;
    used_ += (count * sizeof(Scalar) + kLine - 1) / kLine * kLine;
    return base_ ? reinterpret_cast<Scalar*>(base_ + start) : nullptr;
  }

  size_t used() const { return used_; }

 private:
  static constexpr size_t kLine = 64;
  char* base_;
  size_t used_ = 0;
};

// What a sum starts from.
alignas(64) constexpr float kZeros[kPanel] = {};

// The cell state and its gradient in scratch memory: [blocks of units][rows][kWidth].
LSTM_INLINE float* CellAt(float* cells, int64_t rows, int64_t block, int64_t row) {
  return cells + (block * rows + row) * kWidth;
}

// What both passes ask about the steps, the rows and their controls.
template <class Scalar>
class Steps {
 public:
  Steps(const Sizes& sizes, const Controls<Scalar>& controls)
      : sizes_(sizes), controls_(controls) {}

  // The time of the step that runs as number `n`.
  int64_t Time(int64_t n) const { return sizes_.reverse ? sizes_.steps - 1 - n : n; }

  // The times of steps number [begin, end).
  Range Times(int64_t begin, int64_t end) const {
    if (!sizes_.reverse) return {begin, end};
    return {sizes_.steps - end, sizes_.steps - begin};
  }

  bool Valid(int64_t time, int64_t row) const {
    return !controls_.valid || controls_.valid[time * sizes_.rows + row];
  }

  bool Reset(int64_t time, int64_t row) const {
    return controls_.reset && controls_.reset[time * sizes_.rows + row];
  }

 private:
  const Sizes& sizes_;
  const Controls<Scalar>& controls_;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_PLAN_H_
