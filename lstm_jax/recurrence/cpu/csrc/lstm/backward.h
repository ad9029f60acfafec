// The backward pass: the gradients of everything, in one call.
//
// It runs block by block of steps, from the last to the first. For each block, first
// the steps: the gradients dz of the pre-activations, and from them those of the state
// before. Then the products of the whole block: each adds to the gradients of the
// weights, or makes those of the inputs. So dz stays in the cache and is never
// complete.
#ifndef LSTM_JAX_LSTM_BACKWARD_H_
#define LSTM_JAX_LSTM_BACKWARD_H_

#include "lstm/block_products.h"
#include "lstm/heads.h"
#include "lstm/partition.h"
#include "lstm/step.h"
#include "threads/team.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar, class Step>
class Backward {
 public:
  Backward(const BackwardProblem<Scalar>& problem, int limit)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        step_(problem.variant, problem.sizes),
        entering_(problem),
        heads_(problem.sizes),
        threads_(ChooseThreads(s_, limit)),
        blocks_(UnitBlocks(s_.units)),
        residuals_(SavedOf(problem)),
        unit_panels_(CeilDiv(s_.units, kNr)),
        output_panels_(CeilDiv(s_.outputs, kNr)),
        depth_(GateDepth(s_.units) / kKr<Scalar>),
        projection_depth_(WholeDepthInLanes<Scalar>(s_.outputs)),
        block_steps_(GradientSteps(s_)),
        z_rows_(PanelRows(block_steps_ * s_.rows)),
        h_rows_(PanelRows(s_.rows)),
        normed_(problem, step_, block_steps_ * s_.rows, z_rows_),
        products_(problem, step_, normed_, block_steps_ * s_.rows, z_rows_) {}

  int threads() const { return threads_; }

  // Hands out workspace memory; see Arena.
  void Allocate(Arena& arena) {
    if (!step_.diagonal()) recurrent_ = arena.Floats(output_panels_ * depth_ * kNr);
    dz_ = arena.Floats(CeilDiv(depth_, kNr) * z_rows_ * kNr);
    dh_ = arena.Floats(output_panels_ * h_rows_ * kNr);
    dc_ = arena.Floats(blocks_ * s_.rows * kWidth);
    d_reset_h_ = arena.Floats(output_panels_ * h_rows_ * kNr);
    d_reset_c_ = arena.Floats(blocks_ * s_.rows * kWidth);
    products_.Allocate(arena, block_steps_ >= s_.steps, threads_);
    if (step_.masked()) dr_ = arena.Floats(output_panels_ * h_rows_ * kNr);
    if (step_.normed()) normed_.Allocate(arena);
    if (s_.indivisible()) dm_ = arena.Floats(unit_panels_ * h_rows_ * kNr);
    if (!s_.projected) return;
    projection_ = arena.Floats(unit_panels_ * projection_depth_ * kNr);
    dy_ = arena.Floats(CeilDiv(projection_depth_, kNr) * z_rows_ * kNr);
    m_ = static_cast<Scalar*>(
        arena.Bytes(block_steps_ * s_.rows * s_.units, sizeof(Scalar)));
  }

  void Body(int rank, Team& team) {
    Pack(team);
    team.Form(rank);
    WorkSharing sharing(team);
    for (int64_t last = s_.steps; last > 0; last -= Min(block_steps_, last)) {
      const int64_t first = Max(last - block_steps_, 0);
      const Range times = steps_.Times(first, last);
      const Block block = {times.begin * s_.rows, times.size() * s_.rows,
                           last == s_.steps, first == 0};
      products_.PackShare(times, rank, team.size());
      if (step_.normed()) {
        normed_.MakeShare(times, rank, team.size());
        team.Barrier(rank);
      }
      if (SplitByRows(s_, threads_)) {
        const Range rows = Part(s_.rows, rank, team.size());
        if (rows.size()) StepsByRows(first, last, rows);
        team.Barrier(rank);
      } else {
        StepsByUnits(first, last, rank, team);
      }
      if (s_.projected) {
        products_.PackProjectionShare(m_, block.rows, rank, team.size());
        team.Barrier(rank);
      }
      if (products_.repack_items()) {
        sharing.Run(products_.repack_items(),
                    [&](int64_t item) { products_.Repack(item, block, dz_, dy_); });
        team.Barrier(rank);
      }
      sharing.Run(products_.items(block),
                  [&](int64_t item) { products_.Run(item, block, dz_, dy_, rank); });
      team.Barrier(rank);
    }
    sharing.Run(s_.rows, [&](int64_t row) { Finish(row); });
    ReleaseTiles();
  }

