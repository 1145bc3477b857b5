#include "cli/next_ns.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>

namespace reshard::cli {
namespace {

bool IsThisProgram(const struct stat& status) {
  struct stat self = {};
  return stat("/proc/self/exe", &self) == 0 && self.st_dev == status.st_dev && self.st_ino == status.st_ino;
}

bool IsAnotherProgram(const std::string& path) {
  struct stat status = {};
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) && access(path.c_str(), X_OK) == 0 &&
         !IsThisProgram(status);
}

std::string FindNextNs() {
  const char* variable = std::getenv("PATH");
  std::string folders = variable ? variable : "";
  for (size_t begin = 0; begin < folders.size();) {
    size_t end = std::min(folders.find(':', begin), folders.size());
    std::string path = (end == begin ? "." : folders.substr(begin, end - begin)) + "/ns";
    if (IsAnotherProgram(path)) return path;
    begin = end + 1;
  }
  return "";
}

}  // namespace

void RunNextNs(const std::string& command, const std::vector<std::string>& words) {
  std::string path = FindNextNs();
  if (path.empty()) return;
  std::vector<std::string> all = words;
  all.insert(all.begin(), {path, command});
  std::vector<char*> arguments;
  arguments.reserve(all.size() + 1);
  for (std::string& word : all) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  for (int number : {SIGPIPE, SIGXFSZ}) std::signal(number, SIG_DFL);  // what we ignore it would ignore too
  execv(path.c_str(), arguments.data());
}

}  // namespace reshard::cli
