// The kernels without JAX, for sanitizers: random shapes against a plain loop in
// double, in buffers of exactly their size. Build and run: `make sanitize`.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "dispatch.h"
#include "pools.h"
#include "team.h"

namespace lstm {
namespace {

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

template <class Scalar>
Scalar To(float x);
template <>
float To<float>(float x) {
  return x;
}
template <>
BFloat16 To<BFloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

float From(float x) { return x; }
float From(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// A buffer of exactly its size, in the type of the kernels; null if it is empty.
template <class Scalar>
class Buffer {
 public:
  explicit Buffer(const Floats& values) : values_(values.size()) {
    for (size_t n = 0; n < values.size(); ++n) values_[n] = To<Scalar>(values[n]);
  }
  Scalar* data() { return values_.empty() ? nullptr : values_.data(); }
  Floats Read() const {
    Floats result(values_.size());
    for (size_t n = 0; n < result.size(); ++n) result[n] = From(values_[n]);
    return result;
  }

 private:
  std::vector<Scalar> values_;
};

// One direction's memory.
template <class Scalar>
class Memory {
 public:
  // What is saved between the passes holds `fill` in every byte before it is written.
  Memory(const Case& test, int fill)
      : test_(test),
        a_(test.arguments),
        g_(test.arguments),
        ys_(Floats(test.sizes.steps * test.sizes.rows * test.sizes.outputs)),
        entering_(Floats(test.controls ? ys_.Read().size() : 0)),
        last_h_(Floats(test.sizes.rows * test.sizes.outputs)),
        d_ys_(test.d_ys),
        d_h_(test.d_h),
        last_c_(test.sizes.rows * test.sizes.units),
        d_c_(test.d_c),
        gates_(test.sizes.steps * test.sizes.rows * 4 * PaddedUnits(test.sizes.units)),
        cells_(gates_.size() / 4) {
    std::memset(gates_.data(), fill, gates_.size() * sizeof(gates_[0]));
    std::memset(cells_.data(), fill, cells_.size() * sizeof(cells_[0]));
  }

  ForwardProblem<Scalar> Forward() {
    ForwardProblem<Scalar> p = {};
    Fill(p);
    p.ys = ys_.data();
    p.last_h = last_h_.data();
    p.last_c = last_c_.data();
    p.gates = gates_.data();
    p.cells = cells_.data();
    p.entering = entering_.data();
    return p;
  }

  BackwardProblem<Scalar> Backward() {
    BackwardProblem<Scalar> p = {};
    Fill(p);
    p.ys = ys_.data();
    p.entering = entering_.data();
    p.gates = gates_.data();
    p.cells = cells_.data();
    p.d_ys = d_ys_.data();
    p.d_last_h = d_h_.data();
    p.d_last_c = d_c_.data();
    p.d_xs = g_.xs.data();
    p.d_kernel = g_.kernel.data();
    p.d_recurrent = g_.recurrent.data();
    p.d_bias = g_.bias.data();
    p.d_projection = g_.projection.data();
    p.d_h = g_.h.data();
    p.d_c = g_.c.data();
    p.d_reset_h = g_.reset_h.data();
    p.d_reset_c = g_.reset_c.data();
    return p;
  }

  Floats Outputs() const { return ys_.Read(); }

  std::vector<uint32_t> Saved() const {
    std::vector<uint32_t> saved(gates_.begin(), gates_.end());
    saved.insert(saved.end(), cells_.begin(), cells_.end());
    return saved;
  }

  Arguments Gradients() const {
    return {g_.xs.Read(),         g_.kernel.Read(), g_.recurrent.Read(), g_.bias.Read(),
            g_.projection.Read(), g_.h.Read(),      g_.c.Read(),         g_.reset_h.Read(),
            g_.reset_c.Read()};
  }

 private:
  struct Buffers {
    explicit Buffers(const Arguments& a)
        : xs(a.xs),
          kernel(a.kernel),
          recurrent(a.recurrent),
          bias(a.bias),
          projection(a.projection),
          h(a.h),
          reset_h(a.reset_h),
          c(a.c),
          reset_c(a.reset_c) {}
    Buffer<Scalar> xs, kernel, recurrent, bias, projection, h, reset_h;
    Buffer<float> c, reset_c;
  };

  template <class Problem>
  void Fill(Problem& p) {
    p.sizes = test_.sizes;
    p.xs = a_.xs.data();
    p.weights = {a_.kernel.data(), a_.recurrent.data(), a_.bias.data(),
                 a_.projection.data()};
    p.state = {a_.h.data(), a_.c.data()};
    if (test_.controls) {
      p.controls = {
          test_.valid.get(), test_.reset.get(), {a_.reset_h.data(), a_.reset_c.data()}};
    }
  }

  const Case& test_;
  Buffers a_, g_;
  Buffer<Scalar> ys_, entering_, last_h_, d_ys_, d_h_;
  Floats last_c_, d_c_;
  std::vector<GateBits<Scalar>> gates_;
  std::vector<uint32_t> cells_;
};

struct Result {
  Floats ys;
  std::vector<uint32_t> saved;
  Arguments grads;

  bool operator==(Result& other) {
    bool same = ys == other.ys && saved == other.saved;
    std::vector<Floats*> mine = grads.All(), others = other.grads.All();
    for (size_t n = 0; n < mine.size(); ++n) same = same && *mine[n] == *others[n];
    return same;
  }
};

// The same problem once, or twice in one call. The passes may be of two instruction sets:
// what is saved between them is the same in all.
template <class Scalar>
std::vector<Result> Run(const Case& test, const Kernels& first, const Kernels& second,
                        Pool& pool, int threads, int count) {
  Crew crew(&pool, threads);
  std::deque<Memory<Scalar>> memories;
  for (int n = 0; n < count; ++n) memories.emplace_back(test, threads % 2 ? 0 : 0xff);
  ForwardProblem<Scalar> forward[kMostProblems];
  BackwardProblem<Scalar> backward[kMostProblems];
  for (int n = 0; n < count; ++n) forward[n] = memories[n].Forward();
  if constexpr (sizeof(Scalar) == 4) {
    first.forward_f32(forward, count, crew);
  } else {
    first.forward_bf16(forward, count, crew);
  }
  for (int n = 0; n < count; ++n) backward[n] = memories[n].Backward();
  if constexpr (sizeof(Scalar) == 4) {
    second.backward_f32(backward, count, crew);
  } else {
    second.backward_bf16(backward, count, crew);
  }
  std::vector<Result> results;
  for (auto& memory : memories) {
    results.push_back({memory.Outputs(), memory.Saved(), memory.Gradients()});
  }
  return results;
}

// `tolerance` is of outputs of about 1, and of gradients relative to their terms.
bool CheckAgainstLoop(Case& test, Result& result, double tolerance) {
  std::vector<double> ys(result.ys.size(), 0);
  Arguments direction;
  double slope = 0, size = 0;
  std::vector<Floats*> along = direction.All(), grads = result.grads.All();
  for (size_t n = 0; n < along.size(); ++n) {
    *along[n] = Normal(grads[n]->size(), 1);
    for (size_t k = 0; k < along[n]->size(); ++k) {
      slope += static_cast<double>((*along[n])[k]) * (*grads[n])[k];
      size += std::abs((*along[n])[k] * (*grads[n])[k]);
    }
  }
  Loss(test, direction, 0, &ys);
  for (size_t n = 0; n < ys.size(); ++n) {
    if (!(std::abs(ys[n] - result.ys[n]) < tolerance)) {
      return std::printf("wrong outputs: %g, not %g\n", result.ys[n], ys[n]), false;
    }
  }
  constexpr double kStep = 1e-5;
  const double expected =
      (Loss(test, direction, kStep, nullptr) - Loss(test, direction, -kStep, nullptr)) /
      (2 * kStep);
  if (!(std::abs(slope - expected) < 10 * tolerance * (size + 1))) {
    return std::printf("wrong gradients: %g, not %g\n", slope, expected), false;
  }
  return true;
}

// `baseline` is another instruction set, which runs the forward pass once.
template <class Scalar>
bool Check(Case& test, const Kernels& kernels, const Kernels& baseline, Pool& pool,
           double tolerance) {
  Result one = Run<Scalar>(test, kernels, kernels, pool, 1, 1)[0];
  bool same = one == Run<Scalar>(test, kernels, kernels, pool, 4, 1)[0];
  for (Result& result : Run<Scalar>(test, kernels, kernels, pool, 2, 2)) {
    same = same && one == result;
  }
  if (!same) return std::puts("another result with other threads"), false;
  Result mixed = Run<Scalar>(test, baseline, kernels, pool, 1, 1)[0];
  return CheckAgainstLoop(test, one, tolerance) && CheckAgainstLoop(test, mixed, tolerance);
}

// However early a pool's thread begins, the caller leads, and the other joins.
bool CheckTeam() {
  struct Seen {
    std::thread::id leader;
    int size = 0;
  } seen;
  const auto body = [](void* context, int rank, Team& team) {
    team.Form(rank);
    if (rank != 0) return;
    *static_cast<Seen*>(context) = {std::this_thread::get_id(), team.size()};
  };
  EagerPool pool;
  const Job job = {2, 1000000, body, &seen};
  Crew(&pool, 2).Run(&job, 1);
  const bool ok = seen.leader == std::this_thread::get_id() && seen.size == 2;
  if (!ok) std::printf("a team of %d, not led by the caller\n", seen.size);
  return ok;
}

}  // namespace
}  // namespace lstm

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
  lstm::TestPool pool(2);
  int passed = 0, failed = 0;
  const lstm::Kernels* baseline = nullptr;
  ++(lstm::CheckTeam() ? passed : failed);
  for (int n = 0; n < cases; ++n) {
    lstm::Case test = lstm::RandomCase();
    for (const char* name : {"baseline", "avx2", "avx512", "avx512bf16", "amx", "neon"}) {
      const lstm::Kernels* kernels = lstm::KernelsNamed(name);
      if (!kernels) continue;
      if (!baseline) baseline = kernels;
      const bool ok =
          lstm::Check<float>(test, *kernels, *baseline, pool, 1e-5) &&
          lstm::Check<lstm::BFloat16>(test, *kernels, *baseline, pool, 0.05);
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
