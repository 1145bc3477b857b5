#include "cli/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>

#include "launch/trtllm_build.h"

namespace reshard::cli {
namespace {

// Sets of commands.
constexpr unsigned kConvert = 1, kInspect = 2, kVerify = 4, kTables = 8;

struct CommandRow {
  const char* name;
  unsigned bit;
  const char* arguments;
  const char* what;
};

constexpr CommandRow kCommands[] = {
    {"convert", kConvert, "IN OUT --to=KIND [options]", "Convert a checkpoint."},
    {"plan", kConvert, "IN OUT --to=KIND [options]", "Say what convert would do, and write nothing."},
    {"inspect", kInspect, "PATH [options]", "Say what is in a checkpoint."},
    {"verify", kVerify, "A [B] [options]", "Compare two checkpoints tensor by tensor, or one with its receipt."},
    {"families", kTables, "[options]", "List the model families."},
    {"formats", kTables, "[options]", "List the kinds of checkpoints and their formats."},
};

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 verify found a difference, 2 usage, 3 path, 4 corrupt input, 5 unsupported,\n"
    "6 mismatch, 7 system, 70 our bug, 130, 143 stopped by a signal (docs/errors.md).\n";

// Where a value goes; that of a flag means nothing.
using Store = std::function<void(Options&, const std::string&)>;

struct OptionRow {
  const char* names;  // with one spelling each, '_' for '-' too: "--convert_to,--to"
  const char* value;  // in the help; empty for a flag
  unsigned commands;
  const char* help;  // empty: not listed, an old spelling
  Store store;
  // It means something only where the source, or the target, is of one of these kinds; both empty: everywhere.
  const char* sources = "";
  const char* targets = "";
};

Error Usage(std::string message) { return Error(Code::kInvalidArgument, std::move(message)); }

// Whether the word is in the list, which blanks take apart.
bool Lists(const std::string& list, const std::string& word) {
  return (" " + list + " ").find(" " + word + " ") != std::string::npos;
}

std::string OneOf(const std::string& name, const std::string& value, const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return value;
  std::string list;
  for (const std::string& word : allowed) list += (list.empty() ? "" : ", ") + word;
  throw Usage(name + " is '" + value + "', expected " + (allowed.size() > 1 ? "one of " : "") + list);
}

uint64_t Count(const std::string& name, const std::string& value, uint64_t least, uint64_t most) {
  bool digits = !value.empty() && value.size() < 12 && value.find_first_not_of("0123456789") == std::string::npos;
  uint64_t count = digits ? std::stoull(value) : 0;
  if (!digits || count < least || count > most)
    throw Usage(name + " is '" + value + "', expected a whole number from " + std::to_string(least) + " to " +
                std::to_string(most));
  return count;
}

// Powers of 1000 only, as transformers has them: a shard of 5GiB would be another split than save_pretrained's.
uint64_t ShardSize(const std::string& value) {
  if (value.find_first_of("iI") != value.npos)
    throw Usage("--max_shard_size is '" + value + "', expected a size in KB, MB, GB or TB");
  return ParseSize(value, "--max_shard_size");
}

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

// What a mode cannot do without here, and what to do instead.
Store NeedsActivations(const char* name) {
  return [=](Options&, const std::string&) {
    throw Error(Code::kUnsupported,
                "it needs the activations of a run over sample texts, expected a mode that needs weights only: "
                "--use_weight_only, --use_fp8_rowwise or --fp8_kv_cache; or quantise with TensorRT Model Optimizer")
        .At("parsing", name);
  };
}

// Options of the originals that mean nothing here.
Store Needless(const char* name, const char* why) {
  return [=](Options& o, const std::string&) { o.notes.push_back(std::string(name) + " is not needed: " + why); };
}

const std::vector<OptionRow>& Table() {
  static const std::vector<OptionRow> kTable = {
      {"--input_model,--in_path", "PATH", kConvert, "the checkpoint to read (same as IN)",
       [](Options& o, const std::string& v) { o.convert.input = v; }},
      {"--output_model,--out_path", "PATH", kConvert, "the folder to make (same as OUT)",
       [](Options& o, const std::string& v) { o.convert.output = v; }},
      {"--convert_from,--from", "KIND", kConvert, "hf, nemo or trtllm; by default what IN is",
       [](Options& o, const std::string& v) { o.convert.from = v; }},
      {"--convert_to,--to", "KIND", kConvert, "hf, nemo or trtllm",
       [](Options& o, const std::string& v) { o.convert.to = v; }},
      {"--model_type", "GROUP", kConvert | kInspect | kVerify,
       "llama (Llama, Mistral) or qwen (Qwen 2, 3); by default as\nthe files say",
       [](Options& o, const std::string& v) {
         o.convert.model_type = OneOf("--model_type", v, {"llama", "qwen"});
       }},
      {"--hf_model_name", "NAME", kConvert | kInspect | kVerify,
       "a folder or a hub name: the tokenizer of a NeMo target, the\nconfig and tokenizer that a NeMo or trtllm source "
       "came from",
       [](Options& o, const std::string& v) { o.convert.hf_model_name = v; }, "nemo trtllm", "nemo"},
      {"--dtype,--precision", "DTYPE", kConvert, "bf16, fp16 or fp32; by default every tensor keeps its own",
       [](Options& o, const std::string& v) { o.convert.dtype = v; }},
      {"--vocab_size", "N", kConvert | kInspect | kVerify,
       "rows of the vocabulary without padding, where a source\ndoes not say",
       [](Options& o, const std::string& v) { o.convert.vocab_size = Count("--vocab_size", v, 1, uint64_t{1} << 23); },
       "nemo trtllm"},
      {"--untie_embeddings", "", kConvert, "write the head of a tied model as a tensor of its own",
       [](Options& o, const std::string&) { o.convert.untie_embeddings = true; }},
      {"--allow_rope", "config_only", kConvert, "store rope settings that no NeMo model reads, for the way back",
       [](Options& o, const std::string& v) {
         OneOf("--allow_rope", v, {"config_only"});
         o.convert.rope_config_only = true;
       },
       "", "nemo"},
      {"--allow_overflow", "", kConvert, "publish although a cast made finite values infinite",
       [](Options& o, const std::string&) { o.convert.allow_overflow = true; }},
      {"--max_shard_size", "SIZE", kConvert, "the most bytes of one safetensors file, 10GB by default",
       [](Options& o, const std::string& v) { o.convert.max_shard_size = ShardSize(v); }, "", "hf"},
      {"--override", "", kConvert, "replace what OUT holds, once the new checkpoint is complete",
       [](Options& o, const std::string&) { o.convert.replace = true; }},
      {"--verify", "", kConvert, "compare the result with the source before it is published",
       [](Options& o, const std::string&) { o.convert.verify = true; }},
      {"--dry_run", "", kConvert, "print the plan and stop", [](Options& o, const std::string&) { o.dry_run = true; }},
      {"--max_memory", "SIZE", kConvert | kInspect | kVerify, "the most resident memory, by default 256MiB",
       [](Options& o, const std::string& v) { o.convert.run.max_memory = ParseSize(v, "--max_memory"); }},
      {"--workers", "N", kConvert | kVerify, "threads that move data; by default one a core, 2 to 8",
       [](Options& o, const std::string& v) {
         o.convert.run.workers = static_cast<unsigned>(Count("--workers", v, 1, 256));
       }},
      {"--io_engine", "NAME", kConvert, "buffered, or discard: move all data and write none, for\nmeasuring",
       [](Options& o, const std::string& v) {
         o.convert.discard = OneOf("--io_engine", v, {"buffered", "discard"}) == "discard";
       }},
      {"--json", "", kConvert | kInspect | kVerify | kTables, "print results as JSON",
       [](Options& o, const std::string&) { o.json = true; }},
      {"--log_format", "text|json", kConvert | kInspect | kVerify, "how progress, notes and errors look on stderr",
       [](Options& o, const std::string& v) {
         o.log_format = OneOf("--log_format", v, {"text", "json"});
       }},
      {"--quiet", "", kConvert | kInspect | kVerify, "no progress, no notes",
       [](Options& o, const std::string&) { o.quiet = true; }},
      {"--tp_size", "N", kConvert, "trtllm: tensor-parallel ranks, 1 by default",
       Trtllm("--tp_size",
              [](Options& o, const std::string& v) { SetSize("--tp_size", v, o.convert.trtllm.tp_size, o.tp_by); })},
      {"--num_gpus", "N", kConvert, "the same as --tp_size; no other target depends on GPUs",
       [](Options& o, const std::string& v) { SetSize("--num_gpus", v, o.convert.trtllm.tp_size, o.tp_by); }, "",
       "trtllm"},
      {"--pp_size", "N", kConvert, "trtllm: pipeline stages, 1 by default",
       Trtllm("--pp_size",
              [](Options& o, const std::string& v) { SetSize("--pp_size", v, o.convert.trtllm.pp_size, o.pp_by); })},
      {"--num_nodes", "N", kConvert, "the same as --pp_size; no other target depends on nodes",
       [](Options& o, const std::string& v) { SetSize("--num_nodes", v, o.convert.trtllm.pp_size, o.pp_by); }, "",
       "trtllm"},
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
                o.weight_only_precision = OneOf("--weight_only_precision", v, {"int8", "int4", "int4_gptq"});
              })},
      {"--quant_ckpt_path", "PATH", kConvert,
       "trtllm: the file or folder of the GPTQ weights, where they\nare not in IN, which gives the config",
       Trtllm("--quant_ckpt_path", [](Options& o, const std::string& v) { o.convert.trtllm.quant_ckpt_path = v; })},
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
      {"--trt_reuse_tmp_engine", "", kConvert, "trtllm: take a finished checkpoint in OUT-tmp, the default",
       Trtllm("--trt_reuse_tmp_engine", [](Options& o, const std::string&) { o.reuse_checkpoint = true; })},
      {"--no_trt_reuse_tmp_engine", "", kConvert, "trtllm: convert again",
       Trtllm("--no_trt_reuse_tmp_engine", [](Options& o, const std::string&) { o.reuse_checkpoint = false; })},
      {"--smoothquant", "A", kConvert, "", NeedsActivations("--smoothquant")},
      {"--int8_kv_cache", "", kConvert, "", NeedsActivations("--int8_kv_cache")},
      {"--per_channel", "", kConvert, "", NeedsActivations("--per_channel")},
      {"--per_token", "", kConvert, "", NeedsActivations("--per_token")},
      {"--calib_dataset", "NAME", kConvert, "", NeedsActivations("--calib_dataset")},
      {"--calib_size", "N", kConvert, "", NeedsActivations("--calib_size")},
      {"--calib_batch_size", "N", kConvert, "", NeedsActivations("--calib_batch_size")},
      {"--calib_max_seq_length", "N", kConvert, "", NeedsActivations("--calib_max_seq_length")},
      {"--trt_prepare_args", "WORDS", kConvert, "",
       [](Options&,
          const std::string&
              v) { throw Usage("--trt_prepare_args is '" + v + "', expected its words as options of convert itself"); }},
      {"--load_by_shard", "", kConvert, "", Needless("--load_by_shard", "weights are streamed")},
      {"--load_model_on_cpu", "", kConvert, "", Needless("--load_model_on_cpu", "nothing here uses a GPU")},
      {"--cpu_only", "", kConvert, "accepted; nothing here needs a GPU",
       Needless("--cpu-only", "nothing here uses a GPU")},
      {"--tmp_out_path", "PATH", kConvert, "accepted; there is no intermediate file",
       Needless("--tmp-out-path", "weights are streamed, there is no intermediate file")},
      {"--help,-h", "", kConvert | kInspect | kVerify | kTables, "this text",
       [](Options& o, const std::string&) { o.help = true; }},
  };
  return kTable;
}

