// What the conformance suite knows of a format. A new format is one more row of the table in formats.cc.
#pragma once

#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "archive/layout.h"
#include "base/io.h"
#include "tensor/box.h"

namespace reshard::conformance {

struct Opened {
  std::vector<StoredTensor> tensors;
  std::vector<std::string> files;  // paths, by the chunks' file numbers
};

struct Format {
  std::string_view name;
  std::vector<Dtype> dtypes;  // that it stores; it refuses all others
  // Files carry so much of a tensor's shape twice that no damaged byte can give it another one.
  bool tells_shapes_twice;
  // Files end in padding, and what is cut off that is not missed.
  bool padded;
  // Every byte of every file is someone's: none may follow the last.
  bool owns_whole_files;
  // The files of a folder that holds these tensors (name, dtype and shape count). Fills in their chunks.
  std::vector<FileLayout> (*lay_out)(std::vector<StoredTensor>& tensors);
  // Opens a folder. Headers only.
  Opened (*open)(Io& io, const std::string& folder);
  // A folder below tests/fixtures that another library wrote, and what the tensor of 48 elements in F32 is called there
  // that the suite knows (the final norm of `tied-shared-fp32-zarr`).
  std::string_view sample, sample_tensor;

  friend void PrintTo(const Format& format, std::ostream* out) { *out << format.name; }  // for messages
};

std::span<const Format> Formats();

}  // namespace reshard::conformance
