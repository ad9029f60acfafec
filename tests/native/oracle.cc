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
  Doubles xs, kernel, recurrent, bias, projection, h, c, reset_h, reset_c;

  Moved(Arguments& arguments, Arguments& direction, double step) {
    Doubles* const to[] = {&xs, &kernel, &recurrent, &bias,   &projection,
                           &h,  &c,      &reset_h,   &reset_c};
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

// One step of one row; `at` is its place in xs.
void Step(const Moved& a, const Sizes& s, int64_t at, RowState& state) {
  const int64_t H = s.units;
  Doubles z = a.bias, m(H);
  z.resize(4 * H, 0);
  AddProduct(a.xs, at, s.inputs, a.kernel, z);
  AddProduct(state.h, 0, s.outputs, a.recurrent, z);
  for (int64_t u = 0; u < H; ++u) {
    state.c[u] =
        Sigmoid(z[H + u]) * state.c[u] + Sigmoid(z[u]) * std::tanh(z[2 * H + u]);
    m[u] = Sigmoid(z[3 * H + u]) * std::tanh(state.c[u]);
  }
  if (!s.projected) {
    state.h = m;
    return;
  }
  state.h.assign(s.outputs, 0);
  AddProduct(m, 0, H, a.projection, state.h);
}

}  // namespace

Floats Normal(int64_t size, double scale) {
  std::normal_distribution<float> normal(0, static_cast<float>(scale));
  Floats values(size);
  for (float& value : values) value = normal(Random());
  return values;
}

Case RandomCase() {
  Case c;
  const int64_t T = Uniform(1, 30), B = Uniform(1, 40), I = Uniform(1, 40);
  const int64_t H = Uniform(1, 70);
  const bool projected = H > 1 && Uniform(0, 2) == 0;
  const int64_t P = projected ? Uniform(1, static_cast<int>(H) - 1) : H;
  c.sizes = {T, B, I, H, P, projected, Uniform(0, 1) == 1};
  c.controls = Uniform(0, 1) == 1;
  Arguments& a = c.arguments;
  a.xs = Normal(T * B * I, 1);
  a.kernel = Normal(I * 4 * H, 0.5 / std::sqrt(I));
  a.recurrent = Normal(P * 4 * H, 0.5 / std::sqrt(P));
  a.bias = Normal(Uniform(0, 1) * 4 * H, 0.5);
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
      Step(a, s, at, state);
      for (int64_t p = 0; p < s.outputs; ++p) {
        loss += state.h[p] * test.d_ys[at * s.outputs + p];
        if (ys) (*ys)[at * s.outputs + p] = state.h[p];
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
