// The zip that torch.save writes, for the small objects of a NeMo checkpoint (layout: docs/formats/torch_zip.md).
#pragma once

#include <string>
#include <string_view>

namespace reshard {

// A whole torch zip that holds `pickle` (small, not empty) as its data.pkl and no storage. `stem` is the top directory
// inside it: the file's name without its last extension. Byte for byte what torch 2.13's torch.save(object, path)
// writes.
std::string TorchZip(std::string_view stem, std::string_view pickle);

// Pickles (protocol 2) of None, of an empty dict, and of a list of one None.
extern const std::string_view kPickledNone;
extern const std::string_view kPickledEmptyDict;
extern const std::string_view kPickledListOfNone;

}  // namespace reshard
