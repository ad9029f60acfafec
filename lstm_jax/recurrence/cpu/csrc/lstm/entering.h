// The state that entered a step, as the backward pass finds it.
#ifndef LSTM_JAX_LSTM_ENTERING_H_
#define LSTM_JAX_LSTM_ENTERING_H_

#include "lstm/residuals.h"
#include "lstm/steps.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar>
using SavedSteps = Residuals<const GateBits<Scalar>, const uint32_t>;

template <class Scalar>
LSTM_INLINE SavedSteps<Scalar> SavedOf(const BackwardProblem<Scalar>& p) {
  return {p.gates, p.cells, p.sizes.units, p.sizes.rows, p.variant.linear_candidate};
}

template <class Scalar>
class Entering {
 public:
  explicit Entering(const BackwardProblem<Scalar>& problem)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        saved_(SavedOf(problem)) {}

  // h as it entered the product of a step, of one row.
  const Scalar* Hidden(int64_t time, int64_t row) const {
    if (p_.entering) return p_.entering + (time * s_.rows + row) * s_.outputs;
    if (time == steps_.Time(0)) return p_.state.h + row * s_.outputs;
    return p_.ys + (steps_.Before(time) * s_.rows + row) * s_.outputs;
  }

  // c as it entered a step, of one block of one row.
  LSTM_INLINE Vec Cell(int64_t time, int64_t block, int64_t row) const {
    const bool reset = steps_.Reset(time, row);
    if (time != steps_.Time(0) && !reset) {
      return saved_.ReadCell(steps_.Before(time), block, row);
    }
    const float* c = reset ? p_.controls.reset_state.c : p_.state.c;
    return LoadBlock(c, row, s_.units, block);
  }

 private:
  const BackwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Steps<Scalar> steps_;
  const SavedSteps<Scalar> saved_;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_ENTERING_H_
