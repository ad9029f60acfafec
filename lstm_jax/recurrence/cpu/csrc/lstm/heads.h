// Which units see which h: all, or where there are several heads, those of their own.
#ifndef LSTM_JAX_LSTM_HEADS_H_
#define LSTM_JAX_LSTM_HEADS_H_

#include "lstm/gates.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar>
class Heads {
 public:
  explicit Heads(const Sizes& sizes) : s_(sizes) {}

  // The numbers of h that some blocks of units see.
  Range Outputs(Range blocks) const {
    return Across({blocks.begin * kWidth, blocks.end * kWidth}, s_.units, s_.outputs);
  }

  // Products with the recurrent kernel, of blocks of units that see the same lanes of
  // h: `run(blocks, lanes)`.
  template <class Run>
  void Forward(Range blocks, Run run) const {
    const int64_t all = DepthInLanes<Scalar>(s_.outputs);
    InRuns(
        blocks,
        [&](int64_t block) {
          const Range seen = Outputs({block, block + 1});
          constexpr int64_t kNumbers = kNr * kKr<Scalar>;
          return Range{seen.begin / kNumbers * kNr,
                       Min(CeilDiv(seen.end, kNumbers) * kNr, all)};
        },
        run);
  }

  // The same with its transpose, of panels of h that the same lanes of gates see.
  template <class Run>
  void Backward(Range panels, Run run) const {
    constexpr int64_t kBlock = 4 * kWidth / kKr<Scalar>;
    InRuns(
        panels,
        [&](int64_t panel) {
          const Range units =
              Across({panel * kNr, (panel + 1) * kNr}, s_.outputs, s_.units);
          return Range{units.begin / kWidth * kBlock,
                       CeilDiv(units.end, kWidth) * kBlock};
        },
        run);
  }

 private:
  // Of all numbers of some heads: those among `to` that belong to the heads of a part
  // of `from`.
  Range Across(Range part, int64_t from, int64_t to) const {
    const int64_t last = Min(part.end, from) - 1;
    return {part.begin / (from / s_.heads) * (to / s_.heads),
            (last / (from / s_.heads) + 1) * (to / s_.heads)};
  }

  template <class LanesOf, class Run>
  static void InRuns(Range range, LanesOf lanes_of, Run run) {
    for (int64_t begin = range.begin; begin < range.end;) {
      const Range lanes = lanes_of(begin);
      int64_t end = begin + 1;
      for (; end < range.end; ++end) {
        const Range next = lanes_of(end);
        if (next.begin != lanes.begin || next.end != lanes.end) break;
      }
      run(Range{begin, end}, lanes);
      begin = end;
    }
  }

  const Sizes& s_;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_HEADS_H_
