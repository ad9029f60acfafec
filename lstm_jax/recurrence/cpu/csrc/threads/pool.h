// Where tasks can be handed to: XLA's threads, or a test's own.
#ifndef LSTM_JAX_THREADS_POOL_H_
#define LSTM_JAX_THREADS_POOL_H_

#include <functional>

namespace lstm {

class Pool {
 public:
  virtual ~Pool() = default;
  virtual int threads() const = 0;
  // The task runs at some time on some thread, perhaps after the call is over.
  virtual void Schedule(std::function<void()> task) = 0;
};

}  // namespace lstm

#endif  // LSTM_JAX_THREADS_POOL_H_