 private:
  // Packs weights and the gradients of the last state; whoever is here takes part.
  void Pack(Team& team) {
    const int64_t recurrents = step_.diagonal() ? 0 : output_panels_;
    const int64_t projections = s_.projected ? unit_panels_ : 0;
    const int64_t norms = step_.normed() ? normed_.weight_items() : 0;
    for (;;) {
      int64_t item = team.Take();
      if (item < recurrents) {
        PackGatesTransposed(p_.weights.recurrent, s_.outputs, s_, item, recurrent_);
        continue;
      }
      item -= recurrents;
      if (item < products_.weight_items()) {
        products_.PackWeights(item);
        continue;
      }
      item -= products_.weight_items();
      if (item < projections) {
        PackRowsTransposed(p_.weights.projection, s_.units, s_.outputs, item,
                           projection_);
        continue;
      }
      item -= projections;
      if (item < norms) {
        normed_.PackWeights(item);
        continue;
      }
      item -= norms;
      if (item >= s_.rows) break;
      Start(item);
    }
  }

  // The gradients of what leaves the last step, of one row.
  void Start(int64_t row) {
    for (int64_t block = 0; block < 2 * output_panels_; ++block) {
      Store(BlockOfA<float>(dh_, h_rows_, block, row),
            LoadBlock(p_.d_last_h, row, s_.outputs, block));
      Store(BlockOfA<float>(d_reset_h_, h_rows_, block, row), Vec{});
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      Store(CellAt(dc_, s_.rows, block, row),
            LoadBlock(p_.d_last_c, row, s_.units, block));
      Store(CellAt(d_reset_c_, s_.rows, block, row), Vec{});
    }
  }

  void StepsByRows(int64_t first, int64_t last, Range rows) {
    const Range times = steps_.Times(first, last);
    for (int64_t n = last - 1; n >= first; --n) {
      const int64_t time = steps_.Time(n);
      const int64_t start = (time - times.begin) * s_.rows;
      if (s_.projected) Unproject(time, start, rows);
      if (step_.normed()) BeforeGates(time, start, rows);
      for (int64_t block = 0; block < blocks_; ++block) Gates(n, start, rows, block);
      for (int64_t row = rows.begin; step_.normed() && row < rows.end; ++row) {
        normed_.AfterGates(dz_, start + row, steps_.Valid(time, row));
      }
      Recur(time, start, rows, {0, output_panels_});
    }
  }

  // The same with a barrier a step: each thread has its own panels of h, or
  // rows of a panel.
  void StepsByUnits(int64_t first, int64_t last, int rank, Team& team) {
    const Range times = steps_.Times(first, last);
    const UnitSplit mine(output_panels_, s_.rows, rank, team.size());
    for (int64_t n = last - 1; n >= first; --n) {
      const int64_t time = steps_.Time(n);
      const int64_t start = (time - times.begin) * s_.rows;
      for (const Piece& piece : mine) {
        const Range panels = piece.blocks;
        const int64_t end = Min(2 * panels.end, blocks_);
        for (int64_t block = 2 * panels.begin; block < end; ++block) {
          Gates(n, start, piece.rows, block);
        }
      }
      if (!step_.diagonal()) team.Barrier(rank);
      for (const Piece& piece : mine) Recur(time, start, piece.rows, piece.blocks);
    }
    if (step_.diagonal()) team.Barrier(rank);
  }

