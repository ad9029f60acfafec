// What both passes ask about the steps, the rows and their controls, and how they keep
// the state in a workspace.
#ifndef LSTM_JAX_LSTM_STEPS_H_
#define LSTM_JAX_LSTM_STEPS_H_

#include "gemm/operands.h"

namespace lstm {
namespace LSTM_ISA {

// Rows of a panel in a workspace. An odd number, since panels an even number of
// cache lines apart would compete for few places in the caches.
LSTM_INLINE int64_t PanelRows(int64_t rows) { return rows | 1; }

// The cell state and its gradient in a workspace: [blocks of units][rows][kWidth].
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

  // The time of the step that runs before that at `time`.
  int64_t Before(int64_t time) const { return sizes_.reverse ? time + 1 : time - 1; }

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

#endif  // LSTM_JAX_LSTM_STEPS_H_
