#include "threads/team.h"

#include <chrono>

#include "threads/wait.h"

namespace lstm {

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
  const auto end = Clock::now() + std::chrono::microseconds(join_timeout_us_);
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

}  // namespace lstm
