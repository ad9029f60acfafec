// The state that the forward pass in 8 bits carries from step to step: h and c in
// floats, and of h the largest number of each row, as each thread has seen it.
#ifndef LSTM_JAX_QUANTIZED_CARRY_H_
#define LSTM_JAX_QUANTIZED_CARRY_H_

#include "lstm/gates.h"
#include "lstm/steps.h"
#include "quantized/rows.h"

namespace lstm {
namespace LSTM_ISA {

class QuantizedCarry {
 public:
  // Threads that round the same rows have a slot each.
  QuantizedCarry(const QuantizedProblem& problem, int slots)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        slots_(slots) {}

  void Allocate(Arena& arena) {
    for (int n = 0; n < 2; ++n) {
      h_[n] = arena.Floats(UnitBlocks(s_.outputs) * s_.rows * kWidth);
      largest_[n] = Integers(arena, slots_ * s_.rows * kWidth);
    }
    c_ = arena.Floats(UnitBlocks(s_.units) * s_.rows * kWidth);
  }

  // The state that enters the first step, of one row.
  void Start(int64_t row) {
    const bool reset = steps_.Reset(steps_.Time(0), row);
    const State<float>& from = reset ? p_.controls.reset_state : p_.state;
    for (int slot = 0; slot < slots_; ++slot) {
      StoreInts(LargestAt(0, slot, row), IntVec{});
      StoreInts(LargestAt(1, slot, row), IntVec{});
    }
    for (int64_t block = 0; block < UnitBlocks(s_.outputs); ++block) {
      EnterHidden(0, block, row, 0, LoadBlock(from.h, row, s_.outputs, block));
    }
    for (int64_t block = 0; block < UnitBlocks(s_.units); ++block) {
      Store(CellAt(c_, s_.rows, block, row), LoadBlock(from.c, row, s_.units, block));
    }
  }

  // The state before step n; of c there is the newest alone.
  Vec Hidden(int64_t n, int64_t block, int64_t row) const {
    return Load(CellAt(h_[n % 2], s_.rows, block, row));
  }

  Vec Cell(int64_t block, int64_t row) const {
    return Load(CellAt(c_, s_.rows, block, row));
  }

  // The largest number of h before step n, as bits.
  int32_t Largest(int64_t n, int64_t row) const {
    IntVec largest = {};
    for (int slot = 0; slot < slots_; ++slot) {
      largest = Larger(largest, LoadInts(LargestAt(n, slot, row)));
    }
    return LargestLane(largest);
  }

  // What a thread has seen of some rows before step n: nothing yet.
  void Expect(int64_t n, Range rows, int slot) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      StoreInts(LargestAt(n, slot, row), IntVec{});
    }
  }

  // What leaves a step enters the next one, or is the last state.
  LSTM_INLINE void PassHidden(int64_t n, int64_t block, int64_t row, int slot, Vec h) {
    if (n + 1 == s_.steps) {
      StoreBlock(p_.last_h, row, s_.outputs, block, h);
      return;
    }
    if (steps_.Reset(steps_.Time(n + 1), row)) {
      h = LoadBlock(p_.controls.reset_state.h, row, s_.outputs, block);
    }
    EnterHidden(n + 1, block, row, slot, h);
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
  LSTM_INLINE void EnterHidden(int64_t n, int64_t block, int64_t row, int slot, Vec h) {
    Store(CellAt(h_[n % 2], s_.rows, block, row), h);
    int32_t* largest = LargestAt(n, slot, row);
    StoreInts(largest, Larger(LoadInts(largest), SizeBits(h)));
  }

  // The largest numbers of h, lane by lane, that a thread has seen in a row.
  int32_t* LargestAt(int64_t n, int slot, int64_t row) const {
    return largest_[n % 2] + (slot * s_.rows + row) * kWidth;
  }

  const QuantizedProblem& p_;
  const Sizes& s_;
  const Steps<float> steps_;
  const int slots_;

  // As it enters this step and the next one.
  float* h_[2] = {nullptr, nullptr};
  int32_t* largest_[2] = {nullptr, nullptr};
  float* c_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_CARRY_H_
