// The kernels without JAX, for sanitizers: random shapes against a plain loop in
// double, in buffers of exactly their size. Build and run: `make sanitize`.
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "dispatch.h"
#include "pool.h"
#include "team.h"

namespace lstm {
namespace {

// A pool of threads, one of which begins its tasks late.
class TestPool : public Pool {
 public:
  explicit TestPool(int threads) {
    for (int n = 0; n < threads; ++n) {
      threads_.emplace_back([this] { Work(); });
    }
  }

  ~TestPool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int threads() const override { return static_cast<int>(threads_.size()); }

  void Schedule(std::function<void()> task) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

 private:
  void Work() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return done_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  bool done_ = false;
};

using Floats = std::vector<float>;

// All that the result depends on, in one vector each, so that it can be perturbed.
struct Arguments {
  Floats xs, kernel, recurrent, bias, projection, h, c, reset_h, reset_c;

  std::vector<Floats*> All() {
    return {&xs, &kernel, &recurrent, &bias, &projection, &h, &c, &reset_h, &reset_c};
  }
};

struct Case {
  Sizes sizes;
  bool controls;
  Arguments arguments;
  std::unique_ptr<bool[]> valid, reset;
  Floats d_ys, d_h, d_c;
};

std::mt19937& Random() {
  static std::mt19937 random(1);
  return random;
}

int Uniform(int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(Random());
}

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

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The plain loop: returns the sum of all outputs, each times its cotangent, with the
// arguments moved by `step` along `direction`. Fills `ys` where it is not null.
double Loss(Case& test, Arguments& direction, double step, std::vector<double>* ys) {
  const Sizes& s = test.sizes;
  std::vector<std::vector<double>> moved;
  std::vector<Floats*> along = direction.All();
  for (Floats* values : test.arguments.All()) {
    const Floats& d = *along[moved.size()];
    moved.emplace_back(values->begin(), values->end());
    for (size_t n = 0; n < d.size(); ++n) moved.back()[n] += step * d[n];
  }
  const auto &xs = moved[0], &W = moved[1], &R = moved[2], &b = moved[3], &Q = moved[4];
  const int64_t H = s.units, P = s.outputs;
  double loss = 0;
  for (int64_t row = 0; row < s.rows; ++row) {
    const auto of = [&](const std::vector<double>& state, int64_t size) {
      return std::vector<double>(state.begin() + row * size,
                                 state.begin() + (row + 1) * size);
    };
    std::vector<double> h = of(moved[5], P), c = of(moved[6], H);
    for (int64_t n = 0; n < s.steps; ++n) {
      const int64_t time = s.reverse ? s.steps - 1 - n : n;
      const int64_t at = time * s.rows + row;
      if (test.controls && test.reset[at]) {
        h = of(moved[7], P);
        c = of(moved[8], H);
      }
      if (test.controls && !test.valid[at]) continue;
      std::vector<double> z(4 * H), m(H);
      for (int64_t k = 0; k < 4 * H; ++k) {
        z[k] = b.empty() ? 0 : b[k];
        for (int64_t i = 0; i < s.inputs; ++i) {
          z[k] += xs[at * s.inputs + i] * W[i * 4 * H + k];
        }
        for (int64_t p = 0; p < P; ++p) z[k] += h[p] * R[p * 4 * H + k];
      }
      for (int64_t u = 0; u < H; ++u) {
        c[u] = Sigmoid(z[H + u]) * c[u] + Sigmoid(z[u]) * std::tanh(z[2 * H + u]);
        m[u] = Sigmoid(z[3 * H + u]) * std::tanh(c[u]);
      }
      h = m;
      if (s.projected) {
        h.assign(P, 0);
        for (int64_t u = 0; u < H; ++u) {
          for (int64_t p = 0; p < P; ++p) h[p] += m[u] * Q[u * P + p];
        }
      }
      for (int64_t p = 0; p < P; ++p) {
        loss += h[p] * test.d_ys[at * P + p];
        if (ys) (*ys)[at * P + p] = h[p];
      }
    }
    for (int64_t p = 0; p < P; ++p) loss += h[p] * test.d_h[row * P + p];
    for (int64_t u = 0; u < H; ++u) loss += c[u] * test.d_c[row * H + u];
  }
  return loss;
}

const float* OrNull(const Floats& values) {
  return values.empty() ? nullptr : values.data();
}

float* OrNull(Floats& values) { return values.empty() ? nullptr : values.data(); }

template <class Problem>
void Fill(const Case& test, Problem& p) {
  const Arguments& a = test.arguments;
  p.sizes = test.sizes;
  p.xs = a.xs.data();
  p.weights = {a.kernel.data(), a.recurrent.data(), OrNull(a.bias),
               OrNull(a.projection)};
  p.state = {a.h.data(), a.c.data()};
  if (test.controls) {
    p.controls = {
        test.valid.get(), test.reset.get(), {a.reset_h.data(), a.reset_c.data()}};
  }
}

struct Result {
  Floats ys;
  Arguments grads;
};

Result Run(const Case& test, const Kernels& kernels, Pool& pool, int threads) {
  const Sizes& s = test.sizes;
  const int64_t steps = s.steps * s.rows;
  Crew crew(&pool, threads);
  Result result;
  result.ys.resize(steps * s.outputs);
  const int64_t blocks = (s.units + kernels.width - 1) / kernels.width;
  Floats tape(steps * blocks * kTapeEntries * kernels.width);
  Floats entering(test.controls ? steps * s.outputs : 0);
  Floats last_h(s.rows * s.outputs), last_c(s.rows * s.units);
  ForwardProblem<float> forward = {};
  Fill(test, forward);
  forward.ys = result.ys.data();
  forward.last_h = last_h.data();
  forward.last_c = last_c.data();
  forward.tape = tape.data();
  forward.entering = OrNull(entering);
  kernels.forward_f32(forward, crew);

  result.grads = test.arguments;
  Arguments& g = result.grads;
  BackwardProblem<float> backward = {};
  Fill(test, backward);
  backward.ys = result.ys.data();
  backward.entering = OrNull(entering);
  backward.tape = tape.data();
  backward.d_ys = test.d_ys.data();
  backward.d_last_h = test.d_h.data();
  backward.d_last_c = test.d_c.data();
  backward.d_xs = g.xs.data();
  backward.d_kernel = g.kernel.data();
  backward.d_recurrent = g.recurrent.data();
  backward.d_bias = OrNull(g.bias);
  backward.d_projection = OrNull(g.projection);
  backward.d_h = g.h.data();
  backward.d_c = g.c.data();
  backward.d_reset_h = g.reset_h.data();
  backward.d_reset_c = g.reset_c.data();
  kernels.backward_f32(backward, crew);
  return result;
}

bool Check(Case& test, const Kernels& kernels, Pool& pool) {
  Result one = Run(test, kernels, pool, 1);
  Result many = Run(test, kernels, pool, 3);
  bool same = one.ys == many.ys;
  std::vector<Floats*> others = many.grads.All();
  for (size_t n = 0; n < others.size(); ++n) {
    same = same && *one.grads.All()[n] == *others[n];
  }
  if (!same) return std::puts("another result with another number of threads"), false;

  std::vector<double> ys(one.ys.size(), 0);
  Arguments direction;
  double expected_slope, slope = 0, size = 0;
  std::vector<Floats*> along = direction.All(), grads = one.grads.All();
  for (size_t n = 0; n < along.size(); ++n) {
    *along[n] = Normal(grads[n]->size(), 1);
    for (size_t k = 0; k < along[n]->size(); ++k) {
      slope += static_cast<double>((*along[n])[k]) * (*grads[n])[k];
      size += std::abs((*along[n])[k] * (*grads[n])[k]);
    }
  }
  Loss(test, direction, 0, &ys);
  for (size_t n = 0; n < ys.size(); ++n) {
    if (!(std::abs(ys[n] - one.ys[n]) < 1e-5)) return std::puts("wrong outputs"), false;
  }
  constexpr double kStep = 1e-5;
  expected_slope =
      (Loss(test, direction, kStep, nullptr) - Loss(test, direction, -kStep, nullptr)) /
      (2 * kStep);
  if (!(std::abs(slope - expected_slope) < 1e-4 * size + 1e-4)) {
    std::printf("wrong gradients: %g, not %g\n", slope, expected_slope);
    return false;
  }
  return true;
}

}  // namespace
}  // namespace lstm

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
  lstm::TestPool pool(2);
  int passed = 0, failed = 0;
  for (int n = 0; n < cases; ++n) {
    lstm::Case test = lstm::RandomCase();
    for (const char* name : {"baseline", "avx2", "avx512", "neon"}) {
      const lstm::Kernels* kernels = lstm::KernelsNamed(name);
      if (!kernels) continue;
      const bool ok = lstm::Check(test, *kernels, pool);
      ++(ok ? passed : failed);
      const lstm::Sizes& s = test.sizes;
      if (!ok) {
        std::printf(
            "  %s: T %ld, B %ld, I %ld, H %ld, P %ld, reverse %d, controls %d\n", name,
            long(s.steps), long(s.rows), long(s.inputs), long(s.units), long(s.outputs),
            s.reverse, test.controls);
      }
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
