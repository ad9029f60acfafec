// The forward pass in 8 bits. How threads share it is as in lstm/forward.h.
//
// What enters a product is rounded by the largest number of its row, which is known
// once all units of a step are: h is kept in floats, with the largest of each row that
// each thread has seen, and whoever multiplies rounds the rows it needs for itself.
#ifndef LSTM_JAX_QUANTIZED_FORWARD_H_
#define LSTM_JAX_QUANTIZED_FORWARD_H_

#include "lstm/partition.h"
#include "lstm/steps.h"
#include "memory/pages.h"
#include "quantized/carry.h"
#include "quantized/denormals.h"
#include "quantized/gates.h"
#include "quantized/rows.h"
#include "quantized/weights.h"
#include "threads/team.h"

namespace lstm {
namespace LSTM_ISA {

class QuantizedForward {
 public:
  QuantizedForward(const QuantizedProblem& problem, int limit)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        weights_(problem.weights, problem.sizes),
        threads_(ChooseThreads(s_, limit)),
        by_rows_(SplitByRows(s_, threads_)),
        slots_(by_rows_ ? 1 : threads_),
        carry_(problem, slots_),
        blocks_(UnitBlocks(s_.units)),
        output_blocks_(UnitBlocks(s_.outputs)),
        block_steps_(ProjectedSteps(s_, threads_)) {}

  int threads() const { return threads_; }

  // Hands out workspace memory; see Arena.
  void Allocate(Arena& arena) {
    const int64_t block_rows = block_steps_ * s_.rows;
    weights_.Allocate(arena);
    x_rows_ = PanelRows(block_rows);
    x_ = arena.Floats(APanels(weights_.kernel) * x_rows_ * kNr);
    x_scale_ = arena.Floats(block_rows);
    const bool one_block = by_rows_ && block_steps_ == 1;
    from_x_ = arena.Floats((one_block ? 2 : 2 * blocks_) * x_rows_ * kNr);
    rows_ = PanelRows(s_.rows);
    from_h_ = arena.Floats(2 * blocks_ * rows_ * kNr);
    carry_.Allocate(arena);
    a_size_ = APanels(weights_.recurrent) * rows_ * kNr;
    a_ = arena.Floats(slots_ * a_size_);
    a_scale_ = arena.Floats(slots_ * s_.rows);
    if (!s_.projected) return;
    m_ = arena.Floats(blocks_ * s_.rows * kWidth);
    largest_m_ = Integers(arena, s_.rows * kWidth);
    m_scale_ = arena.Floats(s_.rows);
    a_of_m_ = arena.Floats(APanels(weights_.projection) * rows_ * kNr);
    projected_ = arena.Floats(weights_.projection.panels() * rows_ * kNr);
  }

  void Body(int rank, Team& team) {
    const WithoutDenormals without_denormals;
    Pack(team);
    team.Form(rank);
    // The team may have come out smaller than was asked for.
    if (by_rows_) {
      RunByRows(Part(s_.rows, rank, team.size()));
    } else {
      RunByUnits(rank, team);
    }
  }

 private:
  static int64_t APanels(const PackedMatrix& b) { return CeilDiv(b.lanes(), kNr); }

  // Packs weights and the first state; whoever is here takes part.
  void Pack(Team& team) {
    for (;;) {
      const int64_t item = team.Take();
      if (item < weights_.items()) {
        weights_.Pack(item);
      } else if (item < weights_.items() + s_.rows) {
        carry_.Start(item - weights_.items());
      } else {
        break;
      }
    }
  }

  void RunByRows(Range rows) {
    if (rows.size() == 0) return;
    const int64_t base = rows.begin * block_steps_;
    for (int64_t first = 0; first < s_.steps; first += block_steps_) {
      const int64_t last = Min(first + block_steps_, s_.steps);
      // Where the rows of a step stand in those of the block.
      const auto at = [&](int64_t n) { return base + (n - first) * rows.size(); };
      for (int64_t n = first; n < last; ++n) {
        PackInputs(steps_.Time(n) * s_.rows + rows.begin, rows.size(), at(n));
      }
      if (block_steps_ > 1) ProjectInputs(base, at(last) - base, {0, blocks_}, 0);
      for (int64_t n = first; n < last; ++n) {
        PackHidden(n, rows, 0);
        if (block_steps_ > 1) {
          Advance(n, rows, {0, blocks_}, at(n) - rows.begin, 0, 0);
        } else {
          // Of many rows, one block of units at a time: it stays in the cache.
          for (int64_t block = 0; block < blocks_; ++block) {
            ProjectInputs(base, rows.size(), {block, block + 1}, block);
            Advance(n, rows, {block, block + 1}, base - rows.begin, block, 0);
          }
        }
        if (s_.projected) Project(n, rows);
      }
    }
  }

