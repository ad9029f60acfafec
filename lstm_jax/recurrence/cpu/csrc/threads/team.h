// Threads that work on one call together.
//
// XLA's pool may run a task late or, when other calls fill it, not before this call is
// over. So nobody waits long for a task that has not begun: the calling thread starts
// to work at once, and those tasks that begin while it packs the weights, or a little
// later where the call is long, become its team.
#ifndef LSTM_JAX_THREADS_TEAM_H_
#define LSTM_JAX_THREADS_TEAM_H_

#include <atomic>
#include <cstdint>
#include <memory>

namespace lstm {

class Team {
 public:
  // The first member waits `join_timeout_us` microseconds for others, once it has no
  // work of its own left.
  Team(int limit, int64_t join_timeout_us)
      : limit_(limit),
        join_timeout_us_(join_timeout_us),
        arrivals_(new Arrivals[limit]) {}

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
  const int64_t join_timeout_us_;
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
class WorkSharing {
 public:
  explicit WorkSharing(Team& team) : team_(team) {}

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

}  // namespace lstm

#endif  // LSTM_JAX_THREADS_TEAM_H_
