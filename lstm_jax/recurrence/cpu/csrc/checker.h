// What the doors check of a buffer.
#ifndef LSTM_JAX_CHECKER_H_
#define LSTM_JAX_CHECKER_H_

#include <initializer_list>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace lstm {

namespace ffi = xla::ffi;

// Compares buffers with what they should be, and remembers the first that is not.
class Checker {
 public:
  using Dims = std::initializer_list<int64_t>;

  // The buffer's data; null if the buffer is empty, which only `optional` ones may be.
  template <class T>
  T* Check(const char* name, const ffi::AnyBuffer& buffer, ffi::DataType type,
           Dims dims, bool optional = false) {
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

  void Fail(const char* name, const ffi::AnyBuffer& buffer, ffi::DataType type,
            Dims dims) {
    if (!error_.empty()) return;
    error_ = std::string("lstm_jax: buffer ") + name + ": expected " +
             Text(static_cast<int>(type), dims) + ", got " +
             Text(static_cast<int>(buffer.element_type()), buffer.dimensions()) + ".";
  }

  std::string error_;
};

}  // namespace lstm

#endif  // LSTM_JAX_CHECKER_H_
