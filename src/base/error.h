// One exception type for everything that can go wrong, and the codes that callers act upon.
//
// Message grammar: "<verb>ing <path>[, tensor '<name>']: <found>, expected <wanted>[; <remedy>]". The thrower writes
// the part behind the colon; each layer adds only what it knows (file layer: path; format: tensor), and only if it is
// absent.
#pragma once

#include <exception>
#include <string>
#include <vector>

namespace reshard {

enum class Code {
  kInvalidArgument,  // an option or a combination is wrong; nothing was read
  kNotFound,         // about a path
  kAlreadyExists,
  kPermission,
  kCorrupt,      // the input contradicts itself or its format
  kUnsupported,  // valid, but not handled; the message names the feature
  kMismatch,     // config, family, tensors or ranks disagree; an input changed; a cast overflowed
  kIo,           // the operating system said so
  kNoSpace,
  kInternal,   // our bug
  kCancelled,  // a signal
};

// The process exit code of a Code (docs/errors.md).
int ExitCode(Code code);

// The word used for a Code in JSON output and in docs: "corrupt", "not_found", ...
const char* CodeName(Code code);

class Error : public std::exception {
 public:
  Error(Code code, std::string message);

  // Both return *this, so that `throw Error(...).At("reading", path).Tensor(name);` reads as one sentence. They keep
  // what a deeper layer has already said.
  Error& At(std::string action, std::string path);
  Error& Tensor(std::string name);

  // More problems of the same kind, found in the same pass. what() has a line for each below the first, as far as a
  // person may read them: those of Shown().
  Error& Also(std::vector<std::string> problems);

  const char* what() const noexcept override { return text_.c_str(); }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& path() const { return path_; }
  const std::string& tensor() const { return tensor_; }
  const std::vector<std::string>& also() const { return also_; }
  std::string Sentence() const;            // what() without them
  std::vector<std::string> Shown() const;  // the first 200 of them, and a line that says how many more there are

 private:
  void Compose();

  Code code_;
  std::string message_, action_, path_, tensor_, text_;
  std::vector<std::string> also_;
};

// Several problems as one error, of which the first is the message; one that comes again is told once.
Error Gathered(Code code, std::vector<std::string> problems);

// The Error for a failed system call: ENOSPC and EDQUOT are kNoSpace, ENOENT kNotFound, ELOOP kCorrupt, EACCES, EPERM
// and EROFS kPermission, EEXIST and ENOTEMPTY kAlreadyExists, anything else kIo. `doing` is the verb of the message:
// "writing".
Error SystemError(int error_number, std::string doing, std::string path);

}  // namespace reshard
