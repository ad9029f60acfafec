// The forward pass, for inference and for training.
//
// Threads share either the rows, each running all steps of its own without waiting, or
// the units, with a barrier a step. Pre-activations stay in the cache: those of a few
// steps, or of one step, one block of units at a time, where there are very many rows.
#ifndef LSTM_JAX_FORWARD_H_
#define LSTM_JAX_FORWARD_H_

#include "activations.h"
#include "plan.h"
#include "tape.h"

namespace lstm {
namespace LSTM_ISA {

// Steps whose inputs are projected together: products of few rows are slow, and
// pre-activations that leave the second-level cache too.
LSTM_INLINE int64_t ProjectedSteps(const Sizes& s, int threads) {
  constexpr int64_t kRowsOfUnits = 96, kRowsOfRows = 2 * kTileRows, kBytes = 256 << 10;
  if (!ShareRows(s, threads)) return BlockSteps(s, kRowsOfUnits);
  return BlockSteps(s, threads * Max(kBytes / (16 * s.units), kRowsOfRows));
}

template <class Scalar>
class Forward {
 public:
  Forward(const ForwardProblem<Scalar>& problem, int limit)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        threads_(ChooseThreads(s_, limit)),
        blocks_(UnitBlocks(s_.units)),
        panels_(2 * blocks_),
        output_panels_(CeilDiv(s_.outputs, kPanel)),
        tape_(p_.gates, p_.cells, s_.units, s_.rows),
        input_lanes_(Lanes<Scalar>(s_.inputs)),
        unit_lanes_(Lanes<Scalar>(s_.units)),
        output_lanes_(Lanes<Scalar>(s_.outputs)),
        block_steps_(ProjectedSteps(s_, threads_)) {}

  int threads() const { return threads_; }

  // Hands out scratch memory; see Carver.
  void Carve(Carver& carver) {
    const int64_t block_rows = block_steps_ * s_.rows;
    kernel_ = carver.Floats(panels_ * input_lanes_ * kPanel);
    recurrent_ = carver.Floats(panels_ * output_lanes_ * kPanel);
    bias_ = carver.Floats(panels_ * kPanel);
    x_rows_ = PanelRows(block_rows);
    x_ = carver.Floats(CeilDiv(input_lanes_, kPanel) * x_rows_ * kPanel);
    z_rows_ = PanelRows(block_rows);
    const bool one_block = ShareRows(s_, threads_) && block_steps_ == 1;
    z_ = carver.Floats((one_block ? 2 : panels_) * z_rows_ * kPanel);
    h_rows_ = PanelRows(s_.rows);
    for (float*& h : h_) {
      h = carver.Floats(CeilDiv(output_lanes_, kPanel) * h_rows_ * kPanel);
    }
    c_ = carver.Floats(blocks_ * s_.rows * kWidth);
    if (s_.projected) {
      projection_ = carver.Floats(output_panels_ * unit_lanes_ * kPanel);
      m_ = carver.Floats(CeilDiv(unit_lanes_, kPanel) * h_rows_ * kPanel);
      projected_ = carver.Floats(output_panels_ * h_rows_ * kPanel);
    }
  }

  void Body(int rank, Team& team) {
    Pack(team);
    team.Form(rank);
    // The team may have come out smaller than was asked for.
    if (ShareRows(s_, threads_)) {
      RunRows(Part(s_.rows, rank, team.size()));
    } else {
      RunBlocks(rank, team);
    }
    ReleaseTiles();
  }

 private:
  // Packs weights and the first state; whoever is here takes part.
  void Pack(Team& team) {
    const int64_t gates = CeilDiv(panels_, kPackedTogether);
    const int64_t projections =
        s_.projected ? CeilDiv(output_panels_, kPackedTogether) : 0;
    for (;;) {
      const int64_t item = team.Take();
      if (item < gates) {
        PackGates(item * kPackedTogether);
      } else if (item < gates + projections) {
        PackProjection((item - gates) * kPackedTogether);
      } else if (item < gates + projections + s_.rows) {
        Start(item - gates - projections);
      } else {
        break;
      }
    }
  }

