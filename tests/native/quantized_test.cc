// The kernel in 8 bits against a plain loop, to the bit, on random shapes.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "oracle.h"
#include "pools.h"
#include "tests.h"
#include "threads/executor.h"

namespace lstm {
namespace {

using Bytes = std::vector<int8_t>;

// A product that no compiler takes into a sum.
float Times(float a, float b) {
  volatile float product = a * b;
  return product;
}

float Exp(float x, float* power) {
  const float n = std::nearbyint(Times(x, 1.44269504f));
  const float r = (x - Times(n, 0.693145752f)) - Times(n, 1.42860677e-6f);
  float p = 1.39406126e-3f;
  for (const float c : {8.36649071e-3f, 4.16664034e-2f, 1.66665435e-1f, 0.5f, 1.0f}) {
    p = Times(r, p) + c;
  }
  *power = std::ldexp(1.0f, static_cast<int>(n));
  return Times(r, p);
}

float Sigmoid(float x) {
  float power;
  const float m1 = Exp(std::fmin(std::fmax(-x, -87.0f), 87.0f), &power);
  return 1.0f / (Times(m1 + 1.0f, power) + 1.0f);
}

float Tanh(float x) {
  float power;
  const float m1 = Exp(2 * std::fmin(std::fabs(x), 10.0f), &power);
  const float value = Times(m1, power) + (power - 1.0f);
  return std::copysign(value / (value + 2.0f), x);
}

// A matrix of numbers that reach -127 and 127, and a scale for each column.
struct Matrix {
  Bytes values;
  Floats scale;

  Matrix(const Floats& from, int64_t columns) : scale(from.empty() ? 0 : columns) {
    for (const float x : from) {
      values.push_back(static_cast<int8_t>(std::fmax(std::fmin(127, x * 300), -127)));
    }
    for (size_t n = 0; n < scale.size(); ++n) scale[n] = 0.003f + 0.001f * (n % 7);
  }

  QuantizedMatrix View() const {
    if (values.empty()) return {nullptr, nullptr};
    return {values.data(), scale.data()};
  }
};

Floats Product(const float* x, int64_t size, const Matrix& matrix) {
  float largest = 0;
  for (int64_t k = 0; k < size; ++k) largest = std::fmax(largest, std::fabs(x[k]));
  const float inverse = largest < 0x1p-119f ? 0 : 127.0f / largest;
  const int64_t columns = matrix.scale.size();
  Floats result(columns);
  for (int64_t n = 0; n < columns; ++n) {
    int32_t sum = 0;
    for (int64_t k = 0; k < size; ++k) {
      const int step = static_cast<int>(std::nearbyint(Times(x[k], inverse)));
      sum += step * matrix.values[k * columns + n];
    }
    const float scale = Times(largest, static_cast<float>(1.0 / 127));
    result[n] = Times(Times(static_cast<float>(sum), matrix.scale[n]), scale);
  }
  return result;
}

struct Model {
  const Case& test;
  Matrix kernel, recurrent, projection;

  explicit Model(const Case& test)
      : test(test),
        kernel(test.arguments.kernel, 4 * test.sizes.units),
        recurrent(test.arguments.recurrent, 4 * test.sizes.units),
        projection(test.arguments.projection, test.sizes.outputs) {}

  void Step(const float* x, Floats& h, Floats& c) const {
    const int64_t units = test.sizes.units;
    const Floats& bias = test.arguments.bias;
    Floats z = Product(x, test.sizes.inputs, kernel);
    const Floats r = Product(h.data(), test.sizes.outputs, recurrent);
    for (int64_t n = 0; n < 4 * units; ++n) {
      z[n] = (bias.empty() ? z[n] : z[n] + bias[n]) + r[n];
    }
    Floats m(units);
    for (int64_t n = 0; n < units; ++n) {
      const float kept = Times(Sigmoid(z[units + n]), c[n]);
      c[n] = kept + Times(Sigmoid(z[n]), Tanh(z[2 * units + n]));
      m[n] = Times(Sigmoid(z[3 * units + n]), Tanh(c[n]));
    }
    h = test.sizes.projected ? Product(m.data(), units, projection) : m;
  }