// Known to users of `ns convert`, and not here yet.
constexpr const char* kLater[] = {
    "--cluster",
    "--expname",
    "--partition",
    "--run_after",
    "--config_dir",
    "--log_dir",
    "--time_min",
    "--reuse_code_exp",
    "--exclusive",
    "--reuse_code",
    "--mount_paths",
    "--check_mounted_paths",
    "--installation_command",
    "--skip_hf_home_check",
    "--qos",
    "--sbatch_kwargs",
    "--convert_tasks",
};

std::vector<std::string> NamesOf(const OptionRow& row) {
  std::vector<std::string> names;
  std::string text = row.names;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find(',', begin), text.size());
    names.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

const CommandRow* FindCommand(const std::string& name) {
  for (const CommandRow& row : kCommands)
    if (name == row.name) return &row;
  return nullptr;
}

// "--max-memory=1GB" as "--max_memory=1GB": '-' and '_' are equal in the names of options.
std::string WithUnderscores(std::string word) {
  if (!word.starts_with("--") || word.size() == 2) return word;
  size_t end = std::min(word.find('='), word.size());
  std::replace(word.begin() + 2, word.begin() + static_cast<std::ptrdiff_t>(end), '-', '_');
  return word;
}

// CLI11 names the option and says the rest for C++ programmers.
Error UsageOf(const CLI::ParseError& error) {
  std::string text = error.what();
  size_t begin = text.find("--"),
         end = std::min(text.find_first_not_of("abcdefghijklmnopqrstuvwxyz_", begin + 2), text.size());
  if (begin == std::string::npos) return Usage(text);
  std::string name = text.substr(begin, end - begin);
  for (const OptionRow& row : Table()) {
    std::vector<std::string> names = NamesOf(row);
    if (std::find(names.begin(), names.end(), name) == names.end()) continue;
    return Usage(fmt::format("there is no value behind {0}, expected {0}={1}", name, row.value));
  }
  return Usage(text);
}

