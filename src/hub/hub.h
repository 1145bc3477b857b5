// Models of the HuggingFace hub that lie on this machine already. Nothing is downloaded.
#pragma once

#include <optional>
#include <string>

#include "base/io.h"

namespace reshard {

// The folder of `name`: itself where it is a folder, else its snapshot (revision main) in the local hub cache, which
// the environment places, as for transformers 4 (TRANSFORMERS_CACHE and its older names, HF_HUB_CACHE,
// HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HOME). Nothing where there is
// neither.
std::optional<std::string> FindModel(Io& io, const std::string& name);

// The cache folder that FindModel looks into, for messages.
std::string HubCache();

}  // namespace reshard
