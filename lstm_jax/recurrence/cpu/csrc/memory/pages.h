// The pages of memory that is new.
#ifndef LSTM_JAX_MEMORY_PAGES_H_
#define LSTM_JAX_MEMORY_PAGES_H_

namespace lstm {

// Writes a zero into each page of [begin, end), which holds nothing yet. The system
// makes a page when it is first written, and threads that ask for the same one wait for
// each other: so each asks for its own before they write side by side.
template <class T>
inline void TouchPages(T* begin, T* end) {
  constexpr auto kPage = 4096 / sizeof(T);
  for (T* at = begin; at < end; at += kPage) *at = T{};
}

}  // namespace lstm

#endif  // LSTM_JAX_MEMORY_PAGES_H_
