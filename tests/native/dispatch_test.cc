// The choice of an instruction set.
#include "dispatch.h"

#include <string>

#include "tests.h"

namespace lstm {
namespace {

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

void TestDispatch(Tally& tally) {
  const Choice best = ChooseKernels(nullptr);
  LSTM_EXPECT(tally, best.kernels != nullptr && best.error.empty());
  LSTM_EXPECT(tally, ChooseKernels("").kernels == best.kernels);
  for (const Isa& isa : KnownIsas()) {
    const Choice one = ChooseKernels(isa.name);
    const bool can_run = isa.kernels && isa.runs;
    LSTM_EXPECT(tally, one.kernels == (can_run ? isa.kernels : nullptr));
    LSTM_EXPECT(tally, one.error.empty() == can_run);
    LSTM_EXPECT(tally, !can_run || std::string(isa.name) == isa.kernels->name);
  }
  for (const char* unknown : {"avx", "AVX2", "avx2 ", "avx1024"}) {
    const Choice none = ChooseKernels(unknown);
    LSTM_EXPECT(tally, none.kernels == nullptr && KernelsNamed(unknown) == nullptr);
    LSTM_EXPECT(tally, Has(none.error, std::string("got '") + unknown + "'"));
    LSTM_EXPECT(tally, Has(none.error, best.kernels->name));
  }
}

}  // namespace lstm
