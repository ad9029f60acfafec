// What layer normalisation needs in the backward pass, of a block of steps.
//
// The forward pass saves nothing for it: what inputs and h have contributed to the
// gates is made again, in two products over all rows of the block.
#ifndef LSTM_JAX_LSTM_NORMED_BLOCK_H_
#define LSTM_JAX_LSTM_NORMED_BLOCK_H_

#include "lstm/entering.h"
#include "lstm/forward_weights.h"
#include "lstm/layer_norm.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar, class Step>
class NormedBlock {
 public:
  // A block has at most `block_rows` rows, in panels of `panel_rows`.
  NormedBlock(const BackwardProblem<Scalar>& problem, const Step& step,
              int64_t block_rows, int64_t panel_rows)
      : p_(problem),
        s_(problem.sizes),
        step_(step),
        steps_(problem.sizes, problem.controls),
        entering_(problem),
        saved_(SavedOf(problem)),
        weights_(problem),
        norm_(problem.variant, problem.sizes),
        block_rows_(block_rows),
        panel_rows_(panel_rows),
        blocks_(UnitBlocks(s_.units)) {}

  void Allocate(Arena& arena) {
    weights_.Allocate(arena);
    norm_.Allocate(arena);
    const int64_t depths[] = {weights_.input_lanes(), weights_.output_lanes()};
    for (int part = 0; part < 2; ++part) {
      const auto panels = [&](int64_t lanes) {
        return arena.Floats(CeilDiv(lanes, kNr) * panel_rows_ * kNr);
      };
      a_[part] = panels(depths[part]);
      normed_[part] = panels(norm_.vectors() * kWidth);
      factors_[part] = arena.Floats(block_rows_);
      dz_[part] = panels(norm_.vectors() * kWidth / kKr<Scalar>);
    }
    d_seen_ = arena.Floats(blocks_ * block_rows_ * kWidth);
    activated_ = arena.Floats(blocks_ * s_.rows * kWidth);
    cells_ = static_cast<RowNorm*>(arena.Bytes(block_rows_, sizeof(RowNorm)));
    shares_ = static_cast<NormShares*>(arena.Bytes(s_.rows, sizeof(NormShares)));
  }

  // Weights are packed in so many items.
  int64_t weight_items() const { return weights_.items() + 1; }

  void PackWeights(int64_t item) {
    if (item < weights_.items()) {
      weights_.Pack(item);
    } else {
      norm_.Pack();
    }
  }

  // Makes again what a thread's share of the rows of a block were normalised to.
  void MakeShare(Range times, int rank, int size) {
    const int64_t first = times.begin * s_.rows;
    const Range share = Part(times.size() * s_.rows, rank, size);
    PackRows(p_.xs + first * s_.inputs, share.begin, share.end, s_.inputs, panel_rows_,
             a_[0] + share.begin * kNr);
    for (int64_t row = share.begin; row < share.end; ++row) {
      const int64_t at = first + row;
      PackRows(entering_.Hidden(at / s_.rows, at % s_.rows), 0, 1, s_.outputs,
               panel_rows_, a_[1] + row * kNr);
    }
    Make(0, share, weights_.Kernel(0), weights_.input_lanes());
    Make(1, share, weights_.Recurrent(0), weights_.output_lanes());
  }

  // What `Where` says of c, of one block of one row. Row r of a step is row start + r
  // of the block of steps.
  Where At(const Where& at, int64_t start) const {
    return {at.time,         at.row,
            at.block,        cells_[start + at.row],
            shares_[at.row], CellAt(activated_, s_.rows, at.block, at.row)};
  }

