// The kernels, compiled once for each instruction set. The build says which:
// LSTM_ISA names it, LSTM_WIDTH and LSTM_REGISTERS describe its registers.
#include "backward.h"
#include "forward.h"

#define LSTM_TEXT_OF(name) #name
#define LSTM_TEXT(name) LSTM_TEXT_OF(name)

namespace lstm {
namespace LSTM_ISA {
namespace {

// Two directions run side by side, and no thread waits for another at every step, where
// the weights of each stay in the caches of a core, or where there are so many rows that
// reading weights from farther away takes no time that counts. Others run one after the
// other, on all cores.
constexpr int64_t kSideBySide = 2 << 20;
constexpr int64_t kSideBySideRows = 16;

template <class Scalar>
bool SideBySide(const Sizes& s) {
  const int64_t bytes = 4 * sizeof(Scalar) * s.units * (s.inputs + s.outputs);
  // Pairs are multiplied too fast for any number of rows to make up for it.
  return bytes <= kSideBySide || (!kPaired<Scalar> && s.rows >= kSideBySideRows);
}

// A pass, with scratch memory, as a job.
template <class Pass>
Job Prepare(Pass& pass, const Sizes& sizes, Scratch& scratch) {
  Carver measure(nullptr);
  pass.Carve(measure);
  Carver carver(scratch.Reserve(measure.used()));
  pass.Carve(carver);
  const auto body = [](void* pass, int rank, Team& team) {
    static_cast<Pass*>(pass)->Body(rank, team);
  };
  return {pass.threads(), PatienceMicroseconds(sizes), body, &pass};
}

template <class Scalar, class Pass, class Problem>
void RunAll(const Problem* problems, int count, Crew& crew) {
  const Sizes& s = problems[0].sizes;
  if (count == 2 && crew.limit() > 1 && SideBySide<Scalar>(s)) {
    Pass first(problems[0], crew.limit() / 2), second(problems[1], crew.limit() / 2);
    Scratch scratch[2];
    const Job jobs[] = {Prepare(first, s, scratch[0]),
                        Prepare(second, s, scratch[1])};
    crew.Run(jobs, 2);
    return;
  }
  for (int n = 0; n < count; ++n) {
    Pass pass(problems[n], crew.limit());
    Scratch scratch;
    const Job job = Prepare(pass, s, scratch);
    crew.Run(&job, 1);
  }
}

template <class Scalar>
void RunForward(const ForwardProblem<Scalar>* problems, int count, Crew& crew) {
  RunAll<Scalar, Forward<Scalar>>(problems, count, crew);
}

template <class Scalar>
void RunBackward(const BackwardProblem<Scalar>* problems, int count, Crew& crew) {
  RunAll<Scalar, Backward<Scalar>>(problems, count, crew);
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
    LSTM_TEXT(LSTM_ISA),  kWidth,
    RunForward<float>,    RunBackward<float>,
    RunForward<BFloat16>, RunBackward<BFloat16>,
    MapSigmoid,           MapTanh,
};

}  // namespace LSTM_ISA
}  // namespace lstm
