#include "launch/shell.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>

#include "base/error.h"
#include "base/text.h"
#include "launch/process.h"

namespace reshard {
namespace {

constexpr int kSshFailed = 255;

// Forgets all variables but those that Slurm's commands and a job need. The names of what is exported are read from
// env, where a line of a value may look like one too; to unset that does no harm.
constexpr const char* kPreamble = R"(for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
  case $name in
    PATH | HOME | USER | LOGNAME | SHELL | LANG | TMPDIR | LD_LIBRARY_PATH | MODULEPATH | KRB5CCNAME) ;;
    LC_* | SLURM_* | SBATCH_* | SHELLOPTS | BASHOPTS | PWD) ;;
    *) unset "$name" ;;
  esac
done
)";

class Fd {
 public:
  explicit Fd(int value) : value_(value) {
    if (value == -1) throw SystemError(errno, "running", "a command");
  }
  ~Fd() { Close(); }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int value() const { return value_; }
  void Close() {
    if (value_ >= 0) close(value_);
    value_ = -1;
  }

 private:
  int value_;
};

struct Pipe {
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) == -1) throw SystemError(errno, "running", "a command");
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
  }
  ~Pipe() {
    for (int end : ends)
      if (end >= 0) close(end);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void CloseWriteEnd() {
    close(ends[1]);
    ends[1] = -1;
  }
  // Takes what is there; false at the end.
  bool Drain(std::string& into) const {
    std::array<char, 65536> buffer;
    for (;;) {
      const ssize_t got = read(ends[0], buffer.data(), buffer.size());
      if (got > 0) into.append(buffer.data(), static_cast<size_t>(got));
      if (got == 0) return false;
      if (got == -1 && errno != EINTR) return errno == EAGAIN;
    }
  }
  int ends[2];
};

// A connection that ssh leaves open for the next call may keep the pipes: the end of the child is what counts.
Output RunProcess(const std::vector<std::string>& words, int in) {
  constexpr int kBetweenLooks = 20;  // ms
  Pipe out, err;
  Process process(words, {in, out.ends[1], err.ends[1]});
  out.CloseWriteEnd();
  err.CloseWriteEnd();
  Output output;
  for (;;) {
    const std::optional<int> exit = process.Poll();
    std::array<pollfd, 2> ends = {pollfd{out.ends[0], POLLIN, 0}, pollfd{err.ends[0], POLLIN, 0}};
    const bool more_out = out.Drain(output.out), more_err = err.Drain(output.err);
    if (!more_out) ends[0].fd = -1;
    if (!more_err) ends[1].fd = -1;
    if (exit) {
      output.exit = *exit;
      return output;
    }
    poll(ends.data(), ends.size(), kBetweenLooks);
  }
}

int TextFile(const std::string& text) {
  const int fd = memfd_create("script", MFD_CLOEXEC);
  if (fd == -1) return fd;
  for (size_t at = 0; at < text.size();) {
    const ssize_t put = write(fd, text.data() + at, text.size() - at);
    if (put == -1 && errno != EINTR) throw SystemError(errno, "writing", "a script");
    if (put > 0) at += static_cast<size_t>(put);
  }
  lseek(fd, 0, SEEK_SET);
  return fd;
}

// For the sockets of shared connections; empty where there is none that is ours alone.
std::string SocketFolder() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  const std::string folder =
      runtime && *runtime ? std::string(runtime) + "/reshard-ssh" : fmt::format("/tmp/reshard-ssh-{}", getuid());
  mkdir(folder.c_str(), 0700);
  struct stat status = {};
  const bool ours = lstat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode) && status.st_uid == getuid() &&
                    (status.st_mode & 077) == 0;
  return ours ? folder : "";
}

// The last line of what a command said, which is why it failed.
std::string LastLine(const std::string& text) {
  const size_t end = text.find_last_not_of("\r\n \t");
  if (end == text.npos) return "it said nothing";
  const size_t begin = text.rfind('\n', end);
  return Visible(text.substr(begin == text.npos ? 0 : begin + 1, end - (begin == text.npos ? -1 : begin)), 400);
}

}  // namespace

