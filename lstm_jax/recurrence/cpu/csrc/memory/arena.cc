#include "memory/arena.h"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "tuning.h"

namespace lstm {

float* Arena::Floats(int64_t count) {
  return static_cast<float*>(Bytes(count, sizeof(float)));
}

void* Arena::Bytes(int64_t count, size_t size) {
  constexpr size_t kLine = 64;
  const size_t start = used_;
  used_ += (static_cast<size_t>(count) * size + kLine - 1) / kLine * kLine;
  return base_ ? base_ + start : nullptr;
}

namespace {

struct Block {
  char* data;
  size_t bytes;
};

// Blocks given back, to be used again; the oldest first.
struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};

Kept& TheKept() {
  static Kept* kept = new Kept;  // never destroyed: calls may run during exit
  return *kept;
}

// The smallest of those kept that is large enough; a null pointer if there is none.
Block TakeKept(size_t bytes) {
  Kept& kept = TheKept();
  std::lock_guard<std::mutex> lock(kept.mutex);
  auto best = kept.blocks.end();
  for (auto it = kept.blocks.begin(); it != kept.blocks.end(); ++it) {
    if (it->bytes < bytes) continue;
    if (best == kept.blocks.end() || it->bytes < best->bytes) best = it;
  }
  if (best == kept.blocks.end()) return {nullptr, 0};
  const Block block = *best;
  kept.blocks.erase(best);
  kept.bytes -= block.bytes;
  return block;
}

Block Allocate(size_t bytes) {
  constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;
  const size_t unit = bytes < kHugePage ? kPage : kHugePage;
  bytes = (bytes + unit - 1) / unit * unit;
  char* data = static_cast<char*>(std::aligned_alloc(unit, bytes));
  if (data == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (unit == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {data, bytes};
}

}  // namespace

char* Workspace::Reserve(size_t bytes) {
  Block block = TakeKept(bytes);
  if (block.data == nullptr) block = Allocate(bytes);
  data_ = block.data;
  bytes_ = block.bytes;
  return data_;
}

Workspace::~Workspace() {
  if (data_ == nullptr) return;
  Kept& kept = TheKept();
  std::lock_guard<std::mutex> lock(kept.mutex);
  while (!kept.blocks.empty() && kept.bytes + bytes_ > tuning::kKeptBytes) {
    kept.bytes -= kept.blocks.front().bytes;
    std::free(kept.blocks.front().data);
    kept.blocks.erase(kept.blocks.begin());
  }
  if (bytes_ > tuning::kKeptBytes) {
    std::free(data_);
    return;
  }
  kept.blocks.push_back({data_, bytes_});
  kept.bytes += bytes_;
}

}  // namespace lstm