  // Before the gates of a step, of one row: what c was normalised with, and what that
  // says of its gradient. `dm_at(block)` is the gradient of m.
  template <class GradientAt>
  void BeforeGates(int64_t time, int64_t row, int64_t start, GradientAt dm_at) {
    const auto live = [&](int64_t block, Vec v) {
      return LiveBlock(v, s_.units, block);
    };
    cells_[start + row] = NormOf(
        s_.units, blocks_,
        [&](int64_t block) {
          return step_.MadeCell(saved_.Read(time, block, row),
                                entering_.Cell(time, block, row));
        },
        live);
    Vec plain = {}, along = {};
    for (int64_t block = 0; block < blocks_; ++block) {
      const NormedBack back = step_.BackNormed(
          saved_.Read(time, block, row), entering_.Cell(time, block, row), dm_at(block),
          {time, row, block, cells_[start + row]});
      const Vec gradient = step_.CellScale(block) * back.gradient;
      plain += gradient;
      along += gradient * back.cell;
      Store(SeenAt(block, start + row), back.gradient);
      Store(CellAt(activated_, s_.rows, block, row), back.activated);
    }
    const float units = static_cast<float>(s_.units);
    shares_[row] = {Total(plain) / units, Total(along) / units};
  }

  // After them: the gradients of what inputs and h contributed, from dz of one row of
  // the block.
  void AfterGates(float* dz, int64_t row, bool valid) {
    for (int part = 0; part < 2; ++part) {
      const auto put = [&](int64_t n, Vec gradient) {
        StoreA<Scalar>(BlockOfA<Scalar>(dz_[part], panel_rows_, n, row), gradient);
      };
      // What was not valid may hold NaN.
      for (int64_t n = 0; !valid && n < norm_.vectors(); ++n) put(n, Vec{});
      if (!valid) continue;
      const auto at = [&](int64_t n) {
        return LoadA<Scalar>(BlockOfA<Scalar>(dz, panel_rows_, n, row));
      };
      norm_.Back(part, RowOf(part, row), factors_[part][row], at, put);
    }
  }

  float* by_inputs() const { return dz_[0]; }
  float* by_hidden() const { return dz_[1]; }

  // What inputs (part 0) or h (part 1) were normalised to, of gate `gate`.
  Vec Normed(int part, int64_t units, int gate, int64_t row) const {
    return Load(RowOf(part, row).At(4 * units + gate));
  }

  // What the scale and the shift of c have as gradients, of one row of the block.
  void AddCell(int64_t time, int64_t units, int64_t row, Vec& scale, Vec& shift) const {
    const Vec gradient = Load(SeenAt(units, row));
    const int64_t of_step = row % s_.rows;
    const Vec c = step_.MadeCell(saved_.Read(time, units, of_step),
                                 entering_.Cell(time, units, of_step));
    scale += gradient * ((c - cells_[row].mean) * cells_[row].scale);
    shift += gradient;
  }

 private:
  GateRow<float> RowOf(int part, int64_t row) const {
    return {normed_[part] + row * kNr, panel_rows_ * kNr};
  }

  float* SeenAt(int64_t block, int64_t row) const {
    return d_seen_ + (block * block_rows_ + row) * kWidth;
  }

  void Make(int part, Range rows, PackedB weights, int64_t depth) {
    if (rows.size() == 0) return;
    Gemm<Scalar>({a_[part] + rows.begin * kNr, panel_rows_ * kNr}, rows.size(), weights,
                 depth, 2 * blocks_, Zeros(),
                 {normed_[part] + rows.begin * kNr, kNr, panel_rows_ * kNr});
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      factors_[part][row] = norm_.Normalise(RowOf(part, row));
    }
  }

  const BackwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Step& step_;
  const Steps<Scalar> steps_;
  const Entering<Scalar> entering_;
  const SavedSteps<Scalar> saved_;
  ForwardWeights<Scalar> weights_;
  GateNorm<Scalar> norm_;
  const int64_t block_rows_;
  const int64_t panel_rows_;
  const int64_t blocks_;  // of units

  // By inputs and by h: the operands, what they were normalised to and what that was
  // multiplied by, and the gradients of the products.
  float* a_[2] = {nullptr, nullptr};
  float* normed_[2] = {nullptr, nullptr};
  float* factors_[2] = {nullptr, nullptr};
  float* dz_[2] = {nullptr, nullptr};
  // Of c as the output saw it: the gradient, [blocks of units][rows][kWidth]; of c:
  // what it was normalised with; and of one step what that says of its gradient, and
  // what the output gate has multiplied.
  float* d_seen_ = nullptr;
  float* activated_ = nullptr;
  RowNorm* cells_ = nullptr;
  NormShares* shares_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_NORMED_BLOCK_H_
