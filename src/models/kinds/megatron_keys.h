// What a family's tables say of Megatron's configs: its own keys, those that it has at one value, its activation and
// its layer plan. Used by every kind whose config is Megatron's, in either dialect.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/json.h"
#include "models/kinds/config_reader.h"
#include "models/model.h"

namespace reshard {

using MegatronDialectOf = FixedKey::Where;  // kMcore: megatron-core's own names; kNemo: model_config.yaml

// How Megatron says an activation.
struct Activation {
  std::string_view hf;
  std::string_view nemo, nemo_read;  // `activation` of model_config.yaml: what is written, and another that is read
  bool openai_gelu;                  // the switch beside it
  std::string_view mcore;            // the function's dotted name
};
std::span<const Activation> Activations();
const Activation& ActivationOf(const Family& family);

// The first of all keys that some family knows by which the config is not of this one, with its value: sizes and
// hyper-parameters that only others have are absent or neutral, and keys at one value have that value. Empty: none.
std::string MisfittingKey(const Family& family, const ConfigReader& reader, MegatronDialectOf dialect);

// Sets the family's keys and its layer plan in a config. `no_place` is called with what has none.
void SetKeys(const Model& model, MegatronDialectOf dialect, const std::function<void(const std::string&)>& no_place,
             Json& config);

// Reads sizes, hyper-parameters and the layer plan of a model whose family and other sizes are known. Errors: kCorrupt
// for a value of a wrong type or size, kMismatch for a layer plan of another length.
void ReadKeys(const ConfigReader& reader, MegatronDialectOf dialect, Model& model);

}  // namespace reshard
