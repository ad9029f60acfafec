// Memory for the length of one call.
#ifndef LSTM_JAX_MEMORY_ARENA_H_
#define LSTM_JAX_MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>

namespace lstm {

// Hands out parts of one block, one after the other, each from the start of a cache
// line. Built twice: once to measure, with a null pointer, and once to use.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  float* Floats(int64_t count);

  // `count` elements of `size` bytes.
  void* Bytes(int64_t count, size_t size);

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// A block kept from call to call, since the system clears every page that it hands out.
// Aligned to a cache line; what it holds is not defined.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // To be called once. Throws std::bad_alloc.
  char* Reserve(size_t bytes);

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace lstm

#endif  // LSTM_JAX_MEMORY_ARENA_H_
