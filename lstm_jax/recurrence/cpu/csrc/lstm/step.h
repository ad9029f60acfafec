// A step, in what the passes ask of it: each function is about one block of units of
// one row, and has no loop. What follows is the standard step, and what every step
// shares.
#ifndef LSTM_JAX_LSTM_STEP_H_
#define LSTM_JAX_LSTM_STEP_H_

#include "lstm/residuals.h"
#include "simd/activations.h"

namespace lstm {
namespace LSTM_ISA {

// The mean of a row, and what it is multiplied by without it.
struct RowNorm {
  float mean;
  float scale;
};

// Of the gradient of a row that was normalised: its mean, and that of its product with
// what the row has become.
struct NormShares {
  float plain;
  float along;
};

// Which block of units, of which row, when; and where c is normalised, by what, and
// what the output gate has multiplied, if that is at hand.
struct Where {
  int64_t time;
  int64_t row;
  int64_t block;
  RowNorm norm = {};
  NormShares shares = {};
  const float* activated = nullptr;
};

// The gates, before or after they are activated.
struct GateVecs {
  Vec i, f, g, o;
};

// What a step makes: the gates that are saved, c as it is carried on, and m, which is h
// before its projection.
struct Stepped {
  GateVecs gates;
  Vec c;
  Vec m;
};

// The gradients of pre-activations and of c before the step; and m, computed again.
struct SteppedBack {
  GateVecs dz;
  Vec dc;
  Vec m;
};

// The gradient of c as the output sees it, normalised, scaled and shifted; c, but
// normalised; and what the output gate has multiplied.
struct NormedBack {
  Vec gradient;
  Vec cell;
  Vec activated;
};

// Gradients of h: of what the step has made, and of what it kept from the step before.
struct HiddenShares {
  Vec made;
  Vec kept;
};

template <class Scalar>
class StandardStep {
 public:
  StandardStep(const Variant<Scalar>&, const Sizes&) {}

  // Whether h enters the product as another than it is handed on.
  static constexpr bool masked() { return false; }
  // Whether units see their own h alone, and there is no product.
  static constexpr bool diagonal() { return false; }
  LSTM_INLINE GateVecs AddDiagonal(const GateVecs& z, Vec, const Where&) const {
    return z;
  }
  LSTM_INLINE Vec DiagonalBack(const GateVecs&, const Where&) const { return Vec{}; }

  // Whether gates and c are normalised over all units of a row.
  static constexpr bool normed() { return false; }
  LSTM_INLINE NormedBack BackNormed(const SavedStep&, Vec, Vec, const Where&) const {
    return {Vec{}, Vec{}, Vec{}};
  }
  LSTM_INLINE Vec CellScale(int64_t) const { return Vec{}; }

  // The gates from their pre-activations, as far as they do not need c after the step.
  LSTM_INLINE GateVecs Activate(const GateVecs& z, Vec, const Where&) const {
    return {Sigmoid(z.i), Sigmoid(z.f), Tanh(z.g), Sigmoid(z.o)};
  }

  LSTM_INLINE Vec NewCell(const GateVecs& gates, Vec before) const {
    return gates.f * before + gates.i * gates.g;
  }

  // The rest, from those gates and c before the step.
  LSTM_INLINE Stepped Update(const GateVecs& gates, Vec before, const Where&) const {
    const Vec c = NewCell(gates, before);
    return {gates, c, gates.o * Tanh(c)};
  }

  // h after the step, from h before it and what the step has made.
  LSTM_INLINE Vec Hidden(Vec, Vec made, const Where&) const { return made; }
  // What is put out, and what enters the next product, of such an h.
  LSTM_INLINE Vec Output(Vec h, const Where&) const { return h; }
  LSTM_INLINE Vec Recurrent(Vec h, const Where&) const { return h; }

  // The derivatives of `Update` and `Activate`: from the gradients of m and of c.
  LSTM_INLINE SteppedBack Back(const SavedStep& t, Vec before, Vec dm, Vec dc,
                               const Where&) const {
    const Vec c = Tanh(t.c);
    dc += dm * t.o * (1.0f - c * c);
    return {{dc * t.g * (t.i * (1.0f - t.i)), dc * before * (t.f * (1.0f - t.f)),
             dc * t.i * (1.0f - t.g * t.g), dm * c * (t.o * (1.0f - t.o))},
            dc * t.f,
            t.o * c};
  }

  // c as a saved step has made it.
  LSTM_INLINE Vec MadeCell(const SavedStep& t, Vec) const { return t.c; }

  // That of `Hidden`.
  LSTM_INLINE HiddenShares Share(Vec dh, const Where&) const { return {dh, Vec{}}; }
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_STEP_H_
