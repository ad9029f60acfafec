// What the forward pass saves of each step for the backward pass.
#ifndef LSTM_JAX_TAPE_H_
#define LSTM_JAX_TAPE_H_

#include "vec.h"

namespace lstm {
namespace LSTM_ISA {

// One block of units of one row: its gates, and c after the step.
struct Taped {
  Vec i, f, g, o, c;
};

// The tape as problem.h describes it.
template <class Scalar, class Float>
class Tape {
 public:
  Tape(Float* data, int64_t blocks, int64_t rows)
      : data_(data), blocks_(blocks), rows_(rows) {}

  explicit operator bool() const { return data_ != nullptr; }

  void Write(int64_t time, int64_t block, int64_t row, const Taped& t) const {
    Float* to = At(time, block, row);
    if constexpr (std::is_same_v<Scalar, float>) {
      Store(to, t.i);
      Store(to + kWidth, t.f);
      Store(to + 2 * kWidth, t.g);
      Store(to + 3 * kWidth, t.o);
      Store(to + 4 * kWidth, t.c);
    } else {
      StoreUnit(to, t.i);
      StoreUnit(to + kWidth / 2, t.f);
      StoreSymmetric(to + kWidth, t.g);
      StoreUnit(to + kWidth / 2 * 3, t.o);
      // 16 bits hold no NaN: c, which the others make NaN themselves, stands for that of o.
      Store(to + 2 * kWidth, Select(t.o == t.o, t.c, t.o));
    }
  }

  Taped Read(int64_t time, int64_t block, int64_t row) const {
    const float* at = At(time, block, row);
    if constexpr (std::is_same_v<Scalar, float>) {
      return {Load(at), Load(at + kWidth), Load(at + 2 * kWidth), Load(at + 3 * kWidth),
              Load(at + 4 * kWidth)};
    } else {
      return {LoadUnit(at), LoadUnit(at + kWidth / 2), LoadSymmetric(at + kWidth),
              LoadUnit(at + kWidth / 2 * 3), Load(at + 2 * kWidth)};
    }
  }

  Vec ReadCell(int64_t time, int64_t block, int64_t row) const {
    return Load(At(time, block, row) + (kTapeEntries<Scalar> - 1) * kWidth);
  }

 private:
  Float* At(int64_t time, int64_t block, int64_t row) const {
    const int64_t place = (time * blocks_ + block) * rows_ + row;
    return data_ + place * kTapeEntries<Scalar> * kWidth;
  }

  Float* data_;
  int64_t blocks_;
  int64_t rows_;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_TAPE_H_
