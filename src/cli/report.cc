#include "cli/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <map>

#include "base/text.h"

namespace reshard::cli {
namespace {

// Names and other words of the input, with nothing in them that a terminal would obey, and not longer than a line
// bears.
std::string Printable(const std::string& text) {
  std::string safe = Visible(text, text.npos);
  constexpr size_t kLongest = 1000;
  if (safe.size() > kLongest) safe = safe.substr(0, kLongest / 2) + "..." + safe.substr(safe.size() - kLongest / 4);
  return safe;
}

Json Text(const std::string& value) { return Json::parse(value); }

std::string Shape(const std::vector<uint64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Json ElementJson(const TensorDifference::Element& element, bool with_ulps) {
  auto number = [](double value) -> Json {
    return std::isfinite(value) ? Json(value) : Json(fmt::format("{}", value));
  };
  Json json = {{"index", element.index}, {"a", number(element.a)}, {"b", number(element.b)}};
  if (with_ulps) json["ulps"] = element.ulps;
  return json;
}

constexpr const char* kWipe = "\r\033[K";  // what stands on the terminal's line

std::string LineOf(const Json& fields) { return fields.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

// Tensors that are alike but for the numbers of layer and expert, as one row each.
struct Group {
  std::string name, dtype, shape;
  uint64_t count = 0;
};

// The name with a star for the number behind `word`, where there is one.
std::string WithoutNumber(const std::string& name, const std::string& word) {
  const size_t at = name.find(word);
  if (at == std::string::npos) return name;
  const size_t begin = at + word.size(), end = name.find_first_not_of("0123456789", begin);
  return end == begin || end == std::string::npos ? name : name.substr(0, begin) + "*" + name.substr(end);
}

std::string WithoutNumbers(const std::string& name) {
  return WithoutNumber(WithoutNumber(name, ".layers."), "experts.");
}

std::vector<Group> Groups(const std::vector<TensorReport>& tensors) {
  std::vector<Group> groups;
  std::map<std::string, size_t> index;
  for (const TensorReport& tensor : tensors) {
    Group group{WithoutNumbers(tensor.name), tensor.dtype, Shape(tensor.shape), 1};
    auto [found, added] = index.emplace(group.name + group.dtype + group.shape, groups.size());
    if (added) {
      groups.push_back(group);
    } else {
      ++groups[found->second].count;
    }
  }
  return groups;
}

// Files by folder, so that the chunks of an array are one line.
std::string FileLines(const std::vector<NamedSize>& files) {
  constexpr size_t kShown = 60;
  std::vector<std::pair<std::string, std::pair<uint64_t, uint64_t>>> rows;  // name, {files, bytes}
  for (const NamedSize& file : files) {
    size_t slash = file.path.rfind('/');
    bool chunk = slash != std::string::npos && file.path.find('/') != slash;
    std::string name = chunk ? file.path.substr(0, slash + 1) : file.path;
    if (rows.empty() || rows.back().first != name) rows.push_back({name, {0, 0}});
    ++rows.back().second.first;
    rows.back().second.second += file.size;
  }
  std::string text;
  for (size_t i = 0; i < std::min(rows.size(), kShown); ++i) {
    auto [count, bytes] = rows[i].second;
    text += fmt::format("  {:>10}  {}{}\n", HumanBytes(bytes), Printable(rows[i].first),
                        count > 1 ? fmt::format(" ({} files)", count) : "");
  }
  if (rows.size() > kShown) text += fmt::format("  and {} more\n", rows.size() - kShown);
  return text;
}

}  // namespace

void Print(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    ssize_t written = write(STDOUT_FILENO, text.data() + at, text.size() - at);
    if (written < 0 && errno == EINTR) continue;  // a signal that stops us does not come back here
    if (written < 0) throw SystemError(errno, "writing", "the standard output");
    at += static_cast<size_t>(written);
  }
}

std::string HumanCount(uint64_t count) {
  for (auto [size, unit] : {std::pair{1e12, "T"}, std::pair{1e9, "B"}, std::pair{1e6, "M"}, std::pair{1e3, "K"}}) {
    double value = static_cast<double>(count) / size;
    if (value >= 0.9995) return fmt::format("{:.3g} {}", value, unit);
  }
  return std::to_string(count);
}

std::string Grouped(uint64_t number) {
  std::string text = std::to_string(number);
  for (size_t at = text.size(); at > 3;) text.insert(at -= 3, ",");
  return text;
}

std::string Counted(uint64_t count, const char* noun) {
  return fmt::format("{} {}{}", Grouped(count), noun, count == 1 ? "" : "s");
}

Log::Log(bool json) : json_(json), terminal_(isatty(STDERR_FILENO)) {}

void Log::Line(const Json& fields) { Say(LineOf(fields)); }

// Not fmt::print, which throws: where stderr is gone there is nobody left to tell.
void Log::Say(const std::string& text) { std::fputs(text.c_str(), stderr); }

void Log::ClearBar() {
  if (bar_) Say(kWipe);
  bar_ = false;
}

void Log::Note(const std::string& text) {
  if (quiet_) return;
  ClearBar();
  json_ ? Line({{"event", "note"}, {"text", text}}) : Say(fmt::format("reshard: {}\n", Printable(text)));
}

void Log::Done(const std::string& text, const Json& fields) {
  if (quiet_) return;
  ClearBar();
  json_ ? Line(fields) : Say(fmt::format("reshard: {}\n", Printable(text)));
}

void Log::Failure(const Error& error, int exit) {
  ClearBar();
  Say(FailureText(error, exit));
}

std::string Log::FailureText(const Error& error, int exit) const {
  if (json_) {
    Json line = {{"event", "error"}, {"code", CodeName(error.code())}, {"exit", exit}, {"text", error.Sentence()}};
    if (!error.path().empty()) line["path"] = error.path();
    if (!error.tensor().empty()) line["tensor"] = error.tensor();
    if (!error.also().empty()) {
      line["problems"] = Json::array({error.Sentence()});
      for (const std::string& problem : error.also()) line["problems"].push_back(problem);
    }
    return LineOf(line);
  }
  std::string text = fmt::format("reshard: error: {}\n", Printable(error.Sentence()));
  for (const std::string& problem : error.Shown()) text += fmt::format("  {}\n", Printable(problem));
  return text;
}

std::string Log::LastWords(const Error& error, int exit) const {
  return (terminal_ ? kWipe : "") + FailureText(error, exit);
}

void Log::Tell(const Progress& progress) {
  if (quiet_ || (!json_ && !terminal_)) return;
  const auto& [doing, done, total, seconds] = progress;
  double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
  if (json_) {
    Line({{"event", "progress"},
          {"doing", doing},
          {"bytes_done", done},
          {"bytes_total", total},
          {"bytes_per_second", static_cast<uint64_t>(rate)},
          {"seconds_left", static_cast<uint64_t>(left)}});
    return;
  }
  winsize size{};
  int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
  std::string numbers = fmt::format(" {:3.0f} %  {} of {}  {}/s  {}:{:02} left",
                                    total ? 100.0 * static_cast<double>(done) / static_cast<double>(total) : 100.0,
                                    HumanBytes(done), HumanBytes(total), HumanBytes(static_cast<uint64_t>(rate)),
                                    static_cast<uint64_t>(left) / 60, static_cast<uint64_t>(left) % 60);
  int width =
      std::clamp(columns - static_cast<int>(numbers.size()) - static_cast<int>(std::string(doing).size()) - 5, 0, 40);
  int filled =
      total ? static_cast<int>(static_cast<double>(width) * static_cast<double>(done) / static_cast<double>(total))
            : width;
  std::string bar;
  for (int i = 0; i < width; ++i) bar += i < filled ? "━" : "╌";
  Say(fmt::format("{}{} {}{}", kWipe, doing, bar, numbers));
  bar_ = true;
}

namespace {

// What stands before the files of a plan, and what behind them.
Json PlanHeadJson(const PlanReport& plan) {
  return {{"plan_id", plan.id},
          {"source",
           {{"path", plan.source},
            {"kind", plan.source_kind},
            {"format", plan.source_format},
            {"family", plan.family},
            {"parameters", plan.parameters},
            {"bytes", plan.source_bytes}}},
          {"target", {{"path", plan.target}, {"kind", plan.target_kind}, {"format", plan.target_format}}}};
}

Json PlanTailJson(const PlanReport& plan) {
  return {{"ops", plan.ops},
          {"bytes_read", plan.bytes_read},
          {"bytes_written", plan.bytes_written},
          {"peak_memory", plan.peak_memory},
          {"copied", plan.copied},
          {"left", plan.left},
          {"notes", plan.notes},
          {"obstacles", plan.obstacles}};
}

Json PlacesJson(const std::vector<PartReport::Place>& places) {
  Json json = Json::array();
  for (const PartReport::Place& place : places) {
    json.push_back({{"tensor", place.tensor}, {"file", place.file}, {"dtype", place.dtype}, {"bytes", place.bytes}});
    if (place.minus_one) json.back()["minus_one"] = true;
  }
  return json;
}

}  // namespace

void PrintPlanJson(const Conversion& conversion) {
  constexpr size_t kAtATime = 64 << 10;
  const PlanReport& plan = conversion.plan();
  auto dump = [](const Json& json, int indent) {
    return json.dump(indent, ' ', false, Json::error_handler_t::replace);
  };
  auto open = [&](const Json& json) {
    std::string text = dump(json, 2);
    return text.erase(text.rfind("\n}"));
  };
  std::string text = open(PlanHeadJson(plan)) + ",\n  \"files\": [";
  const char* between = "\n    ";
  auto add = [&](const std::string& item) {
    text += between + item;
    between = ",\n    ";
    if (text.size() < kAtATime) return;
    Print(text);
    text.clear();
  };
  for (const NamedSize& file : plan.files)
    add(fmt::format("{{\n      \"path\": {},\n      \"size\": {}\n    }}", dump(file.path, -1), file.size));
  text += "\n  ]," + open(PlanTailJson(plan)).substr(1) + ",\n  \"parts\": [";
  between = "\n    ";
  conversion.ForEachPart([&](const PartReport& part) {
    add(dump({{"part", part.name}, {"sources", PlacesJson(part.sources)}, {"targets", PlacesJson(part.targets)}}, -1));
  });
  Print(text + "\n  ]\n}\n");
}

std::string PlanText(const PlanReport& plan) {
  std::string text = fmt::format("plan     {}\n", plan.id);
  text += fmt::format("from     {}  ({} {}, {} parameters, {})\n", Printable(plan.source), plan.source_kind,
                      plan.family, HumanCount(plan.parameters), HumanBytes(plan.source_bytes));
  text += fmt::format("to       {}  ({})\n", Printable(plan.target), plan.target_kind);
  text += fmt::format("reads    {} bytes\nwrites   {} bytes in {}\n", Grouped(plan.bytes_read),
                      Grouped(plan.bytes_written), Counted(plan.files.size(), "file"));
  text += fmt::format("work     {}, about {} MiB of memory\n", Counted(plan.ops, "op"), plan.peak_memory >> 20);
  if (!plan.copied.empty()) text += Printable(fmt::format("copies   {}", fmt::join(plan.copied, ", "))) + "\n";
  if (!plan.left.empty()) text += Printable(fmt::format("leaves   {}", fmt::join(plan.left, ", "))) + "\n";
  for (const std::string& note : plan.notes) text += "note     " + Printable(note) + "\n";
  for (const std::string& obstacle : plan.obstacles) text += "obstacle " + Printable(obstacle) + "\n";
  return text + "\n" + FileLines(plan.files);
}

Json InspectJson(const InspectReport& report) {
  Json json = {{"path", report.path},
               {"kind", report.kind},
               {"format", report.format},
               {"family", report.family},
               {"architecture", report.architecture}};
  json["hyperparameters"] = Json::object();
  for (const auto& [key, value] : report.hyperparameters) json["hyperparameters"][key] = Text(value);
  json["parameters"] = report.parameters;
  json["bytes"] = report.bytes;
  json["dtypes"] = Json::object();
  for (const auto& [name, count] : report.dtypes) json["dtypes"][name] = count;
  json["tensors"] = Json::array();
  for (const TensorReport& tensor : report.tensors)
    json["tensors"].push_back({{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}});
  json["shards"] = Json::array();
  for (const NamedSize& shard : report.shards) json["shards"].push_back({{"path", shard.path}, {"size", shard.size}});
  json["notes"] = report.notes;
  return json;
}

std::string InspectText(const InspectReport& report) {
  bool color = isatty(STDOUT_FILENO);
  auto bold = [&](const std::string& words) { return color ? "\033[1m" + words + "\033[0m" : words; };
  std::string text = bold(fmt::format("{}  {} parameters", report.architecture, HumanCount(report.parameters))) + "\n";
  text += fmt::format("{}\n{} ({}), family {}, {} in {}\n\n", Printable(report.path), report.kind, report.format,
                      report.family, HumanBytes(report.bytes), Counted(report.shards.size(), "file"));
  for (const auto& [key, value] : report.hyperparameters)
    if (value != "null" && value != "false") text += fmt::format("  {:<24} {}\n", key, Printable(value));
  text += "\n" + bold(Counted(report.tensors.size(), "tensor")) + "\n";
  const std::vector<Group> groups = Groups(report.tensors);
  constexpr size_t kWidest = 80;
  size_t width = 0;
  for (const Group& group : groups) width = std::min(std::max(width, Printable(group.name).size()), kWidest);
  for (const Group& group : groups)
    text += fmt::format("  {:<{}} {:<5} {}{}\n", Printable(group.name), width, group.dtype, group.shape,
                        group.count > 1 ? fmt::format(" x {}", group.count) : "");
  text += "\n" + bold("files") + "\n" + FileLines(report.shards);
  for (const std::string& note : report.notes) text += "\nnote: " + Printable(note) + "\n";
  return text;
}

Json VerifyJson(const VerifyReport& report) {
  Json json = {{"equal", report.equal},    {"hyperparameters", Json::array()},
               {"tensors", Json::array()}, {"missing", report.missing},
               {"extra", report.extra},    {"misshapen", report.misshapen},
               {"notes", report.notes}};
  for (const auto& row : report.hyperparameters)
    json["hyperparameters"].push_back({{"key", row.key}, {"a", Text(row.a)}, {"b", Text(row.b)}});
  for (const TensorDifference& tensor : report.tensors) {
    Json row = {{"name", tensor.name},          {"part", tensor.part},       {"verdict", tensor.verdict},
                {"dtype_a", tensor.dtype_a},    {"dtype_b", tensor.dtype_b}, {"differing", tensor.differing},
                {"overflows", tensor.overflows}};
    if (tensor.minus_one_a) row["minus_one_a"] = true;
    if (tensor.minus_one_b) row["minus_one_b"] = true;
    if (tensor.first) row["first"] = ElementJson(*tensor.first, false);
    if (tensor.worst) row["worst"] = ElementJson(*tensor.worst, true);
    json["tensors"].push_back(row);
  }
  return json;
}

std::string VerifyText(const VerifyReport& report) {
  std::string text;
  for (const auto& row : report.hyperparameters)
    text += fmt::format("differs  {}: {} in A, {} in B\n", row.key, row.a, row.b);
  for (const std::string& name : report.missing) text += fmt::format("missing  {} is in A only\n", Printable(name));
  for (const std::string& name : report.extra) text += fmt::format("extra    {} is in B only\n", Printable(name));
  for (const std::string& line : report.misshapen) text += fmt::format("differs  {}\n", Printable(line));
  std::map<std::string, size_t> verdicts;
  uint64_t overflows = 0;
  for (const TensorDifference& tensor : report.tensors) {
    ++verdicts[tensor.verdict];
    overflows += tensor.overflows;
    if (tensor.verdict != "differs" || !tensor.first || !tensor.worst) continue;
    text += fmt::format(
        "differs  {} ({}) in {}: first at {}, {} in A, {} in B; worst at {}, {} in A, {} in B, {} ulp of {}\n",
        Printable(tensor.name), tensor.part, Counted(tensor.differing, "element"), Shape(tensor.first->index),
        tensor.first->a, tensor.first->b, Shape(tensor.worst->index), tensor.worst->a, tensor.worst->b,
        tensor.worst->ulps == UINT64_MAX ? "infinitely many" : Grouped(tensor.worst->ulps),
        tensor.dtype_b.empty() ? tensor.dtype_a : tensor.dtype_b);
  }
  text += fmt::format("{}: {} equal", report.equal ? "equal" : "not equal", Counted(verdicts["equal"], "part"));
  if (verdicts["equal_rounded"])
    text += fmt::format(", {} equal after A is rounded to what B stores", Grouped(verdicts["equal_rounded"]));
  if (verdicts["differs"]) text += fmt::format(", {} differ", Grouped(verdicts["differs"]));
  text += "\n";
  if (overflows > 0)
    text += fmt::format("note: {} of A {} infinite in B's dtype\n", Counted(overflows, "finite value"),
                        overflows == 1 ? "is" : "are");
  for (const std::string& note : report.notes) text += "note: " + Printable(note) + "\n";
  return text;
}

}  // namespace reshard::cli
