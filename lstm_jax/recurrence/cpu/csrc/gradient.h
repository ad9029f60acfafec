// The gradient of one weight matrix: left^T * right, summed over blocks of steps.
#ifndef LSTM_JAX_GRADIENT_H_
#define LSTM_JAX_GRADIENT_H_

#include "plan.h"

namespace lstm {
namespace LSTM_ISA {

// Rows of a product that are computed together: their left factor stays in the
// second-level cache while the right one passes by, and so do the places of their pages.
constexpr int64_t kRowsTogether = 96;
// Panels computed one after the other before they are written.
constexpr int64_t kPanelsTogether = 4;
// Items for each thread, at least: so no thread waits long for the last of them.
constexpr int64_t kItemsPerThread = 4;
constexpr int64_t kRowsWrittenAhead = 8;

template <class Scalar>
class WeightGradient {
 public:
  // `result` is [rows, row_step], in `panels` panels of columns, or null if nobody wants
  // it.
  WeightGradient(Scalar* result, int64_t rows, int64_t row_step, int64_t panels)
      : result_(result), rows_(rows), row_step_(row_step), panels_(panels) {}

  // Room for blocks of up to `block_rows` rows. Sums that are complete after one block
  // need no more than their thread.
  void Carve(Carver& carver, int64_t block_rows, bool one_block, int threads) {
    if (!result_) return;
    one_block_ = one_block;
    groups_ = static_cast<int>(CeilDiv(rows_, kRowsTogether));
    parts_ = static_cast<int>(Min(CeilDiv(kItemsPerThread * threads, groups_),
                                  CeilDiv(panels_, kPanelsTogether)));
    across_ = carver.Floats(CeilDiv(Lanes<Scalar>(block_rows), kPanel) *
                            PanelRows(rows_) * kPanel);
    sums_ = carver.Floats(
        (one_block ? threads * kPanelsTogether * kRowsTogether : panels_ * rows_) *
        kPanel);
  }

  // Copies a group of rows of the left factor to where products read them; see
  // PackAcross.
  template <class RowAt>
  void Pack(int64_t group, RowAt row_at) {
    if (result_) PackAcross<Scalar>(row_at, rows_, PanelRows(rows_), group, across_);
  }

  // The work of a block is so many items: some rows, and some panels, of the product.
  int64_t items() const { return result_ ? groups_ * parts_ : 0; }

  // Adds one of them; the right factor is `lanes` deep. The first block sets the sums, the
  // last one writes them out, where `columns_of(panel)` says.
  template <class ColumnsOf>
  void Add(int64_t item, Right right, int64_t lanes, ColumnsOf columns_of, bool first,
           bool last, int rank) {
    const Range rows = Part(rows_, static_cast<int>(item / parts_), groups_);
    const Range panels = Part(panels_, static_cast<int>(item % parts_), parts_);
    for (int64_t p = panels.begin; p < panels.end; p += kPanelsTogether) {
      const int64_t count = Min(kPanelsTogether, panels.end - p);
      const Sums<float> sums = SumsAt(rows.begin, p, rank);
      const Sums<const float> from =
          first ? Sums<const float>{kZeros, 0, 0}
                : Sums<const float>{sums.data, sums.row_step, sums.panel_step};
      Multiply<Scalar>({across_ + rows.begin * kPanel, PanelRows(rows_) * kPanel},
                       rows.size(), right.From(p), lanes, count, from, sums);
      if (!last) continue;
      Columns columns[kPanelsTogether];
      for (int64_t n = 0; n < count; ++n) columns[n] = columns_of(p + n);
      Write(rows, columns, count, sums);
    }
  }

 private:
  Sums<float> SumsAt(int64_t row, int64_t panel, int rank) const {
    if (one_block_) {
      constexpr int64_t kStep = kRowsTogether * kPanel;
      return {sums_ + rank * kPanelsTogether * kStep, kPanel, kStep};
    }
    return {sums_ + (panel * rows_ + row) * kPanel, kPanel, rows_ * kPanel};
  }

  void Write(Range rows, const Columns* columns, int64_t count, Sums<float> sums) const {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      Scalar* line = result_ + row * row_step_;
      for (int64_t n = 0; n < count; ++n) {
        const float* from = sums.At(row - rows.begin, n).data;
        for (int v = 0; v < 2; ++v) {
          Scalar* to = line + columns[n].start[v];
          // Each row is in another page: what is written is asked for some rows ahead.
          if (row + kRowsWrittenAhead < rows.end) {
            __builtin_prefetch(to + kRowsWrittenAhead * row_step_, 1);
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
  int groups_ = 0;  // of rows
  int parts_ = 0;   // of panels
  float* across_ = nullptr;
  float* sums_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GRADIENT_H_
