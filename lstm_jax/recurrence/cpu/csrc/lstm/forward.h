// The forward pass, for inference and for training.
//
// Threads share either the rows, each running all steps of its own without waiting, or
// the units, with a barrier a step. Pre-activations stay in the cache: those of a few
// steps, or of one step, one block of units at a time, where there are very many rows.
#ifndef LSTM_JAX_LSTM_FORWARD_H_
#define LSTM_JAX_LSTM_FORWARD_H_

#include "lstm/carry.h"
#include "lstm/forward_weights.h"
#include "lstm/heads.h"
#include "lstm/layer_norm.h"
#include "lstm/partition.h"
#include "memory/pages.h"
#include "threads/team.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar, class Step>
class Forward {
 public:
  Forward(const ForwardProblem<Scalar>& problem, int limit)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        step_(problem.variant, problem.sizes),
        carry_(problem, step_),
        weights_(problem),
        heads_(problem.sizes),
        norm_(problem.variant, problem.sizes),
        threads_(ChooseThreads(s_, limit)),
        blocks_(UnitBlocks(s_.units)),
        panels_(2 * blocks_),
        output_panels_(CeilDiv(s_.outputs, kNr)),
        h_rows_(PanelRows(s_.rows)),
        residuals_(p_.gates, p_.cells, s_.units, s_.rows, p_.variant.linear_candidate),
        block_steps_(ProjectedSteps(s_, threads_)) {}

  int threads() const { return threads_; }

  // Hands out workspace memory; see Arena.
  void Allocate(Arena& arena) {
    const int64_t block_rows = block_steps_ * s_.rows;
    weights_.Allocate(arena);
    carry_.Allocate(arena);
    x_rows_ = PanelRows(block_rows);
    x_ = arena.Floats(CeilDiv(weights_.input_lanes(), kNr) * x_rows_ * kNr);
    z_rows_ = PanelRows(block_rows);
    const bool one_block = SplitByRows(s_, threads_) && !WholeRows();
    z_ = arena.Floats((one_block ? 2 : panels_) * z_rows_ * kNr);
    if (step_.normed()) {
      norm_.Allocate(arena);
      r_ = arena.Floats(panels_ * h_rows_ * kNr);
      cell_norms_ = static_cast<RowNorm*>(arena.Bytes(s_.rows, sizeof(RowNorm)));
    }
    if (s_.projected) {
      m_ = arena.Floats(CeilDiv(weights_.unit_lanes(), kNr) * h_rows_ * kNr);
      projected_ = arena.Floats(output_panels_ * h_rows_ * kNr);
    }
  }

  void Body(int rank, Team& team) {
    Pack(team);
    team.Form(rank);
    // The team may have come out smaller than was asked for.
    if (SplitByRows(s_, threads_)) {
      RunByRows(Part(s_.rows, rank, team.size()));
    } else {
      RunByUnits(rank, team);
    }
    ReleaseTiles();
  }

 private:
  // Packs weights and the first state; whoever is here takes part.
  void Pack(Team& team) {
    const int64_t norms = step_.normed() ? 1 : 0;
    for (;;) {
      int64_t item = team.Take();
      if (item < weights_.items()) {
        weights_.Pack(item);
        continue;
      }
      item -= weights_.items();
      if (item < norms) {
        norm_.Pack();
      } else if (item < norms + s_.rows) {
        Start(item - norms);
      } else {
        break;
      }
    }
  }

  void Start(int64_t row) {
    carry_.Start(row);
    for (int64_t block = 0; s_.projected && block < 2 * CeilDiv(s_.units, kNr);
         ++block) {
      StoreA<Scalar>(BlockOfA<Scalar>(m_, h_rows_, block, row), Vec{});
    }
  }

  // Whether all units of a row are there at once.
  bool WholeRows() const { return block_steps_ > 1 || step_.normed(); }

