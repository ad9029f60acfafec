#include "memory/pages.h"

#include <sys/mman.h>

#include "tuning.h"

namespace lstm {

void AskForLargePagesIn(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 4096;
  if (data == nullptr || bytes < tuning::kLargePagesWorth) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & -kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & -kPage;
  // Where the system has none, the pages stay small.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

}  // namespace lstm
