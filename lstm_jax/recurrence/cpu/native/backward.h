// The backward pass: the gradients of everything, in one call.
//
// It runs block by block of steps, from the last to the first. For each block, first
// the steps: the gradients dz of the pre-activations, and from them those of the state
// before. Then the products of the whole block: each adds to the gradients of the
// weights, or makes those of the inputs. So dz stays in the cache and is never
// complete.
#ifndef LSTM_JAX_BACKWARD_H_
#define LSTM_JAX_BACKWARD_H_

#include "activations.h"
#include "plan.h"

namespace lstm {
namespace LSTM_ISA {

// Rows of dz in a block: as deep as products of good speed need, and deeper where the
// weights are large, since each block reads and writes their gradients once.
LSTM_INLINE int64_t GradientRows(const Sizes& s) { return Max(384, s.units * 5 / 8); }

template <class Scalar>
class Backward {
 public:
  Backward(const BackwardProblem<Scalar>& problem, int limit)
      : p_(problem),
        s_(problem.sizes),
        steps_(problem.sizes, problem.controls),
        threads_(ChooseThreads(s_, limit)),
        blocks_(UnitBlocks(s_.units)),
        panels_(2 * blocks_),
        unit_panels_(CeilDiv(s_.units, kPanel)),
        output_panels_(CeilDiv(s_.outputs, kPanel)),
        input_panels_(CeilDiv(s_.inputs, kPanel)),
        depth_(GateDepth(s_.units)),
        block_steps_(BlockSteps(s_, GradientRows(s_))),
        z_rows_(PanelRows(block_steps_ * s_.rows)),
        h_rows_(PanelRows(s_.rows)) {}

  void Run(Crew& crew) {
    Carver measure(nullptr);
    Carve(measure);
    Scratch scratch(measure.used());
    Carver carver(scratch.data());
    Carve(carver);
    crew.Run(
        threads_,
        [](void* self, int rank, Team& team) {
          static_cast<Backward*>(self)->Body(rank, team);
        },
        this);
  }

 private:
  void Carve(Carver& carver) {
    const int64_t rows = block_steps_ * s_.rows;
    recurrent_ = carver.Floats(output_panels_ * depth_ * kPanel);
    if (p_.d_xs) kernel_ = carver.Floats(input_panels_ * depth_ * kPanel);
    dz_ = carver.Floats(panels_ * z_rows_ * kPanel);
    xs_across_ = carver.Floats(AcrossSize(s_.inputs, rows));
    hs_across_ = carver.Floats(AcrossSize(s_.outputs, rows));
    dh_ = carver.Floats(output_panels_ * h_rows_ * kPanel);
    dc_ = carver.Floats(blocks_ * s_.rows * kWidth);
    d_bias_ = carver.Floats(panels_ * kPanel);
    d_reset_h_ = carver.Floats(output_panels_ * h_rows_ * kPanel);
    d_reset_c_ = carver.Floats(blocks_ * s_.rows * kWidth);
    d_xs_panels_ = carver.Floats(threads_ * rows * kPanel);
    if (s_.projected) {
      projection_ = carver.Floats(unit_panels_ * s_.outputs * kPanel);
      dm_ = carver.Floats(unit_panels_ * h_rows_ * kPanel);
      dy_ = carver.Floats(output_panels_ * z_rows_ * kPanel);
      ms_across_ = carver.Floats(AcrossSize(s_.units, rows));
    }
    d_kernel_ = Accumulator(carver, p_.d_kernel, s_.inputs * 4 * s_.units);
    d_recurrent_ = Accumulator(carver, p_.d_recurrent, s_.outputs * 4 * s_.units);
    d_projection_ = Accumulator(carver, p_.d_projection, s_.units * s_.outputs);
  }

  // Sums are float32: the result itself, or memory that is converted in the end.
  static float* Accumulator(Carver&, float* result, int64_t) { return result; }
  static float* Accumulator(Carver& carver, BFloat16* result, int64_t size) {
    return result ? carver.Floats(size) : nullptr;
  }

  static int64_t AcrossSize(int64_t columns, int64_t rows) {
    return CeilDiv(columns, kTileRows) * kTileRows * rows;
  }

