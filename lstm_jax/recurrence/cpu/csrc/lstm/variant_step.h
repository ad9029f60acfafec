// The step of a variant: peepholes, gates that are missing or coupled, linear
// activations, layer normalisation, limits, masks and zoneout, each where `Variant` has
// it.
#ifndef LSTM_JAX_LSTM_VARIANT_STEP_H_
#define LSTM_JAX_LSTM_VARIANT_STEP_H_

#include "lstm/step.h"

namespace lstm {
namespace LSTM_ISA {

template <class Scalar>
class VariantStep {
 public:
  VariantStep(const Variant<Scalar>& variant, const Sizes& sizes)
      : v_(variant),
        s_(sizes),
        highest_(First(Saved::Unit(Sigmoid(Broadcast(variant.clip))))),
        lowest_(First(Saved::Unit(Sigmoid(Broadcast(-variant.clip))))),
        candidate_(First(variant.linear_candidate
                             ? Saved::Unbounded(Broadcast(variant.clip))
                             : Saved::Symmetric(Tanh(Broadcast(variant.clip))))) {
    const Scalar* next = variant.peephole;
    for (int gate : {0, 1, 3}) {
      if (!next || sizes.gates.place[gate] == kNoGate) continue;
      peephole_[gate] = next;
      next += sizes.units;
    }
  }

  bool masked() const { return v_.recurrent_mask != nullptr; }

  bool diagonal() const { return v_.diagonal != nullptr; }

  bool normed() const { return v_.norm_scale != nullptr; }

  LSTM_INLINE GateVecs AddDiagonal(const GateVecs& z, Vec h, const Where& at) const {
    return {z.i + Diagonal(0, at) * h, z.f + Diagonal(1, at) * h,
            z.g + Diagonal(2, at) * h, z.o + Diagonal(3, at) * h};
  }

  LSTM_INLINE Vec DiagonalBack(const GateVecs& dz, const Where& at) const {
    return dz.i * Diagonal(0, at) + dz.f * Diagonal(1, at) + dz.g * Diagonal(2, at) +
           dz.o * Diagonal(3, at);
  }

  LSTM_INLINE GateVecs Activate(const GateVecs& z, Vec before, const Where& at) const {
    GateVecs gates;
    gates.i = Gate(0, z.i, before, at);
    gates.f = v_.coupled ? 1.0f - gates.i : Gate(1, z.f, before, at);
    const Vec g = Clip(z.g, v_.clip);
    gates.g = v_.linear_candidate ? g : Tanh(g);
    // With a peephole it waits for c.
    gates.o = peephole_[3] ? z.o : Gate(3, z.o, Vec{}, at);
    return gates;
  }

  LSTM_INLINE Stepped Update(GateVecs gates, Vec before, const Where& at) const {
    const Vec c = NewCell(gates, before);
    if (peephole_[3]) gates.o = Gate(3, gates.o, c, at);
    return {gates, Carried(before, c, at), gates.o * Activated(c, at)};
  }

  LSTM_INLINE Vec NewCell(const GateVecs& gates, Vec before) const {
    return Clip(gates.f * before + gates.i * gates.g, v_.cell_clip);
  }

  LSTM_INLINE Vec Hidden(Vec before, Vec made, const Where& at) const {
    return Mix(v_.keep_h, v_.zoneout_h, s_.outputs, before, made, at);
  }

  LSTM_INLINE Vec Output(Vec h, const Where& at) const {
    return Masked(v_.output_mask, h, at);
  }

  LSTM_INLINE Vec Recurrent(Vec h, const Where& at) const {
    return Masked(v_.recurrent_mask, h, at);
  }

  LSTM_INLINE SteppedBack Back(const SavedStep& t, Vec before, Vec dm, Vec d_carried,
                               const Where& at) const {
    const Vec c = MadeCell(t, before);
    const Vec out = at.activated ? Load(at.activated) : Activated(c, at);
    GateVecs dz = {};
    dz.o = BackGate(t.o, dm * out);
    Vec dc = ShareMade(v_.keep_c, v_.zoneout_c, s_.units, d_carried, at) +
             BackSeen(c, dm * t.o * Slope(out), at) + dz.o * Peephole(3, at);
    dc = Within(c, v_.cell_clip, dc);
    dz.i = BackGate(t.i, dc * (v_.coupled ? t.g - before : t.g));
    if (!v_.coupled) dz.f = BackGate(t.f, dc * before);
    dz.g = BackCandidate(t.g, dc * t.i);
    const Vec d_before = ShareKept(v_.keep_c, v_.zoneout_c, s_.units, d_carried, at) +
                         dc * t.f + dz.i * Peephole(0, at) + dz.f * Peephole(1, at);
    return {dz, d_before, t.o * out};
  }

  LSTM_INLINE NormedBack BackNormed(const SavedStep& t, Vec before, Vec dm,
                                    const Where& at) const {
    const Vec c = MadeCell(t, before);
    const Vec out = Activated(c, at);
    return {dm * t.o * Slope(out), Normalised(c, at), out};
  }

  LSTM_INLINE Vec CellScale(int64_t block) const {
    return LoadBlock(v_.cell_norm, 0, s_.units, block);
  }

  LSTM_INLINE HiddenShares Share(Vec dh, const Where& at) const {
    return {ShareMade(v_.keep_h, v_.zoneout_h, s_.outputs, dh, at),
            ShareKept(v_.keep_h, v_.zoneout_h, s_.outputs, dh, at)};
  }

