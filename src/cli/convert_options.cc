#include <algorithm>

#include "cli/option_table.h"

namespace reshard::cli {
namespace {

// Powers of 1000 only, as transformers has them: a shard of 5GiB would be another split than save_pretrained's.
uint64_t ShardSize(const std::string& value) {
  if (value.find_first_of("iI") != value.npos)
    throw Usage("--max_shard_size is '" + value + "', expected a size in KB, MB, GB or TB");
  return ParseSize(value, "--max_shard_size");
}

std::vector<std::string> GroupsAndFamilies() {
  const std::vector<TableRow> families = FamilyTable();
  std::vector<std::string> names;
  for (const TableRow& row : families)
    if (std::find(names.begin(), names.end(), row.details[0]) == names.end()) names.push_back(row.details[0]);
  for (const TableRow& row : families)
    if (std::find(names.begin(), names.end(), row.name) == names.end()) names.push_back(row.name);
  return names;
}

}  // namespace

std::vector<OptionRow> ConvertRows() {
  return {

      {"--input_model,--in_path", "PATH", kConvert, "the checkpoint to read (same as IN)",
       [](Options& o, const std::string& v) { o.convert.input = v; }, "", "", kPath},
      {"--output_model,--out_path", "PATH", kConvert, "the folder, or .nemo file, to make (same as OUT)",
       [](Options& o, const std::string& v) { o.convert.output = v; }, "", "", kPath},
      {"--convert_from,--from", "KIND", kConvert, "hf, nemo, nemo2, megatron or trtllm; by default what IN is",
       [](Options& o, const std::string& v) { o.convert.from = v; }},
      {"--convert_to,--to", "KIND", kConvert, "hf, nemo, nemo2, megatron or trtllm",
       [](Options& o, const std::string& v) { o.convert.to = v; }},
      {"--model_type", "GROUP", kConvert | kInspect | kVerify,
       "a family, or a group of them such as llama or qwen\n(`reshard families`); by default as the files say",
       [](Options& o, const std::string& v) { o.convert.model_type = OneOf("--model_type", v, GroupsAndFamilies()); }},
      {"--hf_model_name", "NAME", kConvert | kInspect | kVerify,
       "a folder or a hub name: the tokenizer of a NeMo or Megatron\ntarget, the config and tokenizer that a source of "
       "another\nkind than hf came from",
       [](Options& o, const std::string& v) { o.convert.hf_model_name = v; }, "nemo nemo2 megatron trtllm",
       "nemo nemo2 megatron", kPath},
      {"--dtype,--precision", "DTYPE", kConvert, "bf16, fp16 or fp32; by default every tensor keeps its own",
       [](Options& o, const std::string& v) { o.convert.dtype = v; }},
      {"--vocab_size", "N", kConvert | kInspect | kVerify,
       "rows of the vocabulary without padding, where a source\ndoes not say",
       [](Options& o, const std::string& v) { o.convert.vocab_size = Count("--vocab_size", v, 1, uint64_t{1} << 23); },
       "nemo nemo2 megatron trtllm"},
      {"--untie_embeddings", "", kConvert, "write the head of a tied model as a tensor of its own",
       [](Options& o, const std::string&) { o.convert.untie_embeddings = true; }},
      {"--allow_rope", "config_only", kConvert,
       "nemo and megatron: store rope settings that no such model\nreads, for the way back",
       [](Options& o, const std::string& v) {
         OneOf("--allow_rope", v, {"config_only"});
         o.convert.rope_config_only = true;
       },
       "", "nemo megatron"},
      {"--allow_overflow", "", kConvert, "publish although a cast made finite values infinite",
       [](Options& o, const std::string&) { o.convert.allow_overflow = true; }},
      {"--max_shard_size", "SIZE", kConvert, "the most bytes of one safetensors file, 10GB by default",
       [](Options& o, const std::string& v) { o.convert.max_shard_size = ShardSize(v); }, "", "hf"},
      {"--hf_weights", "FORMAT", kConvert,
       "hf: safetensors (the default), bin (PyTorch pickles) or dcp\n(torch distributed checkpoint)",
       [](Options& o, const std::string& v) {
         o.convert.weights = OneOf("--hf_weights", v, {"safetensors", "bin", "dcp"});
       },
       "", "hf"},
      {"--nemo_weights", "FORMAT", kConvert,
       "nemo, nemo2, megatron: zarr (the default of nemo),\ntorch_dist (that of the others), or ranks: the old files "
       "of\n--tp_size by --pp_size ranks",
       [](Options& o, const std::string& v) {
         o.convert.weights = OneOf("--nemo_weights", v, {"zarr", "torch_dist", "ranks"});
       },
       "", "nemo nemo2 megatron"},
      {"--nemo2_context", "PATH", kConvert,
       "nemo2: a folder that becomes OUT/context as it is; by\ndefault one is made",
       [](Options& o, const std::string& v) { o.convert.nemo2_context = v; }, "", "nemo2", kPath},
      {"--override", "", kConvert,
       "replace what OUT holds, once the new checkpoint is complete;\nwhat another command has staged is discarded at "
       "once",
       [](Options& o, const std::string&) { o.convert.replace = true; }},
      {"--verify", "", kConvert, "compare the result with the source before it is published",
       [](Options& o, const std::string&) { o.convert.verify = true; }},
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
      {"--json", "", kConvert | kInspect | kVerify | kTables | kStatus, "print results as JSON",
       [](Options& o, const std::string&) { o.json = true; }, "", "", kLaunch},
      {"--log_format", "text|json", kConvert | kInspect | kVerify | kLaunched,
       "how progress, notes and errors look on stderr",
       [](Options& o, const std::string& v) {
         o.log_format = OneOf("--log_format", v, {"text", "json"});
       }},
      {"--quiet", "", kConvert | kInspect | kVerify | kLaunched, "no progress, no notes",
       [](Options& o, const std::string&) { o.quiet = true; }},
      {"--cpu_only", "", kConvert, "accepted; nothing here needs a GPU",
       Needless("--cpu-only", "nothing here uses a GPU")},
      {"--tmp_out_path", "PATH", kConvert, "accepted; there is no intermediate file",
       Needless("--tmp-out-path", "weights are streamed, there is no intermediate file")},
      {"--help,-h", "", kAll, "this text", [](Options& o, const std::string&) { o.help = true; }},
  };
}

}  // namespace reshard::cli
