// Waiting for other threads, awake.
#ifndef LSTM_JAX_THREADS_WAIT_H_
#define LSTM_JAX_THREADS_WAIT_H_

#include <sched.h>

#include "tuning.h"

namespace lstm {

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
void WaitUntil(Done done) {
  for (int spin = 0; !done(); ++spin) {
    if (spin < tuning::kSpins) {
      Pause();
    } else {
      sched_yield();
    }
  }
}

}  // namespace lstm

#endif  // LSTM_JAX_THREADS_WAIT_H_
