// NeMo-Skills has an `ns` of its own: what we do not know is for that one.
#pragma once

#include <string>
#include <vector>

namespace reshard::cli {

// Becomes the next `ns` on the PATH that is another program than this one, with the same words; returns where there is
// none.
void RunNextNs(const std::string& command, const std::vector<std::string>& words);

}  // namespace reshard::cli
