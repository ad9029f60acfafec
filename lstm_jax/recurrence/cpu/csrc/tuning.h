// Every number that was found by measuring: what it trades, and what was measured.
// Where nothing else is said, that was on two cores of an Intel Xeon with AVX-512, some
// with AMX, 2 MB of second-level cache each. docs/measurements.md has the other
// arrangements that were tried. Where it says "reasoned", the number follows from the
// sizes of caches and registers, and has not been compared with others.
//
// A change of one of them comes with figures from before and after.
#ifndef LSTM_JAX_TUNING_H_
#define LSTM_JAX_TUNING_H_

#include <cstddef>
#include <cstdint>

namespace lstm {
namespace tuning {

// gemm/

// Rows of the largest micro-kernel, two vectors wide: its sums fill three quarters of
// the registers. More rows read B less often, and spill. 12 rows of 32 registers reach
// 193 GFLOP/s a core in float32; with a register more for each row, which spilled, 176.
constexpr int MicroKernelRows(int registers) { return 3 * registers / 8; }

// Rows of a panel of B that several micro-kernels go over, one after the other: 16 KB.
// Deeper ones leave the first-level cache, others read and write C more often.
// Reasoned.
constexpr int MicroKernelDepth(int width) { return 256 * 8 / width; }

// How many rows of a panel of B are asked for ahead of their use, where they are used
// once: in time, but not so early that they are gone. 0, 16 and 96 rows: 2% less to 3%
// more than 40 on a busy machine, within its noise.
constexpr int64_t kPrefetchRows = 40;

// The same for the tile registers of AMX, which go through B faster. 0 and 128 rows: 2%
// less to 7% more than 64 on a busy machine.
constexpr int64_t kAmxPrefetchRows = 64;

// Weights are packed so many panels and rows at a time: what is read of a row is then
// not so short that finding it takes longer than reading it, and what is written of a
// panel neither. 8 rows of 16 panels pack in 10 to 25% less time than whole panels,
// four at a time.
constexpr int64_t kPackedPanels = 16;
constexpr int64_t kPackedRows = 8;

// Threads

// Below so many operations a step, or in all, one thread is faster than two: a barrier
// costs a fraction of a microsecond, a thread some more to come. Reasoned from those.
constexpr double kStepWorth = 1e5;
constexpr double kCallWorth = 2e6;

// With so many rows for each thread, the threads split the rows and never wait for each
// other; with fewer, they split the units and meet at every step, so that each reads
// but its own part of the weights. Weights that stay in the second-level cache of each
// are read fast enough for few rows. Weights up to 1.6 MB taken as small: training
// steps 4 to 6% slower.
constexpr int64_t kRowsWorth = 64;
constexpr int64_t kRowsWorthSmall = 4;
constexpr int64_t kSmallWeights = 256 << 10;

// Units that do not divide by threads are cut by rows, in steps of so many, since a
// product of fewer takes as long. Cut so, 20 rows of 200 units took 2% less than in
// whole blocks.
constexpr int64_t kFewestRows = 4;

// How long a thread that has not begun is waited for: some microseconds, and some
// percent of the call, for one that is missing is missing to the end. With 50
// microseconds alone, 8192 steps beside other libraries took 437 ms in four of seven
// runs, not 255.
constexpr int64_t kJoinTimeout = 50;
constexpr double kJoinTimeoutPerOperation = 1e-7;

// Two directions run side by side, and no thread waits for another at every step, where
// the weights of each, in bytes, stay in the caches of a core; or from so many rows on,
// where reading weights from farther away takes no time that counts. B1 T1000 H128: 3.6
// ms, and one after the other 4.7. H320, 2 layers: of 64 rows 167 ms and 174, of 4 rows
// 45 and 36.
constexpr int64_t kSideBySide = 2 << 20;
constexpr int64_t kSideBySideRows = 16;

// How often a waiting thread looks before it lets others run: about 20 microseconds,
// more than a step takes. Another process may have taken the core of whoever it is
// waiting for. Threads asleep instead: 3 to 15% slower.
constexpr int kSpins = 1000;

// The forward pass

// The inputs of so many rows, of all steps together, are projected in one product:
// those of few rows are slow, and pre-activations that leave the second-level cache
// too. First where threads split the units; then, for each thread, where they split the
// rows: so many bytes of pre-activations, and at least so many micro-kernels. B8 T2048
// H64: 5.8 ms, a step at a time 7.1; T128 H64: B32 1.5 ms and 1.9, B256 11.0 and 11.4;
// H256 and H512 the same.
constexpr int64_t kProjectedRows = 96;
constexpr int64_t kProjectedBytes = 256 << 10;
constexpr int64_t kProjectedMicroKernels = 2;

// The backward pass

// Rows of dz whose products are made together: as deep as products of good speed need,
// and deeper where the weights are large, since every block reads and writes their
// gradients once; but dz should stay in the cache. B16 T50 H1536, training step: 376
// ms, with 384 rows whatever the units 435.
constexpr int64_t kBlockRows = 384;
constexpr int64_t kBlockRowsPer8Units = 5;

// Rows of a gradient that are computed together: their A stays in the second-level
// cache while B passes by, and so do the places of their pages. Training steps, by
// columns and by these rows: B20 T35 H1500, 2 layers: 640 ms and 602; B16 T50 H1536:
// 373 and 339.
constexpr int64_t kGradientRows = 96;
// Panels that are computed one after the other before they are written. Reasoned.
constexpr int64_t kGradientPanels = 4;
// Items for each thread, at least, so that no thread waits long for the last of them;
// more of them are smaller products. Reasoned.
constexpr int64_t kItemsPerThread = 4;
// Each row of a gradient is in another page: what is written is asked for some rows
// ahead. Reasoned.
constexpr int64_t kPrefetchWrittenRows = 8;
// So deep a part of the gradients of the inputs at once, in lanes, that their A of
// kGradientRows rows stays in the second-level cache. By rows, and the largest parts of
// a block's work first: B64 T25 H1024, training step: 298 ms and 306.
constexpr int64_t kInputDepth = 512;

// memory/

// Bytes of workspaces that are kept between calls: the system clears every page that it
// hands out, at 1.5 microseconds each, but what is kept is lost to others. Reasoned.
constexpr size_t kKeptBytes = size_t{256} << 20;

}  // namespace tuning
}  // namespace lstm

#endif  // LSTM_JAX_TUNING_H_
