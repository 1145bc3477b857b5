// model_config.yaml of NeMo 1: what it means, and the one that the HuggingFace converters of NeMo-Skills write.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "base/json.h"
#include "models/kinds/config_reader.h"
#include "models/kinds/megatron_keys.h"
#include "models/model.h"

namespace reshard {

constexpr std::string_view kShareEmbeddings = "share_embeddings_and_output_weights";
constexpr std::string_view kDistFormat = "dist_ckpt_format";

// What a NeMo config leaves open, from a user or a template.
struct NemoHints {
  std::string model_type;  // a group of families; empty: any
  const Model* template_model = nullptr;
  std::optional<uint64_t> vocab_size;
};

// The array of the embedding: its rows, and how many tensor ranks saved it, a chunk each.
struct NemoEmbedding {
  uint64_t rows = 0, ranks = 1;
};

// What a NeMo config leaves open although it was asked; empty where it is sure.
struct NemoDoubts {
  std::string vocabulary;  // how many rows are the vocabulary's: all are taken for it
  std::string padding;     // why the rows behind the vocabulary are more than Megatron's padding
};

// The model of a config. Errors: kUnsupported (an activation, norm or another setting that is not handled, experts),
// kMismatch (no family has these biases and norms; a template of another model; vocabularies that contradict one
// another or the rows), kCorrupt (a key of a wrong type).
Model ModelFromNemoConfig(const Json& config, const std::string& path, const NemoEmbedding& embedding,
                          const NemoHints& hints, NemoDoubts& doubts);

struct NemoConfigOptions {
  Dtype dtype = Dtype::kBF16;
  std::string tokenizer_name;      // of the hub, or a folder
  std::string tokenizer_artifact;  // a file's name in the checkpoint, with the hash before it; empty: none
  bool rope_config_only = false;   // store rope settings that no NeMo model reads
  std::string_view dist_format;    // of the weights: zarr or torch_dist; of files of ranks what training will write
  bool exact_vocabulary = false;   // the tables have no padding, and NeMo is to add none
  uint64_t tp = 1, pp = 1;         // ranks that the weights are cut into
};

// The text of model_config.yaml. Errors: kUnsupported for what a NeMo 1 model has no place for, named: rope settings,
// attention biases without MLP biases, windows that differ from layer to layer.
std::string NemoConfigText(const Model& model, const NemoConfigOptions& options);

// Copies of the text of a model_config.yaml with another precision; with embeddings that are not shared; with
// another format of the weights; with other numbers of ranks. Errors:
// kUnsupported where there is no such key at the top.
std::string WithNemoPrecision(const std::string& text, Dtype dtype, const std::string& path);
std::string WithNemoRanks(const std::string& text, uint64_t tp, uint64_t pp, const std::string& path);
std::string WithNemoUntied(const std::string& text, const std::string& path);
std::string WithNemoDistFormat(const std::string& text, std::string_view format, const std::string& path);

// -- what the configs of all Megatron models have in common -----------------------------------------------------------

// Errors: kUnsupported where the text, or `otherwise` without one, is none that is handled.
void RequireText(const ConfigReader& reader, std::string_view key, std::string_view otherwise,
                 std::initializer_list<std::string_view> handled);

// What a config says that families differ in, besides the keys of their own.
struct NemoTraits {
  std::set<std::string_view> flags;
  const Activation* activation = nullptr;
  bool window = false, local_rope = false, partial_rotation = false, rope_interleaved = false;
};

// The family that has exactly these traits and keys: that of the template, else the one that kFamilyKey says, else
// `likely` (null: none), else the first.
// Errors: kMismatch where there is none.
const Family& NemoFamilyOf(const ConfigReader& reader, const NemoTraits& traits, MegatronDialectOf dialect,
                           const Family* likely, const NemoHints& hints);

// Says in a config, under a key that Megatron does not know, of which family it is, where readers would take it for
// another that computes the same.
constexpr const char* kFamilyKey = "hf_model_type";
bool IsTakenForAnother(const Model& model, const ConfigReader& reader, const NemoTraits& traits,
                       MegatronDialectOf dialect);

// What the rotation's settings say in both dialects, but for its scaling: rotary_base, which is a list of two where
// layers with a window have one of their own, and the share of a head under the key `percent`.
void ReadRotation(const ConfigReader& reader, std::string_view percent, HyperParameters& hyper, NemoTraits& traits);
Json RotaryBase(const HyperParameters& hyper);

// The factor of linear scaling where rotary_base is a list, or null; the key of that factor in a family's config.
Json LinearFactor(const ConfigReader& reader);
std::string_view LinearFactorKey(const Family& family);

// The tokens before the present one by `window_size`, or null: all. `counts_itself`: it is one number, of those tokens
// and the present one.
Json WindowOf(const ConfigReader& reader, bool* counts_itself = nullptr);

// Whether norm weights are stored minus one by the config; whether a model's are in a new checkpoint.
bool ReadsZeroCentred(const ConfigReader& reader);
bool WritesZeroCentred(const Family& family, MegatronDialectOf dialect);
constexpr const char* kZeroCentred = "layernorm_zero_centered_gamma";

// The rows of the embedding that are the vocabulary's: what is claimed, by all alike; else all, which is sure only
// where they cannot be padded. `key` is the config's own claim. It may count padded rows too (NeMo makes exactly that
// many), but then they are those that Megatron's padding gives.
uint64_t VocabularyOf(const ConfigReader& reader, std::string_view key, const NemoEmbedding& embedding,
                      const NemoHints& hints, NemoDoubts& doubts);

// make_vocab_size_divisible_by as the converters choose it: no row of padding.
uint64_t VocabularyDivisor(uint64_t vocabulary);

// A rope scaling for a message; without what lists it has.
std::string ScalingInWords(const Json& scaling);

// The llama3 scaling whose constants Megatron-core and NeMo have, with another factor.
Json Llama3Scaling(const Json& factor);

}  // namespace reshard
