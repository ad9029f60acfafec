// The kernels, compiled once for each instruction set. The build says which:
// LSTM_ISA names it, LSTM_WIDTH and LSTM_REGISTERS describe its registers.
#include "lstm/backward.h"
#include "lstm/forward.h"
#include "lstm/variant_step.h"
#include "memory/pages.h"
#include "threads/executor.h"

#define LSTM_TEXT_OF(name) #name
#define LSTM_TEXT(name) LSTM_TEXT_OF(name)

namespace lstm {
namespace LSTM_ISA {
namespace {

// Whether two directions run side by side, and no thread waits for another at every
// step, or one after the other, on all threads.
template <class Scalar>
bool SideBySide(const Sizes& s) {
  const int64_t bytes = 4 * sizeof(Scalar) * s.units * (s.inputs + s.outputs);
  // Pairs are multiplied too fast for any number of rows to make up for it.
  return bytes <= tuning::kSideBySide ||
         (!kPaired<Scalar> && s.rows >= tuning::kSideBySideRows);
}

// A pass, with workspace memory, as a job.
template <class Pass>
Job Prepare(Pass& pass, const Sizes& sizes, Workspace& workspace) {
  Arena measure(nullptr);
  pass.Allocate(measure);
  Arena arena(workspace.Reserve(measure.used()));
  pass.Allocate(arena);
  const auto body = [](void* pass, int rank, Team& team) {
    static_cast<Pass*>(pass)->Body(rank, team);
  };
  return {pass.threads(), JoinTimeoutMicroseconds(sizes), body, &pass};
}

// The large results of a pass are new memory.
template <class Scalar>
void AskForPages(const ForwardProblem<Scalar>& p) {
  const Sizes& s = p.sizes;
  const int64_t rows = s.steps * s.rows, padded = PaddedUnits(s.units);
  AskForLargePages(p.ys, rows * s.outputs);
  AskForLargePages(p.cs, rows * s.units);
  AskForLargePages(p.gates, rows * 4 * padded);
  AskForLargePages(p.cells, rows * padded);
  AskForLargePages(p.entering, rows * s.outputs);
}

template <class Scalar>
void AskForPages(const BackwardProblem<Scalar>& p) {
  const Sizes& s = p.sizes;
  AskForLargePages(p.d_xs, s.steps * s.rows * s.inputs);
  AskForLargePages(p.d_kernel, s.inputs * s.columns());
  AskForLargePages(p.d_recurrent, s.outputs * s.columns());
}

template <class Scalar, class Pass, class Problem>
void RunAll(const Problem* problems, int count, Executor& executor) {
  const Sizes& s = problems[0].sizes;
  for (int n = 0; n < count; ++n) AskForPages(problems[n]);
  if (count == 2 && executor.limit() > 1 && SideBySide<Scalar>(s)) {
    Pass first(problems[0], executor.limit() / 2),
        second(problems[1], executor.limit() / 2);
    Workspace workspace[2];
    const Job jobs[] = {Prepare(first, s, workspace[0]),
                        Prepare(second, s, workspace[1])};
    executor.Run(jobs, 2);
    return;
  }
  for (int n = 0; n < count; ++n) {
    Pass pass(problems[n], executor.limit());
    Workspace workspace;
    const Job job = Prepare(pass, s, workspace);
    executor.Run(&job, 1);
  }
}

// The directions of a layer have the same step.
template <class Scalar>
void RunForward(const ForwardProblem<Scalar>* problems, int count, Executor& executor) {
  if (problems[0].variant.standard) {
    RunAll<Scalar, Forward<Scalar, StandardStep<Scalar>>>(problems, count, executor);
  } else {
    RunAll<Scalar, Forward<Scalar, VariantStep<Scalar>>>(problems, count, executor);
  }
}

template <class Scalar>
void RunBackward(const BackwardProblem<Scalar>* problems, int count,
                 Executor& executor) {
  if (problems[0].variant.standard) {
    RunAll<Scalar, Backward<Scalar, StandardStep<Scalar>>>(problems, count, executor);
  } else {
    RunAll<Scalar, Backward<Scalar, VariantStep<Scalar>>>(problems, count, executor);
  }
}

template <class Function>
void Map(const float* x, float* y, int64_t size, Function function) {
  for (int64_t n = 0; n < size; n += kWidth) {
    const int count = static_cast<int>(Min(size - n, kWidth));
    StoreUpTo(y + n, function(LoadUpTo(x + n, count)), count);
  }
}

void MapSigmoid(const float* x, float* y, int64_t size) {
  Map(x, y, size, [](Vec v) { return Sigmoid(v); });
}

void MapTanh(const float* x, float* y, int64_t size) {
  Map(x, y, size, [](Vec v) { return Tanh(v); });
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {
    LSTM_TEXT(LSTM_ISA),
    RunForward<float>,
    RunBackward<float>,
    RunForward<BFloat16>,
    RunBackward<BFloat16>,
    MapSigmoid,
    MapTanh,
};

}  // namespace LSTM_ISA
}  // namespace lstm