  void RunByRows(Range rows) {
    if (rows.size() == 0) return;
    const int64_t base = rows.begin * block_steps_;
    for (int64_t first = 0; first < s_.steps; first += block_steps_) {
      const int64_t last = Min(first + block_steps_, s_.steps);
      // Where the rows of a step stand in those of the block.
      const auto at = [&](int64_t n) { return base + (n - first) * rows.size(); };
      for (int64_t n = first; n < last; ++n) {
        PackRows(p_.xs + steps_.Time(n) * s_.rows * s_.inputs, rows.begin, rows.end,
                 s_.inputs, x_rows_, x_ + at(n) * kNr);
      }
      if (WholeRows()) ProjectInputs(base, at(last) - base, {0, blocks_}, Z());
      for (int64_t n = first; n < last; ++n) {
        if (WholeRows()) {
          Advance(n, rows, {0, blocks_}, Z().At(at(n), 0));
        } else {
          // Of many rows, one block of units at a time: it stays in the cache.
          for (int64_t block = 0; block < blocks_; ++block) {
            ProjectInputs(base, rows.size(), {block, block + 1}, Z());
            Advance(n, rows, {block, block + 1}, Z().At(base, 0));
          }
        }
        if (s_.projected) Project(n, rows);
      }
    }
  }

