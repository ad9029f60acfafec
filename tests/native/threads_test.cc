// Threads: who leads a team, and how many there may be.
#include <map>
#include <string>
#include <thread>

#include "pools.h"
#include "tests.h"
#include "threads/cpus.h"
#include "threads/executor.h"
#include "threads/team.h"

namespace lstm {
namespace {

// However early a pool's thread begins, the caller leads, and the other joins.
void TestTeam(Tally& tally) {
  struct Seen {
    std::thread::id leader;
    int size = 0;
  } seen;
  const auto body = [](void* context, int rank, Team& team) {
    team.Form(rank);
    if (rank != 0) return;
    *static_cast<Seen*>(context) = {std::this_thread::get_id(), team.size()};
  };
  EagerPool pool;
  const Job job = {2, 1000000, body, &seen};
  Executor(&pool, 2).Run(&job, 1);
  LSTM_EXPECT(tally, seen.leader == std::this_thread::get_id());
  LSTM_EXPECT(tally, seen.size == 2);
}

void TestQuotaTexts(Tally& tally) {
  LSTM_EXPECT(tally, ParseCpuMax("100000 100000\n") == 1.0);
  LSTM_EXPECT(tally, ParseCpuMax("150000 100000") == 1.5);
  LSTM_EXPECT(tally, ParseCpuMax("50000 200000\n") == 0.25);
  LSTM_EXPECT(tally, ParseCpuMax("200000\n") == 2.0);
  LSTM_EXPECT(tally, ParseCfsQuota("400000\n", "100000\n") == 4.0);
  for (const char* none : {"max 100000\n", "max", "", "\n", "-1 100000", "0 100000",
                           "100000 0", "100000 -1", "100000 max", "1e999 100000",
                           "12x 100000", "100000 100000 7", "nan 100000", "inf 1"}) {
    tally.Expect(!ParseCpuMax(none), none);
  }
  LSTM_EXPECT(tally, !ParseCfsQuota("-1\n", "100000\n"));
  LSTM_EXPECT(tally, !ParseCfsQuota("100000", ""));
  LSTM_EXPECT(tally, !ParseCfsQuota("", "100000"));
  LSTM_EXPECT(tally, !ParseCfsQuota("100000 100000", "100000"));
}

std::optional<double> QuotaOf(const std::map<std::string, std::string>& files) {
  return CpuQuota([&](const std::string& path) -> std::optional<std::string> {
    const auto found = files.find(path);
    if (found == files.end()) return std::nullopt;
    return found->second;
  });
}

void TestQuotaFiles(Tally& tally) {
  const std::string root = "/sys/fs/cgroup", self = "/proc/self/cgroup";
  LSTM_EXPECT(tally, !QuotaOf({}));
  LSTM_EXPECT(tally, !QuotaOf({{self, "0::/\n"}}));
  LSTM_EXPECT(tally, !QuotaOf({{self, "nonsense\n:::\n0:\n0::no\n\n"}}));
  // A container that sees its own group as the root.
  LSTM_EXPECT(tally,
              QuotaOf({{self, "0::/\n"}, {root + "/cpu.max", "100000 100000"}}) == 1.0);
  // The least of a group and those above it.
  LSTM_EXPECT(tally, QuotaOf({{self, "0::/a/b\n"},
                              {root + "/a/b/cpu.max", "max 100000"},
                              {root + "/a/cpu.max", "300000 100000"},
                              {root + "/cpu.max", "800000 100000"}}) == 3.0);
  // The path of the host, with the files of the container; both versions at once.
  const std::string both =
      "12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n0::/x\n";
  LSTM_EXPECT(tally, QuotaOf({{self, both},
                              {root + "/cpu/cpu.cfs_quota_us", "200000\n"},
                              {root + "/cpu/cpu.cfs_period_us", "100000\n"}}) == 2.0);
  // Another controller whose name begins alike.
  LSTM_EXPECT(tally, !QuotaOf({{self, "3:cpuset:/a\n"},
                               {root + "/cpu/a/cpu.cfs_quota_us", "100000"},
                               {root + "/cpu/a/cpu.cfs_period_us", "100000"}}));
}

void TestThreadLimit(Tally& tally) {
  std::string error;
  LSTM_EXPECT(tally, ThreadLimit(nullptr, 5, &error) == 5);
  LSTM_EXPECT(tally, ThreadLimit("", 5, &error) == 5);
  LSTM_EXPECT(tally, ThreadLimit("3", 5, &error) == 3);
  LSTM_EXPECT(tally, ThreadLimit("12", 5, &error) == 12 && error.empty());
  for (const char* none : {"0", "-1", "two", "2x", "1.5", "99999999999999999999"}) {
    error.clear();
    LSTM_EXPECT(tally, ThreadLimit(none, 5, &error) == 0);
    tally.Expect(error.find(none) != std::string::npos, none);
  }
  LSTM_EXPECT(tally, AvailableThreads(1) == 1);
  LSTM_EXPECT(tally, AvailableThreads(0) == 1);
}

}  // namespace

void TestThreads(Tally& tally) {
  TestTeam(tally);
  TestQuotaTexts(tally);
  TestQuotaFiles(tally);
  TestThreadLimit(tally);
}

}  // namespace lstm
