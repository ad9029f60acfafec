// The kernels without JAX, for sanitizers. Build and run: `make sanitize`.
#include <cstdio>
#include <cstdlib>

#include "tests.h"

int main(int argc, char** argv) {
  lstm::Tally tally;
  lstm::TestThreads(tally);
  lstm::TestDispatch(tally);
  const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
  lstm::TestKernels(cases, tally);
  lstm::TestQuantized(cases, tally);
  std::printf("%d passed, %d failed\n", tally.passed, tally.failed);
  return tally.failed != 0;
}
