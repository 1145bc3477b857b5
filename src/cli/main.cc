// The program: a command, its options, an exit code.
#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <iterator>
#include <new>

#include "base/json.h"
#include "base/text.h"
#include "cli/launched.h"
#include "cli/local_tasks.h"
#include "cli/next_ns.h"
#include "cli/options.h"
#include "cli/report.h"
#include "launch/trtllm_build.h"

namespace reshard::cli {
namespace {

constexpr int kDiffers = 1;

constexpr int kInterrupted = 75;
constexpr int kSignalled = 128;  // and the number of the signal: what shells make of one that kills

std::atomic<bool> stop = false;
std::atomic<bool> stoppable = false;  // somebody looks at `stop`, and has something to put away
volatile std::sig_atomic_t stopped_by = 0;
std::atomic<bool> is_task = false;      // one of several that share a conversion
std::atomic<bool> one_of_many = false;  // whose parent says that they were stopped
constexpr int kSignals[] = {SIGINT, SIGTERM};
std::string last_words[std::size(kSignals)];  // made before the handler is installed

extern "C" void OnSignal(int number) {
  stopped_by = number;
  stop = true;
  if (stoppable) return;
  const std::string& words = last_words[number == kSignals[0] ? 0 : 1];
  [[maybe_unused]] ssize_t written = one_of_many ? 0 : write(STDERR_FILENO, words.data(), words.size());
  _exit(is_task ? kInterrupted : kSignalled + number);
}

// While it lives a signal asks to stop; else it ends the program on the spot, which then only reads.
class Stoppable {
 public:
  Stoppable() { stoppable = true; }
  ~Stoppable() { stoppable = false; }
  Stoppable(const Stoppable&) = delete;
  Stoppable& operator=(const Stoppable&) = delete;
};

// A closed pipe and a file size limit are errors of the call, not of the process.
void InstallSignals(const Log& log) {
  const Error stopped(Code::kCancelled, "stopped by a signal; run the same command again");
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    last_words[i] = log.LastWords(stopped, kSignalled + kSignals[i]);
    sigaction(kSignals[i], &action, nullptr);
  }
  action.sa_handler = SIG_IGN;
  for (int number : {SIGPIPE, SIGXFSZ}) sigaction(number, &action, nullptr);
}

// A descriptor of the first three that is closed would be given to the next file that is opened, and written to.
void KeepStandardDescriptors() {
  for (int fd = open("/dev/null", O_RDWR | O_CLOEXEC); fd >= 0 && fd <= STDERR_FILENO;
       fd = open("/dev/null", O_RDWR | O_CLOEXEC)) {
  }
}

// Memory that is freed goes back to the system, and threads share arenas: resident memory has a cap.
void TameAllocator() {
  mallopt(M_ARENA_MAX, 2);
  mallopt(M_MMAP_THRESHOLD, 256 << 10);
  mallopt(M_TRIM_THRESHOLD, 256 << 10);
}

std::string Dump(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

ConvertReport RunStoppable(Conversion& conversion) {
  Stoppable until_done;
  return conversion.Run();
}

Json OverflowsJson(const ConvertReport& report) {
  Json json = Json::array();
  for (const auto& [tensor, count] : report.overflows) json.push_back({{"tensor", tensor}, {"count", count}});
  return json;
}

std::string DoneText(const Options& options, const PlanReport& plan, const ConvertReport& report, double seconds) {
  const ConvertOptions& convert = options.convert;
  const bool tasks = convert.tasks > 1 && !convert.task;  // which have written what was staged, just now
  const uint64_t now = report.bytes_written + (tasks ? report.bytes_staged : 0);
  std::string text = fmt::format(
      "{} {}: {}, {}",
      convert.discard ? "measured and discarded"
      : convert.task  ? "staged in"
                      : "wrote",
      plan.target,
      convert.task ? fmt::format("share {} of {}", *convert.task, convert.tasks) : Counted(report.files, "file"),
      HumanBytes(report.bytes_written + report.bytes_staged));
  if (report.bytes_staged > 0 && !tasks) text += fmt::format(", {} of it before,", HumanBytes(report.bytes_staged));
  text += fmt::format(" in {:.1f} s ({}/s)", seconds,
                      HumanBytes(static_cast<uint64_t>(static_cast<double>(now) / seconds)));
  if (tasks) text += fmt::format(" by {} tasks", convert.tasks);
  return report.verified ? text + ", verified against the source" : text;
}

// On stderr, and as JSON on stdout where that is asked for.
void TellDone(const Options& options, const PlanReport& plan, const ConvertReport& report, double seconds, Log& log) {
  Json json = {{"plan_id", plan.id},
               {"target", plan.target},
               {"already_complete", report.already_complete},
               {"verified", report.verified}};
  const char* verified = report.verified ? ", verified against the source" : "";
  if (report.already_complete) {
    log.Done(fmt::format("{} is already complete{}", plan.target, verified),
             {{"event", "already_complete"}, {"plan_id", plan.id}, {"verified", report.verified}});
    json["files"] = plan.files.size();
  } else {
    const Json numbers = {{"files", report.files},
                          {"bytes_read", report.bytes_read},
                          {"bytes_written", report.bytes_written},
                          {"bytes_staged", report.bytes_staged},
                          {"seconds", seconds},
                          {"overflows", OverflowsJson(report)}};
    Json event = {{"event", "done"}, {"plan_id", plan.id}, {"verified", report.verified}};
    event.update(numbers);
    json.update(numbers);
    log.Done(DoneText(options, plan, report, seconds), event);
  }
  if (options.json) Print(Dump(json));
}

// Makes the engine of a checkpoint that is complete.
void MakeEngine(const Options& options, const std::vector<std::string>& program, const PlanReport& plan, Log& log) {
  {
    Stoppable until_done;
    BuildEngine({program, plan.target, options.engine, options.build, &stop});
  }
  const std::vector<std::string> names =
      plan.hf_folder.empty() ? std::vector<std::string>() : CopyTokenizer(plan.hf_folder, options.engine);
  if (names.empty()) log.Note(fmt::format("{} has no tokenizer: there was none to copy", options.engine));
  log.Done(fmt::format("built {}", options.engine), {{"event", "built"}, {"engine", options.engine}});
}

int Convert(Options& options, Log& log, bool plan_only) {
  auto begin = std::chrono::steady_clock::now();
  RunOptions& run = options.convert.run;
  run.stop = &stop;
  run.progress = [&](const Progress& progress) { log.Tell(progress); };
  std::vector<std::string> builder = options.builder;
  if (!options.engine.empty() && !plan_only && !options.dry_run) {
    if (builder.empty()) builder = {FindTrtllmBuild()};  // where there is none, nothing is done for it either
    CheckEngineFolder(options.engine, options.convert.input, options.convert.replace);
  }
  Conversion conversion(options.convert);
  const PlanReport& plan = conversion.plan();
  if (!options.engine.empty())
    options.notes.push_back(fmt::format("the checkpoint in {} is for trtllm-build, which makes the engine in {}",
                                        plan.target, options.engine));
  for (const std::string& note : options.notes) log.Note(note);
  for (const std::string& note : NeedlessBetween(options, plan.source_kind, plan.target_kind)) log.Note(note);
  if (plan_only || options.dry_run) {
    options.json ? PrintPlanJson(conversion) : Print(PlanText(plan));
    return 0;
  }
  for (const std::string& note : plan.notes) log.Note(note);
  if (options.convert.tasks > 1 && !options.convert.task && plan.obstacles.empty()) {
    Stoppable until_done;
    const int exit = RunLocalTasks(options, plan, stop, log);
    if (stop) throw Error(Code::kCancelled, "stopped by a signal; run the same command again");
    if (exit != 0) return exit;
  }
  ConvertReport report = RunStoppable(conversion);
  for (const auto& [tensor, count] : report.overflows)
    log.Note(fmt::format("tensor '{}': {} finite values became infinite", tensor, count));
  TellDone(options, plan, report, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), log);
  if (!options.engine.empty() && !options.convert.task) MakeEngine(options, builder, plan, log);
  return 0;
}

SourceHints HintsOf(const Options& options) {
  return {options.convert.model_type, options.convert.hf_model_name, options.convert.vocab_size};
}

void TellNeedless(const Options& options, const std::vector<std::string>& kinds, Log& log) {
  for (const std::string& note : NeedlessFor(options, kinds)) log.Note(note);
}

int RunInspect(const Options& options, Log& log) {
  InspectReport report = Inspect(options.paths[0], HintsOf(options), options.convert.run);
  TellNeedless(options, {report.kind}, log);
  Print(options.json ? Dump(InspectJson(report)) : InspectText(report));
  return 0;
}

int VerifyOne(const Options& options, Log& log) {
  ReceiptReport report = VerifyReceipt(options.paths[0], options.convert.run);
  log.ProgressDone();
  if (options.json) {
    Print(Dump(
        {{"equal", report.equal}, {"files", report.files}, {"bytes", report.bytes}, {"problems", report.problems}}));
  } else {
    std::string text;
    for (const std::string& problem : report.problems) text += "differs  " + problem + "\n";
    Print(text + fmt::format("{}: {}, {}, against the receipt\n", report.equal ? "equal" : "not equal",
                             Counted(report.files, "file"), HumanBytes(report.bytes)));
  }
  return report.equal ? 0 : kDiffers;
}

int RunVerify(Options& options, Log& log) {
  RunOptions& run = options.convert.run;
  run.progress = [&](const Progress& progress) { log.Tell(progress); };
  if (options.paths.size() == 1) return VerifyOne(options, log);
  VerifyReport report = Verify(options.paths[0], options.paths[1], HintsOf(options), run);
  log.ProgressDone();
  TellNeedless(options, {report.kind_a, report.kind_b}, log);
  Print(options.json ? Dump(VerifyJson(report)) : VerifyText(report));
  return report.equal ? 0 : kDiffers;
}

// Columns as wide as their longest word.
int PrintTable(TableRow heading, std::vector<TableRow> rows, const Options& options, const Json& json) {
  if (options.json) {
    Print(Dump(json));
    return 0;
  }
  rows.insert(rows.begin(), std::move(heading));
  size_t name = 0, detail = 0;
  for (const TableRow& row : rows) {
    name = std::max(name, row.name.size());
    detail = std::max(detail, row.details[0].size());
  }
  std::string text;
  for (const TableRow& row : rows)
    text += fmt::format("{:<{}}  {:<{}}  {}\n", row.name, name, row.details[0], detail, row.description);
  Print(text);
  return 0;
}

Json TableJson(const std::vector<TableRow>& rows) {
  Json json = Json::array();
  for (const TableRow& row : rows)
    json.push_back({{"kind", row.name}, {"format", row.details[0]}, {"what", row.description}});
  return json;
}

int RunCommand(const std::string& command, Options& options, Log& log) {
  if (command == "convert" || command == "plan") {
    const ClusterConfig config = SettleCluster(options, log);
    if (config.executor == "slurm" && command == "convert") return RunLaunch(options, config, log);
    return Convert(options, log, command == "plan");
  }
  if (command == "status") return RunStatus(options, log);
  if (command == "logs") return RunLogs(options, log);
  if (command == "cancel") return RunCancel(options, log);
  if (command == "commit") return RunCommit(options, log);
  if (command == "inspect") return RunInspect(options, log);
  if (command == "verify") return RunVerify(options, log);
  if (command == "families")
    return PrintTable({"family", "class, kinds", {"group"}}, FamilyTable(), options, Json::parse(FamiliesJson()));
  return PrintTable({"kind", "what", {"format"}}, FormatTable(), options, TableJson(FormatTable()));
}

// A task that was stopped is to be run again, by whoever counts them.
int ExitOf(const Error& error) {
  if (error.code() != Code::kCancelled) return ExitCode(error.code());
  return is_task ? kInterrupted : kSignalled + stopped_by;
}

// Returns the exit code.
int Fail(Log& log, const Error& error) {
  const int exit = ExitOf(error);
  if (!one_of_many || error.code() != Code::kCancelled) log.Failure(error, exit);
  return exit;
}

// The wish for JSON lines has to be known even where the options cannot be parsed. Of several the last counts.
bool WantsJsonLog(const std::vector<std::string>& words) {
  bool json = false;
  for (size_t i = 0; i < words.size() && words[i] != "--"; ++i) {
    std::string word = words[i];
    if (word == "--log_format" || word == "--log-format") word += "=" + (i + 1 < words.size() ? words[i + 1] : "");
    if (word.starts_with("--log_format=") || word.starts_with("--log-format=")) json = word.ends_with("=json");
  }
  return json;
}

int Main(bool called_ns, std::vector<std::string> words) {
  Log log(WantsJsonLog(words));
  InstallSignals(log);
  try {
    if (words.empty()) {
      Print(HelpText(""));
      return ExitCode(Code::kInvalidArgument);
    }
    std::string command = words[0];
    words.erase(words.begin());
    if (command == "--help" || command == "-h" || command == "help") {
      Print(HelpText(words.empty() ? "" : words[0]));
      return 0;
    }
    if (command == "--version") {
      Print(fmt::format("reshard {}\n", Version()));
      return 0;
    }
    std::vector<std::string> known = Commands();
    if (std::find(known.begin(), known.end(), command) == known.end()) {
      if (called_ns) RunNextNs(command, words);
      std::string closest = Closest(command, known);
      throw Error(Code::kInvalidArgument,
                  fmt::format("the command '{}' is not known{}{}`reshard --help` lists all", command,
                              called_ns ? ", and there is no other ns on the PATH" : "", DidYouMean(closest)));
    }
    Options options = ParseOptions(command, std::move(words), called_ns);
    if (options.help) {
      Print(HelpText(command));
      return 0;
    }
    log.SetQuiet(options.quiet);
    is_task = options.convert.task.has_value();
    one_of_many = is_task && options.quiet;
    return RunCommand(command, options, log);
  } catch (const Error& error) {
    return Fail(log, error);
  } catch (const std::bad_alloc&) {
    return Fail(log, Error(Code::kIo, "the system gave no more memory; a smaller --max_memory may fit"));
  } catch (const std::exception& error) {
    return Fail(log,
                Error(Code::kInternal,
                      fmt::format("{}; this is a bug of reshard, please report it with the command", error.what())));
  }
}

}  // namespace
}  // namespace reshard::cli

int main(int argc, char** argv) {
  reshard::cli::KeepStandardDescriptors();
  reshard::cli::TameAllocator();
  std::string program = argc > 0 ? argv[0] : "reshard";
  return reshard::cli::Main(program.substr(program.rfind('/') + 1) == "ns", {argv + std::min(argc, 1), argv + argc});
}
