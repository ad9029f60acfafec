#ifndef LSTM_JAX_TUNING_H_
#define LSTM_JAX_TUNING_H_

#include <cstddef>
#include <cstdint>

namespace lstm {
namespace tuning {
constexpr int MicroKernelRows(int registers) { return 3 * registers / 8; }
constexpr int MicroKernelDepth(int width) { return 256 * 8 / width; }
constexpr int64_t kPrefetchRows = 40;
constexpr int64_t kAmxPrefetchRows = 64;
constexpr int64_t kPackedPanels = 16;
constexpr int64_t kPackedRows = 8;

constexpr double kStepWorth = 1e5;
constexpr double kCallWorth = 2e6;
constexpr int64_t kRowsWorth = 64;
constexpr int64_t kRowsWorthSmall = 4;
constexpr int64_t kSmallWeights = 256 << 10;
constexpr int64_t kFewestRows = 4;
constexpr int64_t kJoinTimeout = 50;
constexpr double kJoinTimeoutPerOperation = 1e-7;
constexpr int64_t kSideBySide = 2 << 20;
constexpr int64_t kSideBySideRows = 16;
constexpr int kSpins = 1000;

constexpr int64_t kProjectedRows = 96;
constexpr int64_t kProjectedBytes = 256 << 10;
constexpr int64_t kProjectedMicroKernels = 2;
constexpr int64_t kBlockRows = 384;
constexpr int64_t kBlockRowsPer8Units = 5;
constexpr int64_t kGradientRows = 96;
constexpr int64_t kGradientPanels = 4;
constexpr int64_t kItemsPerThread = 4;
constexpr int64_t kPrefetchWrittenRows = 8;
constexpr int64_t kInputDepth = 512;

constexpr size_t kKeptBytes = size_t{256} << 20;
}  // namespace tuning
}  // namespace lstm

#endif  // LSTM_JAX_TUNING_H_
