// The weights of the forward pass, packed once a call.
#ifndef LSTM_JAX_LSTM_FORWARD_WEIGHTS_H_
#define LSTM_JAX_LSTM_FORWARD_WEIGHTS_H_

#include "gemm/gemm.h"
#include "lstm/gates.h"
#include "memory/arena.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar>
class ForwardWeights {
 public:
  template <class Problem>
  explicit ForwardWeights(const Problem& problem)
      : w_(problem.weights),
        shift_(problem.variant.norm_shift),
        s_(problem.sizes),
        gate_panels_(2 * UnitBlocks(s_.units)),
        projection_panels_(s_.projected ? CeilDiv(s_.outputs, kNr) : 0),
        input_lanes_(DepthInLanes<Scalar>(s_.inputs)),
        unit_lanes_(DepthInLanes<Scalar>(s_.units)),
        output_lanes_(DepthInLanes<Scalar>(s_.outputs)) {}

  void Allocate(Arena& arena) {
    kernel_ = arena.Floats(gate_panels_ * input_lanes_ * kNr);
    if (w_.recurrent) recurrent_ = arena.Floats(gate_panels_ * output_lanes_ * kNr);
    bias_ = arena.Floats(gate_panels_ * kNr);
    projection_ = arena.Floats(projection_panels_ * unit_lanes_ * kNr);
  }

  // They are packed in so many items.
  int64_t items() const { return gate_items() + projection_items(); }

  void Pack(int64_t item) {
    if (item < gate_items()) {
      PackGates(item * tuning::kPackedPanels);
    } else {
      PackProjection((item - gate_items()) * tuning::kPackedPanels);
    }
  }

  // The depth of products over the inputs, over h, and over m, in lanes.
  int64_t input_lanes() const { return input_lanes_; }
  int64_t output_lanes() const { return output_lanes_; }
  int64_t unit_lanes() const { return unit_lanes_; }

  // The panels of some blocks of units, from block `block` on.
  PackedB Kernel(int64_t block) const { return Panels(kernel_, input_lanes_, block); }
  PackedB Recurrent(int64_t block) const {
    return Panels(recurrent_, output_lanes_, block);
  }
  MatrixC<const float> Bias(int64_t block) const {
    return {bias_ + 2 * block * kNr, 0, kNr};
  }

  PackedB Projection() const { return {projection_, unit_lanes_ * kNr}; }

 private:
  int64_t gate_items() const { return CeilDiv(gate_panels_, tuning::kPackedPanels); }
  int64_t projection_items() const {
    return CeilDiv(projection_panels_, tuning::kPackedPanels);
  }

  static PackedB Panels(const float* weights, int64_t lanes, int64_t block) {
    return {weights + 2 * block * lanes * kNr, lanes * kNr};
  }

  void PackGates(int64_t first) {
    const int64_t count = Min(tuning::kPackedPanels, gate_panels_ - first);
    Columns columns[tuning::kPackedPanels];
    for (int64_t n = 0; n < count; ++n)
      columns[n] = GateColumns(s_.units, first + n, s_.gates);
    PackPanels(w_.kernel, s_.inputs, s_.columns(), columns, count,
               kernel_ + first * input_lanes_ * kNr);
    if (w_.recurrent) {
      PackPanels(w_.recurrent, s_.outputs, s_.columns(), columns, count,
                 recurrent_ + first * output_lanes_ * kNr);
    }
    for (int64_t n = 0; n < count; ++n) PackBias(first + n, columns[n]);
  }

  void PackBias(int64_t panel, const Columns& columns) {
    for (int v = 0; v < 2; ++v) {
      const auto part = [&](const Scalar* from) {
        return from ? LoadUpTo(from + columns.start[v], columns.count[v]) : Vec{};
      };
      Vec bias = part(w_.bias);
      if (shift_) bias += part(shift_) + part(shift_ + s_.columns());
      Store(bias_ + panel * kNr + v * kWidth, bias);
    }
  }

  void PackProjection(int64_t first) {
    const int64_t count = Min(tuning::kPackedPanels, projection_panels_ - first);
    Columns columns[tuning::kPackedPanels];
    for (int64_t n = 0; n < count; ++n)
      columns[n] = PlainColumns(s_.outputs, first + n);
    PackPanels(w_.projection, s_.units, s_.outputs, columns, count,
               projection_ + first * unit_lanes_ * kNr);
  }

  const Weights<Scalar>& w_;
  const Scalar* const shift_;  // what layer normalisation adds; null if it adds nothing
  const Sizes& s_;
  const int64_t gate_panels_;
  const int64_t projection_panels_;
  const int64_t input_lanes_;
  const int64_t unit_lanes_;
  const int64_t output_lanes_;

  float* kernel_ = nullptr;
  float* recurrent_ = nullptr;
  float* bias_ = nullptr;
  float* projection_ = nullptr;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_FORWARD_WEIGHTS_H_