  void Body(int rank, Team& team) {
    Pack(team);
    team.Form(rank);
    Sharing sharing(team);
    for (int64_t last = s_.steps; last > 0; last -= Min(block_steps_, last)) {
      const int64_t first = Max(last - block_steps_, 0);
      const Range times = steps_.Times(first, last);
      PackAcrossShare(times, rank, team.size());
      if (ShareRows(s_, threads_)) {
        const Range rows = Part(s_.rows, rank, team.size());
        if (rows.size()) StepsOfRows(first, last, rows);
        team.Barrier();
      } else {
        StepsOfUnits(first, last, Part(output_panels_, rank, team.size()), team);
      }
      const int64_t products = panels_ + (p_.d_xs ? input_panels_ : 0) +
                               (d_projection_ ? output_panels_ : 0);
      sharing.Run(products,
                  [&](int64_t item) { Product(item, times, last < s_.steps, rank); });
      team.Barrier();
    }
    sharing.Run(s_.rows, [&](int64_t row) { Finish(row); });
    Convert(rank, team.size());
  }

  // Packs weights and the gradients of the last state; whoever is here takes part.
  void Pack(Team& team) {
    const int64_t kernels = p_.d_xs ? input_panels_ : 0;
    const int64_t projections = s_.projected ? unit_panels_ : 0;
    for (;;) {
      int64_t item = team.Take();
      if (item < output_panels_) {
        PackGatesTransposed(p_.weights.recurrent, item * kPanel, s_.outputs, s_.units,
                            recurrent_ + item * depth_ * kPanel);
        continue;
      }
      item -= output_panels_;
      if (item < kernels) {
        PackGatesTransposed(p_.weights.kernel, item * kPanel, s_.inputs, s_.units,
                            kernel_ + item * depth_ * kPanel);
        continue;
      }
      item -= kernels;
      if (item < projections) {
        PackTransposed(p_.weights.projection, item * kPanel, s_.units, s_.outputs,
                       projection_ + item * s_.outputs * kPanel);
        continue;
      }
      item -= projections;
      if (item >= s_.rows) break;
      Start(item);
    }
  }

  // The gradients of what leaves the last step, of one row.
  void Start(int64_t row) {
    for (int64_t block = 0; block < 2 * output_panels_; ++block) {
      const int64_t column = block * kWidth;
      Store(InPanels(dh_, h_rows_, block, row),
            LoadUpTo(p_.d_last_h + row * s_.outputs + column,
                     Count(s_.outputs - column)));
      Store(InPanels(d_reset_h_, h_rows_, block, row), Vec{});
    }
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t unit = block * kWidth;
      Store(CellAt(dc_, s_.rows, block, row),
            LoadUpTo(p_.d_last_c + row * s_.units + unit, Count(s_.units - unit)));
      Store(CellAt(d_reset_c_, s_.rows, block, row), Vec{});
    }
  }

  // Copies a thread's share of the inputs and of the h that enter the steps of a block
  // to where the weight gradients read them.
  void PackAcrossShare(Range times, int rank, int size) {
    const int64_t rows = times.size() * s_.rows;
    const Range share = Part(rows, rank, size);
    for (int64_t row = share.begin; row < share.end; ++row) {
      const int64_t time = times.begin + row / s_.rows;
      const int64_t n = row % s_.rows;
      // What is not valid may hold NaN, and NaN * 0 is NaN.
      const Scalar* x =
          steps_.Valid(time, n) ? p_.xs + (time * s_.rows + n) * s_.inputs : nullptr;
      PackRowAcross(x, s_.inputs, rows, row, xs_across_);
      PackRowAcross(Entering(time, n), s_.outputs, rows, row, hs_across_);
    }
  }

  static void PackRowAcross(const Scalar* from, int64_t columns, int64_t rows,
                            int64_t row, float* to) {
    to += row * kTileRows;
    for (int64_t column = 0; column < columns; column += kTileRows) {
      const int count = static_cast<int>(Min(columns - column, kTileRows));
      for (int n = 0; n < kTileRows; ++n) {
        to[n] = from && n < count ? ToFloat(from[column + n]) : 0;
      }
      to += rows * kTileRows;
    }
  }

  // h as it entered a step, of one row.
  const Scalar* Entering(int64_t time, int64_t row) const {
    if (p_.entering) return p_.entering + (time * s_.rows + row) * s_.outputs;
    if (time == steps_.Time(0)) return p_.state.h + row * s_.outputs;
    const int64_t before = s_.reverse ? time + 1 : time - 1;
    return p_.ys + (before * s_.rows + row) * s_.outputs;
  }

