#include "threads/executor.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "threads/pool.h"
#include "threads/team.h"
#include "threads/wait.h"

namespace lstm {
namespace {

// The jobs of one call. Tasks that begin after it is over find that they are late.
class Jobs {
 public:
  Jobs(const Job* jobs, int count) {
    for (int n = 0; n < count; ++n)
      entries_.push_back(std::make_unique<Entry>(jobs[n]));
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
    explicit Entry(const Job& job) : job(job), team(job.threads, job.join_timeout_us) {}
    const Job job;
    Team team;
    std::atomic<bool> claimed{false};
    std::atomic<bool> done{false};
  };

  std::vector<std::unique_ptr<Entry>> entries_;
};

}  // namespace

void Executor::Run(const Job* jobs, int count) {
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

}  // namespace lstm
