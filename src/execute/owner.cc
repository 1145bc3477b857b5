#include "execute/owner.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <sstream>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/json.h"

namespace reshard {
namespace {

constexpr std::chrono::seconds kHeartbeat{10};
constexpr int64_t kSilentNs = int64_t{60} * 1'000'000'000;
constexpr int kAttempts = 100;  // each fails only where another run claims or releases at the same instant
// For owners that pass through, one after the other, or for one of them to be known dead.
constexpr auto kMostWait = std::chrono::minutes(3);
constexpr auto kWaitStep = std::chrono::milliseconds(20);
constexpr uint64_t kMaxOwnerBytes = 64 * kKiB;

struct Owner {
  std::string token, host, boot, pid_namespace, start;
  int64_t pid = 0;
  bool passing = false;
  int64_t touched_ns = 0;  // the file's mtime
};

std::string FirstLine(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// When a process started, in ticks since the boot; empty where there is none, or only its exit status is left.
std::string StartOf(int64_t pid) {
  // proc(5): "pid (name) state ...", the start time is field 22. The name may hold blanks and parentheses.
  const std::string line = FirstLine(fmt::format("/proc/{}/stat", pid));
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return "";
  std::istringstream in(line.substr(name_end + 1));
  const std::vector<std::string> fields(std::istream_iterator<std::string>(in), {});
  if (fields.size() < 20 || fields[0] == "Z" || fields[0] == "X") return "";
  return fields[19];
}

std::string HostName() {
  char name[HOST_NAME_MAX + 1] = {};
  gethostname(name, HOST_NAME_MAX);
  return name;
}

Owner Self(Io& io) {
  Owner self;
  self.host = HostName();
  self.boot = io.BootId();
  std::error_code ignored;  // without /proc: two empty names, and every pid of this host counts
  self.pid_namespace = std::filesystem::read_symlink("/proc/self/ns/pid", ignored).string();
  self.pid = getpid();
  self.start = StartOf(self.pid);
  return self;
}

bool IsAlive(Io& io, const Owner& owner, int64_t now_ns) {
  const Owner self = Self(io);
  if (owner.host == self.host && owner.boot != self.boot) return false;
  if (owner.host == self.host && owner.pid_namespace == self.pid_namespace) {
    const std::string start = StartOf(owner.pid);
    return !start.empty() && start == owner.start;
  }
  return now_ns - owner.touched_ns <= kSilentNs;
}

std::string NewToken() {
  std::random_device random;
  return Hex(uint64_t{random()} << 32 | random());
}

std::string TextOf(Io& io, const std::string& token, bool passing) {
  const Owner self = Self(io);
  const Json record = {
      {"token", token},  {"host", self.host},   {"boot", self.boot}, {"pid_namespace", self.pid_namespace},
      {"pid", self.pid}, {"start", self.start}, {"passing", passing}};
  return record.dump(2) + "\n";
}

// Nothing where there is no such file, or not any more.
std::optional<Owner> ReadOwner(Io& io, const std::string& path) {
  try {
    const std::optional<FileInfo> info = io.Stat(path);
    if (!info) return std::nullopt;
    const Json record = ParseJson(ReadWholeFile(io, path, kMaxOwnerBytes), path);
    Owner owner;
    owner.token = record.at("token").get<std::string>();
    owner.host = record.at("host").get<std::string>();
    owner.boot = record.at("boot").get<std::string>();
    owner.pid_namespace = record.at("pid_namespace").get<std::string>();
    owner.start = record.at("start").get<std::string>();
    owner.pid = record.at("pid").get<int64_t>();
    owner.passing = record.value("passing", false);
    owner.touched_ns = info->mtime_ns;
    return owner;
  } catch (const Json::exception&) {
    throw Error(Code::kCorrupt, "found no record of an owner, expected host and pid; delete the file if no run uses it")
        .At("reading", path);
  } catch (const Error& error) {
    if (error.code() == Code::kNotFound) return std::nullopt;
    throw;
  }
}

struct Chain {
  std::vector<std::string> names;
  std::optional<Owner> last;
  std::string next;  // the name that whoever comes after the last must make
};

Chain ReadChain(Io& io, const std::string& folder) {
  Chain chain;
  chain.next = "owner";
  while (const std::optional<Owner> owner = ReadOwner(io, JoinPath(folder, chain.next))) {
    chain.names.push_back(chain.next);
    chain.last = owner;
    chain.next = "owner." + owner->token;
  }
  return chain;
}

bool HasLiveOwner(Io& io, const Chain& chain, int64_t now_ns) { return chain.last && IsAlive(io, *chain.last, now_ns); }

Error Owned(const Chain& chain, const std::string& folder) {
  return Error(
             Code::kAlreadyExists,
             fmt::format("another run owns it (process {} on host {}), expected no other; wait for it, or delete {} if "
                         "it runs no longer",
                         chain.last->pid, chain.last->host, JoinPath(folder, chain.names.back())))
      .At("claiming", folder);
}

// Deletes a file at the end of a block, however that ends, unless it is to be kept.
class Temporary {
 public:
  Temporary(Io& io, std::string path) : io_(io), path_(std::move(path)) {}
  ~Temporary() {
    try {
      if (!kept_) io_.RemoveAll(path_);
    } catch (...) {  // the next owner deletes it
    }
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  const std::string& path() const { return path_; }
  void Keep() { kept_ = true; }

 private:
  Io& io_;
  const std::string path_;
  bool kept_ = false;
};

}  // namespace

OwnerLock::OwnerLock(Io& io, std::string folder, Stay stay)
    : io_(io), folder_(std::move(folder)), token_(NewToken()), text_(TextOf(io, token_, stay == Stay::kPassing)) {
  const auto deadline = std::chrono::steady_clock::now() + kMostWait;
  for (int attempt = 0; attempt < kAttempts && std::chrono::steady_clock::now() < deadline;) {
    switch (TryAcquire()) {
      case Attempt::kDone:
        heartbeat_ = std::thread([this] { Beat(); });
        return;
      case Attempt::kAgain:
        ++attempt;
        break;
      case Attempt::kWait:
        std::this_thread::sleep_for(kWaitStep);
        break;
    }
  }
  throw Error(Code::kIo, "other runs come and go too fast, expected to own it").At("claiming", folder_);
}

OwnerLock::~OwnerLock() {
  try {
    Release();
  } catch (...) {
  }
}

OwnerLock::Attempt OwnerLock::TryAcquire() {
  try {
    io_.MakeDirectories(folder_);
    const Temporary claim(io_, JoinPath(folder_, "claim." + token_));
    file_ = io_.OpenWrite(claim.path());
    file_->WriteAt(text_.data(), text_.size(), 0);
    file_->Sync();
    Chain chain = ReadChain(io_, folder_);
    if (HasLiveOwner(io_, chain, file_->Info().mtime_ns)) {
      if (chain.last->passing) return Attempt::kWait;
      throw Owned(chain, folder_);
    }
    if (!io_.Link(claim.path(), JoinPath(folder_, chain.next))) return Attempt::kAgain;
    names_ = std::move(chain.names);
    names_.push_back(std::move(chain.next));
  } catch (const Error& error) {
    // A run that has just ended deleted the folder, or the claim as a leftover.
    if (error.code() == Code::kNotFound) return Attempt::kAgain;
    throw;
  }
  // Meanwhile the chain may have been released and begun anew.
  Temporary made(io_, JoinPath(folder_, names_.back()));
  if (!Held()) return Attempt::kAgain;
  made.Keep();
  return Attempt::kDone;
}

void OwnerLock::RefuseIfOwned(const std::string& folder) {
  const Chain chain = ReadChain(io_, folder);
  if (HasLiveOwner(io_, chain, file_->Info().mtime_ns)) throw Owned(chain, folder);
}

bool OwnerLock::IsLeftover(const std::string& name) const {
  return (name.starts_with("owner.") || name.starts_with("claim.")) &&
         std::find(names_.begin(), names_.end(), name) == names_.end();
}

bool OwnerLock::Held() {
  const Chain chain = ReadChain(io_, folder_);
  return chain.last && chain.last->token == token_;
}

void OwnerLock::Beat() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!wake_.wait_for(lock, kHeartbeat, [this] { return stopping_; })) {
    try {
      file_->WriteAt(text_.data(), text_.size(), 0);
      file_->Sync();
    } catch (...) {  // one beat less; Held says whether that mattered
    }
  }
}

void OwnerLock::StopHeartbeat() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  heartbeat_.join();
}

void OwnerLock::Release() {
  if (heartbeat_.joinable()) StopHeartbeat();
  if (released_ || !Held()) return;
  // The first name first: a run that makes a later one now finds that the chain does not lead to it.
  for (const std::string& name : names_) io_.RemoveAll(JoinPath(folder_, name));
  released_ = true;
  io_.RemoveEmptyDirectory(folder_);
}

}  // namespace reshard
