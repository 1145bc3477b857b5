// The config classes of NeMo 2 and the defaults of their fields, which io.json leaves out. Data only.
#pragma once

#include <string_view>

#include "base/json.h"
#include "models/schema.h"

namespace reshard {

// A config class by its dotted name.
struct Nemo2Class {
  std::string_view name;    // without modules
  std::string_view parent;  // the class that it extends; empty for the first
  std::span<const ConfigDefault> defaults;
};

// Null where the last part of the name is no known class.
const Nemo2Class* FindNemo2Class(std::string_view dotted_name);

// The defaults of a class and of those that it extends, which it overrides.
Json Nemo2Defaults(const Nemo2Class& of);

// The family whose config the class is, or extends; null where it may be any.
const Family* FamilyOfNemo2Class(const Nemo2Class& of);

}  // namespace reshard
