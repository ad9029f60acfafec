#include "threads/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace lstm {
namespace {

// The whole of the text as a number above 0, but for white space around it.
std::optional<double> PositiveNumber(const std::string& text) {
  std::istringstream in(text);
  double number = 0;
  std::string rest;
  if (!(in >> number) || in >> rest) return std::nullopt;
  if (!(number > 0) || std::isinf(number)) return std::nullopt;
  return number;
}

std::optional<double> Ratio(std::optional<double> quota, std::optional<double> period) {
  if (!quota || !period) return std::nullopt;
  return *quota / *period;
}

// A control group that limits processors: of v2, whose line in /proc/self/cgroup names
// no controller, or of v1, where one of them is "cpu".
struct Group {
  bool unified;
  std::string path;
};

// From one line of /proc/self/cgroup: number:controllers:path.
std::optional<Group> ParseGroup(const std::string& line) {
  const size_t first = line.find(':');
  if (first == std::string::npos) return std::nullopt;
  const size_t second = line.find(':', first + 1);
  if (second == std::string::npos) return std::nullopt;
  const std::string controllers = line.substr(first + 1, second - first - 1);
  const std::string path = line.substr(second + 1);
  if (path.empty() || path[0] != '/') return std::nullopt;
  if (controllers.empty()) return Group{true, path};
  if (("," + controllers + ",").find(",cpu,") == std::string::npos) return std::nullopt;
  return Group{false, path};
}

std::optional<double> QuotaIn(const ReadFile& read, bool unified,
                              const std::string& path) {
  if (unified) {
    const auto text = read("/sys/fs/cgroup" + path + "/cpu.max");
    return text ? ParseCpuMax(*text) : std::nullopt;
  }
  const std::string folder = "/sys/fs/cgroup/cpu" + path;
  const auto quota = read(folder + "/cpu.cfs_quota_us");
  const auto period = read(folder + "/cpu.cfs_period_us");
  return quota && period ? ParseCfsQuota(*quota, *period) : std::nullopt;
}

std::optional<double> Least(std::optional<double> a, std::optional<double> b) {
  if (!a || !b) return a ? a : b;
  return std::min(*a, *b);
}

// A container may see its own group as the root of all, whatever the path says: groups
// that are not there are passed over.
std::optional<double> QuotaOf(const ReadFile& read, const Group& group) {
  std::string path = group.path;
  std::optional<double> least;
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    least = Least(least, QuotaIn(read, group.unified, path));
    if (path.empty()) return least;
    path.erase(path.rfind('/'));
  }
}

std::optional<std::string> ReadFromDisk(const std::string& path) {
  std::ifstream in(path);
  if (!in) return std::nullopt;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

std::optional<double> ParseCpuMax(const std::string& cpu_max) {
  std::istringstream in(cpu_max);
  std::string quota, period;
  in >> quota;
  std::getline(in, period);
  // The kernel's own period, where only a quota is written.
  if (period.find_first_not_of(" \t\n") == std::string::npos) period = "100000";
  return Ratio(PositiveNumber(quota), PositiveNumber(period));  // "max" is no number
}

std::optional<double> ParseCfsQuota(const std::string& quota,
                                    const std::string& period) {
  return Ratio(PositiveNumber(quota), PositiveNumber(period));  // -1 is no limit
}

std::optional<double> CpuQuota(const ReadFile& read) {
  const auto groups = read("/proc/self/cgroup");
  if (!groups) return std::nullopt;
  std::istringstream lines(*groups);
  std::optional<double> least;
  for (std::string line; std::getline(lines, line);) {
    if (const auto group = ParseGroup(line))
      least = Least(least, QuotaOf(read, *group));
  }
  return least;
}

int AvailableThreads(int pool_threads) {
  int threads = pool_threads;
#ifdef CPU_COUNT
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    threads = std::min(threads, CPU_COUNT(&set));
  }
  // Read once: a call may take less time than reading it.
  static const std::optional<double> quota = CpuQuota(ReadFromDisk);
  if (quota && *quota < threads) threads = static_cast<int>(*quota);
#endif
  return std::max(threads, 1);
}

int ThreadLimit(const char* wanted, int available, std::string* error) {
  if (wanted == nullptr || *wanted == '\0') return available;
  char* end = nullptr;
  const long threads = std::strtol(wanted, &end, 10);
  constexpr long kMost = 1 << 16;
  if (*end == '\0' && threads >= 1 && threads <= kMost)
    return static_cast<int>(threads);
  *error = "LSTM_JAX_NUM_THREADS: expected a whole number of threads, from 1 to " +
           std::to_string(kMost) + ", got '" + wanted + "'.";
  return 0;
}

}  // namespace lstm
