#include "launch/process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace reshard {
namespace {

// In the child, where only what is safe in a signal handler may be called. Returns where it fails, with errno.
void Become(char** arguments, const Process::Streams& streams, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(128 + SIGTERM);  // it has ended already
  // Above the first three, so that no copy overwrites the next one's source.
  const int in = fcntl(streams.in, F_DUPFD_CLOEXEC, 3), out = fcntl(streams.out, F_DUPFD_CLOEXEC, 3),
            err = fcntl(streams.err, F_DUPFD_CLOEXEC, 3);
  if (in == -1 || out == -1 || err == -1) return;
  if (dup2(in, STDIN_FILENO) == -1 || dup2(out, STDOUT_FILENO) == -1 || dup2(err, STDERR_FILENO) == -1) return;
  for (int number : {SIGPIPE, SIGXFSZ}) signal(number, SIG_DFL);
  // execvp would take a file that is no program for a script of sh.
  if (std::strchr(arguments[0], '/')) {
    execv(arguments[0], arguments);
  } else {
    execvp(arguments[0], arguments);
  }
}

}  // namespace

Process::Process(const std::vector<std::string>& words, Streams streams) : name_(words[0]) {
  std::vector<std::string> copy = words;
  std::vector<char*> arguments;
  arguments.reserve(copy.size() + 1);
  for (std::string& word : copy) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  int failure[2];  // errno of a child that could not become the program; closed when it has
  if (pipe2(failure, O_CLOEXEC) == -1) throw SystemError(errno, "running", name_);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    Become(arguments.data(), streams, parent);
    const int error = errno;
    [[maybe_unused]] const ssize_t written = write(failure[1], &error, sizeof error);
    _exit(127);
  }
  const int fork_error = errno;
  close(failure[1]);
  int error = pid_ == -1 ? fork_error : 0;
  while (pid_ != -1 && read(failure[0], &error, sizeof error) == -1 && errno == EINTR) {
  }
  close(failure[0]);
  if (error == 0) return;
  if (pid_ != -1) waitpid(pid_, nullptr, 0);
  throw SystemError(error, "running", name_);
}

Process::Process(Process&& other) noexcept
    : name_(std::move(other.name_)), pid_(std::exchange(other.pid_, -1)), exit_(other.exit_) {}

Process::~Process() {
  if (pid_ == -1 || exit_) return;
  kill(pid_, SIGTERM);
  while (waitpid(pid_, nullptr, 0) == -1 && errno == EINTR) {
  }
}

std::optional<int> Process::Poll() {
  if (exit_) return exit_;
  int status = 0;
  const pid_t ended = waitpid(pid_, &status, WNOHANG);
  if (ended == -1 && errno != EINTR) throw SystemError(errno, "waiting for", name_);
  if (ended == pid_) exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return exit_;
}

void Process::Signal(int number) const {
  if (!exit_) kill(pid_, number);
}

}  // namespace reshard
