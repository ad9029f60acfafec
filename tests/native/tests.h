// What the tests share.
#ifndef LSTM_JAX_TESTS_TESTS_H_
#define LSTM_JAX_TESTS_TESTS_H_

#include <cstdio>

namespace lstm {

struct Tally {
  int passed = 0;
  int failed = 0;

  void Add(bool ok) { ++(ok ? passed : failed); }

  void Expect(bool ok, const char* what) {
    if (!ok) std::printf("not so: %s\n", what);
    Add(ok);
  }
};

void TestKernels(int cases, Tally& tally);
void TestQuantized(int cases, Tally& tally);
void TestThreads(Tally& tally);
void TestDispatch(Tally& tally);

}  // namespace lstm

#define LSTM_EXPECT(tally, condition) (tally).Expect((condition), #condition)

#endif  // LSTM_JAX_TESTS_TESTS_H_
