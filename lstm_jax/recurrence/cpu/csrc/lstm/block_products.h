// The products of a block of steps, in the backward pass: from dz, the gradients of the
// pre-activations, those of the weights, the bias and the inputs.
#ifndef LSTM_JAX_LSTM_BLOCK_PRODUCTS_H_
#define LSTM_JAX_LSTM_BLOCK_PRODUCTS_H_

#include <initializer_list>

#include "lstm/entering.h"
#include "lstm/heads.h"
#include "lstm/normed_block.h"
#include "lstm/weight_gradient.h"

namespace lstm {
namespace LSTM_ISA {

// Rows of all steps of a block, and which block it is of those that are summed.
struct Block {
  int64_t first_row;
  int64_t rows;
  bool first;
  bool last;
};

template <class Scalar, class Step>
class BlockProducts {
 public:
  // A block has at most `block_rows` rows, in panels of `panel_rows`.
  BlockProducts(const BackwardProblem<Scalar>& problem, const Step& step,
                const NormedBlock<Scalar, Step>& normed, int64_t block_rows,
                int64_t panel_rows)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        step_(step),
        normed_(normed),
        entering_(problem),
        heads_(problem.sizes),
        block_rows_(block_rows),
        panel_rows_(panel_rows),
        gate_panels_(2 * UnitBlocks(s_.units)),
        input_panels_(p_.d_xs ? CeilDiv(s_.inputs, kNr) : 0),
        projection_panels_(p_.d_projection ? CeilDiv(s_.outputs, kNr) : 0),
        depth_(GateDepth(s_.units) / kKr<Scalar>),
        d_kernel_(p_.d_kernel, s_.inputs, s_.columns(), gate_panels_),
        d_recurrent_(p_.d_recurrent, s_.outputs, s_.columns(), gate_panels_),
        d_projection_(p_.d_projection, s_.units, s_.outputs, projection_panels_) {}

  void Allocate(Arena& arena, bool one_block, int threads) {
    kernel_ = arena.Floats(input_panels_ * depth_ * kNr);
    d_bias_ = arena.Floats(gate_panels_ * kNr);
    const int64_t vectors = 4 * UnitBlocks(s_.units) * kWidth;
    if (p_.d_peephole) d_peephole_ = arena.Floats(vectors);
    if (p_.d_diagonal) d_diagonal_ = arena.Floats(vectors);
    for (float*& sums : d_norm_scale_) {
      if (p_.d_norm_scale) sums = arena.Floats(vectors);
    }
    if (p_.d_cell_norm) d_cell_norm_ = arena.Floats(vectors);
    d_xs_ = arena.Floats(threads * input_panels_ * tuning::kGradientRows * kNr);
    repacked_ = arena.Floats(repack_items() * RepackedStep());
    d_kernel_.Allocate(arena, block_rows_, one_block, threads);
    d_recurrent_.Allocate(arena, block_rows_, one_block, threads);
    d_projection_.Allocate(arena, block_rows_, one_block, threads);
  }

  // Weights are packed in so many items.
  int64_t weight_items() const { return input_panels_; }

  void PackWeights(int64_t item) {
    PackGatesTransposed(p_.weights.kernel, s_.inputs, s_, item, kernel_);
  }

  // Copies a thread's share of the inputs and of the h that enter the steps of a block
  // to where the weight gradients read them.
  void PackShare(Range times, int rank, int size) {
    const int64_t rows = times.size() * s_.rows;
    const Range share = Part(Groups(rows), rank, size);
    for (int64_t group = share.begin; group < share.end; ++group) {
      d_kernel_.Pack(group, [&](int64_t row) -> const Scalar* {
        const int64_t time = times.begin + row / s_.rows;
        // What is not valid may hold NaN, and NaN * 0 is NaN.
        if (row >= rows || !steps_.Valid(time, row % s_.rows)) return nullptr;
        return p_.xs + (times.begin * s_.rows + row) * s_.inputs;
      });
      d_recurrent_.Pack(group, [&](int64_t row) {
        const int64_t time = times.begin + row / s_.rows;
        return row < rows ? entering_.Hidden(time, row % s_.rows) : nullptr;
      });
    }
  }

