// Kinds: the ecosystems that a checkpoint can belong to. A kind knows its files, its config and how its ranks share a
// model; the names and packings of tensors are columns of the family tables.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/io.h"
#include "models/model.h"
#include "models/storage.h"
#include "tensor/value_op.h"

namespace reshard {

// The most bytes of a text that becomes a tree: a config, metadata.json.
constexpr uint64_t kMaxTreeBytes = uint64_t{1} << 20;

struct FileCopy {
  std::string from;  // as to be opened
  std::string to;    // relative to the target
};

// What a user knows better than the files.
struct OpenOptions {
  std::string weights_path;   // where a HuggingFace folder's weights are instead: a safetensors file, or a folder
  uint64_t kv_copies = 1;     // how often the tensors of a HuggingFace folder have each key and value head
  std::string model_type;     // a family, or a group of them ("llama", "qwen"); empty: as the files say
  std::string template_path;  // a HuggingFace folder whose config.json is the truth for what other kinds' cannot say
  std::optional<uint64_t> vocab_size;
  uint64_t max_header = 0;                   // bytes of one header, or index, that may be held
  uint64_t max_tree = kMaxTreeBytes;         // bytes of one config
  uint64_t max_tensors = uint64_t{1} << 32;  // of all files together, and twice as many parts
};

// A linear weight that is quantised already.
struct EncodedTensor {
  std::string name;                  // of the plain tensor that it stands for
  std::vector<StoredTensor> stored;  // as Encoded::Stored has them, with their own names
};

struct QuantisedWeights {
  Encoded encoded;                     // plain: there are none
  std::string what, remedy;            // "GPTQ int4"; which conversion takes them
  double fp8_bound = 1200.0;           // of the magnitude of the activations that FP8 weights meet
  std::vector<EncodedTensor> tensors;  // by name
};

// An opened source: headers only. `files` are counted by the chunks' file numbers.
struct Checkpoint {
  std::string folder;
  std::string_view kind, format;  // set by OpenCheckpoint where the reader has not
  Model model;
  std::vector<Rank> ranks;
  std::vector<const Layout*> layouts;  // the forms that the source has
  std::vector<StoredTensor> tensors;   // by rank and name, without the prefix
  QuantisedWeights quantised;          // which of them are not plain
  std::string name_prefix;             // of the tensors' names in these files, which need not be what is written
  std::vector<SourceFile> files;
  std::string config_path, config_text;
  Json config;
  std::vector<std::string> notes;            // what whoever converts it should know
  std::vector<std::string> ignored;          // names of stored tensors that no conversion needs, and of other data
  std::vector<std::string> side_files;       // relative names of what lies beside the weights, config included
  std::string template_path, template_text;  // of OpenOptions, when there is one: its config.json and what that says
  std::vector<FileCopy> template_files;      // its tokenizer, licence and readme files
  std::vector<FileCopy> tokenizer_files;  // those of a tokenizer that it keeps in a folder, as HuggingFace names them
  std::vector<std::string> unsaid;        // hyper-parameters that the kind's config has no key for
  std::string vocabulary_doubt;           // why sizes['V'] may be too large; empty where it is sure
  std::string padding_doubt;              // why rows behind it may be no padding unless zero, and what to do then
};

// How a TensorRT-LLM checkpoint is cut and quantised (docs/formats/trtllm.md).
struct TrtllmOptions {
  enum class Quantisation : uint8_t { kNone, kInt8, kInt4, kFp8Rowwise, kGptq };

