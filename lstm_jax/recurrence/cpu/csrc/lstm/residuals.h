// What the forward pass saves of each step for the backward pass.
#ifndef LSTM_JAX_LSTM_RESIDUALS_H_
#define LSTM_JAX_LSTM_RESIDUALS_H_

#include "simd/load_store.h"

namespace lstm {
namespace LSTM_ISA {

// One block of units of one row: its gates, and c after the step.
struct SavedStep {
  Vec i, f, g, o, c;
};

// What numbers are after they were saved, as `Bits`: those of [0, 1], of [-1, 1], and
// those that have no bounds.
template <class Bits>
struct SavedAs {
  static Vec Unit(Vec v) {
    if constexpr (sizeof(Bits) == 2) {
      Bits saved[kWidth];
      StoreUnit(saved, v);
      v = LoadUnit(saved);
    }
    return v;
  }
  static Vec Symmetric(Vec v) {
    return sizeof(Bits) == 2 ? Unit(v * 0.5f + 0.5f) * 2.0f - 1.0f : v;
  }
  static Vec Unbounded(Vec v) { return sizeof(Bits) == 2 ? Round<BFloat16>(v) : v; }
};

// The gates and cells as problem.h describes them; `Gates` and `Cells` are their types
// in memory. With `unbounded`, g is no number of [-1, 1].
template <class Gates, class Cells>
class Residuals {
 public:
  Residuals(Gates* gates, Cells* cells, int64_t units, int64_t rows, bool unbounded)
      : gates_(gates),
        cells_(cells),
        padded_(PaddedUnits(units)),
        rows_(rows),
        unbounded_(unbounded) {}

  explicit operator bool() const { return gates_ != nullptr; }

  void Write(int64_t time, int64_t block, int64_t row, const SavedStep& t) const {
    Gates* to = GatesAt(time, block, row);
    if constexpr (kWhole) {
      Store(AsFloats(to), t.i);
      Store(AsFloats(to + kSavedGroup), t.f);
      Store(AsFloats(to + 2 * kSavedGroup), t.g);
      Store(AsFloats(to + 3 * kSavedGroup), t.o);
    } else {
      StoreUnit(to, t.i);
      StoreUnit(to + kSavedGroup, t.f);
      if (unbounded_) {
        StoreShorts(to + 2 * kSavedGroup, Bits(Round<BFloat16>(t.g)) >> 16);
      } else {
        StoreSymmetric(to + 2 * kSavedGroup, t.g);
      }
      StoreUnit(to + 3 * kSavedGroup, t.o);
    }
    // 16 bits hold no NaN: c, which the others make NaN themselves, stands for that of
    // o.
    const Vec c = kWhole ? t.c : Select(t.o == t.o, t.c, t.o);
    Store(AsFloats(CellAt(time, block, row)), c);
  }

  // Zeros in what the last group of each row has beyond its blocks.
  void FillUp(int64_t time, int64_t blocks, Range rows) const {
    for (int64_t block = blocks; block * kWidth < padded_; ++block) {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        Write(time, block, row, {Vec{}, Vec{}, Vec{}, Vec{}, Vec{}});
      }
    }
  }

  SavedStep Read(int64_t time, int64_t block, int64_t row) const {
    const Gates* at = GatesAt(time, block, row);
    const Vec c = ReadCell(time, block, row);
    if constexpr (kWhole) {
      return {Load(AsFloats(at)), Load(AsFloats(at + kSavedGroup)),
              Load(AsFloats(at + 2 * kSavedGroup)),
              Load(AsFloats(at + 3 * kSavedGroup)), c};
    } else {
      const Gates* g = at + 2 * kSavedGroup;
      return {LoadUnit(at), LoadUnit(at + kSavedGroup),
              unbounded_ ? FromBits(LoadShorts(g) << 16) : LoadSymmetric(g),
              LoadUnit(at + 3 * kSavedGroup), c};
    }
  }

  Vec ReadCell(int64_t time, int64_t block, int64_t row) const {
    return Load(AsFloats(CellAt(time, block, row)));
  }

 private:
  static constexpr bool kWhole = sizeof(Gates) == 4;

  // Vectors may alias anything; see UnalignedVec.
  static float* AsFloats(void* bits) { return static_cast<float*>(bits); }
  static const float* AsFloats(const void* bits) {
    return static_cast<const float*>(bits);
  }

  // Blocks of kWidth units in a row of groups of kSavedGroup.
  Gates* GatesAt(int64_t time, int64_t block, int64_t row) const {
    constexpr int64_t kBlocks = kSavedGroup / kWidth;
    return gates_ + (time * rows_ + row) * 4 * padded_ +
           block / kBlocks * 4 * kSavedGroup + block % kBlocks * kWidth;
  }

  Cells* CellAt(int64_t time, int64_t block, int64_t row) const {
    return cells_ + (time * rows_ + row) * padded_ + block * kWidth;
  }

  Gates* gates_;
  Cells* cells_;
  int64_t padded_;
  int64_t rows_;
  bool unbounded_;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_RESIDUALS_H_