  // The same of m, [rows, H], the outputs before their projection.
  void PackProjectionShare(const Scalar* m, int64_t rows, int rank, int size) {
    const Range share = Part(Groups(rows), rank, size);
    for (int64_t group = share.begin; group < share.end; ++group) {
      d_projection_.Pack(group, [&](int64_t row) {
        return row < rows ? m + row * s_.units : nullptr;
      });
    }
  }

  // Before the products, where lanes are pairs, dz and dy are packed again, as B, in so
  // many items.
  int64_t repack_items() const {
    return kPaired<Scalar> ? Copies() * gate_panels_ + projection_panels_ : 0;
  }

  void Repack(int64_t item, const Block& block, float* dz, float* dy) {
    const int64_t gates = Copies() * gate_panels_;
    float* from = item >= gates          ? dy
                  : item >= gate_panels_ ? ByHidden(dz)
                                         : ByInputs(dz);
    RepackAAsB<Scalar>(from, panel_rows_,
                       2 * (item < gates ? item % gate_panels_ : item - gates),
                       block.rows, repacked_ + item * RepackedStep());
  }

  // A block's products are so many items.
  int64_t items(const Block& block) const {
    return input_items(block) + d_kernel_.items() + d_recurrent_.items() +
           d_projection_.items() + bias_items() + peephole_items() + diagonal_items() +
           norm_items();
  }

  // One of them; the largest come first. `dz` and `dy`, the gradients of projected h,
  // are packed as A.
  void Run(int64_t item, const Block& block, float* dz, float* dy, int rank) {
    if (item < input_items(block)) return Inputs(item, block, ByInputs(dz), rank);
    item -= input_items(block);
    const int64_t lanes = DepthInLanes<Scalar>(block.rows);
    const auto gate_columns = [&](int64_t panel) {
      return GateColumns(s_.units, panel, s_.gates);
    };
    for (WeightGradient<Scalar>* gradient : {&d_kernel_, &d_recurrent_}) {
      if (item < gradient->items()) {
        const bool hidden = gradient == &d_recurrent_;
        const PackedB b = AsB(hidden ? ByHidden(dz) : ByInputs(dz),
                              hidden ? (Copies() - 1) * gate_panels_ : 0);
        const auto rows = [&](Range panels) {
          if (!hidden) return Range{0, s_.inputs};
          return heads_.Outputs({panels.begin / 2, CeilDiv(panels.end, 2)});
        };
        return gradient->Add(item, b, lanes, gate_columns, rows, block.first,
                             block.last, rank);
      }
      item -= gradient->items();
    }
    if (item < d_projection_.items()) {
      const auto columns = [&](int64_t panel) {
        return PlainColumns(s_.outputs, panel);
      };
      const auto rows = [&](Range) { return Range{0, s_.units}; };
      return d_projection_.Add(item, AsB(dy, Copies() * gate_panels_), lanes, columns,
                               rows, block.first, block.last, rank);
    }
    item -= d_projection_.items();
    if (item < bias_items()) return Bias(item * tuning::kGradientPanels, block, dz);
    item -= bias_items();
    if (item < peephole_items()) return Peephole(item, block, dz);
    item -= peephole_items();
    if (item < diagonal_items()) return Diagonal(item, block, dz);
    Norms(item - diagonal_items(), block, dz);
  }

 private:
  // Groups of rows that are kWidth lanes together.
  static int64_t Groups(int64_t rows) { return CeilDiv(rows, kWidth * kKr<Scalar>); }

  // Where gates are normalised, dz is another by inputs and by h.
  int64_t Copies() const { return step_.normed() ? 2 : 1; }
  float* ByInputs(float* dz) const { return step_.normed() ? normed_.by_inputs() : dz; }
  float* ByHidden(float* dz) const { return step_.normed() ? normed_.by_hidden() : dz; }

  // dz or dy as B, whose first panel is number `first` of all that are packed again.
  PackedB AsB(float* a, int64_t first) const {
    if constexpr (kPaired<Scalar>)
      return {repacked_ + first * RepackedStep(), RepackedStep()};
    return {a, panel_rows_ * kNr};
  }

  int64_t RepackedStep() const {
    return PanelRows(DepthInLanes<Scalar>(block_rows_)) * kNr;
  }