  void PackGates(int64_t first) {
    const int64_t count = Min(kPackedTogether, panels_ - first);
    Columns columns[kPackedTogether];
    for (int64_t n = 0; n < count; ++n) columns[n] = GateColumns(s_.units, first + n);
    PackPanels(p_.weights.kernel, s_.inputs, 4 * s_.units, columns, count,
               kernel_ + first * input_lanes_ * kPanel);
    PackPanels(p_.weights.recurrent, s_.outputs, 4 * s_.units, columns, count,
               recurrent_ + first * output_lanes_ * kPanel);
    for (int64_t n = 0; n < count; ++n) {
      for (int v = 0; v < 2; ++v) {
        const Vec bias = p_.weights.bias
                             ? LoadUpTo(p_.weights.bias + columns[n].start[v],
                                        columns[n].count[v])
                             : Vec{};
        Store(bias_ + (first + n) * kPanel + v * kWidth, bias);
      }
    }
  }

  void PackProjection(int64_t first) {
    const int64_t count = Min(kPackedTogether, output_panels_ - first);
    Columns columns[kPackedTogether];
    for (int64_t n = 0; n < count; ++n) {
      columns[n] = PlainColumns(s_.outputs, first + n);
    }
    PackPanels(p_.weights.projection, s_.units, s_.outputs, columns, count,
               projection_ + first * unit_lanes_ * kPanel);
  }

  // The state that enters the first step, of one row.
  void Start(int64_t row) {
    const bool reset = steps_.Reset(steps_.Time(0), row);
    const State<Scalar>& from = reset ? p_.controls.reset_state : p_.state;
    for (int64_t block = 0; block < 2 * output_panels_; ++block) {
      const Vec h = HiddenOf(from, block, row);
      StoreLeft<Scalar>(HiddenAt(0, block, row), h);
      // Blocks beyond the last are never written again.
      StoreLeft<Scalar>(HiddenAt(1, block, row), Vec{});
      Emit(p_.entering, steps_.Time(0), block, row, h);
    }
    for (int64_t block = 0; s_.projected && block < 2 * CeilDiv(s_.units, kPanel);
         ++block) {
      StoreLeft<Scalar>(LeftAt<Scalar>(m_, h_rows_, block, row), Vec{});
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      Store(CellAt(c_, s_.rows, block, row), CellOf(from, block, row));
    }
  }

