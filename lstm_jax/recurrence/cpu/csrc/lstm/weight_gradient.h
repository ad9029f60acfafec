// The gradient of one weight matrix: A^T * B, summed over blocks of steps.
#ifndef LSTM_JAX_LSTM_WEIGHT_GRADIENT_H_
#define LSTM_JAX_LSTM_WEIGHT_GRADIENT_H_

#include "gemm/gemm.h"
#include "gemm/pack_a.h"
#include "gemm/pack_b.h"
#include "lstm/steps.h"
#include "memory/arena.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar>
class WeightGradient {
 public:
  // `result` is [rows, row_step], in `panels` panels of columns, or null if nobody
  // wants it.
  WeightGradient(Scalar* result, int64_t rows, int64_t row_step, int64_t panels)
      : result_(result), rows_(rows), row_step_(row_step), panels_(panels) {}

  // Room for blocks of up to `block_rows` rows. Sums that are complete after one block
  // need no more than their thread.
  void Allocate(Arena& arena, int64_t block_rows, bool one_block, int threads) {
    if (!result_) return;
    one_block_ = one_block;
    groups_ = static_cast<int>(CeilDiv(rows_, tuning::kGradientRows));
    parts_ = static_cast<int>(Min(CeilDiv(tuning::kItemsPerThread * threads, groups_),
                                  CeilDiv(panels_, tuning::kGradientPanels)));
    a_ = arena.Floats(CeilDiv(DepthInLanes<Scalar>(block_rows), kNr) *
                      PanelRows(rows_) * kNr);
    sums_ = arena.Floats(
        (one_block ? threads * tuning::kGradientPanels * tuning::kGradientRows
                   : panels_ * rows_) *
        kNr);
  }

  // Copies a group of rows of A to where products read them; see PackAcross.
  template <class RowAt>
  void Pack(int64_t group, RowAt row_at) {
    if (result_) PackAcross<Scalar>(row_at, rows_, PanelRows(rows_), group, a_);
  }

  // The work of a block is so many items: some rows, and some panels, of the product.
  int64_t items() const { return result_ ? groups_ * parts_ : 0; }

  // Adds one of them; B is `lanes` deep. The first block sets the sums, the
  // last one writes them out, where `columns_of(panel)` says. Rows that are not among
  // `rows_of(panels)` are left as they are.
  template <class ColumnsOf, class RowsOf>
  void Add(int64_t item, PackedB b, int64_t lanes, ColumnsOf columns_of, RowsOf rows_of,
           bool first, bool last, int rank) {
    const Range all = Part(rows_, static_cast<int>(item / parts_), groups_);
    const Range panels = Part(panels_, static_cast<int>(item % parts_), parts_);
    for (int64_t p = panels.begin; p < panels.end; p += tuning::kGradientPanels) {
      const int64_t count = Min(tuning::kGradientPanels, panels.end - p);
      const Range some = rows_of(Range{p, p + count});
      const Range rows = {Max(all.begin, some.begin), Min(all.end, some.end)};
      if (rows.begin >= rows.end) continue;
      const MatrixC<float> sums = SumsAt(rows.begin, p, rank);
      const MatrixC<const float> start = first ? Zeros() : AsInput(sums);
      Gemm<Scalar>({a_ + rows.begin * kNr, PanelRows(rows_) * kNr}, rows.size(),
                   b.From(p), lanes, count, start, sums);
      if (!last) continue;
      Columns columns[tuning::kGradientPanels];
      for (int64_t n = 0; n < count; ++n) columns[n] = columns_of(p + n);
      Write(rows, columns, count, sums);
    }
  }

 private:
  MatrixC<float> SumsAt(int64_t row, int64_t panel, int rank) const {
    if (one_block_) {
      constexpr int64_t kStep = tuning::kGradientRows * kNr;
      return {sums_ + rank * tuning::kGradientPanels * kStep, kNr, kStep};
    }
    return {sums_ + (panel * rows_ + row) * kNr, kNr, rows_ * kNr};
  }

  void Write(Range rows, const Columns* columns, int64_t count,
             MatrixC<float> sums) const {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      Scalar* line = result_ + row * row_step_;
      for (int64_t n = 0; n < count; ++n) {
        const float* from = sums.At(row - rows.begin, n).data;
        for (int v = 0; v < 2; ++v) {
          Scalar* to = line + columns[n].start[v];
          // Each row is in another page: what is written is asked for some rows ahead.
          if (row + tuning::kPrefetchWrittenRows < rows.end) {
            __builtin_prefetch(to + tuning::kPrefetchWrittenRows * row_step_, 1);
          }
          StoreUpTo(to, Load(from + v * kWidth), columns[n].count[v]);
        }
      }
    }
  }

  Scalar* const result_;
  const int64_t rows_;
  const int64_t row_step_;
  const int64_t panels_;
  bool one_block_ = false;
  int groups_ = 0;      // of rows
  int parts_ = 0;       // of panels
  float* a_ = nullptr;  // packed, transposed
  float* sums_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_WEIGHT_GRADIENT_H_
