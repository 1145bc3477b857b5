#include <algorithm>

#include <filesystem>

#include "base/json.h"
#include "cli/option_table.h"

namespace reshard::cli {
namespace {

constexpr const char* kOfCheckpoint = "it is as the checkpoint's config says";
constexpr const char* kStreamed = "weights are streamed";

// An option that means something for a trtllm target only.
Store Trtllm(const char* name, Store store) {
  return [=](Options& o, const std::string& value) {
    o.trtllm.push_back(name);
    store(o, value);
  };
}

// One of two options for one size; `by` is the one that has given it.
void SetSize(const std::string& name, const std::string& value, uint64_t& size, std::string& by) {
  const uint64_t count = Count(name, value, 1, 4096);
  if (!by.empty() && count != size)
    throw Usage(by + " is " + std::to_string(size) + " and " + name + " is " + value + ", expected one number");
  size = count;
  by = name;
}

Store TensorRanks(const char* name) {
  return [=](Options& o, const std::string& value) {
    SetSize(name, value, o.convert.tp_size, o.tp_by);
    o.gpus = o.convert.tp_size;
  };
}

// -1, as in the original: what the other leaves.
Store ExpertRanks(const char* name, uint64_t TrtllmTarget::*size) {
  return Trtllm(name, [=](Options& o, const std::string& value) {
    o.convert.trtllm.*size = value == "-1" ? 0 : Count(name, value, 1, 4096);
  });
}

// What a mode cannot do without here, and what to do instead.
Store NeedsActivations(const char* name) {
  return [=](Options&, const std::string&) {
    throw Error(Code::kUnsupported,
                "it needs the activations of a run over sample texts, expected a mode that needs weights only: "
                "--use_weight_only, --use_fp8_rowwise or --fp8_kv_cache; or quantise with TensorRT Model Optimizer")
        .At("parsing", name);
  };
}

// The folders are those of one option.
Store NamesNoFolder(const char* name) {
  return [=](Options&, const std::string&) {
    throw Usage(std::string(name) +
                " is given, expected --output_model: the engine goes there, its checkpoint beside it");
  };
}

std::vector<std::string> CommandOf(const std::string& text) {
  if (!text.starts_with("[")) return {text};
  try {
    auto words = Json::parse(text).get<std::vector<std::string>>();
    if (!words.empty()) return words;
  } catch (const Json::exception&) {
  }
  throw Usage("--trtllm_build is '" + text + "', expected a program or a JSON array of words");
}

// The folders of a target that is an engine: its checkpoint goes beside it.
void SettleEngine(Options& options) {
  if (options.checkpoint_only) {
    if (options.prepare_only) throw Usage("--checkpoint_only and --prepare_only are given, expected one of them");
    if (!options.build.empty())
      throw Usage(options.build[0] + " is for trtllm-build, expected it without --checkpoint_only");
    return;
  }
  const std::string name = std::filesystem::path(options.target_folder).filename();
  if (name.empty() || name == "." || name == "..")
    throw Usage("OUT is '" + options.target_folder +
                "', expected a folder by its name: the checkpoint goes to OUT-tmp beside it");
  if (!options.prepare_only) options.engine = options.target_folder;
  options.convert.output += "-tmp";
  options.convert.take_foreign = options.reuse_checkpoint;
  options.convert.again = !options.reuse_checkpoint;
}

// Its layout cannot be left to trtllm-build.
void SettleGptq(const Options& options) {
  const TrtllmTarget& target = options.convert.trtllm;
  if (!target.sm)
    throw Usage(
        "--weight_only_precision=int4_gptq is given without --sm, expected the GPU architecture to lay the "
        "weights out for");
  if (options.use_fp8_rowwise)
    throw Usage("--weight_only_precision=int4_gptq and --use_fp8_rowwise are given, expected one of them");
  if (target.disable_weight_only_quant_plugin)
    throw Usage(
        "--disable_weight_only_quant_plugin is given with int4_gptq, expected int8: there are no other kernels");
}

}  // namespace

std::vector<OptionRow> TrtllmRows() {
  return {
      {"--tp_size", "N", kConvert, "trtllm, nemo in ranks: tensor-parallel ranks, 1 by default",
       TensorRanks("--tp_size")},
      {"--num_gpus", "N", kConvert, "the same as --tp_size; no other target depends on GPUs", TensorRanks("--num_gpus"),
       "", "trtllm"},
      {"--pp_size", "N", kConvert, "trtllm, nemo in ranks: pipeline stages, 1 by default",
       [](Options& o, const std::string& v) { SetSize("--pp_size", v, o.convert.pp_size, o.pp_by); }},
      {"--num_nodes", "N", kConvert, "the same as --pp_size; no other target depends on nodes",
       [](Options& o, const std::string& v) { SetSize("--num_nodes", v, o.convert.pp_size, o.pp_by); }, "", "trtllm"},
      {"--use_parallel_embedding", "", kConvert, "trtllm: cut the embedding over the tensor ranks",
       Trtllm("--use_parallel_embedding",
              [](Options& o, const std::string&) { o.convert.trtllm.use_parallel_embedding = true; })},
      {"--embedding_sharding_dim", "0|1", kConvert, "trtllm: cut it by its rows (0, the default) or columns",
       Trtllm("--embedding_sharding_dim",
              [](Options& o, const std::string& v) {
                o.convert.trtllm.embedding_sharding_dim =
                    static_cast<unsigned>(Count("--embedding_sharding_dim", v, 0, 1));
              })},
      {"--use_embedding_sharing", "", kConvert, "trtllm: store embedding and head of a tied model once",
       Trtllm("--use_embedding_sharing",
              [](Options& o, const std::string&) { o.convert.trtllm.use_embedding_sharing = true; })},
      {"--trtllm_version", "0.12..0.15", kConvert,
       "trtllm: whose config.json keys are written, 0.12 by default,\nwhich later ones read",
       Trtllm("--trtllm_version",
              [](Options& o, const std::string& v) {
                OneOf("--trtllm_version", v, {"0.12", "0.13", "0.14", "0.15"});
                o.convert.trtllm.version = static_cast<unsigned>(std::stoul(v.substr(2)));
              })},
      {"--use_weight_only", "", kConvert, "trtllm: quantise the linear weights, activations stay",
       Trtllm("--use_weight_only", [](Options& o, const std::string&) { o.use_weight_only = true; })},
      {"--weight_only_precision", "PRECISION", kConvert,
       "trtllm: to what, int8 (the default) or int4; int4_gptq carries\nover weights that GPTQ has quantised",
       Trtllm("--weight_only_precision",
              [](Options& o, const std::string& v) {
                o.weight_only_precision =
                    v.empty() ? "int8" : OneOf("--weight_only_precision", v, {"int8", "int4", "int4_gptq"});
              }),
       "", "", kValueOptional},
      {"--quant_ckpt_path", "PATH", kConvert,
       "trtllm: the file or folder of the GPTQ weights, where they\nare not in IN, which gives the config",
       Trtllm("--quant_ckpt_path", [](Options& o, const std::string& v) { o.convert.trtllm.quant_ckpt_path = v; }), "",
       "", kPath},
      {"--group_size", "N", kConvert, "trtllm: columns of a GPTQ group, to be checked; the tensors say it",
       Trtllm("--group_size",
              [](Options& o, const std::string& v) {
                o.convert.trtllm.group_size = Count("--group_size", v, 1, uint64_t{1} << 23);
              })},
      {"--sm", "70..90", kConvert,
       "trtllm: the GPU architecture that weight-only weights are laid\nout for; by default trtllm-build does it",
       Trtllm("--sm",
              [](Options& o, const std::string& v) {
                OneOf("--sm", v, {"70", "75", "80", "86", "89", "90"});
                o.convert.trtllm.sm = static_cast<unsigned>(std::stoul(v));
              })},
      {"--disable_weight_only_quant_plugin", "", kConvert, "trtllm: int8 weights for kernels other than the plugin's",
       Trtllm("--disable_weight_only_quant_plugin",
              [](Options& o, const std::string&) { o.convert.trtllm.disable_weight_only_quant_plugin = true; })},
      {"--use_fp8_rowwise", "", kConvert, "trtllm: FP8 weights with a scale a row",
       Trtllm("--use_fp8_rowwise", [](Options& o, const std::string&) { o.use_fp8_rowwise = true; })},
      {"--fp8_reciprocal_scales", "", kConvert,
       "trtllm: FP8 scales as 0.12 computes them on a GPU; by default\nas later ones do on a CPU, up to one ulp apart",
       Trtllm("--fp8_reciprocal_scales",
              [](Options& o, const std::string&) { o.convert.trtllm.fp8_reciprocal_scales = true; })},
      {"--fp8_kv_cache", "", kConvert, "trtllm: an FP8 cache of keys and values",
       Trtllm("--fp8_kv_cache", [](Options& o, const std::string&) { o.convert.trtllm.fp8_kv_cache = true; })},
      {"--remove_duplicated_kv_heads", "", kConvert,
       "trtllm: IN has each key and value head twice (early uploads of\nLlama 3.1 405B); keep one",
       Trtllm("--remove_duplicated_kv_heads",
              [](Options& o, const std::string&) { o.convert.trtllm.remove_duplicated_kv_heads = true; })},
      {"--checkpoint_only", "", kConvert, "trtllm: stop before trtllm-build, the checkpoint in OUT",
       Trtllm("--checkpoint_only", [](Options& o, const std::string&) { o.checkpoint_only = true; })},
      {"--prepare_only", "", kConvert, "trtllm: stop before trtllm-build, the checkpoint in OUT-tmp",
       Trtllm("--prepare_only", [](Options& o, const std::string&) { o.prepare_only = true; })},
      {"--trtllm_build", "COMMAND", kConvert,
       "trtllm: what makes the engine, a program or a JSON array of\nwords; by default the trtllm-build on the PATH",
       Trtllm("--trtllm_build", [](Options& o, const std::string& v) { o.builder = CommandOf(v); })},
      {"--trt_prepare_args", "WORDS", kConvert, "trtllm: options of the checkpoint, in one word",
       [](Options&, const std::string&) {},  // its words are taken like all others
       "", "trtllm", kLaunch},
      {"--trt_reuse_tmp_engine", "", kConvert, "trtllm: take a finished checkpoint in OUT-tmp, the default",
       Trtllm("--trt_reuse_tmp_engine", [](Options& o, const std::string&) { o.reuse_checkpoint = true; })},
      {"--no_trt_reuse_tmp_engine", "", kConvert, "trtllm: convert again",
       Trtllm("--no_trt_reuse_tmp_engine", [](Options& o, const std::string&) { o.reuse_checkpoint = false; })},
      {"--smoothquant,-sq", "A", kConvert, "", NeedsActivations("--smoothquant")},
      {"--int8_kv_cache", "", kConvert, "", NeedsActivations("--int8_kv_cache")},
      {"--per_channel", "", kConvert, "", NeedsActivations("--per_channel")},
      {"--per_token", "", kConvert, "", NeedsActivations("--per_token")},
      {"--calib_dataset", "NAME", kConvert, "", NeedsActivations("--calib_dataset")},
      {"--calib_size", "N", kConvert, "", NeedsActivations("--calib_size")},
      {"--calib_batch_size", "N", kConvert, "", NeedsActivations("--calib_batch_size")},
      {"--calib_max_seq_length", "N", kConvert, "", NeedsActivations("--calib_max_seq_length")},
      {"--use_fp8", "", kConvert, "", NeedsActivations("--use_fp8")},
      {"--meta_ckpt_dir", "PATH", kConvert, "",
       [](Options&, const std::string&) {
         throw Error(Code::kUnsupported,
                     "this is a checkpoint in Meta's own format, expected IN as a HuggingFace folder")
             .At("parsing", "--meta_ckpt_dir");
       }},
      {"--output_dir", "PATH", kConvert, "", NamesNoFolder("--output_dir")},
      {"--checkpoint_dir", "PATH", kConvert, "", NamesNoFolder("--checkpoint_dir")},
      {"--model_dir", "PATH", kConvert, "", [](Options& o, const std::string& v) { o.convert.input = v; }, "", "",
       kPath},
      {"--n_positions", "N", kConvert, "", Needless("--n_positions", kOfCheckpoint)},
      {"--n_layer", "N", kConvert, "", Needless("--n_layer", kOfCheckpoint)},
      {"--n_head", "N", kConvert, "", Needless("--n_head", kOfCheckpoint)},
      {"--n_kv_head", "N", kConvert, "", Needless("--n_kv_head", kOfCheckpoint)},
      {"--n_embd", "N", kConvert, "", Needless("--n_embd", kOfCheckpoint)},
      {"--inter_size", "N", kConvert, "", Needless("--inter_size", kOfCheckpoint)},
      {"--multiple_of", "N", kConvert, "", Needless("--multiple_of", kOfCheckpoint)},
      {"--ffn_dim_multiplier", "N", kConvert, "", Needless("--ffn_dim_multiplier", kOfCheckpoint)},
      {"--rms_norm_eps", "N", kConvert, "", Needless("--rms_norm_eps", kOfCheckpoint)},
      {"--rotary_base", "N", kConvert, "", Needless("--rotary_base", kOfCheckpoint)},
      {"--hidden_act", "N", kConvert, "", Needless("--hidden_act", kOfCheckpoint)},
      {"--moe_tp_size", "N", kConvert, "trtllm: ranks that cut each expert, by default all tensor ranks",
       ExpertRanks("--moe_tp_size", &TrtllmTarget::moe_tp_size)},
      {"--moe_ep_size", "N", kConvert, "trtllm: parts that experts are dealt out to, by default 1",
       ExpertRanks("--moe_ep_size", &TrtllmTarget::moe_ep_size)},
      {"--moe_num_experts", "N", kConvert, "", Needless("--moe_num_experts", kOfCheckpoint)},
      {"--moe_top_k", "N", kConvert, "", Needless("--moe_top_k", kOfCheckpoint)},
      {"--moe_renorm_mode", "N", kConvert, "", Needless("--moe_renorm_mode", kOfCheckpoint)},
      {"--per_group", "", kConvert, "", Needless("--per_group", "the tensors of a GPTQ checkpoint say it")},
      {"--load_by_shard", "", kConvert, "", Needless("--load_by_shard", kStreamed)},
      {"--load_model_on_cpu", "", kConvert, "", Needless("--load_model_on_cpu", kStreamed)},
      {"--save_config_only", "", kConvert, "", Needless("--save_config_only", "the original does not read it either")},
  };
}

// GPUs and nodes are those of an engine; ranks of another target are asked for by their own names.
void SettleRanks(Options& options) {
  ConvertOptions& convert = options.convert;
  if (options.tp_by == "--num_gpus") convert.tp_size = 1;
  if (options.pp_by == "--num_nodes") convert.pp_size = 1;
  if (convert.tp_size * convert.pp_size > 1 && convert.weights != "ranks")
    throw Usage((convert.tp_size > 1 ? options.tp_by : options.pp_by) + " is given for a target of the kind " +
                convert.to + ", expected it with --to=trtllm, or with --nemo_weights=ranks");
}

// Options that together say what a trtllm target is, or that say it of another target.
void SettleTrtllm(Options& options) {
  if (options.convert.to != "trtllm") {
    SettleRanks(options);
    if (!options.trtllm.empty())
      throw Usage(options.trtllm[0] + " is given for a target of the kind " + options.convert.to +
                  ", expected it with --to=trtllm only");
    if (!options.build.empty())
      throw Usage(options.build[0] + " is for trtllm-build, expected it with --to=trtllm only");
    return;
  }
  const TrtllmTarget& target = options.convert.trtllm;
  const bool gptq = options.weight_only_precision == "int4_gptq";
  if (!options.weight_only_precision.empty() && !options.use_weight_only && !gptq)
    throw Usage("--weight_only_precision is given without --use_weight_only, expected both");
  if (gptq) SettleGptq(options);
  if (target.fp8_reciprocal_scales && !options.use_fp8_rowwise)
    throw Usage("--fp8_reciprocal_scales is given without --use_fp8_rowwise, expected both");
  if (!gptq && !target.quant_ckpt_path.empty())
    throw Usage("--quant_ckpt_path is given without --weight_only_precision=int4_gptq, expected both");
  if (!gptq && target.group_size)
    options.notes.push_back("--group_size is not needed: only --weight_only_precision=int4_gptq has groups");
  if (options.use_weight_only && options.use_fp8_rowwise)
    throw Usage("--use_weight_only and --use_fp8_rowwise are given, expected one of them");
  if (target.sm && !options.use_weight_only && !gptq)
    throw Usage("--sm is given without --use_weight_only, expected both");
  if (target.disable_weight_only_quant_plugin && options.weight_only_precision == "int4")
    throw Usage("--disable_weight_only_quant_plugin is given with int4, expected int8: there are no other kernels");
  const bool quantises = options.use_fp8_rowwise || target.sm;
  if (quantises && options.convert.verify)
    throw Usage("--verify compares plain weights, expected it without --use_fp8_rowwise and --sm");
  if (options.use_fp8_rowwise) options.convert.trtllm.quantisation = "fp8_rowwise";
  SettleEngine(options);
  if (options.use_weight_only || gptq)
    options.convert.trtllm.quantisation =
        options.weight_only_precision.empty() ? "int8" : options.weight_only_precision;
}

}  // namespace reshard::cli
