// Who works on a target folder: one run at a time, on all machines that share the file system.
//
// An owner is a file made with link(2): JSON with a token of its own, host, boot id, PID namespace, pid and the start
// time of the process. A dead owner's file is not removed by those who come after, since two of them could then remove
// each other's; the claim on a dead owner is the next file of a chain instead, made with link(2) as well:
//
//   <folder>/owner                 the first
//   <folder>/owner.<its token>     the run that found it dead, and so on: the last of the chain owns the folder
//   <folder>/claim.<token>         of a run that is just about to make one of these
//
// An owner may be passing through: it holds the folder for moments only, and others wait for it.
//
// Dead are: on this host, a process of another boot, and one whose pid is gone or belongs to a younger process;
// elsewhere (another host, or a container with pids of its own), one that has not touched its file for 60 s by the file
// system's own clock. A live lock touches its file every 10 s from a thread.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/io.h"

namespace reshard {

class OwnerLock {
 public:
  enum class Stay { kLong, kPassing };

  // Makes the folder too. kAlreadyExists, with host and pid, where a live run owns it and stays: this process is one as
  // well.
  OwnerLock(Io& io, std::string folder, Stay stay = Stay::kLong);
  ~OwnerLock();  // releases, and ignores failures: what is left then is a dead owner as soon as this process ends

  // The error of the constructor where a live run owns another folder on the same file system.
  void RefuseIfOwned(const std::string& folder);

  // False once another run has taken the folder over, which found this one silent for too long.
  bool Held();

  // Removes the chain, and the folder if nothing else is in it. Does nothing once it has done so.
  void Release();

  // The names in the folder that belong to the lock.
  const std::vector<std::string>& names() const { return names_; }

  // Of what runs that did not live to release left: names of a lock that are not this one's.
  bool IsLeftover(const std::string& name) const;

 private:
  enum class Attempt { kDone, kAgain, kWait };
  Attempt TryAcquire();
  void Beat();
  void StopHeartbeat();

  Io& io_;
  const std::string folder_, token_, text_;
  std::unique_ptr<File> file_;  // of the heartbeat; open, because a path may be somebody else's by then
  std::vector<std::string> names_;
  bool released_ = false;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread heartbeat_;
};

}  // namespace reshard