// A lone "--" is dropped; what stands behind it is no option.
std::vector<std::string> TakeWordsBehindDashes(std::vector<std::string>& words) {
  auto dashes = std::find(words.begin(), words.end(), "--");
  if (dashes == words.end()) return {};
  std::vector<std::string> behind(dashes + 1, words.end());
  words.erase(dashes, words.end());
  return behind;
}

const BuildOption* FindBuildOption(const std::string& name) {
  for (const BuildOption& option : BuildOptions())
    if (option.name == name) return &option;
  return nullptr;
}

void RefuseUnknown(const std::string& word, const CommandRow& command) {
  std::string name = word.substr(0, word.find('='));
  for (const char* later : kLater)
    if (name == later)
      throw Error(Code::kUnsupported, std::string("this version launches no jobs, expected an option of `reshard ") +
                                          command.name + " --help`")
          .At("parsing", name);
  std::vector<std::string> known;
  if (command.bit == kConvert) known.assign(std::begin(kLater), std::end(kLater));
  for (const OptionRow& row : Table())
    if (row.commands & command.bit)
      for (const std::string& other : NamesOf(row)) known.push_back(other);
  if (command.bit == kConvert)
    for (const BuildOption& option : BuildOptions()) known.emplace_back(option.name);
  std::string closest = Closest(name, known);
  throw Usage("the option " + name + " is not known" + DidYouMean(closest) + "`reshard " + command.name +
              " --help` lists all");
}

