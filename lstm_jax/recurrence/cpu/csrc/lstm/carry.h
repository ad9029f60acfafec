// The state that the forward pass carries from step to step.
#ifndef LSTM_JAX_LSTM_CARRY_H_
#define LSTM_JAX_LSTM_CARRY_H_

#include "gemm/pack_a.h"
#include "lstm/gates.h"
#include "lstm/step.h"
#include "lstm/steps.h"
#include "memory/arena.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar, class Step>
class Carry {
 public:
  Carry(const ForwardProblem<Scalar>& problem, const Step& step)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        step_(step),
        blocks_(UnitBlocks(s_.units)),
        output_panels_(CeilDiv(s_.outputs, kNr)),
        h_rows_(PanelRows(s_.rows)) {}

  void Allocate(Arena& arena) {
    for (float*& h : h_) {
      h = arena.Floats(CeilDiv(DepthInLanes<Scalar>(s_.outputs), kNr) * h_rows_ * kNr);
    }
    c_ = arena.Floats(blocks_ * s_.rows * kWidth);
    if (step_.masked()) {
      unmasked_ = arena.Floats(2 * output_panels_ * s_.rows * kWidth);
    }
  }

  // The state that enters the first step, of one row.
  void Start(int64_t row) {
    const bool reset = steps_.Reset(steps_.Time(0), row);
    const State<Scalar>& from = reset ? p_.controls.reset_state : p_.state;
    for (int64_t block = 0; block < 2 * output_panels_; ++block) {
      EnterHidden(0, block, row, HiddenOf(from, block, row));
      // Blocks beyond the last are never written again.
      StoreA<Scalar>(HiddenAt(1, block, row), Vec{});
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      Store(CellAt(c_, s_.rows, block, row), LoadBlock(from.c, row, s_.units, block));
    }
  }

  // What enters the product of step n, from row `row` on.
  PackedA Entering(int64_t n, int64_t row) const {
    return {h_[n % 2] + row * kNr, h_rows_ * kNr};
  }

  Vec EnteringBlock(int64_t n, int64_t block, int64_t row) const {
    return LoadA<Scalar>(HiddenAt(n, block, row));
  }

  // The state before step n.
  Vec Hidden(int64_t n, int64_t block, int64_t row) const {
    if (step_.masked()) return Load(CellAt(unmasked_, s_.rows, block, row));
    return EnteringBlock(n, block, row);
  }

  Vec Cell(int64_t block, int64_t row) const {
    return Load(CellAt(c_, s_.rows, block, row));
  }

  // What leaves a step enters the next one, or is the last state.
  void PassHidden(int64_t n, int64_t block, int64_t row, Vec h) {
    if (n + 1 == s_.steps) {
      StoreBlock(p_.last_h, row, s_.outputs, block, h);
      return;
    }
    if (steps_.Reset(steps_.Time(n + 1), row)) {
      h = HiddenOf(p_.controls.reset_state, block, row);
    }
    EnterHidden(n + 1, block, row, h);
  }

  void PassCell(int64_t n, int64_t block, int64_t row, Vec c) {
    if (n + 1 == s_.steps) {
      StoreBlock(p_.last_c, row, s_.units, block, c);
      return;
    }
    if (steps_.Reset(steps_.Time(n + 1), row)) {
      c = LoadBlock(p_.controls.reset_state.c, row, s_.units, block);
    }
    Store(CellAt(c_, s_.rows, block, row), c);
  }

 private:
  // h as step n finds it: what enters the product, and what the step may keep.
  void EnterHidden(int64_t n, int64_t block, int64_t row, Vec h) {
    const int64_t time = steps_.Time(n);
    if (step_.masked()) {
      Store(CellAt(unmasked_, s_.rows, block, row), Round<Scalar>(h));
      h = step_.Recurrent(h, {time, row, block});
    }
    StoreA<Scalar>(HiddenAt(n, block, row), h);
    StoreBlock(p_.entering, time * s_.rows + row, s_.outputs, block, h);
  }

  Vec HiddenOf(const State<Scalar>& state, int64_t block, int64_t row) const {
    return LoadBlock(state.h, row, s_.outputs, block);
  }

  float* HiddenAt(int64_t n, int64_t block, int64_t row) const {
    return BlockOfA<Scalar>(h_[n % 2], h_rows_, block, row);
  }

  const ForwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Steps<Scalar> steps_;
  const Step& step_;
  const int64_t blocks_;         // of units
  const int64_t output_panels_;  // of h
  const int64_t h_rows_;

  // h as it enters this step and the next one; h where another enters; and c.
  float* h_[2] = {nullptr, nullptr};
  float* unmasked_ = nullptr;
  float* c_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_CARRY_H_