  int64_t input_items(const Block& block) const {
    return p_.d_xs ? CeilDiv(block.rows, tuning::kGradientRows) : 0;
  }

  int64_t bias_items() const {
    return p_.d_bias ? CeilDiv(gate_panels_, tuning::kGradientPanels) : 0;
  }

  // The gradients of some panels of the bias, from `panel` on.
  void Bias(int64_t panel, const Block& block, float* dz) {
    const int64_t end = Min(panel + tuning::kGradientPanels, gate_panels_);
    for (; panel < end; ++panel) {
      const Columns columns = GateColumns(s_.units, panel, s_.gates);
      for (int v = 0; v < 2; ++v) {
        float* bias = d_bias_ + panel * kNr + v * kWidth;
        Vec sum = block.first ? Vec{} : Load(bias);
        const float* from = BlockOfA<Scalar>(dz, panel_rows_, 2 * panel + v, 0);
        for (int64_t row = 0; row < block.rows; ++row) {
          sum += LoadA<Scalar>(from + row * kNr);
        }
        Store(bias, sum);
        StoreUpTo(p_.d_bias + columns.start[v], sum, columns.count[v]);
      }
    }
  }

  // Blocks of units, of the gradients of peepholes and of a diagonal.
  int64_t peephole_items() const { return p_.d_peephole ? UnitBlocks(s_.units) : 0; }
  int64_t diagonal_items() const { return p_.d_diagonal ? UnitBlocks(s_.units) : 0; }

  // i and f saw c before the step, o what the step has made.
  void Peephole(int64_t units, const Block& block, float* dz) {
    float* sums = d_peephole_ + 4 * units * kWidth;
    AddProducts(units, block, dz, sums, [&](int64_t time, int64_t row, Vec(&seen)[4]) {
      seen[0] = seen[1] = entering_.Cell(time, units, row);
      seen[3] = step_.MadeCell(saved_.Read(time, units, row), seen[0]);
    });
    Scalar* to = p_.d_peephole;
    for (int gate : {0, 1, 3}) {
      if (s_.gates.place[gate] == kNoGate) continue;
      StoreBlock(to, 0, s_.units, units, Load(sums + gate * kWidth));
      to += s_.units;
    }
  }

  // All gates saw h as it entered.
  void Diagonal(int64_t units, const Block& block, float* dz) {
    float* sums = d_diagonal_ + 4 * units * kWidth;
    AddProducts(units, block, dz, sums, [&](int64_t time, int64_t row, Vec(&seen)[4]) {
      const Vec h = LoadBlock(entering_.Hidden(time, row), 0, s_.units, units);
      for (Vec& one : seen) one = h;
    });
    StoreGates(p_.d_diagonal, units, sums);
  }

  // The gradients of the scales of gates, and of c's scale and shift.
  int64_t norm_items() const {
    return p_.d_norm_scale || p_.d_cell_norm ? UnitBlocks(s_.units) : 0;
  }

  void Norms(int64_t units, const Block& block, float* dz) {
    for (int part = 0; p_.d_norm_scale && part < 2; ++part) {
      float* sums = d_norm_scale_[part] + 4 * units * kWidth;
      AddProducts(units, block, dz, sums,
                  [&](int64_t time, int64_t row, Vec(&seen)[4]) {
                    const int64_t at = time * s_.rows + row - block.first_row;
                    for (int gate = 0; gate < 4; ++gate) {
                      seen[gate] = normed_.Normed(part, units, gate, at);
                    }
                  });
      StoreGates(p_.d_norm_scale + part * s_.columns(), units, sums);
    }
    if (p_.d_cell_norm) CellNorm(units, block);
  }

  void CellNorm(int64_t units, const Block& block) {
    float* sums = d_cell_norm_ + 2 * units * kWidth;
    Vec scale = {}, shift = {};
    if (!block.first) {
      scale = Load(sums);
      shift = Load(sums + kWidth);
    }
    for (int64_t n = 0; n < block.rows; ++n) {
      const int64_t time = (block.first_row + n) / s_.rows;
      if (!steps_.Valid(time, n % s_.rows)) continue;
      normed_.AddCell(time, units, n, scale, shift);
    }
    Store(sums, scale);
    Store(sums + kWidth, shift);
    StoreBlock(p_.d_cell_norm, 0, s_.units, units, scale);
    StoreBlock(p_.d_cell_norm, 1, s_.units, units, shift);
  }

