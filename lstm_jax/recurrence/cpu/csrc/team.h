// Threads that work on one call together.
//
// XLA's pool may run a task late or, when other calls fill it, not before this call is
// over. So nobody waits long for a task that has not begun: the calling thread starts to
// work at once, and those tasks that begin while it packs the weights, or a little
// later where the call is long, become its team.
#ifndef LSTM_JAX_TEAM_H_
#define LSTM_JAX_TEAM_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace lstm {

class Pool;

class Team {
 public:
  // The first member waits `patience_us` microseconds for others, once it has no work of
  // its own left.
  Team(int limit, int64_t patience_us)
      : limit_(limit), patience_us_(patience_us), arrivals_(new Arrivals[limit]) {}

  // For a thread that wants to take part; returns its rank, or -1 if it is too late.
  int Join();

  // Every member calls this once, when no item is left to be taken. From then on `size`
  // is fixed.
  void Form(int rank);

  int size() const { return size_; }

  // Waits until all members are here; `rank` is the caller's own.
  void Barrier(int rank);

  // Hands out 0, 1, 2, ... A member that got a number beyond its items stops.
  int64_t Take() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  static constexpr int kClosed = 1 << 20;

  void Await() const;

  const int limit_;
  const int64_t patience_us_;
  int size_ = 1;
  alignas(64) std::atomic<int> joined_{1};
  // How often each member has arrived at a barrier. Only it writes that, so that a
  // barrier takes no longer than a cache line takes from one core to another.
  struct alignas(64) Arrivals {
    std::atomic<uint32_t> count{0};
  };
  std::unique_ptr<Arrivals[]> arrivals_;
  alignas(64) std::atomic<int64_t> next_{0};
};

// Items shared out as members ask for them, phase after phase.
class Sharing {
 public:
  explicit Sharing(Team& team) : team_(team) {}

  // Calls `work(item)` for some of the items below `count`; every member calls it.
  template <class Work>
  void Run(int64_t count, Work work) {
    for (;;) {
      const int64_t item = team_.Take() - first_;
      if (item >= count) break;
      work(item);
    }
    // Each member took one number too many.
    first_ += count + team_.size();
  }

 private:
  Team& team_;
  int64_t first_ = 0;
};

// `body(context, rank, team)` runs on up to `threads` threads. Those that have not begun
// when there is nothing left to prepare are waited for, but not longer than `patience_us`.
struct Job {
  int threads;
  int64_t patience_us;
  void (*body)(void*, int, Team&);
  void* context;
};

// What a kernel runs its work with.
class Crew {
 public:
  Crew(Pool* pool, int limit) : pool_(pool), limit_(limit) {}

  int limit() const { return limit_; }

  // Runs jobs side by side, and returns when all are done. This thread leads the first
  // of them, and after that those that no other thread has begun.
  void Run(const Job* jobs, int count);

 private:
  Pool* pool_;
  int limit_;
};

// Memory kept from call to call, since the system clears every page that it hands out.
// Aligned to a cache line; what it holds is not defined.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // To be called once.
  char* Reserve(size_t bytes);

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace lstm

#endif  // LSTM_JAX_TEAM_H_