// Words that are no options of ours: paths, and options of trtllm-build with their values.
void SortWords(const std::vector<std::string>& words, const CommandRow& command, Options& options) {
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (!word.starts_with("-") || word.size() == 1) {
      options.paths.push_back(word);
      continue;
    }
    const BuildOption* known = command.bit == kConvert ? FindBuildOption(word.substr(0, word.find('='))) : nullptr;
    if (!known) RefuseUnknown(word, command);
    options.build.push_back(word);
    const bool has_value = word.find('=') != std::string::npos;
    if (has_value && !known->takes_value)
      throw Usage(fmt::format("{0} was given a value, expected {0} alone", known->name));
    if (has_value || !known->takes_value) continue;
    if (i + 1 == words.size() || words[i + 1].starts_with("--"))
      throw Usage(fmt::format("there is no value behind {0}, expected {0}=VALUE", word));
    options.build.push_back(words[++i]);
  }
}

// The folders of a target that is an engine: its checkpoint goes beside it.
void SettleEngine(Options& options) {
  if (options.checkpoint_only) {
    if (!options.build.empty())
      throw Usage(options.build[0] + " is for trtllm-build, expected it without --checkpoint_only");
    return;
  }
  std::string& output = options.convert.output;
  while (output.size() > 1 && output.back() == '/') output.pop_back();
  if (const std::string name = std::filesystem::path(output).filename(); name.empty() || name == "." || name == "..")
    throw Usage("OUT is '" + output + "', expected a folder by its name: the checkpoint goes to OUT-tmp beside it");
  options.engine = output;
  output += "-tmp";
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

// Options that together say what a trtllm target is, or that say it of another target.
void SettleTrtllm(Options& options) {
  if (options.convert.to != "trtllm") {
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

void TakePaths(const CommandRow& command, Options& options) {
  std::vector<std::string>& paths = options.paths;
  if (command.bit == kConvert) {
    std::vector<std::string*> open;
    if (options.convert.input.empty()) open.push_back(&options.convert.input);
    if (options.convert.output.empty()) open.push_back(&options.convert.output);
    for (std::string* slot : open) {
      if (paths.empty()) break;
      *slot = paths.front();
      paths.erase(paths.begin());
    }
    if (!paths.empty()) throw Usage("the word '" + paths[0] + "' is one too many, expected IN and OUT");
    if (options.convert.input.empty()) throw Usage("there is no input, expected IN or --input_model");
    if (options.convert.output.empty()) throw Usage("there is no output, expected OUT or --output_model");
    if (options.convert.to.empty()) throw Usage("there is no target kind, expected --to=hf, nemo or trtllm");
    SettleTrtllm(options);
    return;
  }
  size_t least = command.bit == kTables ? 0 : 1, most = command.bit == kVerify ? 2 : least;
  if (paths.size() < least) throw Usage("there is no path, expected " + std::string(command.arguments));
  if (paths.size() > most)
    throw Usage("the word '" + paths[most] + "' is one too many, expected " + std::string(command.arguments));
}

// Optimal string alignment distance: an insertion, deletion, replacement or swap of neighbours counts one.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

void Take(const OptionRow& row, const std::string& value, Options& options) {
  row.store(options, value);
  if (*row.sources || *row.targets) options.conditional.push_back({NamesOf(row)[0], row.sources, row.targets});
}

// Takes the options of the table, each where it stands last, in the order of the command line: of two that contradict
// one another the last counts too. Returns the words that are none.
std::vector<std::string> TakeOptions(std::vector<std::string> words, const CommandRow& command, Options& options) {
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  app.prefix_command(false);
  std::map<const CLI::Option*, const OptionRow*> rows;
  for (const OptionRow& row : Table()) {
    if (!(row.commands & command.bit)) continue;
    CLI::Option* option = *row.value ? app.add_option(row.names)->allow_extra_args(false) : app.add_flag(row.names);
    rows[option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)] = &row;
  }
  std::reverse(words.begin(), words.end());  // CLI11 takes them from the back
  try {
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    throw UsageOf(error);
  }
  std::map<const CLI::Option*, size_t> seen;
  for (const CLI::Option* option : app.parse_order()) {
    if (++seen[option] < option->count()) continue;
    const OptionRow& row = *rows[option];
    const std::string& value = option->results().back();
    if (!*row.value && value != "true")
      throw Usage(fmt::format("{0} was given a value, expected {0} alone", NamesOf(row)[0]));
    Take(row, value, options);
  }
  return app.remaining();
}

std::string OptionHelp(const OptionRow& row) {
  constexpr size_t kColumn = 30;
  std::string left = "  ";
  for (const std::string& name : NamesOf(row)) left += (left.size() > 2 ? ", " : "") + name;
  if (*row.value) left += std::string("=") + row.value;
  left += left.size() + 2 > kColumn ? "\n" + std::string(kColumn, ' ') : std::string(kColumn - left.size(), ' ');
  for (const char* c = row.help; *c; ++c) left += *c == '\n' ? "\n" + std::string(kColumn, ' ') : std::string(1, *c);
  return left + "\n";
}

}  // namespace

std::vector<std::string> Commands() {
  std::vector<std::string> names;
  for (const CommandRow& row : kCommands) names.push_back(row.name);
  return names;
}

std::string Closest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  size_t least = std::max<size_t>(word.size() / 3, 2) + 1;
  for (const std::string& candidate : known) {
    size_t distance = Distance(word, candidate);
    if (distance < least) least = distance, best = candidate;
  }
  return best;
}