  // Of one block of units, what is for each gate, to a row of all columns.
  void StoreGates(Scalar* to, int64_t units, const float* sums) const {
    for (int gate = 0; gate < 4; ++gate) {
      const int place = s_.gates.place[gate];
      if (place == kNoGate) continue;
      StoreBlock(to, place, s_.units, units, Load(sums + gate * kWidth));
    }
  }

  // Adds to `sums`, one for each gate, the products of dz and what the gates have seen.
  template <class SeenAt>
  LSTM_INLINE void AddProducts(int64_t units, const Block& block, float* dz,
                               float* sums, SeenAt seen_at) {
    Vec sum[4] = {};
    for (int gate = 0; gate < 4 && !block.first; ++gate) {
      sum[gate] = Load(sums + gate * kWidth);
    }
    for (int64_t n = 0; n < block.rows; ++n) {
      const int64_t time = (block.first_row + n) / s_.rows;
      const int64_t row = (block.first_row + n) % s_.rows;
      if (!steps_.Valid(time, row)) continue;
      Vec seen[4] = {};
      seen_at(time, row, seen);
      for (int gate = 0; gate < 4; ++gate) {
        sum[gate] += seen[gate] * LoadA<Scalar>(BlockOfA<Scalar>(dz, panel_rows_,
                                                                 4 * units + gate, n));
      }
    }
    for (int gate = 0; gate < 4; ++gate) Store(sums + gate * kWidth, sum[gate]);
  }

  // Some rows of the gradients of the inputs.
  void Inputs(int64_t item, const Block& block, float* dz, int rank) {
    const Range rows =
        Part(block.rows, static_cast<int>(item), static_cast<int>(input_items(block)));
    constexpr int64_t kStep = tuning::kGradientRows * kNr;
    const MatrixC<float> sums = {d_xs_ + rank * input_panels_ * kStep, kNr, kStep};
    MatrixC<const float> start = Zeros();
    for (int64_t k = 0; k < depth_; k += tuning::kInputDepth) {
      const float* a = dz + (k / kNr * panel_rows_ + rows.begin) * kNr;
      Gemm<Scalar>({a, panel_rows_ * kNr}, rows.size(),
                   {kernel_ + k * kNr, depth_ * kNr},
                   Min(tuning::kInputDepth, depth_ - k), input_panels_, start, sums);
      start = AsInput(sums);
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t at = block.first_row + row;
      // What is not valid takes no part, whatever the weights: NaN * 0 is NaN.
      const bool valid = steps_.Valid(at / s_.rows, at % s_.rows);
      for (int64_t n = 0; n < UnitBlocks(s_.inputs); ++n) {
        const float* sum = sums.At(row - rows.begin, n / 2).data + n % 2 * kWidth;
        StoreBlock(p_.d_xs, at, s_.inputs, n, valid ? Load(sum) : Vec{});
      }
    }
  }

  const BackwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Steps<Scalar> steps_;
  const Step& step_;
  const NormedBlock<Scalar, Step>& normed_;
  const Entering<Scalar> entering_;
  const Heads<Scalar> heads_;
  const SavedSteps<Scalar> saved_ = SavedOf(p_);
  const int64_t block_rows_;
  const int64_t panel_rows_;
  const int64_t gate_panels_;
  const int64_t input_panels_;
  const int64_t projection_panels_;
  const int64_t depth_;  // of products over all gates, in lanes
  WeightGradient<Scalar> d_kernel_;
  WeightGradient<Scalar> d_recurrent_;
  WeightGradient<Scalar> d_projection_;

  float* kernel_ = nullptr;  // transposed, in panels
  float* d_bias_ = nullptr;
  // [blocks of units, 4 gates, kWidth]
  float* d_peephole_ = nullptr;
  float* d_diagonal_ = nullptr;
  float* d_norm_scale_[2] = {nullptr, nullptr};
  float* d_cell_norm_ = nullptr;  // [blocks of units, 2, kWidth]
  // Some rows of input gradients for each thread.
  float* d_xs_ = nullptr;
  // dz and dy packed as B, where that is not how they are packed as A.
  float* repacked_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_BLOCK_PRODUCTS_H_
