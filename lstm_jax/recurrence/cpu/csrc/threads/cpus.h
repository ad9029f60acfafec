// How many threads a call may use.
//
// A container's share of the processors stands in its control group (cgroup), not in
// the mask of processors that the system lets a process use: threads beyond that share
// would wait for each other while the system holds them back.
#ifndef LSTM_JAX_THREADS_CPUS_H_
#define LSTM_JAX_THREADS_CPUS_H_

#include <functional>
#include <optional>
#include <string>

namespace lstm {

// What a file holds; nothing if there is none.
using ReadFile = std::function<std::optional<std::string>(const std::string& path)>;

// How many processors' time the texts of cgroup v2's cpu.max, or of v1's
// cpu.cfs_quota_us and cpu.cfs_period_us, allow; nothing where they set no limit, or
// say nothing that can be understood.
std::optional<double> ParseCpuMax(const std::string& cpu_max);
std::optional<double> ParseCfsQuota(const std::string& quota,
                                    const std::string& period);

// The least that the control groups of this process allow, its own and those above it.
std::optional<double> CpuQuota(const ReadFile& read);

// The threads of a call: those of the pool, but no more than there are processors for
// this process.
int AvailableThreads(int pool_threads);

// `wanted` is the text of LSTM_JAX_NUM_THREADS, a null pointer or empty if it is not
// set: then it is `available`. 0, and an `error` in words, where it is no number of
// threads.
int ThreadLimit(const char* wanted, int available, std::string* error);

}  // namespace lstm

#endif  // LSTM_JAX_THREADS_CPUS_H_