  void StepsOfRows(int64_t first, int64_t last, Range rows) {
    const Range times = steps_.Times(first, last);
    for (int64_t n = last - 1; n >= first; --n) {
      const int64_t time = steps_.Time(n);
      const int64_t start = (time - times.begin) * s_.rows;
      if (s_.projected) Unproject(time, start, rows);
      for (int64_t block = 0; block < blocks_; ++block) {
        Gates(n, start, rows, block, times.size() * s_.rows);
      }
      Recur(time, start, rows, {0, output_panels_});
    }
  }

  // The same with a barrier a step: each thread has its own panels of h.
  void StepsOfUnits(int64_t first, int64_t last, Range mine, Team& team) {
    const Range times = steps_.Times(first, last);
    const Range rows = {0, s_.rows};
    for (int64_t n = last - 1; n >= first; --n) {
      const int64_t time = steps_.Time(n);
      const int64_t start = (time - times.begin) * s_.rows;
      for (int64_t block = 2 * mine.begin; block < Min(2 * mine.end, blocks_);
           ++block) {
        Gates(n, start, rows, block, times.size() * s_.rows);
      }
      team.Barrier();
      Recur(time, start, rows, mine);
    }
  }

  // From the gradient of a projected h to that before the projection.
  void Unproject(int64_t time, int64_t start, Range rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const bool valid = steps_.Valid(time, row);
      for (int64_t block = 0; block < 2 * output_panels_; ++block) {
        const Vec dy = valid ? TakeHidden(time, row, block) : Vec{};
        Store(InPanels(dy_, z_rows_, block, start + row), dy);
      }
    }
    alignas(64) static constexpr float kZeros[kPanel] = {};
    Multiply({dy_ + (start + rows.begin) * kPanel, kPanel, z_rows_ * kPanel},
             rows.size(), projection_, s_.outputs, unit_panels_, {kZeros, 0, 0},
             {dm_ + rows.begin * kPanel, kPanel, h_rows_ * kPanel});
  }

  // The gradient of a block of h after a step that is valid; the step has used it up.
  Vec TakeHidden(int64_t time, int64_t row, int64_t block) {
    float* carried = InPanels(dh_, h_rows_, block, row);
    Vec dh = Load(carried);
    if (p_.d_ys) {
      const int64_t column = block * kWidth;
      dh += LoadUpTo(p_.d_ys + (time * s_.rows + row) * s_.outputs + column,
                     Count(s_.outputs - column));
    }
    Store(carried, Vec{});
    return dh;
  }

