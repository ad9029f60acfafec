#include "team.h"

#include <sched.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "pool.h"

namespace lstm {
namespace {

// How often a waiting thread looks before it lets others run: about 20 microseconds.
// Another process may have taken the core of whoever it is waiting for.
constexpr int kSpins = 1000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
void WaitUntil(Done done) {
  for (int spin = 0; !done(); ++spin) {
    if (spin < kSpins) {
      Pause();
    } else {
      sched_yield();
    }
  }
}

}  // namespace

int Team::Join() {
  int joined = joined_.load(std::memory_order_relaxed);
  while (joined < limit_) {  // false once it is closed
    if (joined_.compare_exchange_weak(joined, joined + 1, std::memory_order_acq_rel)) {
      return joined;
    }
  }
  return -1;
}

void Team::Await() const {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::microseconds(patience_us_);
  // Whoever is missing may be waiting for this very core.
  WaitUntil([&] {
    return joined_.load(std::memory_order_relaxed) == limit_ || Clock::now() >= end;
  });
}

void Team::Form(int rank) {
  if (rank == 0) {
    Await();
    size_ = joined_.load(std::memory_order_relaxed);
    while (!joined_.compare_exchange_weak(size_, size_ | kClosed,
                                          std::memory_order_acq_rel)) {
    }
  } else {
    WaitUntil([this] { return joined_.load(std::memory_order_acquire) >= kClosed; });
  }
  Barrier(rank);
  if (rank == 0) next_.store(0, std::memory_order_relaxed);
  Barrier(rank);
}

void Team::Barrier(int rank) {
  if (size_ == 1) return;
  const uint32_t count = arrivals_[rank].count.load(std::memory_order_relaxed) + 1;
  arrivals_[rank].count.store(count, std::memory_order_release);
  for (int other = 0; other < size_; ++other) {
    // Another member may be at the next barrier already.
    WaitUntil([&, other] {
      const uint32_t theirs = arrivals_[other].count.load(std::memory_order_acquire);
      return theirs - count < 1u << 31;
    });
  }
}

namespace {

// The jobs of one call. Tasks that begin after it is over find that they are late.
class Jobs {
 public:
  Jobs(const Job* jobs, int count) {
    for (int n = 0; n < count; ++n) entries_.push_back(std::make_unique<Entry>(jobs[n]));
  }

  // Whether the caller is to lead a job: the first who asks.
  bool Claim(int n) {
    return !entries_[n]->claimed.exchange(true, std::memory_order_acq_rel);
  }

  // Does a whole job, together with those who join.
  void Lead(int n) {
    Entry& entry = *entries_[n];
    entry.job.body(entry.job.context, 0, entry.team);
    // Nobody works any more on memory that the caller may give back.
    entry.team.Barrier(0);
    entry.done.store(true, std::memory_order_release);
  }

  void LeadOrJoin(int n) {
    if (Claim(n)) return Lead(n);
    Entry& entry = *entries_[n];
    const int rank = entry.team.Join();
    if (rank < 0) return;
    entry.job.body(entry.job.context, rank, entry.team);
    entry.team.Barrier(rank);
  }

  void Wait(int n) {
    WaitUntil([&] { return entries_[n]->done.load(std::memory_order_acquire); });
  }

 private:
  struct Entry {
    explicit Entry(const Job& job) : job(job), team(job.threads, job.patience_us) {}
    const Job job;
    Team team;
    std::atomic<bool> claimed{false};
    std::atomic<bool> done{false};
  };

  std::vector<std::unique_ptr<Entry>> entries_;
};

}  // namespace

void Crew::Run(const Job* jobs, int count) {
  auto all = std::make_shared<Jobs>(jobs, count);
  // Before another thread can: it would lead the first job, and this one only wait.
  all->Claim(0);
  for (int n = 0; n < count; ++n) {
    // The first job has a leader.
    for (int k = n == 0 ? 1 : 0; k < jobs[n].threads; ++k) {
      pool_->Schedule([all, n, caller = std::this_thread::get_id()] {
        // A pool that is full runs the task at once, in the thread that hands it over.
        if (std::this_thread::get_id() != caller) all->LeadOrJoin(n);
      });
    }
  }
  all->Lead(0);
  for (int n = 1; n < count; ++n) {
    if (all->Claim(n)) all->Lead(n);
  }
  for (int n = 0; n < count; ++n) all->Wait(n);
}

namespace {

// Blocks given back, to be used again. More than this is not kept.
constexpr size_t kKeptBytes = size_t{256} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

struct Block {
  char* data;
  size_t bytes;
};

struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};

Kept& TheKept() {
  static Kept* kept = new Kept;  // never destroyed: calls may run during exit
  return *kept;
}

Block Obtain(size_t bytes) {
  Kept& kept = TheKept();
  {
    std::lock_guard<std::mutex> lock(kept.mutex);
    auto best = kept.blocks.end();
    for (auto it = kept.blocks.begin(); it != kept.blocks.end(); ++it) {
      if (it->bytes < bytes) continue;
      if (best == kept.blocks.end() || it->bytes < best->bytes) best = it;
    }
    if (best != kept.blocks.end()) {
      const Block block = *best;
      kept.blocks.erase(best);
      kept.bytes -= block.bytes;
      return block;
    }
  }
  const size_t unit = bytes < kHugePage ? 4096 : kHugePage;
  bytes = (bytes + unit - 1) / unit * unit;
  char* data = static_cast<char*>(std::aligned_alloc(unit, bytes));
  if (data == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (unit == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {data, bytes};
}

}  // namespace

char* Scratch::Reserve(size_t bytes) {
  const Block block = Obtain(bytes);
  data_ = block.data;
  bytes_ = block.bytes;
  return data_;
}

Scratch::~Scratch() {
  if (data_ == nullptr) return;
  Kept& kept = TheKept();
  std::lock_guard<std::mutex> lock(kept.mutex);
  // The oldest go first.
  while (!kept.blocks.empty() && kept.bytes + bytes_ > kKeptBytes) {
    kept.bytes -= kept.blocks.front().bytes;
    std::free(kept.blocks.front().data);
    kept.blocks.erase(kept.blocks.begin());
  }
  if (bytes_ > kKeptBytes) {
    std::free(data_);
    return;
  }
  kept.blocks.push_back({data_, bytes_});
  kept.bytes += bytes_;
}

}  // namespace lstm
