#include "execute/sync_marks.h"

#include <chrono>

namespace reshard {
namespace {

constexpr auto kMostTime = std::chrono::seconds(10);
constexpr uint64_t kMostBytes = uint64_t{1} << 30;

}  // namespace

SyncMarks::SyncMarks(Io& io, const std::string& folder, Journal& journal)
    : io_(io), folder_(folder), journal_(journal), thread_([this] { Mark(); }) {}

SyncMarks::~SyncMarks() { Join(); }

void SyncMarks::Wrote(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  unsynced_ += bytes;
  if (unsynced_ >= kMostBytes) wake_.notify_one();
}

void SyncMarks::Stop() {
  Join();
  if (error_) std::rethrow_exception(error_);
}

void SyncMarks::Join() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void SyncMarks::Mark() {
  std::unique_lock lock(mutex_);
  try {
    while (!stopping_) {
      wake_.wait_for(lock, kMostTime, [this] { return stopping_ || unsynced_ >= kMostBytes; });
      if (stopping_ || unsynced_ == 0) continue;
      unsynced_ = 0;
      lock.unlock();
      const uint64_t records = journal_.count();
      try {
        io_.SyncFileSystem(folder_);
      } catch (...) {
        journal_.TakeBack();
        throw;
      }
      journal_.AddSynced(records);
      lock.lock();
    }
  } catch (...) {
    error_ = std::current_exception();
  }
}

}  // namespace reshard
