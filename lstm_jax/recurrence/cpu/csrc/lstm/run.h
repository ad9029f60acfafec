// Passes as jobs: of one direction, or of two.
#ifndef LSTM_JAX_LSTM_RUN_H_
#define LSTM_JAX_LSTM_RUN_H_

#include "gemm/operands.h"
#include "lstm/partition.h"
#include "memory/arena.h"
#include "threads/executor.h"
#include "threads/team.h"

namespace lstm {
namespace LSTM_ISA {

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

template <class Scalar, class Pass, class Problem>
void RunAll(const Problem* problems, int count, Executor& executor) {
  const Sizes& s = problems[0].sizes;
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

}  // namespace LSTM_ISA
}  // namespace lstm

#endif  // LSTM_JAX_LSTM_RUN_H_