  // c as a saved step made it, before zoneout.
  LSTM_INLINE Vec MadeCell(const SavedStep& t, Vec before) const {
    const bool kept = v_.keep_c || v_.zoneout_c != 0;
    return kept ? NewCell({t.i, t.f, t.g, t.o}, before) : t.c;
  }

 private:
  using Saved = SavedAs<GateBits<Scalar>>;

  static float First(Vec v) { return v[0]; }

  static LSTM_INLINE Vec Clip(Vec x, float limit) {
    return AtLeast(AtMost(x, limit), -limit);
  }

  // A gradient, where what it is of was not clipped.
  static LSTM_INLINE Vec Within(Vec x, float limit, Vec gradient) {
    return Select((x < limit) & (x > -limit), gradient, Vec{});
  }

  // c as the output sees it.
  LSTM_INLINE Vec Seen(Vec c, const Where& at) const {
    if (!v_.cell_norm) return c;
    return CellScale(at.block) * Normalised(c, at) +
           LoadBlock(v_.cell_norm, 1, s_.units, at.block);
  }

  static LSTM_INLINE Vec Normalised(Vec c, const Where& at) {
    return (c - at.norm.mean) * at.norm.scale;
  }

  // From the gradient of that to that of c.
  LSTM_INLINE Vec BackSeen(Vec c, Vec gradient, const Where& at) const {
    if (!v_.cell_norm) return gradient;
    const Vec back = CellScale(at.block) * gradient - at.shares.plain -
                     Normalised(c, at) * at.shares.along;
    return LiveBlock(at.norm.scale * back, s_.units, at.block);
  }

  // What the output gate multiplies, and its derivative.
  LSTM_INLINE Vec Activated(Vec c, const Where& at) const {
    const Vec seen = Seen(c, at);
    return v_.linear_output ? seen : Tanh(seen);
  }
  LSTM_INLINE Vec Slope(Vec activated) const {
    return v_.linear_output ? Broadcast(1.0f) : 1.0f - activated * activated;
  }

  LSTM_INLINE Vec Peephole(int gate, const Where& at) const {
    return peephole_[gate] ? LoadBlock(peephole_[gate], 0, s_.units, at.block) : Vec{};
  }

  LSTM_INLINE Vec Diagonal(int gate, const Where& at) const {
    const int place = s_.gates.place[gate];
    return place == kNoGate ? Vec{} : LoadBlock(v_.diagonal, place, s_.units, at.block);
  }

  LSTM_INLINE Vec Gate(int gate, Vec z, Vec seen, const Where& at) const {
    if (s_.gates.place[gate] == kNoGate) return Broadcast(1.0f);
    if (peephole_[gate]) z += Peephole(gate, at) * seen;
    return Sigmoid(Clip(z, v_.clip));
  }

  // From the gradient of a gate to that of its pre-activation; 0 for one that is 1. A
  // gate that was clipped has the value of the limit.
  LSTM_INLINE Vec BackGate(Vec gate, Vec gradient) const {
    const Vec dz = gradient * (gate * (1.0f - gate));
    if (v_.clip > kHuge) return dz;
    return Select((gate < highest_) & (gate > lowest_), dz, Vec{});
  }

  LSTM_INLINE Vec BackCandidate(Vec g, Vec gradient) const {
    const Vec dz = v_.linear_candidate ? gradient : gradient * (1.0f - g * g);
    if (v_.clip > kHuge) return dz;
    return Within(g, candidate_, dz);
  }

  LSTM_INLINE Vec Carried(Vec before, Vec made, const Where& at) const {
    return Mix(v_.keep_c, v_.zoneout_c, s_.units, before, made, at);
  }

  LSTM_INLINE Vec Masked(const float* mask, Vec h, const Where& at) const {
    return mask ? h * LoadBlock(mask, at.row, s_.outputs, at.block) : h;
  }

  LSTM_INLINE IntVec Keep(const bool* keep, int64_t size, const Where& at) const {
    return LoadBools(keep + (at.time * s_.rows + at.row) * size, size, at.block);
  }

  LSTM_INLINE Vec Mix(const bool* keep, float rate, int64_t size, Vec before, Vec made,
                      const Where& at) const {
    if (keep) return Select(Keep(keep, size, at), before, made);
    return rate == 0 ? made : rate * before + (1.0f - rate) * made;
  }

  LSTM_INLINE Vec ShareMade(const bool* keep, float rate, int64_t size, Vec gradient,
                            const Where& at) const {
    if (keep) return Select(Keep(keep, size, at), Vec{}, gradient);
    return rate == 0 ? gradient : (1.0f - rate) * gradient;
  }

  LSTM_INLINE Vec ShareKept(const bool* keep, float rate, int64_t size, Vec gradient,
                            const Where& at) const {
    if (keep) return Select(Keep(keep, size, at), gradient, Vec{});
    return rate == 0 ? Vec{} : rate * gradient;
  }

  static constexpr float kHuge = 3e38f;

  const Variant<Scalar>& v_;
  const Sizes& s_;
  const Scalar* peephole_[4] = {nullptr, nullptr, nullptr, nullptr};
  // What gates and candidates that were clipped are, after they were saved.
  const float highest_;
  const float lowest_;
  const float candidate_;
};

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_VARIANT_STEP_H_
