// The public interface of reshard: inspect a checkpoint, plan a conversion, run it, compare two checkpoints.
//
// All functions throw reshard::Error (base/error.h), whose code maps to a documented exit code; none of them prints.
// Thread rule: calls are independent of each other; a Conversion belongs to one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace reshard {

class Io;

const char* Version();

// How far one pass over the data has come.
struct Progress {
  const char* doing;             // "unpacking", "converting", "comparing", "checking": a call may make several passes
  uint64_t done = 0, total = 0;  // bytes
  double seconds = 0;            // since the pass began
};

// How much of the machine a call may use, and how it reports and stops.
struct RunOptions {
  // Bytes of resident memory: buffers, headers, plan, names and the process itself. A checkpoint or a plan that takes
  // more is refused; a plan's share is known only once it is made.
  uint64_t max_memory = uint64_t{256} << 20;
  unsigned workers = 0;                           // 0: as many as there are cores, 2 to 8
  std::function<void(const Progress&)> progress;  // told at most ten times a second, by one thread at a time
  // When it turns true, calls that move, compare or unpack data stop within a step and throw kCancelled; calls that
  // read headers only (Inspect, Conversion's constructor, where the source is not compressed) do not look at it. Not
  // owned.
  const std::atomic<bool>* stop = nullptr;
};

// What a caller knows of a checkpoint that its files may not say.
struct SourceHints {
  std::string model_type;     // a family, a group of them ("llama", "qwen"), or empty
  std::string hf_model_name;  // the template of what is no HuggingFace folder: a folder, or a name in the hub cache
  std::optional<uint64_t> vocab_size;  // rows of the vocabulary without its padding
};

// How a TensorRT-LLM checkpoint is cut and quantised. Nothing of it may be set for other targets.
struct TrtllmTarget {
  // Tensor ranks that cut each expert, and parts that experts are dealt out to: their product is tp_size. 0: the rest.
  uint64_t moe_tp_size = 0, moe_ep_size = 0;
  bool use_parallel_embedding = false;  // cut the embedding over tensor ranks
  unsigned embedding_sharding_dim = 0;  // 0 its rows, 1 its columns
  bool use_embedding_sharing = false;   // a tied model's embedding and head stored once
  unsigned version = 12;                // of TensorRT-LLM 0.x, 12 to 15: which keys config.json has
  std::string quantisation;             // "", "int8", "int4" (weights only), "fp8_rowwise", "int4_gptq"
  unsigned sm = 0;                      // GPU architecture to lay weight-only weights out for; 0: trtllm-build does it
  bool disable_weight_only_quant_plugin = false;
  bool fp8_kv_cache = false;
  bool fp8_reciprocal_scales = false;       // fp8_rowwise: scales as a GPU computes them, up to one ulp off the others
  std::optional<uint64_t> group_size;       // int4_gptq: columns of a group, as the source must have them
  std::string quant_ckpt_path;              // int4_gptq: where the source's weights are instead; a file or a folder
  bool remove_duplicated_kv_heads = false;  // the source's key and value heads are there twice; one of each is kept
};

struct ConvertOptions {
  std::string input, output;  // folders
  std::string from, to;       // kinds: "hf", "nemo", "nemo2", "megatron", "trtllm"; `from` may be empty
  std::string model_type;     // a family, a group of them ("llama", "qwen"), or empty
  std::string hf_model_name;  // a folder, or a name on the hub: template of what NeMo cannot say, and tokenizer
  // The format of the target's weights, where its kind has several: of hf "safetensors", "bin" or "dcp", of nemo
  // "zarr", "torch_dist" or "ranks", of nemo2 and megatron "torch_dist" or "zarr"; empty: the first.
  std::string weights;
  std::string nemo2_context;          // the folder that becomes the context of a nemo2 target; empty: it is made
  uint64_t tp_size = 1, pp_size = 1;  // of a target that is cut into ranks: tensor ranks, pipeline stages
  std::string dtype;                  // "bf16", "fp16", "fp32" and the spellings of --precision; empty: as the source
  uint64_t max_shard_size = 10'000'000'000;  // bytes of one safetensors file
  std::optional<uint64_t> vocab_size;        // rows of the vocabulary without its padding
  bool untie_embeddings = false;
  bool rope_config_only = false;  // store rope settings that a NeMo model does not read
  bool allow_overflow = false;    // publish although a cast made finite values infinite
  bool replace = false;           // --override
  bool verify = false;            // compare with the source before publishing
  bool discard = false;           // move the data but write none of it: for measuring
  bool again = false;             // also where the target is a checkpoint of this kind already, and nothing else
  // A TensorRT-LLM checkpoint that another program wrote is taken for complete where its config and all its ranks'
  // headers are what the plan says.
  bool take_foreign = false;
  TrtllmTarget trtllm;
  // The work may be shared: by `tasks` processes, anywhere, each of which does one of the shares 0 to tasks - 1 and
  // publishes nothing. A run without `task`, after they have all ended, finds the data there and publishes.
  uint32_t tasks = 1;            // at most 4096
  std::optional<uint32_t> task;  // the share of this process; nothing: all, and publish
  RunOptions run;
};

// Whether a target of this kind and name is one packed file rather than a folder.
bool IsPacked(const std::string& kind, const std::string& path);