  // dz and the gradient of c before step n, for one block of units. Row r of the step
  // is row start + r of the block of steps, which has `block_rows`.
  void Gates(int64_t n, int64_t start, Range rows, int64_t block, int64_t block_rows) {
    const int64_t time = steps_.Time(n);
    float* dz = dz_ + (2 * block * z_rows_ + start) * kPanel;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      float* input_forget = dz + row * kPanel;
      float* candidate_output = input_forget + z_rows_ * kPanel;
      float* carried = CellAt(dc_, s_.rows, block, row);
      if (steps_.Valid(time, row)) {
        const float* tape = TapeAt(time, block, row);
        const Vec i = Load(tape);
        const Vec f = Load(tape + kWidth);
        const Vec g = Load(tape + 2 * kWidth);
        const Vec o = Load(tape + 3 * kWidth);
        const Vec c = Tanh(Load(tape + 4 * kWidth));
        const Vec dm = s_.projected ? Load(InPanels(dm_, h_rows_, block, row))
                                    : TakeHidden(time, row, block);
        Vec dc = Load(carried) + dm * o * (1.0f - c * c);
        if (p_.d_cs) dc += DCell(time, row, block);
        Store(input_forget, dc * g * (i * (1.0f - i)));
        Store(input_forget + kWidth, dc * Before(n, block, row) * (f * (1.0f - f)));
        Store(candidate_output, dc * i * (1.0f - g * g));
        Store(candidate_output + kWidth, dm * c * (o * (1.0f - o)));
        Store(carried, dc * f);
        if (ms_across_) KeepM(start + row, block, block_rows, Round<Scalar>(o * c));
      } else {
        for (int v = 0; v < 2; ++v) {
          Store(input_forget + v * kWidth, Vec{});
          Store(candidate_output + v * kWidth, Vec{});
        }
        if (ms_across_) KeepM(start + row, block, block_rows, Vec{});
      }
      if (steps_.Reset(time, row)) {
        MoveTo(CellAt(d_reset_c_, s_.rows, block, row), carried);
      }
    }
  }

  const float* TapeAt(int64_t time, int64_t block, int64_t row) const {
    return p_.tape + ((time * blocks_ + block) * s_.rows + row) * kTapeEntries * kWidth;
  }

  // c as it entered step n.
  Vec Before(int64_t n, int64_t block, int64_t row) const {
    const bool reset = steps_.Reset(steps_.Time(n), row);
    if (n > 0 && !reset) {
      return Load(TapeAt(steps_.Time(n - 1), block, row) + 4 * kWidth);
    }
    const float* c = reset ? p_.controls.reset_state.c : p_.state.c;
    const int64_t unit = block * kWidth;
    return LoadUpTo(c + row * s_.units + unit, Count(s_.units - unit));
  }

  Vec DCell(int64_t time, int64_t row, int64_t block) const {
    const int64_t unit = block * kWidth;
    return LoadUpTo(p_.d_cs + (time * s_.rows + row) * s_.units + unit,
                    Count(s_.units - unit));
  }

  void KeepM(int64_t row, int64_t block, int64_t block_rows, Vec m) {
    float values[kWidth];
    Store(values, m);
    const int64_t first = block * kWidth;
    for (int64_t unit = first; unit < Min(first + kWidth, s_.units); ++unit) {
      ms_across_[(unit / kTileRows * block_rows + row) * kTileRows + unit % kTileRows] =
          values[unit - first];
    }
  }

  // dh += dz * recurrent kernel^T, for some panels of h, and what a reset takes from
  // it.
  void Recur(int64_t time, int64_t start, Range rows, Range panels) {
    if (panels.size() == 0) return;
    const Sums<float> dh = {dh_ + (panels.begin * h_rows_ + rows.begin) * kPanel,
                            kPanel, h_rows_ * kPanel};
    Multiply({dz_ + (start + rows.begin) * kPanel, kPanel, z_rows_ * kPanel},
             rows.size(), recurrent_ + panels.begin * depth_ * kPanel, depth_,
             panels.size(), {dh.data, dh.row_step, dh.panel_step}, dh);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (!steps_.Reset(time, row)) continue;
      for (int64_t block = 2 * panels.begin; block < 2 * panels.end; ++block) {
        MoveTo(InPanels(d_reset_h_, h_rows_, block, row),
               InPanels(dh_, h_rows_, block, row));
      }
    }
  }

  static void MoveTo(float* sum, float* from) {
    Store(sum, Load(sum) + Load(from));
    Store(from, Vec{});
  }

  // One product of a block of steps. The sums go on where a later block's ended.
  void Product(int64_t item, Range times, bool add, int rank) {
    const int64_t rows = times.size() * s_.rows;
    if (item < panels_) {
      WeightProducts(item, rows, add);
      return;
    }
    item -= panels_;
    if (p_.d_xs) {
      if (item < input_panels_) {
        InputProduct(item, times.begin * s_.rows, rows,
                     d_xs_panels_ + rank * block_steps_ * s_.rows * kPanel);
        return;
      }
      item -= input_panels_;
    }
    const Columns columns = PlainColumns(s_.outputs, item);
    WeightProduct(ms_across_, s_.units, dy_ + item * z_rows_ * kPanel, rows, columns,
                  add, d_projection_, s_.outputs);
  }

  // The gradients of one panel of columns of the kernels and of the bias.
  void WeightProducts(int64_t panel, int64_t rows, bool add) {
    const Columns columns = GateColumns(s_.units, panel);
    const float* dz = dz_ + panel * z_rows_ * kPanel;
    if (d_kernel_) {
      WeightProduct(xs_across_, s_.inputs, dz, rows, columns, add, d_kernel_,
                    4 * s_.units);
    }
    if (d_recurrent_) {
      WeightProduct(hs_across_, s_.outputs, dz, rows, columns, add, d_recurrent_,
                    4 * s_.units);
    }
    if (!p_.d_bias) return;
    float* bias = d_bias_ + panel * kPanel;
    for (int v = 0; v < 2; ++v) {
      Vec sum = add ? Load(bias + v * kWidth) : Vec{};
      for (int64_t row = 0; row < rows; ++row) {
        sum += Load(dz + row * kPanel + v * kWidth);
      }
      Store(bias + v * kWidth, sum);
      StoreUpTo(p_.d_bias + columns.start[v], sum, columns.count[v]);
    }
  }

  static void WeightProduct(const float* across, int64_t size, const float* right,
                            int64_t rows, Columns columns, bool add, float* to,
                            int64_t row_step) {
    for (int64_t n = 0; n < size; n += kTileRows) {
      MultiplyAcross(across + n * rows, right, rows,
                     static_cast<int>(Min(size - n, kTileRows)), columns, add,
                     to + n * row_step, row_step);
    }
  }

  // One panel of the gradients of the inputs of a block of steps.
  void InputProduct(int64_t panel, int64_t first, int64_t rows, float* sums) {
    alignas(64) static constexpr float kZeros[kPanel] = {};
    Multiply({dz_, kPanel, z_rows_ * kPanel}, rows, kernel_ + panel * depth_ * kPanel,
             depth_, 1, {kZeros, 0, 0}, {sums, kPanel, 0});
    const Columns columns = PlainColumns(s_.inputs, panel);
    for (int64_t row = 0; row < rows; ++row) {
      Scalar* to = p_.d_xs + (first + row) * s_.inputs;
      for (int v = 0; v < 2; ++v) {
        StoreUpTo(to + columns.start[v], Load(sums + row * kPanel + v * kWidth),
                  columns.count[v]);
      }
    }
  }

  // The gradients of the states, of one row.
  void Finish(int64_t row) {
    EmitHidden(p_.d_h, dh_, row);
    EmitCell(p_.d_c, dc_, row);
    EmitHidden(p_.d_reset_h, d_reset_h_, row);
    EmitCell(p_.d_reset_c, d_reset_c_, row);
  }

  void EmitHidden(Scalar* to, float* from, int64_t row) const {
    if (!to) return;
    for (int64_t block = 0; block < 2 * output_panels_; ++block) {
      const int64_t column = block * kWidth;
      StoreUpTo(to + row * s_.outputs + column,
                Load(InPanels(from, h_rows_, block, row)), Count(s_.outputs - column));
    }
  }

  void EmitCell(float* to, float* from, int64_t row) const {
    if (!to) return;
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t unit = block * kWidth;
      StoreUpTo(to + row * s_.units + unit, Load(CellAt(from, s_.rows, block, row)),
                Count(s_.units - unit));
    }
  }

  void Convert(int rank, int size) {
    ConvertShare(d_kernel_, p_.d_kernel, s_.inputs * 4 * s_.units, rank, size);
    ConvertShare(d_recurrent_, p_.d_recurrent, s_.outputs * 4 * s_.units, rank, size);
    ConvertShare(d_projection_, p_.d_projection, s_.units * s_.outputs, rank, size);
  }

  static void ConvertShare(const float*, float*, int64_t, int, int) {}
  static void ConvertShare(const float* from, BFloat16* to, int64_t count, int rank,
                           int size) {
    if (!to) return;
    const Range share = Part(count, rank, size);
    for (int64_t n = share.begin; n < share.end; ++n) Assign(to + n, from[n]);
  }

  static int Count(int64_t left) { return static_cast<int>(Max(Min(left, kWidth), 0)); }

  const BackwardProblem<Scalar>& p_;
  const Sizes& s_;
  const Steps<Scalar> steps_;
  const int threads_;
  const int64_t blocks_;         // of units
  const int64_t panels_;         // of gates
  const int64_t unit_panels_;    // of units
  const int64_t output_panels_;  // of h
  const int64_t input_panels_;   // of x
  const int64_t depth_;          // gates in whole blocks
  const int64_t block_steps_;
  const int64_t z_rows_;
  const int64_t h_rows_;

  // Weights, transposed, in panels.
  float* recurrent_ = nullptr;
  float* kernel_ = nullptr;
  float* projection_ = nullptr;
  // Of a block of steps: dz; x, h and m by columns; the gradient of projected h.
  float* dz_ = nullptr;
  float* xs_across_ = nullptr;
  float* hs_across_ = nullptr;
  float* ms_across_ = nullptr;
  float* dy_ = nullptr;
  // One panel of input gradients for each thread.
  float* d_xs_panels_ = nullptr;
  // Of one step: the gradients of h and c, and of h before projection.
  float* dh_ = nullptr;
  float* dc_ = nullptr;
  float* dm_ = nullptr;
  // Sums over all steps.
  float* d_bias_ = nullptr;
  float* d_reset_h_ = nullptr;
  float* d_reset_c_ = nullptr;
  float* d_kernel_ = nullptr;
  float* d_recurrent_ = nullptr;
  float* d_projection_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_BACKWARD_H_