  // A step of some blocks of units, from what the inputs contribute; `z` is that of the
  // first row, for the first block.
  void Advance(int64_t n, Range rows, Range blocks, MatrixC<float> z) {
    if (step_.normed()) {
      AddNormed(n, rows, z);
    } else if (!step_.diagonal()) {
      Recur(n, rows, blocks, AsInput(z), z);
    }
    // All gates are computed before any is used, so that the processor need not wait
    // for one of them.
    const auto row_zero = [&](int64_t block) {
      return z.At(-rows.begin, 2 * (block - blocks.begin)).data;
    };
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      Activate(n, rows, block, row_zero(block));
    }
    if (step_.normed()) NormaliseCells(n, rows, z.At(-rows.begin, 0).data);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      Update(n, rows, block, row_zero(block));
    }
    if (residuals_ && blocks.end == blocks_) {
      residuals_.FillUp(steps_.Time(n), blocks_, rows);
    }
  }

  // to = from + h * recurrent kernel, for some rows and blocks of units.
  void Recur(int64_t n, Range rows, Range blocks, MatrixC<const float> from,
             MatrixC<float> to) {
    heads_.Forward(blocks, [&](Range part, Range lanes) {
      const int64_t panel = 2 * (part.begin - blocks.begin);
      Gemm<Scalar>(carry_.Entering(n, rows.begin).FromLane(lanes.begin), rows.size(),
                   weights_.Recurrent(part.begin).FromLane(lanes.begin), lanes.size(),
                   2 * part.size(), from.At(0, panel), to.At(0, panel));
    });
  }

  // z += what that is normalised to.
  void AddNormed(int64_t n, Range rows, MatrixC<float> z) {
    const MatrixC<float> r = {r_ + rows.begin * kNr, kNr, h_rows_ * kNr};
    Recur(n, rows, {0, blocks_}, Zeros(), r);
    for (int64_t row = 0; row < rows.size(); ++row) {
      norm_.Apply(1, RowOf(r, row), RowOf(z, row), RowOf(z, row));
    }
  }

  // What c is normalised with once it is made; `z` are the gates of row 0.
  void NormaliseCells(int64_t n, Range rows, float* z) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (!steps_.Valid(steps_.Time(n), row)) continue;
      const auto cell = [&](int64_t block) {
        return step_.NewCell(GatesAt(z + 2 * block * z_rows_ * kNr + row * kNr),
                             carry_.Cell(block, row));
      };
      const auto live = [&](int64_t block, Vec v) {
        return LiveBlock(v, s_.units, block);
      };
      cell_norms_[row] = NormOf(s_.units, blocks_, cell, live);
    }
  }

  // z = bias + x * kernel, for some blocks of units, and rows from `first` on.
  void ProjectInputs(int64_t first, int64_t rows, Range blocks, MatrixC<float> z) {
    const MatrixC<float> to = z.At(first, 0);
    Gemm<Scalar>({x_ + first * kNr, x_rows_ * kNr}, rows, weights_.Kernel(blocks.begin),
                 weights_.input_lanes(), 2 * blocks.size(),
                 step_.normed() ? Zeros() : weights_.Bias(blocks.begin), to);
    for (int64_t row = 0; step_.normed() && row < rows; ++row) {
      norm_.Apply(0, RowOf(to, row), RowOf(weights_.Bias(0), 0), RowOf(to, row));
    }
  }

  template <class Float>
  static GateRow<Float> RowOf(MatrixC<Float> matrix, int64_t row) {
    return {matrix.At(row, 0).data, matrix.panel_step};
  }

  void RunByUnits(int rank, Team& team) {
    const UnitSplit mine(blocks_, s_.rows, rank, team.size());
    for (int64_t first = 0; first < s_.steps; first += block_steps_) {
      const int64_t last = Min(first + block_steps_, s_.steps);
      const Range times = steps_.Times(first, last);
      const Range share = Part(times.size() * s_.rows, rank, team.size());
      PackRows(p_.xs + times.begin * s_.rows * s_.inputs, share.begin, share.end,
               s_.inputs, x_rows_, x_ + share.begin * kNr);
      MakePages(times.begin * s_.rows + share.begin, times.begin * s_.rows + share.end);
      team.Barrier(rank);
      for (const Piece& piece : mine) ProjectPiece(times.size(), piece);
      for (int64_t n = first; n < last; ++n) {
        const int64_t row = (steps_.Time(n) - times.begin) * s_.rows;
        for (const Piece& piece : mine) {
          Advance(n, piece.rows, piece.blocks,
                  Z().At(row + piece.rows.begin, 2 * piece.blocks.begin));
        }
        if (!step_.diagonal()) team.Barrier(rank);
      }
      if (step_.diagonal()) team.Barrier(rank);
    }
  }

  // Of what is put out for rows [begin, end) of those of all steps. What enters a step
  // is written by the step before.
  void MakePages(int64_t begin, int64_t end) const {
    const auto touch = [&](auto* to, int64_t columns) {
      if (to) TouchPages(to + begin * columns, to + end * columns);
    };
    touch(p_.ys, s_.outputs);
    touch(p_.cs, s_.units);
    touch(p_.gates, 4 * PaddedUnits(s_.units));
    touch(p_.cells, PaddedUnits(s_.units));
  }

  // The inputs of a block of steps, for some units and rows of each step.
  void ProjectPiece(int64_t steps, const Piece& piece) {
    const Range rows = piece.rows;
    const bool whole = rows.size() == s_.rows;
    for (int64_t step = 0; step < (whole ? 1 : steps); ++step) {
      ProjectInputs(step * s_.rows + rows.begin, whole ? steps * s_.rows : rows.size(),
                    piece.blocks, Z().At(0, 2 * piece.blocks.begin));
    }
  }

  MatrixC<float> Z() const { return {z_, kNr, z_rows_ * kNr}; }

  // The gates of one block of units, in place; `z` is row 0 of its first panel.
  void Activate(int64_t n, Range rows, int64_t block, float* z) {
    const auto all = [](Vec v) { return v; };
    const auto live = [&](Vec v) { return LiveBlock(v, s_.units, block); };
    if ((block + 1) * kWidth <= s_.units) {
      ActivateRows(n, rows, block, z, all);
    } else {
      ActivateRows(n, rows, block, z, live);
    }
  }

  template <class Live>
  void ActivateRows(int64_t n, Range rows, int64_t block, float* z, const Live& live) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      float* from = z + row * kNr;
      const Where at = {steps_.Time(n), row, block};
      const GateVecs raw = GatesAt(from);
      GateVecs gates = {live(raw.i), live(raw.f), live(raw.g), live(raw.o)};
      if (step_.diagonal()) {
        gates = step_.AddDiagonal(gates, carry_.EnteringBlock(n, block, row), at);
      }
      gates = step_.Activate(gates, carry_.Cell(block, row), at);
      Store(from, gates.i);
      Store(from + kWidth, gates.f);
      Store(from + z_rows_ * kNr, gates.g);
      Store(from + z_rows_ * kNr + kWidth, gates.o);
    }
  }

  // `z` are i and f; g and o are in the next panel.
  LSTM_INLINE GateVecs GatesAt(const float* z) const {
    const float* next = z + z_rows_ * kNr;
    return {Load(z), Load(z + kWidth), Load(next), Load(next + kWidth)};
  }

  // The state of one block of units, from its gates.
  void Update(int64_t n, Range rows, int64_t block, const float* z) {
    const int64_t time = steps_.Time(n);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (steps_.Valid(time, row)) {
        UpdateBlock(n, row, block, z + row * kNr);
      } else {
        HoldBlock(n, row, block);
      }
    }
  }

  LSTM_INLINE void UpdateBlock(int64_t n, int64_t row, int64_t block, const float* z) {
    const int64_t time = steps_.Time(n);
    Where at = {time, row, block};
    if (step_.normed()) at.norm = cell_norms_[row];
    const Stepped t = step_.Update(GatesAt(z), carry_.Cell(block, row), at);
    if (residuals_) {
      residuals_.Write(time, block, row,
                       {t.gates.i, t.gates.f, t.gates.g, t.gates.o, t.c});
    }
    StoreBlock(p_.cs, time * s_.rows + row, s_.units, block, t.c);
    carry_.PassCell(n, block, row, t.c);
    if (s_.projected) {
      StoreA<Scalar>(BlockOfA<Scalar>(m_, h_rows_, block, row), t.m);
    } else {
      PutOut(n, block, row, t.m);
    }
  }

  // h, from what a valid step has made of it.
  LSTM_INLINE void PutOut(int64_t n, int64_t block, int64_t row, Vec made) {
    const Where at = {steps_.Time(n), row, block};
    const Vec h = step_.Hidden(carry_.Hidden(n, block, row), made, at);
    StoreBlock(p_.ys, at.time * s_.rows + row, s_.outputs, block, step_.Output(h, at));
    carry_.PassHidden(n, block, row, h);
  }

  // A step that is not valid.
  void HoldBlock(int64_t n, int64_t row, int64_t block) {
    const int64_t time = steps_.Time(n);
    const Vec c = carry_.Cell(block, row);
    if (residuals_) residuals_.Write(time, block, row, {Vec{}, Vec{}, Vec{}, Vec{}, c});
    StoreBlock(p_.cs, time * s_.rows + row, s_.units, block, Vec{});
    carry_.PassCell(n, block, row, c);
    if (!s_.projected) Hold(n, block, row);
  }

  // h = m * projection kernel, of a whole step.
  void Project(int64_t n, Range rows) {
    Gemm<Scalar>({m_ + rows.begin * kNr, h_rows_ * kNr}, rows.size(),
                 weights_.Projection(), weights_.unit_lanes(), output_panels_, Zeros(),
                 {projected_ + rows.begin * kNr, kNr, h_rows_ * kNr});
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const bool valid = steps_.Valid(steps_.Time(n), row);
      for (int64_t block = 0; block < 2 * output_panels_; ++block) {
        if (!valid) {
          Hold(n, block, row);
          continue;
        }
        const float* made = BlockOfA<float>(projected_, h_rows_, block, row);
        PutOut(n, block, row, LiveBlock(Load(made), s_.outputs, block));
      }
    }
  }

  // A step that is not valid: nothing out, the state as before.
  void Hold(int64_t n, int64_t block, int64_t row) {
    StoreBlock(p_.ys, steps_.Time(n) * s_.rows + row, s_.outputs, block, Vec{});
    carry_.PassHidden(n, block, row, carry_.Hidden(n, block, row));
  }

  const ForwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Steps<Scalar> steps_;
  const Step step_;
  Carry<Scalar, Step> carry_;
  ForwardWeights<Scalar> weights_;
  const Heads<Scalar> heads_;
  GateNorm<Scalar> norm_;
  const int threads_;
  const int64_t blocks_;         // of units
  const int64_t panels_;         // of gates
  const int64_t output_panels_;  // of h
  const int64_t h_rows_;
  const Residuals<GateBits<Scalar>, uint32_t> residuals_;
  const int64_t block_steps_;

  // Inputs and pre-activations of a block of steps.
  float* x_ = nullptr;
  int64_t x_rows_ = 0;
  float* z_ = nullptr;
  int64_t z_rows_ = 0;
  // Of one step, where gates and c are normalised: h * recurrent kernel, and what c is
  // normalised with.
  float* r_ = nullptr;
  RowNorm* cell_norms_ = nullptr;
  // h before its projection, and after it.
  float* m_ = nullptr;
  float* projected_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_FORWARD_H_
