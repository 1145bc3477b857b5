// A model as its config describes it: the family, the sizes that give every part its shape, and the hyper-parameters
// that shape no tensor but must survive a conversion.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "models/schema.h"
#include "tensor/dims.h"

namespace reshard {

// One extent for each letter of schema.h.
class Sizes {
 public:
  uint64_t& operator[](char symbol) { return values_[static_cast<size_t>(symbol - 'A')]; }
  uint64_t operator[](char symbol) const { return values_[static_cast<size_t>(symbol - 'A')]; }

 private:
  std::array<uint64_t, 26> values_{};
};

// Numbers are kept as the config spells them (an integer stays one), in transformers' terms.
struct HyperParameters {
  Json rms_norm_eps, rope_theta, initializer_range, max_position_embeddings;
  Json rope_scaling;    // null, or an object with `rope_type` and the fields of that type
  Json sliding_window;  // null, or the number of tokens that every layer sees
  std::string hidden_act;
  Json rope_local_theta = nullptr;  // null, or the base of layers with a window
  Json rotary_percent = 1.0;        // the share of each head that is rotated
  // What other kinds have no place for in any model of the family, in words; empty where there is nothing.
  std::string hf_only;
  Json more = Json::object();  // the family's own keys, by their names in config.json
};

struct Model {
  const Family* family = nullptr;
  Sizes sizes;
  std::vector<std::string_view> flags;  // those that are set
  bool tied = false;                    // head and embedding are one part
  std::vector<LayerKind> layers;        // the layer plan: one for each layer
  HyperParameters hyper;

  bool Has(std::string_view flag) const;
  // Whether its layers are all of one kind, so that one tensor can hold them all.
  bool IsUniform() const;
};

// A row that a model has, and its shape there.
struct ModelRow {
  const PartRow* row = nullptr;
  Dims shape;
  LayerKinds on = kAllLayers;

  bool IsOn(LayerKind kind) const { return (on & static_cast<LayerKinds>(kind)) != 0; }
};

// The rows whose flags are set, in table order.
std::vector<ModelRow> RowsOf(const Model& model);

// How many parts it has.
uint64_t PartsOf(const Model& model);

// Elements of all parts, each once however often it is stored: what people call the size of a model.
uint64_t ParametersOf(const Model& model);

// The part that a row is in a layer and for an expert; -1 where the row's scope has none.
struct PartKey {
  uint32_t row = 0;  // index into RowsOf
  int32_t layer = -1, expert = -1;

  friend auto operator<=>(const PartKey&, const PartKey&) = default;
};

// The layer plan by a family's rule. `config`, of the file `path`, gives the keys of the rule (config.json's names).
// Errors: kCorrupt where one is no whole number of at least 0.
std::vector<LayerKind> LayerPlan(const Family& family, uint64_t layers, const Json& config, const std::string& path);

// Fills in the head size where it is 0 (hidden size / heads), and checks that the heads' sizes fit together. The names
// are the config's keys, for messages. Errors: kMismatch with both numbers.
void CompleteSizes(Model& model, std::string_view heads_key, std::string_view groups_key, const std::string& path);

// Problems of a block, in words: a kind that holds a part not exactly once; a layout of an unknown role; a count that
// does not divide its members' extents in every model (numbers above 1 are up to the model); members that do not fit
// together. Empty for a table that is right; tests walk every family with it.
std::vector<std::string> CheckBlock(const Block& block);

}  // namespace reshard
