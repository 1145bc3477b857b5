#include "models/kinds/megatron_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "models/families/families.h"

namespace reshard {
namespace {

using Where = FixedKey::Where;

constexpr Activation kActivations[] = {
    {"silu", "fast-swiglu", "swiglu", false, "torch.nn.functional.silu"},
    {"gelu_pytorch_tanh", "fast-geglu", "geglu", true, "megatron.core.activations.fast_gelu"},
};

constexpr const char* kLayerFrequency = "moe_layer_freq";

// -- keys with dots ---------------------------------------------------------------------------------------------------

const Json& At(const Json& config, std::string_view key) {
  static const Json kNull;
  const size_t dot = key.find('.');
  const auto found = config.is_object() ? config.find(key.substr(0, dot)) : config.end();
  if (found == config.end()) return kNull;
  return dot == key.npos ? *found : At(*found, key.substr(dot + 1));
}

void Set(Json& config, std::string_view key, Json value) {
  const size_t dot = key.find('.');
  Json& place = config[std::string(key.substr(0, dot))];
  if (dot == key.npos) {
    place = std::move(value);
  } else {
    Set(place, key.substr(dot + 1), std::move(value));
  }
}

std::string_view NameOf(const ConfigKey& key, Where dialect) {
  return dialect == Where::kNemo && !key.nemo.empty() ? key.nemo : key.mcore;
}

// -- values -----------------------------------------------------------------------------------------------------------

// The divisor of attention's logits that Megatron has where it is told none, squared.
bool IsOfHead(const Json& scalar, const Sizes& sizes) { return scalar == sizes['D']; }

Json ToMegatron(const ConfigKey& key, const Json& value, const Sizes& sizes) {
  switch (key.change) {
    case Change::kNone:
      return value;
    case Change::kNot:
      return value.is_boolean() ? Json(!value.get<bool>()) : value;
    case Change::kInverseSquareRoot:
      return value.is_null() || IsOfHead(value, sizes) ? Json() : Json(1.0 / std::sqrt(value.get<double>()));
    case Change::kScale:
      return value == 1.0 / std::sqrt(static_cast<double>(sizes['D'])) ? Json() : value;
  }
  throw Error(Code::kInternal, "a change without a case");
}

// The number whose inverse square root is `scale`: a whole one, as configs have it, where that is as near.
Json InverseSquare(double scale) {
  const double square = 1.0 / (scale * scale), whole = std::round(square);
  return 1.0 / std::sqrt(whole) == scale || std::abs(square - whole) < 1e-9 ? Json(static_cast<uint64_t>(whole))
                                                                            : Json(square);
}

Json FromMegatron(const ConfigKey& key, const ConfigReader& reader, std::string_view name, const Sizes& sizes) {
  Json value = At(reader.config(), name);
  if (value.is_null() && !key.absent.empty()) value = Json::parse(key.absent);
  if (value.is_structured() || value.is_string())
    throw Error(Code::kCorrupt, fmt::format("'{}' is {}, expected a number or a truth value", name, value.dump()))
        .At("reading", reader.path());
  if (key.change == Change::kNot) return value.is_boolean() ? Json(!value.get<bool>()) : value;
  const bool scale = key.change == Change::kInverseSquareRoot || key.change == Change::kScale;
  if (!scale) return value;
  if (!value.is_null() && (!value.is_number() || !(value.get<double>() > 0)))
    throw Error(Code::kCorrupt, fmt::format("'{}' is {}, expected a number above 0", name, value.dump()))
        .At("reading", reader.path());
  if (key.change == Change::kScale)
    return value.is_null() ? Json(1.0 / std::sqrt(static_cast<double>(sizes['D']))) : value;
  return value.is_null() ? Json(sizes['D']) : InverseSquare(value.get<double>());
}

// -- which family -----------------------------------------------------------------------------------------------------

bool IsRead(const FixedKey& key, Where dialect) {
  return !key.absent.empty() && (key.where == Where::kBoth || key.where == dialect);
}

const FixedKey* FindFixed(const Family& family, std::string_view key, Where dialect) {
  auto found = std::find_if(family.fixed.begin(), family.fixed.end(),
                            [&](const FixedKey& row) { return row.key == key && IsRead(row, dialect); });
  return found == family.fixed.end() ? nullptr : &*found;
}

bool HasKey(const Family& family, std::string_view name, Where dialect) {
  return std::any_of(family.keys.begin(), family.keys.end(),
                     [&](const ConfigKey& key) { return NameOf(key, dialect) == name; });
}

Json Meant(const Json& config, const FixedKey& key) {
  const Json& found = At(config, key.key);
  return found.is_null() ? Json::parse(key.absent) : found;
}

// -- layer plans ------------------------------------------------------------------------------------------------------

// Which layers have experts: every so manieth, from the first on, or a list of truth values.
std::vector<LayerKind> PlanOf(const ConfigReader& reader, const Model& model) {
  const uint64_t layers = model.sizes['L'];
  if (!model.sizes['E']) return std::vector<LayerKind>(layers, LayerKind::kDense);
  const Json& frequency = reader.At(kLayerFrequency);
  const uint64_t every = frequency.is_array() ? 1 : reader.Size(kLayerFrequency, 1);
  if (frequency.is_array() && frequency.size() != layers)
    throw Error(Code::kMismatch, fmt::format("{} has {} numbers, expected one for each of {} layers", kLayerFrequency,
                                             frequency.size(), layers))
        .At("reading", reader.path());
  std::vector<LayerKind> plan;
  for (uint64_t layer = 0; layer < layers; ++layer) {
    const bool moe = frequency.is_array() ? frequency[layer] == 1 || frequency[layer] == true : layer % every == 0;
    plan.push_back(moe ? LayerKind::kMoe : LayerKind::kDense);
  }
  return plan;
}

void SetPlan(const Model& model, Json& config) {
  if (!model.sizes['E']) return;
  if (model.IsUniform() && model.layers[0] == LayerKind::kMoe) {
    config[kLayerFrequency] = 1;
    return;
  }
  Json plan = Json::array();
  for (LayerKind kind : model.layers) plan.push_back(kind == LayerKind::kMoe ? 1 : 0);
  config[kLayerFrequency] = std::move(plan);
}

}  // namespace

std::span<const Activation> Activations() { return kActivations; }

const Activation& ActivationOf(const Family& family) {
  for (const Activation& row : kActivations)
    if (row.hf == family.act) return row;
  throw Error(Code::kInternal, "a family's activation has no row");
}

std::string MisfittingKey(const Family& family, const ConfigReader& reader, MegatronDialectOf dialect) {
  const Json& config = reader.config();
  auto misfit = [&](std::string_view key) { return fmt::format("{} {}", key, At(config, key).dump()); };
  for (const ConfigKey& key : family.keys)
    if (const auto name = NameOf(key, dialect); key.size && !key.neutral.empty() && At(config, name).is_null())
      return misfit(name);
  for (const Family* other : Families()) {
    for (const FixedKey& key : other->fixed) {
      if (!IsRead(key, dialect) || HasKey(family, key.key, dialect)) continue;
      const FixedKey* own = FindFixed(family, key.key, dialect);
      if (Meant(config, key) != Json::parse(own ? own->value : key.absent)) return misfit(key.key);
    }
    for (const ConfigKey& key : other->keys) {
      const std::string_view name = NameOf(key, dialect);
      if (key.neutral.empty() || name.empty() || HasKey(family, name, dialect) || FindFixed(family, name, dialect))
        continue;
      const Json& found = At(config, name);
      if (!found.is_null() && found != ToMegatron(key, Json::parse(key.neutral), {})) return misfit(name);
    }
  }
  return {};
}

void SetKeys(const Model& model, MegatronDialectOf dialect, const std::function<void(const std::string&)>& no_place,
             Json& config) {
  for (const ConfigKey& key : model.family->keys) {
    const std::string_view name = NameOf(key, dialect);
    if (key.size) {
      Set(config, name, model.sizes[key.size]);
      continue;
    }
    const Json value = model.hyper.more.value(key.hf, Json());
    if (!name.empty()) {
      Set(config, name, ToMegatron(key, value, model.sizes));
    } else if (key.neutral.empty() || value != Json::parse(key.neutral)) {
      no_place(fmt::format("{} {}", key.hf, value.dump()));
    }
  }
  for (const FixedKey& key : model.family->fixed)
    if (key.where == Where::kBoth || key.where == dialect) Set(config, key.key, Json::parse(key.value));
  SetPlan(model, config);
}

void ReadKeys(const ConfigReader& reader, MegatronDialectOf dialect, Model& model) {
  for (const ConfigKey& key : model.family->keys) {
    const std::string_view name = NameOf(key, dialect);
    if (key.size) {
      model.sizes[key.size] = reader.Size(name, key.size == 'M' ? model.sizes['F'] : 0);
    } else {
      model.hyper.more[std::string(key.hf)] =
          name.empty() ? Json::parse(key.neutral) : FromMegatron(key, reader, name, model.sizes);
    }
  }
  model.layers = PlanOf(reader, model);
}

}  // namespace reshard
