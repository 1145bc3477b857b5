#include "cli/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "cli/option_table.h"
#include "launch/shell.h"
#include "launch/trtllm_build.h"

namespace reshard::cli {
namespace {

struct CommandRow {
  const char* name;
  unsigned bit;
  const char* arguments;
  const char* what;
  size_t least_paths, most_paths;
};

constexpr CommandRow kCommands[] = {
    {"convert", kConvert, "IN OUT --to=KIND [options]", "Convert a checkpoint.", 0, 2},
    {"plan", kConvert, "IN OUT --to=KIND [options]", "Say what convert would do, and write nothing.", 0, 2},
    {"inspect", kInspect, "PATH [options]", "Say what is in a checkpoint.", 1, 1},
    {"verify", kVerify, "A [B] [options]", "Compare two checkpoints tensor by tensor, or one with its receipt.", 1, 2},
    {"status", kStatus, "[NAME] [options]",
     "Say how launched conversions are: of an experiment, a job, a target folder, or all.", 0, 1},
    {"logs", kLogs, "NAME [options]", "Print the logs of a launched conversion.", 1, 1},
    {"cancel", kCancel, "NAME [options]", "Cancel the jobs of a launched conversion.", 1, 1},
    {"commit", kCommit, "NAME [options]",
     "Finish what was begun: an experiment's last jobs, or a folder's publication.", 1, 1},
    {"families", kTables, "[options]", "List the model families.", 0, 0},
    {"formats", kTables, "[options]", "List the kinds of checkpoints and their formats.", 0, 0},
};

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 verify found a difference, 2 usage, 3 path, 4 corrupt input, 5 unsupported,\n"
    "6 mismatch, 7 system, 70 our bug, 75 a task was interrupted, 130, 143 stopped by a signal\n(docs/errors.md).\n";

// Options of the original's own scripts, of which it takes beginnings too.
constexpr const char* kScriptNames[] = {"--in_path",  "--out_path",     "--precision", "--hf_model_name",
                                        "--override", "--tmp_out_path", "--cpu_only",  "--max_shard_size"};
constexpr const char* kTrtllmScriptNames[] = {"--model_dir",
                                              "--meta_ckpt_dir",
                                              "--tp_size",
                                              "--pp_size",
                                              "--moe_tp_size",
                                              "--moe_ep_size",
                                              "--dtype",
                                              "--vocab_size",
                                              "--n_positions",
                                              "--n_layer",
                                              "--n_head",
                                              "--n_kv_head",
                                              "--n_embd",
                                              "--inter_size",
                                              "--multiple_of",
                                              "--ffn_dim_multiplier",
                                              "--rms_norm_eps",
                                              "--rotary_base",
                                              "--hidden_act",
                                              "--use_weight_only",
                                              "--disable_weight_only_quant_plugin",
                                              "--weight_only_precision",
                                              "--calib_dataset",
                                              "--smoothquant",
                                              "--per_channel",
                                              "--per_token",
                                              "--per_group",
                                              "--int8_kv_cache",
                                              "--fp8_kv_cache",
                                              "--use_fp8",
                                              "--use_fp8_rowwise",
                                              "--quant_ckpt_path",
                                              "--load_by_shard",
                                              "--load_model_on_cpu",
                                              "--group_size",
                                              "--use_parallel_embedding",
                                              "--embedding_sharding_dim",
                                              "--use_embedding_sharing",
                                              "--workers",
                                              "--moe_num_experts",
                                              "--moe_top_k",
                                              "--moe_renorm_mode",
                                              "--save_config_only",
                                              "--remove_duplicated_kv_heads"};

struct Section {
  const char* title;
  std::vector<OptionRow> rows;
};

const std::vector<Section>& Sections() {
  static const std::vector<Section> kSections = {
      {"", ConvertRows()},
      {"TensorRT-LLM targets", TrtllmRows()},
      {"Where it runs (docs/launching.md)", LaunchRows()},
  };
  return kSections;
}

// Whether the word is in the list, which blanks take apart.
bool Lists(const std::string& list, const std::string& word) {
  return (" " + list + " ").find(" " + word + " ") != std::string::npos;
}

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

const OptionRow* FindRow(const std::string& name, const CommandRow& command) {
  for (const Section& section : Sections())
    for (const OptionRow& row : section.rows) {
      if (!(row.commands & command.bit)) continue;
      const std::vector<std::string> names = NamesOf(row);
      if (std::find(names.begin(), names.end(), name) != names.end()) return &row;
    }
  return nullptr;
}

const BuildOption* FindBuildOption(const std::string& name) {
  for (const BuildOption& option : BuildOptions())
    if (option.name == name) return &option;
  return nullptr;
}

// The one option of the original's scripts and of trtllm-build that begins so; else the name itself.
std::string WholeName(const std::string& name, const CommandRow& command, const std::string& to) {
  if (command.bit != kConvert || !name.starts_with("--") || name.size() < 3) return name;
  std::set<std::string> whole;
  auto consider = [&](std::string_view candidate) {
    if (candidate.starts_with(name)) whole.emplace(candidate);
  };
  if (to == "trtllm") {
    for (const char* candidate : kTrtllmScriptNames) consider(candidate);
    for (const BuildOption& option : BuildOptions()) consider(option.name);
  } else {
    for (const char* candidate : kScriptNames) consider(candidate);
  }
  return whole.size() == 1 ? *whole.begin() : name;
}

// The target kind is known before the words are: what a beginning means depends on it.
std::string TargetOf(const std::vector<std::string>& words) {
  std::string to;
  for (size_t i = 0; i < words.size() && words[i] != "--"; ++i) {
    const std::string word = WithUnderscores(words[i]);
    for (const char* name : {"--to", "--convert_to"}) {
      if (word == name && i + 1 < words.size()) to = words[i + 1];
      if (word.starts_with(std::string(name) + "=")) to = word.substr(std::string(name).size() + 1);
    }
  }
  return to;
}

void RefuseUnknown(const std::string& word, const CommandRow& command) {
  std::string name = word.substr(0, word.find('='));
  std::vector<std::string> known;
  for (const Section& section : Sections())
    for (const OptionRow& row : section.rows)
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

void TakePaths(const CommandRow& command, Options& options) {
  std::vector<std::string>& paths = options.paths;
  if (command.bit == kConvert) {
    for (auto [name, slot] :
         {std::pair{"--input_model", &options.convert.input}, {"--output_model", &options.convert.output}}) {
      if (!slot->empty() || paths.empty()) continue;
      *slot = paths.front();
      options.given.push_back({name, *slot, true});
      paths.erase(paths.begin());
    }
    if (!paths.empty()) throw Usage("the word '" + paths[0] + "' is one too many, expected IN and OUT");
    if (options.convert.input.empty()) throw Usage("there is no input, expected IN or --input_model");
    if (options.convert.output.empty()) throw Usage("there is no output, expected OUT or --output_model");
    if (options.convert.to.empty())
      throw Usage("there is no target kind, expected --to=hf, nemo, nemo2, megatron or trtllm");
    std::string& output = options.convert.output;
    while (output.size() > 1 && output.back() == '/') output.pop_back();
    options.target_folder = output;
    SettleTrtllm(options);
    return;
  }
  if (paths.size() < command.least_paths) throw Usage("there is no path, expected " + std::string(command.arguments));
  if (paths.size() > command.most_paths)
    throw Usage("the word '" + paths[command.most_paths] + "' is one too many, expected " +
                std::string(command.arguments));
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

// A row with the value that stands behind it.
struct Taken {
  const OptionRow* row;
  std::string value;
};

// What ns makes of words: an option takes the next word, whatever it is; words that are no options keep their order.
struct Sorted {
  std::vector<Taken> taken;
  std::vector<std::string> others, behind;  // behind a lone "--", which is dropped
};

std::string ValueOf(const OptionRow& row, const std::string& name, const std::vector<std::string>& words, size_t& i) {
  const bool last = i + 1 == words.size();
  if (row.flags & kValueOptional && (last || words[i + 1].starts_with("-"))) return "";
  if (last) throw Usage(fmt::format("there is no value behind {0}, expected {0}={1}", name, row.value));
  return words[++i];
}

Sorted SortOptions(const std::vector<std::string>& words, const CommandRow& command, const std::string& to) {
  Sorted sorted;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--") {
      sorted.behind.assign(words.begin() + static_cast<std::ptrdiff_t>(i) + 1, words.end());
      break;
    }
    const std::string word = WithUnderscores(words[i]);
    const size_t equals = word.find('=');
    std::string name = word.substr(0, equals);
    const std::string value = equals == word.npos ? "" : word.substr(equals);
    const OptionRow* row = word.starts_with("-") ? FindRow(name, command) : nullptr;
    if (!row && word.starts_with("-")) {
      name = WholeName(name, command, to);
      row = FindRow(name, command);
    }
    if (!row) {
      sorted.others.push_back(word.starts_with("-") ? name + value : words[i]);
    } else if (!*row->value) {
      if (!value.empty()) throw Usage(fmt::format("{0} was given a value, expected {0} alone", NamesOf(*row)[0]));
      sorted.taken.push_back({row, ""});
    } else {
      sorted.taken.push_back({row, value.empty() ? ValueOf(*row, name, words, i) : value.substr(1)});
    }
  }
  return sorted;
}

void Take(const OptionRow& row, const std::string& value, Options& options) {
  row.store(options, value);
  const std::string name = NamesOf(row)[0];
  if (*row.sources || *row.targets) options.conditional.push_back({name, row.sources, row.targets});
  if (!(row.flags & kLaunch))
    options.given.push_back({name, *row.value ? std::optional(value) : std::nullopt, (row.flags & kPath) != 0});
}

// Each where it stands last, in the order of the command line: of two that contradict one another the last counts too.
void TakeLast(const std::vector<Taken>& taken, Options& options) {
  for (auto each = taken.begin(); each != taken.end(); ++each) {
    const bool again = std::any_of(each + 1, taken.end(), [&](const Taken& other) { return other.row == each->row; });
    if (!again || each->row->flags & kRepeats) Take(*each->row, each->value, options);
  }
}

// The options of the checkpoint that came in one word are as good as the others, behind all of them.
void SpliceWords(const CommandRow& command, const std::string& to, Sorted& sorted) {
  std::string words;
  for (const Taken& each : sorted.taken)
    if (NamesOf(*each.row)[0] == "--trt_prepare_args") words = each.value;
  if (words.empty() || to != "trtllm") return;
  const std::optional<std::vector<std::string>> split = ShellWords(words);
  if (!split) throw Usage("--trt_prepare_args is '" + words + "', expected quotes that are closed");
  const Sorted inner = SortOptions(*split, command, to);
  sorted.taken.insert(sorted.taken.end(), inner.taken.begin(), inner.taken.end());
  sorted.others.insert(sorted.others.end(), inner.others.begin(), inner.others.end());
}

// What the original demands, so that a line that works here works there.
void RequireOriginals(const Options& options) {
  for (auto [name, is_there] : {std::pair{"--input_model", !options.convert.input.empty()},
                                {"--output_model", !options.convert.output.empty()},
                                {"--convert_to", !options.convert.to.empty()},
                                {"--num_gpus", !options.tp_by.empty()}})
    if (!is_there) throw Usage(fmt::format("there is no {0}, expected it: `ns convert` demands it", name));
}

void SettleTasks(const ConvertOptions& convert) {
  if (convert.task && *convert.task >= convert.tasks)
    throw Usage(fmt::format("--convert_task is {}, expected less than --convert_tasks, which is {}", *convert.task,
                            convert.tasks));
  if (convert.discard && convert.tasks > 1)
    throw Usage("--convert_tasks is given with --io_engine=discard, expected one of them: tasks share what is written");
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

Error Usage(std::string message) { return Error(Code::kInvalidArgument, std::move(message)); }

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

// Options of the originals that mean nothing here.
Store Needless(const char* name, const char* why) {
  return [=](Options& o, const std::string&) { o.notes.push_back(std::string(name) + " is not needed: " + why); };
}

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
  for (const Section& section : Sections()) {
    std::string rows;
    for (const OptionRow& row : section.rows)
      if ((row.commands & command->bit) && *row.help) rows += OptionHelp(row);
    if (!rows.empty() && *section.title) text += fmt::format("\n{}:\n", section.title);
    text += rows;
  }
  return text +
         "\nNames take '-' for '_'; sizes are 10GB or, of memory, 256MiB; of an option given twice\nthe last "
         "counts.\n" +
         kExitCodes;
}

Options ParseOptions(const std::string& name, std::vector<std::string> words, bool called_ns) {
  const CommandRow& command = *FindCommand(name);
  Options options;
  const bool as_original = called_ns && command.bit == kConvert;
  if (as_original) {
    options.convert.dtype = "bf16";
    options.given.push_back({"--dtype", "bf16", false});
  }
  const std::string to = TargetOf(words);
  Sorted sorted = SortOptions(words, command, to);
  SpliceWords(command, to, sorted);
  TakeLast(sorted.taken, options);
  if (options.help) return options;
  SortWords(sorted.others, command, options);
  const bool builds = command.bit == kConvert && options.convert.to == "trtllm" && !options.checkpoint_only;
  std::vector<std::string>& rest = builds ? options.build : options.paths;
  rest.insert(rest.end(), sorted.behind.begin(), sorted.behind.end());
  TakePaths(command, options);
  if (as_original) RequireOriginals(options);
  SettleTasks(options.convert);
  if (options.convert.verify && options.convert.discard)
    throw Usage("--verify is given with --io_engine=discard, expected one of them: nothing is written to compare with");
  return options;
}

}  // namespace reshard::cli
