// What the program says: results on stdout, everything else on stderr.
#pragma once

#include <string>

#include "base/error.h"
#include "base/json.h"
#include "cli/options.h"

namespace reshard::cli {

// Writes to stdout. Errors: kIo where stdout is closed or full.
void Print(const std::string& text);

std::string HumanCount(uint64_t count);                 // "8.03 B", "135 M"
std::string Grouped(uint64_t number);                   // "1,234,567"
std::string Counted(uint64_t count, const char* noun);  // "1 file", "1,234 files"

// stderr, as text or as JSON lines.
class Log {
 public:
  explicit Log(bool json);
  void SetQuiet(bool quiet) { quiet_ = quiet; }
  void Note(const std::string& text);
  void Done(const std::string& text, const Json& fields);
  void Failure(const Error& error, int exit);  // never quiet
  // The line of a Failure, as a signal handler can write it: the bar, if there is one, is wiped out.
  std::string LastWords(const Error& error, int exit) const;
  // A bar with rate and ETA on a terminal, JSON lines where asked for, else nothing.
  void ProgressDone() { ClearBar(); }
  void Tell(const Progress& progress);

 private:
  std::string FailureText(const Error& error, int exit) const;
  void Line(const Json& fields);
  void Say(const std::string& text);
  void ClearBar();

  bool json_, quiet_ = false, terminal_, bar_ = false;
};

// The plan with all its parts, some at a time, to stdout.
void PrintPlanJson(const Conversion& conversion);
std::string PlanText(const PlanReport& plan);
Json InspectJson(const InspectReport& report);
std::string InspectText(const InspectReport& report);
Json VerifyJson(const VerifyReport& report);
std::string VerifyText(const VerifyReport& report);

}  // namespace reshard::cli