  void RunByUnits(int rank, Team& team) {
    const UnitSplit mine(blocks_, s_.rows, rank, team.size());
    Range rows = {s_.rows, 0};
    for (const Piece& piece : mine) {
      rows = {Min(rows.begin, piece.rows.begin), Max(rows.end, piece.rows.end)};
    }
    for (int64_t first = 0; first < s_.steps; first += block_steps_) {
      const int64_t last = Min(first + block_steps_, s_.steps);
      const Range times = steps_.Times(first, last);
      const Range share = Part(times.size() * s_.rows, rank, team.size());
      PackInputs(times.begin * s_.rows + share.begin, share.size(), share.begin);
      MakePages(times.begin * s_.rows + share.begin, times.begin * s_.rows + share.end);
      team.Barrier(rank);
      for (const Piece& piece : mine) ProjectPiece(times.size(), piece);
      for (int64_t n = first; n < last; ++n) {
        const int64_t row = (steps_.Time(n) - times.begin) * s_.rows;
        PackHidden(n, rows, rank);
        for (const Piece& piece : mine) {
          Advance(n, piece.rows, piece.blocks, row, 0, rank);
        }
        team.Barrier(rank);
      }
    }
  }

  // Of what is put out for rows [begin, end) of those of all steps.
  void MakePages(int64_t begin, int64_t end) const {
    if (p_.ys) TouchPages(p_.ys + begin * s_.outputs, p_.ys + end * s_.outputs);
    if (p_.cs) TouchPages(p_.cs + begin * s_.units, p_.cs + end * s_.units);
  }

  // Rows of all steps from `from` on become rows of the block from `to` on.
  void PackInputs(int64_t from, int64_t count, int64_t to) {
    for (int64_t n = 0; n < count; ++n) {
      x_scale_[to + n] = PackQuantizedRow(p_.xs + (from + n) * s_.inputs, s_.inputs, x_,
                                          x_rows_, to + n);
    }
  }

  // h as it enters step n, of some rows, for one thread.
  void PackHidden(int64_t n, Range rows, int slot) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const auto block_at = [&](int64_t block) { return carry_.Hidden(n, block, row); };
      a_scale_[slot * s_.rows + row] = PackQuantized(carry_.Largest(n, row), s_.outputs,
                                                     block_at, A(slot), rows_, row);
    }
    carry_.Expect(n + 1, by_rows_ ? rows : Range{0, s_.rows}, slot);
  }

  // The sums of the inputs of some blocks of units, for rows from `first` on; the first
  // panels of the sums are those of block `origin`.
  void ProjectInputs(int64_t first, int64_t rows, Range blocks, int64_t origin) {
    const PackedMatrix& kernel = weights_.kernel;
    Gemm<int8_t>({x_ + first * kNr, x_rows_ * kNr}, rows,
                 kernel.Panels(2 * blocks.begin), kernel.lanes(), 2 * blocks.size(),
                 kernel.Start(2 * blocks.begin),
                 FromX().At(first, 2 * (blocks.begin - origin)));
  }

  // The inputs of a block of steps, for some units and rows of each step.
  void ProjectPiece(int64_t steps, const Piece& piece) {
    const Range rows = piece.rows;
    const bool whole = rows.size() == s_.rows;
    for (int64_t step = 0; step < (whole ? 1 : steps); ++step) {
      ProjectInputs(step * s_.rows + rows.begin, whole ? steps * s_.rows : rows.size(),
                    piece.blocks, 0);
    }
  }

