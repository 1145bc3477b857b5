// Bounds what a power loss costs: now and then everything staged is made durable, and the journal says so.
#pragma once

#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

#include "base/io.h"
#include "execute/journal.h"

namespace reshard {

class SyncMarks {
 public:
  // Starts a thread that syncs the file system of `folder` every 10 s, or 1 GiB, and marks it in the journal.
  SyncMarks(Io& io, const std::string& folder, Journal& journal);
  ~SyncMarks();

  // So many bytes more were written. Any thread.
  void Wrote(uint64_t bytes);
  // Ends the thread. Throws what a sync threw.
  void Stop();

 private:
  void Mark();
  void Join();

  Io& io_;
  const std::string folder_;
  Journal& journal_;

  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t unsynced_ = 0;
  bool stopping_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace reshard
