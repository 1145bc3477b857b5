#include "models/families/families.h"

// A row for each family: what its data file defines. Where a checkpoint does not say its family, the first that fits is
// taken.
#define RESHARD_FAMILIES(ROW) \
  ROW(kLlama)                 \
  ROW(kMistral)               \
  ROW(kMinistral3)            \
  ROW(kQwen2)                 \
  ROW(kQwen3)                 \
  ROW(kMixtral)               \
  ROW(kQwen2Moe)              \
  ROW(kQwen3Moe)              \
  ROW(kPhi3)                  \
  ROW(kGemma)                 \
  ROW(kGemma2)                \
  ROW(kGranite)               \
  ROW(kSmolLm3)               \
  ROW(kSeedOss)               \
  ROW(kErnie45)               \
  ROW(kInternlm3)             \
  ROW(kGemma3)

namespace reshard {

#define RESHARD_DECLARE(family) extern const Family family;
RESHARD_FAMILIES(RESHARD_DECLARE)
#undef RESHARD_DECLARE

std::span<const Family* const> Families() {
#define RESHARD_ADDRESS(family) &family,
  static constexpr const Family* kFamilies[] = {RESHARD_FAMILIES(RESHARD_ADDRESS)};
#undef RESHARD_ADDRESS
  return kFamilies;
}

}  // namespace reshard
