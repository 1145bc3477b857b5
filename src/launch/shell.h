// Shell words, and scripts run by a shell: here, or on a machine behind the system's ssh.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/cluster_config.h"

namespace reshard {

// The word as a POSIX shell has to be given it; bare where nothing in it is special.
std::string ShellQuoted(const std::string& word);
std::string ShellLine(const std::vector<std::string>& words);

// The words that a shell makes of a text without expanding anything; nothing where a quote is not closed.
std::optional<std::vector<std::string>> ShellWords(const std::string& text);

struct Output {
  int exit = 0;
  std::string out, err;
};

// Runs sh scripts to their end, their standard input empty. What they start sees of the environment only what a job may
// be given: a job's environment is kept in files. One connection serves all calls of some minutes.
class Shell {
 public:
  explicit Shell(std::optional<SshTunnel> tunnel = {});

  // Errors: kIo where ssh itself fails. The script's own exit code is the caller's.
  Output Run(const std::string& script) const;

  // The same, and kIo with what it said on stderr where the script fails.
  std::string Must(const std::string& script, const std::string& doing, const std::string& what) const;

  // Copies a file of here to a path of there, complete or not at all, executable.
  void Upload(const std::string& from, const std::string& to) const;

  const std::string& host() const { return host_; }  // empty: here

 private:
  std::vector<std::string> Command() const;

  std::optional<SshTunnel> tunnel_;
  std::string host_;
};

}  // namespace reshard
