// The gradient of one weight matrix: left^T * right, summed over blocks of steps.
#ifndef LSTM_JAX_GRADIENT_H_
#define LSTM_JAX_GRADIENT_H_

#include "plan.h"

namespace lstm {
namespace LSTM_ISA {

constexpr int64_t kRowsWrittenAhead = 8;

template <class Scalar>
class WeightGradient {
 public:
  // `result` is [rows, row_step], or null if nobody wants it.
  WeightGradient(Scalar* result, int64_t rows, int64_t row_step)
      : result_(result), rows_(rows), row_step_(row_step) {}

  // Room for `panels` panels of columns, and for blocks of up to `block_rows` rows. A
  // panel whose sum is complete after one block needs no more than its thread.
  void Carve(Carver& carver, int64_t block_rows, int64_t panels, bool one_block,
             int threads) {
    if (!result_) return;
    one_block_ = one_block;
    across_ = carver.Floats(CeilDiv(Lanes<Scalar>(block_rows), kPanel) *
                            PanelRows(rows_) * kPanel);
    sums_ = carver.Floats((one_block ? threads : panels) * rows_ * kPanel);
  }

  // Copies a group of rows of the left factor to where products read them; see
  // PackAcross.
  template <class RowAt>
  void Pack(int64_t group, RowAt row_at) {
    if (result_) PackAcross<Scalar>(row_at, rows_, PanelRows(rows_), group, across_);
  }

  // Adds the product with one panel of the right factor, of `lanes` lanes. The first one
  // sets the sums, the last one writes them out.
  void Add(int64_t panel, Columns columns, const float* right, int64_t lanes, bool first,
           bool last, int rank) {
    if (!result_) return;
    float* sums = sums_ + (one_block_ ? rank : panel) * rows_ * kPanel;
    const Sums<const float> from =
        first ? Sums<const float>{kZeros, 0, 0} : Sums<const float>{sums, kPanel, 0};
    Multiply<Scalar>({across_, PanelRows(rows_) * kPanel}, rows_, right, lanes, 1, from,
                     {sums, kPanel, 0});
    if (!last) return;
    for (int64_t row = 0; row < rows_; ++row) {
      for (int v = 0; v < 2; ++v) {
        Scalar* to = result_ + row * row_step_ + columns.start[v];
        // Each row is in another page: what is written is asked for some rows ahead.
        if (row + kRowsWrittenAhead < rows_) {
          __builtin_prefetch(to + kRowsWrittenAhead * row_step_, 1);
        }
        StoreUpTo(to, Load(sums + row * kPanel + v * kWidth), columns.count[v]);
      }
    }
  }

 private:
  Scalar* result_;
  int64_t rows_;
  int64_t row_step_;
  bool one_block_ = false;
  float* across_ = nullptr;
  float* sums_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_GRADIENT_H_
