// Programs that we start and wait for.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace reshard {

class Process {
 public:
  // Descriptors of ours that are its standard ones.
  struct Streams {
    int in = 0, out = 2, err = 2;  // what it prints goes to stderr: stdout is for results
  };

  // Starts words[0], looked for on the PATH if it has no '/', with the other words. Signals that we ignore, it does
  // not. It gets a SIGTERM when we end, however that comes. Errors: kIo where it cannot be started.
  Process(const std::vector<std::string>& words, Streams streams);
  Process(Process&& other) noexcept;
  Process& operator=(Process&&) = delete;
  ~Process();  // a process that has not ended gets a SIGTERM, and is waited for

  // Its exit code, or 128 and the number of the signal that ended it; nothing while it runs.
  std::optional<int> Poll();
  void Signal(int number) const;

 private:
  std::string name_;
  pid_t pid_ = -1;
  std::optional<int> exit_;
};

}  // namespace reshard
