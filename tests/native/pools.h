// Pools of threads for tests.
#ifndef LSTM_JAX_TESTS_POOLS_H_
#define LSTM_JAX_TESTS_POOLS_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "threads/pool.h"

namespace lstm {

// A pool of threads that take tasks in order.
class TestPool : public Pool {
 public:
  explicit TestPool(int threads) {
    for (int n = 0; n < threads; ++n) {
      threads_.emplace_back([this] { Work(); });
    }
  }

  ~TestPool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int threads() const override { return static_cast<int>(threads_.size()); }

  void Schedule(std::function<void()> task) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

 private:
  void Work() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return done_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  bool done_ = false;
};

// A pool whose tasks begin before whoever hands them over goes on.
class EagerPool : public Pool {
 public:
  ~EagerPool() override {
    for (std::thread& thread : threads_) thread.join();
  }

  int threads() const override { return 2; }

  void Schedule(std::function<void()> task) override {
    threads_.emplace_back(std::move(task));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace lstm

#endif  // LSTM_JAX_TESTS_POOLS_H_