std::string ShellQuoted(const std::string& word) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_";
  if (!word.empty() && word.find_first_not_of(kPlain) == word.npos) return word;
  std::string quoted = "'";
  for (char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

std::string ShellLine(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + ShellQuoted(word);
  return line;
}

std::optional<std::vector<std::string>> ShellWords(const std::string& text) {
  std::vector<std::string> words;
  bool in_word = false;
  char quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (!quote && (c == ' ' || c == '\t' || c == '\n')) {
      in_word = false;
      continue;
    }
    if (!in_word) words.emplace_back();
    in_word = true;
    const bool escapes = c == '\\' && quote != '\'' && i + 1 < text.size();
    if (escapes && (!quote || text[i + 1] == '"' || text[i + 1] == '\\')) {
      words.back() += text[++i];
    } else if (!quote && (c == '\'' || c == '"')) {
      quote = c;
    } else if (c == quote) {
      quote = 0;
    } else {
      words.back() += c;
    }
  }
  return quote ? std::nullopt : std::optional(words);
}

Shell::Shell(std::optional<SshTunnel> tunnel) : tunnel_(std::move(tunnel)), host_(tunnel_ ? tunnel_->host : "") {}

std::vector<std::string> Shell::Command() const {
  std::vector<std::string> words = {"ssh", "-T"};
  if (!tunnel_->identity.empty()) words.insert(words.end(), {"-i", tunnel_->identity});
  if (tunnel_->port) words.insert(words.end(), {"-p", std::to_string(tunnel_->port)});
  if (!tunnel_->user.empty()) words.insert(words.end(), {"-l", tunnel_->user});
  const std::string sockets = SocketFolder();
  if (!sockets.empty())
    words.insert(words.end(),
                 {"-o", "ControlMaster=auto", "-o", "ControlPersist=120", "-o", "ControlPath=" + sockets + "/%C"});
  words.push_back(tunnel_->host);
  return words;
}

Output Shell::Run(const std::string& script) const {
  const std::string text = std::string(kPreamble) + "main() {\n:\n" + script + "\n}\nmain </dev/null\n";
  const Fd in(TextFile(text));
  if (!tunnel_) return RunProcess({"sh", "-s"}, in.value());
  std::vector<std::string> words = Command();
  words.push_back(tunnel_->pre_command.empty() ? "exec sh -s" : tunnel_->pre_command + " && exec sh -s");
  Output output = RunProcess(words, in.value());
  if (output.exit == kSshFailed)
    throw Error(Code::kIo, fmt::format("ssh failed: {}", LastLine(output.err))).At("running commands on", host_);
  return output;
}

std::string Shell::Must(const std::string& script, const std::string& doing, const std::string& what) const {
  const Output output = Run(script);
  if (output.exit == 0) return output.out;
  throw Error(Code::kIo, fmt::format("{} (exit code {}{}), expected success", LastLine(output.err), output.exit,
                                     host_.empty() ? "" : " on " + host_))
      .At(doing, what);
}

void Shell::Upload(const std::string& from, const std::string& to) const {
  const std::string part = fmt::format("{}.{}", to, getpid());
  const std::string script =
      fmt::format("mkdir -p {} && cat >{} && chmod 755 {} && mv {} {}", ShellQuoted(ParentOf(to)), ShellQuoted(part),
                  ShellQuoted(part), ShellQuoted(part), ShellQuoted(to));
  const Fd in(open(from.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::string> words = {"sh", "-c"};
  if (tunnel_) words = Command();
  words.push_back(tunnel_ && !tunnel_->pre_command.empty() ? tunnel_->pre_command + " && { " + script + "; }" : script);
  const Output output = RunProcess(words, in.value());
  if (output.exit != 0)
    throw Error(Code::kIo, fmt::format("{} (exit code {}), expected success", LastLine(output.err), output.exit))
        .At("writing", host_.empty() ? to : host_ + ":" + to);
}

}  // namespace reshard