std::string DidYouMean(const std::string& closest) {
  return closest.empty() ? "; " : "; did you mean " + closest + "? ";
}

std::vector<std::string> NeedlessBetween(const Options& options, const std::string& source, const std::string& target) {
  std::vector<std::string> notes;
  for (const auto& given : options.conditional)
    if (!Lists(given.sources, source) && !Lists(given.targets, target))
      notes.push_back(fmt::format("{} is not needed: it means nothing from {} to {}", given.name, source, target));
  return notes;
}

std::vector<std::string> NeedlessFor(const Options& options, const std::vector<std::string>& kinds) {
  std::vector<std::string> notes;
  for (const auto& given : options.conditional)
    if (std::none_of(kinds.begin(), kinds.end(), [&](const std::string& kind) { return Lists(given.sources, kind); }))
      notes.push_back(fmt::format("{} is not needed: it means nothing for {}", given.name, kinds[0]));
  return notes;
}

std::string HelpText(const std::string& name) {
  const CommandRow* command = FindCommand(name);
  if (!command) {
    std::string text =
        "reshard " + std::string(Version()) +
        ": moves a language model's weights between HuggingFace, NeMo and TensorRT-LLM,\nbit for bit.\n\n"
        "usage: reshard COMMAND ...\n\n";
    for (const CommandRow& row : kCommands)
      text += std::string("  ") + row.name + std::string(12 - std::string(row.name).size(), ' ') + row.what + "\n";
    return text + "\n  --version   print the version\n\n`reshard COMMAND --help` explains one.\n" + kExitCodes;
  }
  std::string text =
      std::string("usage: reshard ") + command->name + " " + command->arguments + "\n\n" + command->what + "\n\n";
  for (const OptionRow& row : Table())
    if ((row.commands & command->bit) && *row.help) text += OptionHelp(row);
  return text +
         "\nNames take '-' for '_'; sizes are 10GB or, of memory, 256MiB; of an option given twice\nthe last "
         "counts.\n" +
         kExitCodes;
}

Options ParseOptions(const std::string& name, std::vector<std::string> words, bool called_ns) {
  const CommandRow& command = *FindCommand(name);
  const std::vector<std::string> behind = TakeWordsBehindDashes(words);
  for (std::string& word : words) word = WithUnderscores(word);
  Options options;
  if (called_ns && command.bit == kConvert) options.convert.dtype = "bf16";
  const std::vector<std::string> others = TakeOptions(std::move(words), command, options);
  if (options.help) return options;
  SortWords(others, command, options);
  const bool builds = command.bit == kConvert && options.convert.to == "trtllm" && !options.checkpoint_only;
  std::vector<std::string>& rest = builds ? options.build : options.paths;
  rest.insert(rest.end(), behind.begin(), behind.end());
  TakePaths(command, options);
  if (options.convert.verify && options.convert.discard)
    throw Usage("--verify is given with --io_engine=discard, expected one of them: nothing is written to compare with");
  return options;
}

}  // namespace reshard::cli
