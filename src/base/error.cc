#include "base/error.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

namespace reshard {
namespace {

struct CodeRow {
  Code code;
  int exit;
  const char* name;
};

constexpr CodeRow kCodes[] = {
    {Code::kInvalidArgument, 2, "invalid_argument"},
    {Code::kNotFound, 3, "not_found"},
    {Code::kAlreadyExists, 3, "already_exists"},
    {Code::kPermission, 3, "permission"},
    {Code::kCorrupt, 4, "corrupt"},
    {Code::kUnsupported, 5, "unsupported"},
    {Code::kMismatch, 6, "mismatch"},
    {Code::kIo, 7, "io"},
    {Code::kNoSpace, 7, "no_space"},
    {Code::kInternal, 70, "internal"},
    {Code::kCancelled, 130, "cancelled"},
};

const CodeRow& RowOf(Code code) { return kCodes[static_cast<size_t>(code)]; }

}  // namespace

int ExitCode(Code code) { return RowOf(code).exit; }
const char* CodeName(Code code) { return RowOf(code).name; }

Error::Error(Code code, std::string message) : code_(code), message_(std::move(message)) { Compose(); }

Error& Error::At(std::string action, std::string path) {
  if (path_.empty()) {
    action_ = std::move(action);
    path_ = std::move(path);
    Compose();
  }
  return *this;
}

Error& Error::Tensor(std::string name) {
  if (tensor_.empty()) {
    tensor_ = std::move(name);
    Compose();
  }
  return *this;
}

Error& Error::Also(std::vector<std::string> problems) {
  also_ = std::move(problems);
  Compose();
  return *this;
}

std::string Error::Sentence() const {
  std::string text;
  if (!path_.empty()) text += action_ + " " + path_;
  if (!tensor_.empty()) text += (text.empty() ? "tensor '" : ", tensor '") + tensor_ + "'";
  return text + (text.empty() ? "" : ": ") + message_;
}

std::vector<std::string> Error::Shown() const {
  constexpr size_t kMost = 200;
  std::vector<std::string> shown(also_.begin(), also_.begin() + static_cast<ptrdiff_t>(std::min(also_.size(), kMost)));
  if (also_.size() > kMost) shown.push_back(fmt::format("and {} more", also_.size() - kMost));
  return shown;
}

void Error::Compose() {
  text_ = Sentence();
  for (const std::string& problem : Shown()) text_ += "\n  " + problem;
}

Error Gathered(Code code, std::vector<std::string> problems) {
  std::set<std::string> told;
  auto repeated = [&](const std::string& problem) { return !told.insert(problem).second; };
  problems.erase(std::remove_if(problems.begin(), problems.end(), repeated), problems.end());
  Error error(code, std::move(problems.front()));
  problems.erase(problems.begin());
  return error.Also(std::move(problems));
}

Error SystemError(int error_number, std::string doing, std::string path) {
  Code code = Code::kIo;
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
      code = Code::kNoSpace;
      break;
    case ENOENT:
      code = Code::kNotFound;
      break;
    case ELOOP:
      code = Code::kCorrupt;
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      code = Code::kPermission;
      break;
    case EEXIST:
    case ENOTEMPTY:
      code = Code::kAlreadyExists;
      break;
    default:
      break;
  }
  std::string message = std::strerror(error_number);
  if (error_number == ELOOP) message += ", expected a link that leads somewhere; remove it";
  if (error_number == EFBIG) message += "; raise the limit (ulimit -f), or write smaller files";
  Error error(code, std::move(message));
  error.At(std::move(doing), std::move(path));
  return error;
}

}  // namespace reshard
