// The rows of the option table, and what they are made of.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/options.h"

namespace reshard::cli {

// Sets of commands.
constexpr unsigned kConvert = 1, kInspect = 2, kVerify = 4, kTables = 8, kStatus = 16, kLogs = 32, kCancel = 64,
                   kCommit = 128, kLaunched = kStatus | kLogs | kCancel | kCommit, kAll = 255;

// What is special about an option.
constexpr unsigned kPath = 1,          // its value is a path, which a cluster may call otherwise
    kLaunch = 2,                       // it is for the one who launches, not for what is launched
    kRepeats = 4, kValueOptional = 8;  // all its values count; it has one only behind '=' or before no option

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
  unsigned flags = 0;
};

std::vector<OptionRow> ConvertRows();
std::vector<OptionRow> TrtllmRows();
std::vector<OptionRow> LaunchRows();

// What the rows of a trtllm target mean together, or that they are given for another one.
void SettleTrtllm(Options& options);

Error Usage(std::string message);

// The value, if it is allowed.
std::string OneOf(const std::string& name, const std::string& value, const std::vector<std::string>& allowed);
uint64_t Count(const std::string& name, const std::string& value, uint64_t least, uint64_t most);

// A store that only says why an option of the originals changes nothing.
Store Needless(const char* name, const char* why);

}  // namespace reshard::cli
