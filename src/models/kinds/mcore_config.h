// Configs in megatron-core's own names (TransformerConfig and what GPTModel takes): NeMo 2 and Megatron-Bridge keep
// them, and the arguments of Megatron-LM are brought to them.
#pragma once

#include <string>

#include "base/json.h"
#include "models/kinds/nemo_config.h"
#include "models/model.h"

namespace reshard {

// How a kind's configs differ from one another.
struct McoreDialect {
  std::string_view title;          // "a NeMo 2 model"
  std::string_view refuge;         // where a model stays that has no place there: "the hf kind"
  uint64_t beside_window = 0;      // tokens of a window that window_size does not count: 1, the present one, or none
  const Family* family = nullptr;  // that of the config's class, where it tells
};

// The model of a config, a flat object. Keys that are absent have megatron-core's defaults. Functions and classes are
// texts, their dotted names. Errors: those of ModelFromNemoConfig.
Model ModelFromMcoreConfig(const Json& config, const std::string& path, const McoreDialect& dialect,
                           const NemoEmbedding& embedding, const NemoHints& hints, NemoDoubts& doubts);

// The keys that say what a model is, but for llama3's rope scaling, which every kind says in its own way, and the
// dtype. Errors: kUnsupported for what has no place, named; of a rope scaling that is to be kept beside it (under
// kStoredRope) only.
Json McoreConfigOf(const Model& model, const McoreDialect& dialect, bool keeps_rope = false);
constexpr const char* kStoredRope = "hf_rope_scaling";

// Whether megatron-core computes positions as the model does.
bool HasMcoreRope(const Model& model);

// The name of the model's family where a reader of `config`, complete and with functions as texts, would take another;
// else null. It belongs under kFamilyKey.
Json FamilyToTell(const Model& model, const Json& config);

// A function, class or constant that YAML has as {_target_: its dotted name, _call_: false} becomes that name.
void ReplaceMcoreNames(Json& config);

// Whether the model's positions are scaled as Llama 3.1's; else McoreConfigOf has said all.
bool HasLlama3Rope(const Model& model);

// fp16 and bf16: which of them the weights are.
void SetMcorePrecision(Dtype dtype, Json& config);

// The dotted name of torch's dtype: "torch.bfloat16".
std::string TorchName(Dtype dtype);

// Throws that `what` has no place in a kind's models.
[[noreturn]] void NoPlaceIn(const McoreDialect& dialect, const std::string& what);

}  // namespace reshard