  void RunRows(Range rows) {
    if (rows.size() == 0) return;
    const int64_t base = rows.begin * block_steps_;
    for (int64_t first = 0; first < s_.steps; first += block_steps_) {
      const int64_t last = Min(first + block_steps_, s_.steps);
      // Where the rows of a step stand in those of the block.
      const auto at = [&](int64_t n) { return base + (n - first) * rows.size(); };
      for (int64_t n = first; n < last; ++n) {
        PackRows(p_.xs + steps_.Time(n) * s_.rows * s_.inputs, rows.begin, rows.end,
                 s_.inputs, x_rows_, x_ + at(n) * kPanel);
      }
      if (block_steps_ > 1) ProjectInputs(base, at(last) - base, {0, blocks_}, Z());
      for (int64_t n = first; n < last; ++n) {
        if (block_steps_ > 1) {
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
  void Advance(int64_t n, Range rows, Range blocks, Sums<float> z) {
    Multiply<Scalar>({h_[n % 2] + rows.begin * kPanel, h_rows_ * kPanel},
                     rows.size(), PanelsOf(recurrent_, output_lanes_, blocks),
                     output_lanes_, 2 * blocks.size(), {z.data, z.row_step, z.panel_step},
                     z);
    // All gates are computed before any is used, so that the processor need not wait for
    // one of them.
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      Activate(rows, block, z.At(0, 2 * (block - blocks.begin)).data);
    }
    Update(n, rows, blocks, z);
  }

  // z = bias + x * kernel, for some blocks of units, and rows from `first` on.
  void ProjectInputs(int64_t first, int64_t rows, Range blocks, Sums<float> z) {
    Multiply<Scalar>({x_ + first * kPanel, x_rows_ * kPanel}, rows,
                     PanelsOf(kernel_, input_lanes_, blocks), input_lanes_,
                     2 * blocks.size(), {bias_ + 2 * blocks.begin * kPanel, 0, kPanel},
                     z.At(first, 0));
  }

  // The panels of some blocks of units.
  static Right PanelsOf(const float* weights, int64_t lanes, Range blocks) {
    return {weights + 2 * blocks.begin * lanes * kPanel, lanes * kPanel};
  }

  void RunBlocks(int rank, Team& team) {
    const Share mine(blocks_, s_.rows, rank, team.size());
    for (int64_t first = 0; first < s_.steps; first += block_steps_) {
      const int64_t last = Min(first + block_steps_, s_.steps);
      const Range times = steps_.Times(first, last);
      const Range share = Part(times.size() * s_.rows, rank, team.size());
      PackRows(p_.xs + times.begin * s_.rows * s_.inputs, share.begin, share.end,
               s_.inputs, x_rows_, x_ + share.begin * kPanel);
      team.Barrier(rank);
      for (const Piece& piece : mine) ProjectPiece(times.size(), piece);
      for (int64_t n = first; n < last; ++n) {
        const int64_t row = (steps_.Time(n) - times.begin) * s_.rows;
        for (const Piece& piece : mine) {
          Advance(n, piece.rows, piece.blocks,
                  Z().At(row + piece.rows.begin, 2 * piece.blocks.begin));
        }
        team.Barrier(rank);
      }
    }
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

  Sums<float> Z() const { return {z_, kPanel, z_rows_ * kPanel}; }

  // The gates of one block of units, in place; `z` is the first row of its first panel.
  void Activate(Range rows, int64_t block, float* z) {
    const auto load = [&](const float* from) __attribute__((always_inline)) {
      return LiveBlock(Load(from), s_.units, block);
    };
    for (int64_t row = rows.begin; row < rows.end; ++row, z += kPanel) {
      float* candidate_output = z + z_rows_ * kPanel;
      Store(z, Sigmoid(load(z)));
      Store(z + kWidth, Sigmoid(load(z + kWidth)));
      Store(candidate_output, Tanh(load(candidate_output)));
      Store(candidate_output + kWidth, Sigmoid(load(candidate_output + kWidth)));
    }
  }

  // The state of some blocks of units, from their gates. Row by row, as it is saved.
  void Update(int64_t n, Range rows, Range blocks, Sums<float> z) {
    const int64_t time = steps_.Time(n);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const bool valid = steps_.Valid(time, row);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        if (valid) {
          const float* at = z.At(row - rows.begin, 2 * (block - blocks.begin)).data;
          UpdateBlock(n, row, block, at);
        } else {
          HoldBlock(n, row, block);
        }
      }
      if (tape_ && blocks.end == blocks_) tape_.FillUp(time, blocks_, row);
    }
  }

  // `z` are gates i and f; g and o are in the next panel.
  void UpdateBlock(int64_t n, int64_t row, int64_t block, const float* z) {
    const int64_t time = steps_.Time(n);
    const Vec i = Load(z);
    const Vec f = Load(z + kWidth);
    const Vec g = Load(z + z_rows_ * kPanel);
    const Vec o = Load(z + z_rows_ * kPanel + kWidth);
    const Vec c = f * Load(CellAt(c_, s_.rows, block, row)) + i * g;
    const Vec m = o * Tanh(c);
    if (tape_) tape_.Write(time, block, row, {i, f, g, o, c});
    EmitCell(time, block, row, c);
    CarryCell(n, block, row, c);
    if (s_.projected) {
      StoreLeft<Scalar>(LeftAt<Scalar>(m_, h_rows_, block, row), m);
    } else {
      Emit(p_.ys, time, block, row, m);
      CarryHidden(n, block, row, m);
    }
  }

  // A step that is not valid.
  void HoldBlock(int64_t n, int64_t row, int64_t block) {
    const int64_t time = steps_.Time(n);
    const Vec c = Load(CellAt(c_, s_.rows, block, row));
    if (tape_) tape_.Write(time, block, row, {Vec{}, Vec{}, Vec{}, Vec{}, c});
    EmitCell(time, block, row, Vec{});
    CarryCell(n, block, row, c);
    if (!s_.projected) Hold(n, block, row);
  }

  // h = m * projection kernel, of a whole step.
  void Project(int64_t n, Range rows) {
    Multiply<Scalar>({m_ + rows.begin * kPanel, h_rows_ * kPanel}, rows.size(),
                     {projection_, unit_lanes_ * kPanel}, unit_lanes_, output_panels_,
                     {kZeros, 0, 0},
                     {projected_ + rows.begin * kPanel, kPanel, h_rows_ * kPanel});
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t time = steps_.Time(n);
      const bool valid = steps_.Valid(time, row);
      for (int64_t block = 0; block < 2 * output_panels_; ++block) {
        if (!valid) {
          Hold(n, block, row);
          continue;
        }
        const Vec h = LiveBlock(Load(LeftAt<float>(projected_, h_rows_, block, row)),
                                s_.outputs, block);
        Emit(p_.ys, time, block, row, h);
        CarryHidden(n, block, row, h);
      }
    }
  }

  // A step that is not valid: nothing out, the state as before.
  void Hold(int64_t n, int64_t block, int64_t row) {
    Emit(p_.ys, steps_.Time(n), block, row, Vec{});
    CarryHidden(n, block, row, LoadLeft<Scalar>(HiddenAt(n, block, row)));
  }

  // What leaves a step enters the next one, or is the last state.
  void CarryHidden(int64_t n, int64_t block, int64_t row, Vec h) {
    if (n + 1 == s_.steps) {
      Emit(p_.last_h, 0, block, row, h);
      return;
    }
    const int64_t next = steps_.Time(n + 1);
    if (steps_.Reset(next, row)) h = HiddenOf(p_.controls.reset_state, block, row);
    StoreLeft<Scalar>(HiddenAt(n + 1, block, row), h);
    Emit(p_.entering, next, block, row, h);
  }

  void CarryCell(int64_t n, int64_t block, int64_t row, Vec c) {
    if (n + 1 == s_.steps) {
      StoreBlock(p_.last_c, row, s_.units, block, c);
      return;
    }
    if (steps_.Reset(steps_.Time(n + 1), row)) {
      c = CellOf(p_.controls.reset_state, block, row);
    }
    Store(CellAt(c_, s_.rows, block, row), c);
  }

  void Emit(Scalar* to, int64_t time, int64_t block, int64_t row, Vec h) {
    StoreBlock(to, time * s_.rows + row, s_.outputs, block, h);
  }

  void EmitCell(int64_t time, int64_t block, int64_t row, Vec c) {
    StoreBlock(p_.cs, time * s_.rows + row, s_.units, block, c);
  }

  Vec HiddenOf(const State<Scalar>& state, int64_t block, int64_t row) const {
    return LoadBlock(state.h, row, s_.outputs, block);
  }

  Vec CellOf(const State<Scalar>& state, int64_t block, int64_t row) const {
    return LoadBlock(state.c, row, s_.units, block);
  }

  // h as it enters step n.
  float* HiddenAt(int64_t n, int64_t block, int64_t row) const {
    return LeftAt<Scalar>(h_[n % 2], h_rows_, block, row);
  }

  const ForwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Steps<Scalar> steps_;
  const int threads_;
  const int64_t blocks_;         // of units
  const int64_t panels_;         // of gates
  const int64_t output_panels_;  // of h
  const Tape<GateBits<Scalar>, uint32_t> tape_;
  const int64_t input_lanes_;
  const int64_t unit_lanes_;
  const int64_t output_lanes_;
  const int64_t block_steps_;

  // Weights in panels.
  float* kernel_ = nullptr;
  float* recurrent_ = nullptr;
  float* bias_ = nullptr;
  float* projection_ = nullptr;
  // Inputs and pre-activations of a block of steps.
  float* x_ = nullptr;
  int64_t x_rows_ = 0;
  float* z_ = nullptr;
  int64_t z_rows_ = 0;
  // The state: h as it enters this step and the next one, c, and h before projection.
  float* h_[2] = {nullptr, nullptr};
  int64_t h_rows_ = 0;
  float* c_ = nullptr;
  float* m_ = nullptr;
  float* projected_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_FORWARD_H_
