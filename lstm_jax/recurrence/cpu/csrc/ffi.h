// What every door to XLA needs: buffers, their checks, and the call of a kernel.
#ifndef LSTM_JAX_FFI_H_
#define LSTM_JAX_FFI_H_

#include <cstdlib>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>

#include "dispatch.h"
#include "threads/cpus.h"
#include "threads/executor.h"
#include "threads/pool.h"
#include "xla/ffi/api/ffi.h"

namespace lstm {

namespace ffi = xla::ffi;
using ffi::AnyBuffer;
using ffi::DataType;

class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool pool) : pool_(std::move(pool)) {}
  int threads() const override { return static_cast<int>(pool_.num_threads()); }
  void Schedule(std::function<void()> task) override {
    pool_.Schedule(std::move(task));
  }

 private:
  ffi::ThreadPool pool_;
};

// Compares buffers with what they should be, and remembers the first that is not.
class Checker {
 public:
  using Dims = std::initializer_list<int64_t>;

  // The buffer's data; null if the buffer is empty, which only `optional` ones may be.
  template <class T>
  T* Check(const char* name, const AnyBuffer& buffer, DataType type, Dims dims,
           bool optional = false) {
    if (optional && buffer.element_count() == 0) return nullptr;
    bool same =
        buffer.element_type() == type && buffer.dimensions().size() == dims.size();
    for (size_t n = 0; same && n < dims.size(); ++n) {
      same = buffer.dimensions()[n] == dims.begin()[n];
    }
    if (!same) Fail(name, buffer, type, dims);
    return static_cast<T*>(buffer.untyped_data());
  }

  void Require(bool condition, const char* message) {
    if (!condition && error_.empty()) error_ = message;
  }

  ffi::Error Result() const {
    return error_.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(error_);
  }
  bool failed() const { return !error_.empty(); }

 private:
  template <class List>
  static std::string Text(int type, const List& dims) {
    std::string text = "dtype " + std::to_string(type) + " [";
    for (const int64_t dim : dims) text += std::to_string(dim) + ",";
    text.back() = ']';
    return text;
  }

  void Fail(const char* name, const AnyBuffer& buffer, DataType type, Dims dims) {
    if (!error_.empty()) return;
    error_ = std::string("lstm_jax: buffer ") + name + ": expected " +
             Text(static_cast<int>(type), dims) + ", got " +
             Text(static_cast<int>(buffer.element_type()), buffer.dimensions()) + ".";
  }

  std::string error_;
};

template <class Scalar>
constexpr DataType kType = DataType::F32;
template <>
constexpr DataType kType<BFloat16> = DataType::BF16;

// Of saved gates; see problem.h.
template <class Scalar>
constexpr DataType kGates = sizeof(Scalar) == 4 ? DataType::U32 : DataType::U16;

// Buffers of one direction; a call has those of one direction after those of the other.
class Buffers {
 public:
  Buffers(const ffi::RemainingArgs& args, const ffi::RemainingRets& rets,
          size_t first_arg, size_t first_ret)
      : args_(args), rets_(rets), first_arg_(first_arg), first_ret_(first_ret) {}

  AnyBuffer Arg(size_t n) const { return *args_.get<AnyBuffer>(first_arg_ + n); }
  AnyBuffer Ret(size_t n) const { return **rets_.get<AnyBuffer>(first_ret_ + n); }

 private:
  const ffi::RemainingArgs& args_;
  const ffi::RemainingRets& rets_;
  size_t first_arg_;
  size_t first_ret_;
};

// Checks all directions of a call, and runs them. Bit n of `reverse` is direction n's.
template <size_t kArgs, size_t kRets, class CheckProblem, class Problem>
ffi::Error RunChecked(ffi::ThreadPool threads, int64_t reverse,
                      const ffi::RemainingArgs& args, const ffi::RemainingRets& rets,
                      CheckProblem check_problem,
                      void (*kernel)(const Problem*, int, Executor&)) {
  const size_t count = args.size() / kArgs;
  Problem problems[kMostProblems] = {};
  for (size_t n = 0; n < count; ++n) {
    Checker check;
    const Buffers buffers(args, rets, n * kArgs, n * kRets);
    check_problem(buffers, reverse >> n & 1, check, problems[n]);
    if (check.failed()) return check.Result();
  }
  XlaPool pool(std::move(threads));
  std::string error;
  const int limit = ThreadLimit(std::getenv("LSTM_JAX_NUM_THREADS"),
                                AvailableThreads(pool.threads()), &error);
  if (limit == 0) return ffi::Error::InvalidArgument(error);
  Executor executor(&pool, limit);
  try {
    kernel(problems, static_cast<int>(count), executor);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "lstm_jax: out of memory.");
  }
  return ffi::Error::Success();
}

// Refuses a call with another number of buffers before any of them is looked at.
template <size_t kArgs, size_t kRets>
bool Counted(const ffi::RemainingArgs& args, const ffi::RemainingRets& rets) {
  const size_t count = args.size() / kArgs;
  return count >= 1 && count <= kMostProblems && args.size() == count * kArgs &&
         rets.size() == count * kRets;
}

inline const char kWrongCount[] =
    "lstm_jax: wrong number of buffers. Were the kernels compiled from other sources "
    "than "
    "these? Install lstm_jax again.";

inline auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int64_t>("reverse")
      .RemainingArgs()
      .RemainingRets();
}

}  // namespace lstm

#define LSTM_EXPORT extern "C" __attribute__((visibility("default")))

#endif  // LSTM_JAX_FFI_H_
