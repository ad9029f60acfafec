#include "oracle.h"

#include <cmath>
#include <random>

namespace lstm {
namespace {

using Doubles = std::vector<double>;

std::mt19937& Random() {
  static std::mt19937 random(1);
  return random;
}

int Uniform(int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(Random());
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// y += x * matrix, for row `row` of x.
void AddProduct(const Doubles& x, int64_t row, int64_t depth, const Doubles& matrix,
                Doubles& y) {
  for (int64_t k = 0; k < depth; ++k) {
    for (size_t n = 0; n < y.size(); ++n) {
      y[n] += x[row * depth + k] * matrix[k * y.size() + n];
    }
  }
}

// The arguments, moved.
struct Moved {
  Doubles xs, kernel, recurrent, bias, projection, h, c, reset_h, reset_c, peephole,
      norm_scale, norm_shift, cell_norm;

  Moved(Arguments& arguments, Arguments& direction, double step) {
    Doubles* const to[] = {&xs,         &kernel,     &recurrent, &bias,    &projection,
                           &h,          &c,          &reset_h,   &reset_c, &peephole,
                           &norm_scale, &norm_shift, &cell_norm};
    const std::vector<Floats*> from = arguments.All(), along = direction.All();
    for (size_t k = 0; k < from.size(); ++k) {
      to[k]->assign(from[k]->begin(), from[k]->end());
      for (size_t n = 0; n < along[k]->size(); ++n)
        (*to[k])[n] += step * (*along[k])[n];
    }
  }
};

struct RowState {
  Doubles h, c;
};

RowState StateOf(const Doubles& h, const Doubles& c, int64_t row, const Sizes& s) {
  const auto part = [&](const Doubles& all, int64_t size) {
    return Doubles(all.begin() + row * size, all.begin() + (row + 1) * size);
  };
  return {part(h, s.outputs), part(c, s.units)};
}

double Clip(double x, double limit) { return std::fmax(std::fmin(x, limit), -limit); }

double Mix(const bool* keep, int64_t at, float rate, double before, double after) {
  if (keep) return keep[at] ? before : after;
  return rate * before + (1 - rate) * after;
}

// x, with mean 0 and variance 1.
Doubles Normalised(Doubles x) {
  double mean = 0, variance = 0;
  for (const double value : x) mean += value / x.size();
  for (const double value : x) variance += (value - mean) * (value - mean) / x.size();
  for (double& value : x) value = (value - mean) / std::sqrt(variance + 1e-5);
  return x;
}

// What a part contributes to the gates, normalised if anything is.
Doubles Normed(const Moved& a, int part, const Doubles& x) {
  if (a.norm_scale.empty()) return x;
  Doubles y = Normalised(x);
  for (size_t n = 0; n < y.size(); ++n) {
    y[n] *= a.norm_scale[part * y.size() + n];
    if (!a.norm_shift.empty()) y[n] += a.norm_shift[part * y.size() + n];
  }
  return y;
}

// One step of one row; `at` is its place in xs.
void Step(const Moved& a, const Case& test, int64_t at, RowState& state) {
  const Sizes& s = test.sizes;
  const Variant<float>& v = test.variant;
  const int64_t H = s.units, P = s.outputs, row = at % s.rows;
  Doubles z(s.columns()), r(s.columns()), m(H), made_c(H), entering = state.h;
  for (int64_t p = 0; v.recurrent_mask && p < P; ++p) {
    entering[p] *= v.recurrent_mask[row * P + p];
  }
  AddProduct(a.xs, at, s.inputs, a.kernel, z);
  if (test.diagonal) {
    for (size_t n = 0; n < r.size(); ++n) r[n] = a.recurrent[n] * entering[n % H];
  } else {
    for (int64_t p = 0; p < P; ++p) {
      for (int64_t n = 0; n < s.columns(); ++n) {
        if (Sees(s, n, p)) r[n] += entering[p] * a.recurrent[p * s.columns() + n];
      }
    }
  }
  z = Normed(a, 0, z);
  r = Normed(a, 1, r);
  for (size_t n = 0; n < z.size(); ++n) z[n] += r[n] + (a.bias.empty() ? 0 : a.bias[n]);
  for (int64_t u = 0; u < H; ++u) {
    int64_t seeing = 0;  // which of the gates that see c is next
    const auto pre = [&](int gate) { return z[s.gates.place[gate] * H + u]; };
    const auto gate = [&](int number, double seen) {
      if (s.gates.place[number] == kNoGate) return 1.0;
      double x = pre(number);
      if (!a.peephole.empty()) x += a.peephole[seeing++ * H + u] * seen;
      return Sigmoid(Clip(x, v.clip));
    };
    const double before = state.c[u];
    const double i = gate(0, before);
    const double f = v.coupled ? 1 - i : gate(1, before);
    const double g = Clip(pre(2), v.clip);
    const double c =
        Clip(f * before + i * (v.linear_candidate ? g : std::tanh(g)), v.cell_clip);
    m[u] = gate(3, c);
    made_c[u] = c;
    state.c[u] = Mix(v.keep_c, at * H + u, v.zoneout_c, before, c);
  }
  if (!a.cell_norm.empty()) {
    made_c = Normalised(made_c);
    for (int64_t u = 0; u < H; ++u) {
      made_c[u] = a.cell_norm[u] * made_c[u] + a.cell_norm[H + u];
    }
  }
  for (int64_t u = 0; u < H; ++u) {
    m[u] *= v.linear_output ? made_c[u] : std::tanh(made_c[u]);
  }
  Doubles made = m;
  if (s.projected) {
    made.assign(P, 0);
    AddProduct(m, 0, H, a.projection, made);
  }
  for (int64_t p = 0; p < P; ++p) {
    state.h[p] = Mix(v.keep_h, at * P + p, v.zoneout_h, state.h[p], made[p]);
  }
}

std::unique_ptr<bool[]> RandomBools(int64_t size) {
  std::unique_ptr<bool[]> bools(new bool[size]);
  for (int64_t n = 0; n < size; ++n) bools[n] = Uniform(0, 2) == 0;
  return bools;
}

Floats RandomMask(int64_t size) {
  Floats mask(size);
  for (float& value : mask) value = Uniform(0, 3) ? 1.5f : 0;
  return mask;
}

// Any of what there is, together: one in four has none of it.
void SetVariant(Case& c, bool standard) {
  Sizes& s = c.sizes;
  Variant<float>& v = c.variant;
  const float kNone = INFINITY;
  v = {};
  v.clip = v.cell_clip = kNone;
  v.standard = standard || Uniform(0, 3) == 0;
  if (v.standard) return;
  constexpr GateOrder kOrders[] = {kAllGates,
                                   {3, {kNoGate, 0, 1, 2}},
                                   {3, {0, kNoGate, 1, 2}},
                                   {3, {0, 1, 2, kNoGate}}};
  const int order = Uniform(0, 5);
  if (order < 4) s.gates = kOrders[order];
  v.coupled = s.gates.place[1] == kNoGate && Uniform(0, 1);
  c.diagonal = !s.projected && Uniform(0, 4) == 0;
  v.linear_candidate = Uniform(0, 5) == 0;
  v.linear_output = Uniform(0, 5) == 0;
  if (Uniform(0, 3) == 0) v.clip = 1;
  if (Uniform(0, 3) == 0) v.cell_clip = 0.4f;
  if (Uniform(0, 2)) {
    const int64_t gates = s.gates.count - 1;
    c.arguments.peephole = Normal(gates * s.units, 0.5);
  }
  s.normed = !c.diagonal && Uniform(0, 2) == 0;
  if (s.normed) {
    c.arguments.norm_scale = Normal(2 * s.columns(), 0.7);
    c.arguments.norm_shift = Normal(Uniform(0, 1) * 2 * s.columns(), 0.3);
    c.arguments.cell_norm = Normal(2 * s.units, 0.7);
  }
  const int heads = Uniform(1, 8);
  if (!c.diagonal && s.units % heads == 0 && s.outputs % heads == 0) s.heads = heads;
  const int64_t outputs = s.rows * s.outputs;
  if (Uniform(0, 2) == 0) c.recurrent_mask = RandomMask(outputs);
  if (Uniform(0, 2) == 0) c.output_mask = RandomMask(outputs);
  v.recurrent_mask = c.recurrent_mask.empty() ? nullptr : c.recurrent_mask.data();
  v.output_mask = c.output_mask.empty() ? nullptr : c.output_mask.data();
  if (Uniform(0, 2) == 0) v.zoneout_h = 0.3f;
  if (Uniform(0, 2) == 0) v.zoneout_c = 0.2f;
  if (Uniform(0, 2) == 0) c.keep_h = RandomBools(s.steps * outputs);
  if (Uniform(0, 2) == 0) c.keep_c = RandomBools(s.steps * s.rows * s.units);
  v.keep_h = c.keep_h.get();
  v.keep_c = c.keep_c.get();
}

}  // namespace

Floats Normal(int64_t size, double scale) {
  std::normal_distribution<float> normal(0, static_cast<float>(scale));
  Floats values(size);
  for (float& value : values) value = normal(Random());
  return values;
}

bool Sees(const Sizes& s, int64_t n, int64_t p) {
  return n % s.units / (s.units / s.heads) == p / (s.outputs / s.heads);
}

void KeepBlocks(const Sizes& s, Floats& recurrent) {
  for (size_t n = 0; n < recurrent.size(); ++n) {
    if (!Sees(s, n % s.columns(), n / s.columns())) recurrent[n] = 0;
  }
}

Case RandomCase(bool standard) {
  Case c;
  const int64_t T = Uniform(1, 30), B = Uniform(1, 40), I = Uniform(1, 40);
  const int64_t H = Uniform(1, 70);
  const bool projected = H > 1 && Uniform(0, 2) == 0;
  const int64_t P = projected ? Uniform(1, static_cast<int>(H) - 1) : H;
  c.sizes = {T, B, I, H, P, projected, Uniform(0, 1) == 1, kAllGates, false, 1};
  SetVariant(c, standard);
  const int64_t columns = c.sizes.columns();
  c.controls = Uniform(0, 1) == 1;
  Arguments& a = c.arguments;
  a.xs = Normal(T * B * I, 1);
  a.kernel = Normal(I * columns, 0.5 / std::sqrt(I));
  const int64_t seen = c.diagonal ? 1 : P;
  a.recurrent = Normal(seen * columns, 0.5 / std::sqrt(seen));
  if (!c.diagonal) KeepBlocks(c.sizes, a.recurrent);
  a.bias = Normal(Uniform(0, 1) * columns, 0.5);
  a.projection = Normal(projected ? H * P : 0, 1 / std::sqrt(H));
  a.h = Normal(B * P, 0.5);
  a.c = Normal(B * H, 0.5);
  a.reset_h = Normal(B * P, 0.5);
  a.reset_c = Normal(B * H, 0.5);
  c.valid.reset(new bool[T * B]);
  c.reset.reset(new bool[T * B]);
  for (int64_t n = 0; n < T * B; ++n) {
    c.valid[n] = Uniform(0, 3) > 0;
    c.reset[n] = Uniform(0, 4) == 0;
  }
  c.d_ys = Normal(T * B * P, 1);
  c.d_h = Normal(B * P, 1);
  c.d_c = Normal(B * H, 1);
  return c;
}

double Loss(Case& test, Arguments& direction, double step, std::vector<double>* ys) {
  const Sizes& s = test.sizes;
  const Moved a(test.arguments, direction, step);
  double loss = 0;
  for (int64_t row = 0; row < s.rows; ++row) {
    RowState state = StateOf(a.h, a.c, row, s);
    for (int64_t n = 0; n < s.steps; ++n) {
      const int64_t at = (s.reverse ? s.steps - 1 - n : n) * s.rows + row;
      if (test.controls && test.reset[at])
        state = StateOf(a.reset_h, a.reset_c, row, s);
      if (test.controls && !test.valid[at]) continue;
      Step(a, test, at, state);
      for (int64_t p = 0; p < s.outputs; ++p) {
        const float* mask = test.variant.output_mask;
        const double y = state.h[p] * (mask ? mask[row * s.outputs + p] : 1);
        loss += y * test.d_ys[at * s.outputs + p];
        if (ys) (*ys)[at * s.outputs + p] = y;
      }
    }
    for (int64_t p = 0; p < s.outputs; ++p) {
      loss += state.h[p] * test.d_h[row * s.outputs + p];
    }
    for (int64_t u = 0; u < s.units; ++u)
      loss += state.c[u] * test.d_c[row * s.units + u];
  }
  return loss;
}

}  // namespace lstm
