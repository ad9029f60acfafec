// The kernels against the plain loop, on random shapes.
#include <cmath>
#include <cstdio>
#include <deque>
#include <vector>

#include "dispatch.h"
#include "memory.h"
#include "pools.h"
#include "tests.h"
#include "threads/executor.h"

namespace lstm {
namespace {

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

// The same problem once, or twice in one call. The passes may be of two instruction
// sets: what is saved between them is the same in all.
template <class Scalar>
std::vector<Result> Run(const Case& test, const Kernels& first, const Kernels& second,
                        Pool& pool, int threads, int count) {
  Executor executor(&pool, threads);
  std::deque<Memory<Scalar>> memories;
  for (int n = 0; n < count; ++n) memories.emplace_back(test, threads % 2 ? 0 : 0xff);
  ForwardProblem<Scalar> forward[kMostProblems];
  BackwardProblem<Scalar> backward[kMostProblems];
  for (int n = 0; n < count; ++n) forward[n] = memories[n].Forward();
  if constexpr (sizeof(Scalar) == 4) {
    first.forward_f32(forward, count, executor);
  } else {
    first.forward_bf16(forward, count, executor);
  }
  for (int n = 0; n < count; ++n) backward[n] = memories[n].Backward();
  if constexpr (sizeof(Scalar) == 4) {
    second.backward_f32(backward, count, executor);
  } else {
    second.backward_bf16(backward, count, executor);
  }
  std::vector<Result> results;
  for (auto& memory : memories) {
    results.push_back({memory.Outputs(), memory.Saved(), memory.Gradients()});
  }
  return results;
}

// `tolerance` is of outputs of 1, relative to larger ones, and of gradients relative to
// their terms.
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
    if (!(std::abs(ys[n] - result.ys[n]) < tolerance * std::fmax(1, std::abs(ys[n])))) {
      return std::printf("wrong outputs: %g, not %g\n", result.ys[n], ys[n]), false;
    }
  }
  // Limits make kinks: a longer step would cross some.
  constexpr double kStep = 1e-7;
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
  return CheckAgainstLoop(test, one, tolerance) &&
         CheckAgainstLoop(test, mixed, tolerance);
}

bool CheckAll(Case& test, const Kernels& kernels, const Kernels& baseline, Pool& pool) {
  // Rounded to bfloat16, some numbers are on the other side of a limit.
  const bool limits =
      std::isfinite(test.variant.clip) || std::isfinite(test.variant.cell_clip);
  const bool ok = Check<float>(test, kernels, baseline, pool, 1e-5) &&
                  Check<BFloat16>(test, kernels, baseline, pool, limits ? 0.3 : 0.05);
  const Sizes& s = test.sizes;
  if (!ok) {
    const Variant<float>& v = test.variant;
    std::printf("  %s: T %ld, B %ld, I %ld, H %ld, P %ld, reverse %d, controls %d\n",
                kernels.name, long(s.steps), long(s.rows), long(s.inputs),
                long(s.units), long(s.outputs), s.reverse, test.controls);
    std::printf(
        "  standard %d, gates %d, coupled %d, linear %d %d, clips %g %g, "
        "diagonal %d, heads %ld, normed %d %d, peepholes %d, masks %d %d, zoneout %g "
        "%g, kept %d "
        "%d\n",
        v.standard, s.gates.count, v.coupled, v.linear_candidate, v.linear_output,
        v.clip, v.cell_clip, test.diagonal, long(s.heads), s.normed,
        !test.arguments.norm_shift.empty(), !test.arguments.peephole.empty(),
        v.recurrent_mask != nullptr, v.output_mask != nullptr, v.zoneout_h, v.zoneout_c,
        v.keep_h != nullptr, v.keep_c != nullptr);
  }
  return ok;
}

}  // namespace

void TestKernels(int cases, Tally& tally) {
  TestPool pool(2);
  const Kernels* const baseline = KnownIsas().front().kernels;
  for (int n = 0; n < cases; ++n) {
    Case test = RandomCase();
    for (const Isa& isa : KnownIsas()) {
      if (isa.kernels && isa.runs)
        tally.Add(CheckAll(test, *isa.kernels, *baseline, pool));
    }
  }
}

}  // namespace lstm
