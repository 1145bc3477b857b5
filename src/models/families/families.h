// The families, one data file each.
#pragma once

#include <span>
#include <string_view>

#include "models/schema.h"

namespace reshard {

extern const Family kLlama, kMistral, kQwen2, kQwen3;

std::span<const Family* const> Families();

}  // namespace reshard
