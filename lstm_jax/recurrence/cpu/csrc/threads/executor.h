// Runs the jobs of a call on the threads of a pool.
#ifndef LSTM_JAX_THREADS_EXECUTOR_H_
#define LSTM_JAX_THREADS_EXECUTOR_H_

#include <cstdint>

namespace lstm {

class Pool;
class Team;

// `body(context, rank, team)` runs on up to `threads` threads. Those that have not
// begun when there is nothing left to prepare are waited for, but not longer than
// `join_timeout_us`.
struct Job {
  int threads;
  int64_t join_timeout_us;
  void (*body)(void*, int, Team&);
  void* context;
};

// What a kernel runs its work with.
class Executor {
 public:
  Executor(Pool* pool, int limit) : pool_(pool), limit_(limit) {}

  int limit() const { return limit_; }

  // Runs jobs side by side, and returns when all are done. This thread leads the first
  // of them, and after that those that no other thread has begun.
  void Run(const Job* jobs, int count);

 private:
  Pool* pool_;
  int limit_;
};

}  // namespace lstm

#endif  // LSTM_JAX_THREADS_EXECUTOR_H_