  // All outputs, then the last h and c of each row.
  Floats Loop() const {
    const Sizes& s = test.sizes;
    const Arguments& a = test.arguments;
    Floats ys(s.steps * s.rows * s.outputs), last_h, last_c;
    const auto part = [](const Floats& all, int64_t row, int64_t size) {
      return Floats(all.begin() + row * size, all.begin() + (row + 1) * size);
    };
    for (int64_t row = 0; row < s.rows; ++row) {
      Floats h = part(a.h, row, s.outputs), c = part(a.c, row, s.units);
      for (int64_t n = 0; n < s.steps; ++n) {
        const int64_t at = (s.reverse ? s.steps - 1 - n : n) * s.rows + row;
        if (test.controls && test.reset[at]) {
          h = part(a.reset_h, row, s.outputs), c = part(a.reset_c, row, s.units);
        }
        if (test.controls && !test.valid[at]) continue;
        Step(a.xs.data() + at * s.inputs, h, c);
        std::copy(h.begin(), h.end(), ys.begin() + at * s.outputs);
      }
      last_h.insert(last_h.end(), h.begin(), h.end());
      last_c.insert(last_c.end(), c.begin(), c.end());
    }
    ys.insert(ys.end(), last_h.begin(), last_h.end());
    ys.insert(ys.end(), last_c.begin(), last_c.end());
    return ys;
  }

  Floats Run(const Kernels& kernels, Pool& pool, int threads, int count) const {
    const Sizes& s = test.sizes;
    const Arguments& a = test.arguments;
    Floats ys(s.steps * s.rows * s.outputs), h(s.rows * s.outputs), c(s.rows * s.units),
        others[3] = {ys, h, c};
    QuantizedProblem p = {};
    p.sizes = s;
    p.xs = a.xs.data();
    p.weights = {kernel.View(), recurrent.View(), projection.View(),
                 a.bias.empty() ? nullptr : a.bias.data()};
    p.state = {a.h.data(), a.c.data()};
    if (test.controls) {
      p.controls = {
          test.valid.get(), test.reset.get(), {a.reset_h.data(), a.reset_c.data()}};
    }
    p.ys = ys.data(), p.last_h = h.data(), p.last_c = c.data();
    QuantizedProblem both[kMostProblems] = {p, p};
    both[1].ys = others[0].data();
    both[1].last_h = others[1].data();
    both[1].last_c = others[2].data();
    Executor executor(&pool, threads);
    kernels.quantized(both, count, executor);
    if (count == 2 && (ys != others[0] || h != others[1] || c != others[2])) return {};
    ys.insert(ys.end(), h.begin(), h.end());
    ys.insert(ys.end(), c.begin(), c.end());
    return ys;
  }
};

bool CheckQuantized(const Model& model, const Kernels& kernels, Pool& pool) {
  const Floats expected = model.Loop();
  bool ok = true;
  for (const auto& [threads, count] : {std::pair{1, 1}, {4, 1}, {2, 2}}) {
    ok = ok && model.Run(kernels, pool, threads, count) == expected;
  }
  const Sizes& s = model.test.sizes;
  if (!ok) {
    std::printf("  quantized, %s: T %ld, B %ld, I %ld, H %ld, P %ld, controls %d\n",
                kernels.name, long(s.steps), long(s.rows), long(s.inputs),
                long(s.units), long(s.outputs), model.test.controls);
  }
  return ok;
}

}  // namespace

void TestQuantized(int cases, Tally& tally) {
  TestPool pool(2);
  for (int n = 0; n < cases; ++n) {
    const Case test = RandomCase(true);
    const Model model(test);
    for (const Isa& isa : KnownIsas()) {
      if (isa.kernels && isa.runs) {
        tally.Add(CheckQuantized(model, *isa.kernels, pool));
      }
    }
  }
}

}  // namespace lstm
