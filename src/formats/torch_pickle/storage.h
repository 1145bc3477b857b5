// The storage classes of torch, by name: what type of element each has.
#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <string_view>

#include "tensor/dtype.h"

namespace reshard::torch_pickle {

struct StorageRow {
  std::string_view name;
  Dtype dtype;
};

// Other types have kUntyped and are named besides.
inline constexpr StorageRow kStorages[] = {
    {"FloatStorage", Dtype::kF32},  {"HalfStorage", Dtype::kF16},         {"BFloat16Storage", Dtype::kBF16},
    {"DoubleStorage", Dtype::kF64}, {"LongStorage", Dtype::kI64},         {"IntStorage", Dtype::kI32},
    {"ShortStorage", Dtype::kI16},  {"CharStorage", Dtype::kI8},          {"ByteStorage", Dtype::kU8},
    {"BoolStorage", Dtype::kBool},  {"ComplexFloatStorage", Dtype::kC64},
};
inline constexpr std::string_view kUntyped = "UntypedStorage";

template <typename Match>
const StorageRow* FindStorage(Match match) {
  const auto* row = std::find_if(std::begin(kStorages), std::end(kStorages), match);
  return row == std::end(kStorages) ? nullptr : row;
}

}  // namespace reshard::torch_pickle
