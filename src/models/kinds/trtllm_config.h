// config.json of TensorRT-LLM checkpoints (docs/formats/trtllm.md).
#pragma once

#include <string>

#include "base/json.h"
#include "models/kinds/kind.h"

namespace reshard {

// The model of a config, and how its checkpoint is cut. What the config has no key for (HyperParameters' window and
// initializer range, whether head and embedding are one) has the family's default, none and no. Errors: kUnsupported (a
// class or a quantisation that is not read), kMismatch, kCorrupt.
Model ModelFromTrtllmConfig(const Json& config, const std::string& path);
TrtllmOptions CutOfTrtllmConfig(const Json& config, const std::string& path);

// Whether NeMo's exporter wrote the config: its vocabulary counts the padding of NeMo's tables.
bool IsOfNemoExporter(const Json& config);

// What the config leaves to trtllm-build to quantise is left to it again, unless the options ask for something else.
// Errors: kUnsupported, what a target's config could not say again.
void KeepDeferred(const Json& config, const std::string& path, TrtllmOptions& options);

// The text that TensorRT-LLM's own conversion writes: 4 spaces, no newline at the end. `source`: what of the
// weights is carried over as it is quantised. `hf_config`, a config.json of transformers or null, gives the order of
// the rope scaling's keys. Errors: kUnsupported, rope scaling of a type that it does not know.
std::string TrtllmConfigText(const Model& model, const TrtllmOptions& options, const QuantisedWeights& source,
                             Dtype dtype, const Json& hf_config, const std::string& path);

// Fills in what of moe_tp and moe_ep is 0. Errors: kMismatch where they do not make the tensor ranks.
void SettleExperts(TrtllmOptions& options, const std::string& path);

// Ranks of a checkpoint that is cut so, tensor ranks fastest; `vocab_rows` as Rank has them. Errors: kUnsupported (a
// family or biases that TensorRT-LLM does not have), kMismatch (what does not divide; the message
// ends with `remedy`).
std::vector<Rank> TrtllmRanks(const Model& model, uint64_t vocab_rows, const TrtllmOptions& cut,
                              const std::string& path, std::string_view remedy);

}  // namespace reshard
