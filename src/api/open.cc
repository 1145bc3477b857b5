#include "api/open.h"

#include <fmt/format.h>

#include "api/memory.h"
#include "hub/hub.h"

namespace reshard {
namespace {

// The folder of --hf_model_name where a source that is no HuggingFace folder needs one as its template.
std::string TemplateFolder(Io& io, const std::string& name) {
  if (name.empty()) return "";
  std::optional<std::string> folder = FindModel(io, name);
  if (!folder)
    throw Error(
        Code::kNotFound,
        fmt::format(
            "it is neither a folder nor in the local hub cache {}, expected config and tokenizer there; download the "
            "model, give its folder, or leave --hf_model_name out to have config.json derived",
            HubCache()))
        .At("reading the template", name);
  return *folder;
}

}  // namespace

OpenOptions OpenOptionsFor(Io& io, const std::string& path, const SourceHints& hints, const RunOptions& run,
                           unsigned checkpoints, std::string_view kind) {
  OpenOptions open = OpenWithin(run, checkpoints);
  open.model_type = hints.model_type;
  open.vocab_size = hints.vocab_size;
  if (DetectKind(io, path, kind).name != kHuggingFace.name)
    open.template_path = TemplateFolder(io, hints.hf_model_name);
  return open;
}

}  // namespace reshard