struct NamedSize {
  std::string path;
  uint64_t size = 0;  // bytes
};

// What a conversion would do.
struct PlanReport {
  std::string id;
  std::string source, source_kind, source_format, family;
  std::string hf_folder;  // the source or its template, with the tokenizer; empty where there is none
  std::string target, target_kind, target_format;
  uint64_t parameters = 0, source_bytes = 0;
  std::vector<NamedSize> files;  // of the target, in the order of publication
  // Of all tasks together, but for the memory: what two of them need of a source, both read.
  uint64_t ops = 0, bytes_read = 0, bytes_written = 0, peak_memory = 0;
  uint32_t tasks = 1;
  std::vector<std::string> copied, left, notes;
  std::vector<std::string> obstacles;  // why Run would fail as things are now: what the target holds, space
};

// A tensor of the model, or of its padding, on its way: from where to where. Without sources it is zeros; several
// sources of one tensor are its pieces, or copies that must be equal.
struct PartReport {
  struct Place {
    std::string tensor, file, dtype;
    bool minus_one = false;  // values are stored minus one
    uint64_t bytes = 0;      // of the part in this file
  };
  std::string name;  // "q, layer 3"
  std::vector<Place> sources, targets;
};

struct ConvertReport {
  bool already_complete = false;
  bool verified = false;  // compared with the source, as ConvertOptions::verify asks
  uint64_t bytes_read = 0, bytes_written = 0, files = 0;
  uint64_t bytes_staged = 0;                                // of the target's data, by an earlier run or by tasks
  std::vector<std::pair<std::string, uint64_t>> overflows;  // tensor, finite values that became infinite
};

// An opened source and the plan for its target. The constructor reads headers only and touches nothing.
class Conversion {
 public:
  explicit Conversion(ConvertOptions options);
  Conversion(ConvertOptions options, Io& io);  // with other files than the operating system's
  ~Conversion();
  const PlanReport& plan() const;
  void ForEachPart(const std::function<void(const PartReport&)>& tell) const;  // in the order of the plan
  void RefuseObstacles() const;  // throws what Run would, where the plan names an obstacle
  // Claims the target, moves the data, publishes; with a `task`, moves its share. See DESIGN: at every instant the
  // target is the old checkpoint, has no marker, or is the new one.
  ConvertReport Run();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Finishes a publication that an earlier run had begun of a target; false where none was.
bool Commit(const std::string& path);

struct TensorReport {
  std::string name, dtype;
  std::vector<uint64_t> shape;
};

struct InspectReport {
  std::string path, kind, format, family, architecture;
  std::vector<std::pair<std::string, std::string>> hyperparameters;  // values are JSON texts
  uint64_t parameters = 0, bytes = 0;
  std::vector<std::pair<std::string, uint64_t>> dtypes;  // name, how many tensors
  std::vector<TensorReport> tensors;
  std::vector<NamedSize> shards;
  std::vector<std::string> notes;
};
InspectReport Inspect(const std::string& path, const SourceHints& hints, const RunOptions& options);

struct TensorDifference {
  std::string name;     // of a's tensor
  std::string part;     // what of it is compared: "q, layer 3"
  std::string verdict;  // "equal", "equal_rounded" (a, cast to what b stores, is b), "differs"
  std::string dtype_a, dtype_b;
  bool minus_one_a = false, minus_one_b = false;  // which of them stores values minus one
  uint64_t differing = 0;                         // elements
  uint64_t overflows = 0;                         // finite elements of a that the cast makes infinite
  struct Element {
    std::vector<uint64_t> index;
    double a = 0, b = 0;  // as b stores them
    uint64_t ulps = 0;    // of b's dtype
  };
  std::optional<Element> first, worst;
};

struct VerifyReport {
  std::string kind_a, kind_b;
  bool equal = true;
  struct HyperDifference {
    std::string key, a, b;  // JSON texts
  };
  std::vector<HyperDifference> hyperparameters;
  std::vector<TensorDifference> tensors;    // all of them, in a's order
  std::vector<std::string> missing, extra;  // tensors that b lacks, that a lacks
  std::vector<std::string> notes;           // why a difference may be none
  std::vector<std::string> misshapen;       // what both have in different shapes: "up, layer 3: [8, 4] in A, ..."
};
// Are two checkpoints the same model, whatever their kinds, shards and dtypes? The hints are for both.
VerifyReport Verify(const std::string& a, const std::string& b, const SourceHints& hints, const RunOptions& options);

struct ReceiptReport {
  bool equal = true;
  uint64_t files = 0, bytes = 0;
  std::vector<std::string> problems;  // a line each: a file that is missing or has other bytes
};
// Reads a checkpoint again and compares it with its receipt. Errors: kNotFound where it has none.
ReceiptReport VerifyReceipt(const std::string& path, const RunOptions& options);

// The tables: names and what they are.
struct TableRow {
  std::string name, description;
  std::vector<std::string> details;
};
std::vector<TableRow> FamilyTable();
std::vector<TableRow> FormatTable();
// The family tables whole, as JSON text: rows, layouts of every kind, defaults, flags.
std::string FamiliesJson();

// Bytes of a size text ("10GB", "256MiB"). Errors: kInvalidArgument that names `option`.
uint64_t ParseSize(const std::string& text, const std::string& option);

}  // namespace reshard