  // From the gradient of a projected h to that before the projection.
  void Unproject(int64_t time, int64_t start, Range rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const bool valid = steps_.Valid(time, row);
      for (int64_t block = 0; block < 2 * output_panels_; ++block) {
        const Vec dy = valid ? TakeHidden({time, row, block}) : Vec{};
        StoreA<Scalar>(BlockOfA<Scalar>(dy_, z_rows_, block, start + row), dy);
      }
    }
    Gemm<Scalar>({dy_ + (start + rows.begin) * kNr, z_rows_ * kNr}, rows.size(),
                 {projection_, projection_depth_ * kNr}, projection_depth_,
                 unit_panels_, Zeros(), {dm_ + rows.begin * kNr, kNr, h_rows_ * kNr});
  }

  // What layer normalisation asks of all units of a row before the gradient of any.
  void BeforeGates(int64_t time, int64_t start, Range rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (!steps_.Valid(time, row)) continue;
      for (int64_t block = 0; !s_.projected && block < blocks_; ++block) {
        Store(BlockOfA<float>(dm_, h_rows_, block, row),
              TakeHidden({time, row, block}));
      }
      normed_.BeforeGates(time, row, start,
                          [&](int64_t block) { return TakeMade(row, block); });
    }
  }

  // The gradient of a block of h that a valid step has made. What is left is that of h
  // before the step.
  LSTM_INLINE Vec TakeHidden(const Where& at) {
    float* carried = BlockOfA<float>(dh_, h_rows_, at.block, at.row);
    Vec dh = LiveBlock(Load(carried), s_.outputs, at.block);
    if (p_.d_ys) {
      const int64_t row = at.time * s_.rows + at.row;
      dh += step_.Output(LoadBlock(p_.d_ys, row, s_.outputs, at.block), at);
    }
    const HiddenShares shares = step_.Share(dh, at);
    Store(carried, shares.kept);
    return shares.made;
  }

  // The gradient of a block of m, where it was made before.
  Vec TakeMade(int64_t row, int64_t block) const {
    return LiveBlock(Load(BlockOfA<float>(dm_, h_rows_, block, row)), s_.units, block);
  }

  // dz and the gradient of c before step n, for one block of units. Row r of the step
  // is row start + r of the block of steps.
  void Gates(int64_t n, int64_t start, Range rows, int64_t block) {
    const int64_t time = steps_.Time(n);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      Where at = {time, row, block};
      float* carried = CellAt(dc_, s_.rows, block, row);
      SteppedBack back = {};
      if (steps_.Valid(time, row)) {
        const Vec dm = s_.indivisible() ? TakeMade(row, block) : TakeHidden(at);
        if (step_.normed()) at = normed_.At(at, start);
        Vec dc = Load(carried);
        if (p_.d_cs) dc += LoadBlock(p_.d_cs, time * s_.rows + row, s_.units, block);
        back = step_.Back(residuals_.Read(time, block, row),
                          entering_.Cell(time, block, row), dm, dc, at);
        Store(carried, back.dc);
      }
      const auto store = [&](int gate, Vec dz) {
        StoreA<Scalar>(BlockOfA<Scalar>(dz_, z_rows_, 4 * block + gate, start + row),
                       dz);
      };
      store(0, back.dz.i);
      store(1, back.dz.f);
      store(2, back.dz.g);
      store(3, back.dz.o);
      StoreBlock(m_, start + row, s_.units, block, back.m);
      if (steps_.Reset(time, row)) {
        MoveTo(CellAt(d_reset_c_, s_.rows, block, row), carried);
      }
    }
  }

  // dh += dz * recurrent kernel^T, for some panels of h, and what a reset takes from
  // it.
  void Recur(int64_t time, int64_t start, Range rows, Range panels) {
    if (panels.size() == 0) return;
    const auto in = [&](float* matrix) -> MatrixC<float> {
      return {matrix + (panels.begin * h_rows_ + rows.begin) * kNr, kNr, h_rows_ * kNr};
    };
    if (step_.diagonal()) {
      AddDiagonal(time, start, rows, panels);
    } else {
      const bool masked = step_.masked();
      const float* dz = step_.normed() ? normed_.by_hidden() : dz_;
      const PackedA a = {dz + (start + rows.begin) * kNr, z_rows_ * kNr};
      heads_.Backward(panels, [&](Range part, Range lanes) {
        const PackedB b = {recurrent_ + part.begin * depth_ * kNr, depth_ * kNr};
        const MatrixC<float> sum =
            in(masked ? dr_ : dh_).At(0, part.begin - panels.begin);
        Gemm<Scalar>(a.FromLane(lanes.begin), rows.size(), b.FromLane(lanes.begin),
                     lanes.size(), part.size(), masked ? Zeros() : AsInput(sum), sum);
      });
      if (masked) AddMasked(time, rows, panels);
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (!steps_.Reset(time, row)) continue;
      for (int64_t block = 2 * panels.begin; block < 2 * panels.end; ++block) {
        MoveTo(BlockOfA<float>(d_reset_h_, h_rows_, block, row),
               BlockOfA<float>(dh_, h_rows_, block, row));
      }
    }
  }

  // dh += the gradient of what entered the product.
  void AddMasked(int64_t time, Range rows, Range panels) {
    for (int64_t block = 2 * panels.begin; block < 2 * panels.end; ++block) {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        float* dh = BlockOfA<float>(dh_, h_rows_, block, row);
        const Vec dr = Load(BlockOfA<float>(dr_, h_rows_, block, row));
        Store(dh, Load(dh) + step_.Recurrent(dr, {time, row, block}));
      }
    }
  }

  // The same where each unit has seen its own h alone.
  void AddDiagonal(int64_t time, int64_t start, Range rows, Range panels) {
    const int64_t end = Min(2 * panels.end, blocks_);
    for (int64_t block = 2 * panels.begin; block < end; ++block) {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const auto dz = [&](int gate) {
          return LoadA<Scalar>(
              BlockOfA<Scalar>(dz_, z_rows_, 4 * block + gate, start + row));
        };
        const Where at = {time, row, block};
        const Vec dr = step_.DiagonalBack({dz(0), dz(1), dz(2), dz(3)}, at);
        float* dh = BlockOfA<float>(dh_, h_rows_, block, row);
        Store(dh, Load(dh) + step_.Recurrent(dr, at));
      }
    }
  }

  static void MoveTo(float* sum, float* from) {
    Store(sum, Load(sum) + Load(from));
    Store(from, Vec{});
  }

  // The gradients of the states, of one row.
  void Finish(int64_t row) {
    EmitHidden(p_.d_h, dh_, row);
    EmitCell(p_.d_c, dc_, row);
    EmitHidden(p_.d_reset_h, d_reset_h_, row);
    EmitCell(p_.d_reset_c, d_reset_c_, row);
  }

  void EmitHidden(Scalar* to, float* from, int64_t row) const {
    for (int64_t block = 0; block < UnitBlocks(s_.outputs); ++block) {
      StoreBlock(to, row, s_.outputs, block,
                 Load(BlockOfA<float>(from, h_rows_, block, row)));
    }
  }

  void EmitCell(float* to, float* from, int64_t row) const {
    for (int64_t block = 0; block < blocks_; ++block) {
      StoreBlock(to, row, s_.units, block, Load(CellAt(from, s_.rows, block, row)));
    }
  }

  const BackwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Steps<Scalar> steps_;
  const Step step_;
  const Entering<Scalar> entering_;
  const Heads<Scalar> heads_;
  const int threads_;
  const int64_t blocks_;  // of units
  const SavedSteps<Scalar> residuals_;
  const int64_t unit_panels_;       // of units
  const int64_t output_panels_;     // of h
  const int64_t depth_;             // of products over all gates, in lanes
  const int64_t projection_depth_;  // the same over projected h
  const int64_t block_steps_;
  const int64_t z_rows_;
  const int64_t h_rows_;
  NormedBlock<Scalar, Step> normed_;
  BlockProducts<Scalar, Step> products_;

  // Weights, transposed, in panels.
  float* recurrent_ = nullptr;
  float* projection_ = nullptr;
  // Of a block of steps: dz; m, [rows, H], and the gradient of projected h.
  float* dz_ = nullptr;
  Scalar* m_ = nullptr;
  float* dy_ = nullptr;
  // Of one step: the gradients of h and c, and of h before projection.
  float* dh_ = nullptr;
  float* dc_ = nullptr;
  float* dm_ = nullptr;
  // That of h as it entered the product, where that was another.
  float* dr_ = nullptr;
  // MatrixC over all steps.
  float* d_reset_h_ = nullptr;
  float* d_reset_c_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_BACKWARD_H_
