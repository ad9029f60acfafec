// Weights of 8 bits, packed once a call.
#ifndef LSTM_JAX_QUANTIZED_WEIGHTS_H_
#define LSTM_JAX_QUANTIZED_WEIGHTS_H_

#include <initializer_list>

#include "gemm/gemm.h"
#include "lstm/gates.h"
#include "memory/arena.h"

namespace lstm {
namespace LSTM_ISA {

// One matrix: its lanes, what sums start from, and the scales of its columns, in
// panels.
class PackedMatrix {
 public:
  // Columns are those of gates of so many `units`, or plain ones where that is 0.
  PackedMatrix(const QuantizedMatrix& matrix, int64_t rows, int64_t columns,
               int64_t units)
      : matrix_(matrix),
        rows_(rows),
        columns_(columns),
        units_(units),
        lanes_(DepthInLanes<int8_t>(rows)),
        panels_(!matrix.values ? 0
                : units        ? 2 * UnitBlocks(units)
                               : CeilDiv(columns, kNr)) {}

  void Allocate(Arena& arena) {
    packed_ = arena.Floats(panels_ * lanes_ * kNr);
    start_ = arena.Floats(panels_ * kNr);
    scale_ = arena.Floats(panels_ * kNr);
  }

  int64_t lanes() const { return lanes_; }
  int64_t items() const { return CeilDiv(panels_, tuning::kPackedPanels); }

  void Pack(int64_t item) {
    const int64_t first = item * tuning::kPackedPanels;
    const int64_t count = Min(tuning::kPackedPanels, panels_ - first);
    Columns columns[tuning::kPackedPanels] = {};
    for (int64_t n = 0; n < count; ++n) columns[n] = ColumnsOf(first + n);
    PackPanels(matrix_.values, rows_, columns_, columns, count,
               packed_ + first * lanes_ * kNr);
    for (int64_t n = 0; n < count; ++n) {
      PackVector(matrix_.scale, first + n, scale_);
      for (int v = 0; v < 2; ++v) Start(first + n, v * kWidth);
    }
  }

  // A vector of as many numbers as there are columns, or of zeros where it is null.
  void PackVector(const float* from, int64_t panel, float* to) const {
    const Columns columns = ColumnsOf(panel);
    for (int v = 0; v < 2; ++v) {
      const Vec numbers =
          from ? LoadUpTo(from + columns.start[v], columns.count[v]) : Vec{};
      Store(to + panel * kNr + v * kWidth, numbers);
    }
  }

  int64_t panels() const { return panels_; }
  PackedB Panels(int64_t first) const {
    return {packed_ + first * lanes_ * kNr, lanes_ * kNr};
  }
  MatrixC<const float> Start(int64_t first) const {
    return {start_ + first * kNr, 0, kNr};
  }
  const float* Scale(int64_t panel) const { return scale_ + panel * kNr; }

 private:
  Columns ColumnsOf(int64_t panel) const {
    return units_ ? GateColumns(units_, panel) : PlainColumns(columns_, panel);
  }

  // Takes away what the offset of A adds to the sums of a vector of columns.
  void Start(int64_t panel, int64_t column) {
    const float* lane = packed_ + panel * lanes_ * kNr + column;
    IntVec sum = {};
    if (kOffset) {
      for (int64_t k = 0; k < lanes_; ++k, lane += kNr) {
        sum = Dot(sum, Ones(), Bits(Load(lane)));
      }
    }
    Store(start_ + panel * kNr + column, FromBits(-kOffset * sum));
  }

  const QuantizedMatrix& matrix_;
  const int64_t rows_;
  const int64_t columns_;
  const int64_t units_;
  const int64_t lanes_;
  const int64_t panels_;

  float* packed_ = nullptr;
  float* start_ = nullptr;
  float* scale_ = nullptr;
};

class PackedWeights {
 public:
  PackedWeights(const QuantizedWeights& weights, const Sizes& s)
      : kernel(weights.kernel, s.inputs, 4 * s.units, s.units),
        recurrent(weights.recurrent, s.outputs, 4 * s.units, s.units),
        projection(weights.projection, s.units, s.outputs, 0),
        from_(weights.bias) {}

  void Allocate(Arena& arena) {
    kernel.Allocate(arena);
    recurrent.Allocate(arena);
    projection.Allocate(arena);
    bias_ = arena.Floats(kernel.panels() * kNr);
  }

  // They are packed in so many items.
  int64_t items() const {
    return kernel.items() + recurrent.items() + projection.items() + 1;
  }

  void Pack(int64_t item) {
    for (PackedMatrix* matrix : {&kernel, &recurrent, &projection}) {
      if (item < matrix->items()) return matrix->Pack(item);
      item -= matrix->items();
    }
    for (int64_t panel = 0; panel < kernel.panels(); ++panel) {
      kernel.PackVector(from_, panel, bias_);
    }
  }

  const float* Bias(int64_t panel) const { return bias_ + panel * kNr; }

  PackedMatrix kernel;
  PackedMatrix recurrent;
  PackedMatrix projection;

 private:
  const float* from_;
  float* bias_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_QUANTIZED_WEIGHTS_H_
