// The families, one data file each.
#pragma once

#include <span>

#include "models/schema.h"

namespace reshard {

std::span<const Family* const> Families();

}  // namespace reshard