  uint64_t tp = 1, pp = 1;
  uint64_t moe_tp = 0, moe_ep = 0;  // ranks that cut each expert, and parts that experts are dealt out to; 0: the rest
  bool parallel_embedding = false;  // cut over tensor ranks
  uint8_t embedding_axis = 0;       // where it is cut: 0 rows, 1 columns; the config says it where it is not, too
  bool share_embedding = false;     // one tensor for embedding and head
  unsigned version = 12;            // minor version of 0.x whose config.json keys are written: 12 to 15
  Quantisation quantisation = Quantisation::kNone;
  unsigned sm = 0;  // of the GPU that weight-only weights are laid out for; 0: left to trtllm-build
  bool weight_only_plugin = true;
  bool fp8_kv_cache = false;
  bool fp8_reciprocal = false;              // FP8 scales as a GPU computes them
  std::optional<uint64_t> group_size;       // GPTQ: as the user expects it
  bool remove_duplicated_kv_heads = false;  // the config says so; OpenOptions::kv_copies does it
};

// What to write.
struct TargetOptions {
  std::optional<Dtype> dtype;   // nothing: every tensor keeps its own
  std::string hf_model_name;    // as the user gave it
  uint64_t max_shard_size = 0;  // bytes
  bool untie_embeddings = false;
  bool rope_config_only = false;  // --allow_rope=config_only
  std::string nemo2_context;      // the folder that becomes a NeMo 2 target's context/; empty: it is made
  std::string_view weights;       // one of Kind::weights, which hold the tensors
  uint64_t tp = 1, pp = 1;        // ranks, where the target is cut into them
  std::string packed;             // the name of the one file that all are packed in; empty: they are not
  TrtllmOptions trtllm;
};

// A tensor of the model that a target stores as what a value op makes of its rows. A part of it lies in consecutive
// rows.
struct DerivedTensor {
  size_t spec = 0;  // its index; the tensor of that index then has no chunks
  ValueOp op;
  std::array<StoredTensor, kValueOutputs> outputs;  // one chunk each, axis 0 the rows; shapes are those of OutputsOf
};

// A target before its data: files in the order of publication, chunks counting files.
struct LaidOut {
  std::vector<FileLayout> files;
  std::vector<DerivedTensor> derived;
  std::vector<FileCopy> copies;   // whole files of the source or the template, published before `files`
  std::vector<std::string> left;  // side files of the source that stay behind
  std::vector<std::string> notes;
};

struct Kind {
  std::string_view name;
  std::string_view title;   // "HuggingFace folder, safetensors"
  std::string_view format;  // of the checkpoints that it opens, where they do not say
  Layouts Block::*layouts;
  std::string_view name_prefix;  // of every tensor's name in files that are written, before the layouts' names
  bool (*detect)(Io& io, const std::string& folder);
  Checkpoint (*open)(Io& io, const std::string& folder, const OpenOptions& options);
  // How `model` is stored there; `source` is what it comes from. Errors: kMismatch where its sizes do not divide.
  std::vector<Rank> (*ranks)(const Model& model, const Checkpoint& source, const TargetOptions& options);
  // Fills in the chunks of `tensors` (which answer to `specs` one to one) and makes all files, configs included.
  LaidOut (*lay_out)(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options,
                     const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors);
  // What to do instead where it does not store weights that are quantised so; nothing where it does. Null: it stores
  // none.
  std::optional<std::string> (*refuses)(const QuantisedWeights& weights, const TargetOptions& options) = nullptr;
  // Whether every tensor whose layout fixes no dtype has the one that the config names.
  bool one_dtype = false;
  std::span<const std::string_view> weights = {};  // the formats of a target, the default first; empty: there is one
  std::string_view packed_as = {};                 // a target whose name ends so is one file, a tar; empty: never
  std::span<const std::string_view> markers;       // files that make a folder a checkpoint of this kind
  // Whether it has a place for models of the family. Null: for those of all.
  bool (*knows)(const Family& family) = nullptr;
  // Whether it names a file of its checkpoints so. Null: names do not tell.
  bool (*owns)(std::string_view name) = nullptr;
};

// In the order in which a folder is asked for its kind.
std::span<const Kind> Kinds();

// How files of a class that holds a text model beside others call what begins with "model." in it.
constexpr std::string_view kTextPrefix = "model.language_model.";

// What messages and plans call a tensor: with its prefix, and the rank where there are several ("rank3/x").
std::string FullName(std::string_view prefix, size_t ranks, uint32_t rank, const std::string& name);

// What stands for a tensor that is not plain; null where there is none.
const EncodedTensor* FindEncoded(const Checkpoint& checkpoint, std::string_view name);

// The tensor of a rank; null where there is none.
const StoredTensor* FindTensor(const Checkpoint& checkpoint, uint32_t rank, std::string_view name);

// Errors: kInvalidArgument where there is none.
const Kind& KindByName(std::string_view name);

// The kind of what lies at `path`: `given`, where that is not empty and the folder may be of it, else the first that it
// may be of. Errors: kNotFound, also where it is nothing that is known; those of KindByName; kMismatch where it is of
// another kind than the given one; kUnsupported for what is recognised but not read (a Megatron-LM checkpoint,
// ...).
const Kind& DetectKind(Io& io, const std::string& path, std::string_view given);

// Opens `path` as the kind that DetectKind finds with `kind` given. Every layout's tensor is there with the right
// shape, and no other tensor is; all problems are gathered into one kMismatch. Takes about 2 KiB of memory a tensor.
// Errors: kUnsupported where there are more tensors or parts than the options allow; the message names --max_memory.
Checkpoint OpenCheckpoint(Io& io, const std::string& path, std::string_view kind, const OpenOptions& options);

extern const Kind kHuggingFace, kNemo, kTrtllm, kNemo2, kMegatron;

bool Exists(Io& io, const std::string& folder, std::string_view name);

// The text of a config, or of another small file that becomes a tree. Errors: kCorrupt where it has more than
// kMaxTreeBytes; kUnsupported where it has more than the options allow, naming --max_memory.
std::string ReadTreeText(Io& io, const std::string& path, const OpenOptions& options);

// What lies in a folder, by name; folders end in '/'. Errors: kCorrupt for a link to a file that is missing, as half of
// a download leaves it.
std::vector<std::string> Entries(Io& io, const std::string& folder);

// The dtype of most elements.
Dtype MainDtype(const std::vector<StoredTensor>& tensors);

}  // namespace reshard