  // A step of some blocks of units, for some rows. The inputs' sums of row 0 would
  // stand in row `x_row` of theirs.
  void Advance(int64_t n, Range rows, Range blocks, int64_t x_row, int64_t origin,
               int slot) {
    const PackedMatrix& recurrent = weights_.recurrent;
    Gemm<int8_t>({A(slot) + rows.begin * kNr, rows_ * kNr}, rows.size(),
                 recurrent.Panels(2 * blocks.begin), recurrent.lanes(),
                 2 * blocks.size(), recurrent.Start(2 * blocks.begin),
                 FromH().At(rows.begin, 2 * blocks.begin));
    // What a step makes of c is computed of all rows before any of it is used, so that
    // the processor need not wait for one of them.
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const float* x_sums = FromX().At(x_row, 2 * (block - origin)).data;
      float* h_sums = FromH().At(0, 2 * block).data;
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        MakeCell(block, row,
                 {x_sums + row * kNr, h_sums + row * kNr, x_scale_[x_row + row],
                  a_scale_[slot * s_.rows + row]});
      }
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        if (steps_.Valid(steps_.Time(n), row)) {
          UpdateBlock(n, row, block, slot, h_sums + row * kNr);
        } else {
          HoldBlock(n, row, block, slot);
        }
      }
    }
  }

  // The pre-activations of gate `gate`.
  LSTM_INLINE Vec Gate(const Sums& sums, int64_t block, int gate) const {
    const int64_t panel = 2 * block + gate / 2, column = gate % 2 * kWidth;
    const float* x = sums.from_x + gate / 2 * x_rows_ * kNr + column;
    const float* h = sums.from_h + gate / 2 * rows_ * kNr + column;
    const Vec from_x =
        ToFloats(x, weights_.kernel.Scale(panel) + column) * sums.x_scale;
    const Vec from_h =
        ToFloats(h, weights_.recurrent.Scale(panel) + column) * sums.h_scale;
    return (from_x + Load(weights_.Bias(panel) + column)) + from_h;
  }

  // c after the step and 1 / sigmoid(o), in place of the sums of h.
  LSTM_INLINE void MakeCell(int64_t block, int64_t row, const Sums& sums) {
    const Vec before = carry_.Cell(block, row);
    const Vec f = OneOverSigmoid(Gate(sums, block, 1));
    const Vec i = OneOverSigmoid(Gate(sums, block, 0));
    const Vec c = before / f + TanhOver(Gate(sums, block, 2), i);
    const Vec o = OneOverSigmoid(Gate(sums, block, 3));
    // Beyond the last unit there is 0, but in a row that is not finite.
    Store(sums.from_h, LiveBlock(c, s_.units, block));
    Store(sums.from_h + kWidth, o);
  }

  LSTM_INLINE void UpdateBlock(int64_t n, int64_t row, int64_t block, int slot,
                               const float* made) {
    const int64_t time = steps_.Time(n);
    const Vec c = Load(made);
    const Vec m = TanhOver(c, Load(made + kWidth));
    StoreBlock(p_.cs, time * s_.rows + row, s_.units, block, c);
    carry_.PassCell(n, block, row, c);
    if (!s_.projected) {
      StoreBlock(p_.ys, time * s_.rows + row, s_.outputs, block, m);
      carry_.PassHidden(n, block, row, slot, m);
      return;
    }
    int32_t* largest = largest_m_ + row * kWidth;
    const IntVec seen = block ? LoadInts(largest) : IntVec{};
    StoreInts(largest, Larger(seen, SizeBits(m)));
    Store(CellAt(m_, s_.rows, block, row), m);
  }

  // A step that is not valid.
  void HoldBlock(int64_t n, int64_t row, int64_t block, int slot) {
    StoreBlock(p_.cs, steps_.Time(n) * s_.rows + row, s_.units, block, Vec{});
    carry_.PassCell(n, block, row, carry_.Cell(block, row));
    if (!s_.projected) Hold(n, block, row, slot);
  }

  // h = m * projection kernel, of a whole step.
  void Project(int64_t n, Range rows) {
    const PackedMatrix& kernel = weights_.projection;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const auto block_at = [&](int64_t block) {
        return Load(CellAt(m_, s_.rows, block, row));
      };
      const int32_t largest = LargestLane(LoadInts(largest_m_ + row * kWidth));
      m_scale_[row] = PackQuantized(largest, s_.units, block_at, a_of_m_, rows_, row);
    }
    Gemm<int8_t>({a_of_m_ + rows.begin * kNr, rows_ * kNr}, rows.size(),
                 kernel.Panels(0), kernel.lanes(), kernel.panels(), kernel.Start(0),
                 {projected_ + rows.begin * kNr, kNr, rows_ * kNr});
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const bool valid = steps_.Valid(steps_.Time(n), row);
      for (int64_t block = 0; block < output_blocks_; ++block) {
        if (valid) {
          const int64_t panel = block / 2, column = block % 2 * kWidth;
          const float* sums = projected_ + (panel * rows_ + row) * kNr + column;
          const Vec h = ToFloats(sums, kernel.Scale(panel) + column) * m_scale_[row];
          StoreBlock(p_.ys, steps_.Time(n) * s_.rows + row, s_.outputs, block, h);
          carry_.PassHidden(n, block, row, 0, h);
        } else {
          Hold(n, block, row, 0);
        }
      }
    }
  }

  // A step that is not valid: nothing out, the state as before.
  void Hold(int64_t n, int64_t block, int64_t row, int slot) {
    StoreBlock(p_.ys, steps_.Time(n) * s_.rows + row, s_.outputs, block, Vec{});
    carry_.PassHidden(n, block, row, slot, carry_.Hidden(n, block, row));
  }

  MatrixC<float> FromX() const { return {from_x_, kNr, x_rows_ * kNr}; }
  MatrixC<float> FromH() const { return {from_h_, kNr, rows_ * kNr}; }
  float* A(int slot) const { return a_ + slot * a_size_; }

  const QuantizedProblem& p_;
  const Sizes& s_;
  const Steps<float> steps_;
  PackedWeights weights_;
  const int threads_;
  const bool by_rows_;
  const int slots_;  // for threads that round the same rows
  QuantizedCarry carry_;
  const int64_t blocks_;
  const int64_t output_blocks_;
  const int64_t block_steps_;

  // Inputs of a block of steps, and their sums.
  float* x_ = nullptr;
  float* x_scale_ = nullptr;
  float* from_x_ = nullptr;
  int64_t x_rows_ = 0;
  // h as it enters a step, for each slot as A; its sums.
  float* a_ = nullptr;
  float* a_scale_ = nullptr;
  int64_t a_size_ = 0;
  float* from_h_ = nullptr;
  int64_t rows_ = 0;
  // h before projection, and the same of it.
  float* m_ = nullptr;
  int32_t* largest_m_ = nullptr;
  float* a_of_m_ = nullptr;
  float* m_scale_ = nullptr;
  float* projected_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_FORWARD_H_
