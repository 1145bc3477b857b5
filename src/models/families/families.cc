#include "models/families/families.h"

namespace reshard {

std::span<const Family* const> Families() {
  static constexpr const Family* kFamilies[] = {&kLlama, &kMistral, &kQwen2, &kQwen3};
  return kFamilies;
}

}  // namespace reshard
