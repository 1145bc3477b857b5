#include "api/progress.h"

#include <ctime>

#include "base/bytes.h"
#include "base/error.h"
#include "base/json.h"
#include "execute/publish.h"

namespace reshard {
namespace {

constexpr auto kWriteEvery = std::chrono::seconds(2);
constexpr uint64_t kMaxRecordBytes = 64 * kKiB;

}  // namespace

void ProgressFile::OnProgress(uint64_t done, uint64_t total) {
  next_.OnProgress(done, total);
  const auto now = Clock::now();
  if (done < total && now - written_ < kWriteEvery) return;
  written_ = now;
  const Json record = {{"task", task_.number},
                       {"tasks", task_.count},
                       {"done", done},
                       {"total", total},
                       {"seconds", std::chrono::duration<double>(now - start_).count()},
                       {"time", std::time(nullptr)}};
  try {
    const std::string temporary = path_ + ".tmp";
    WriteWholeFile(io_, temporary, record.dump() + "\n");
    io_.Rename(temporary, path_);
  } catch (const Error&) {
  }
}

std::vector<TaskProgress> ReadProgress(const std::string& target) {
  Io& io = PosixIo();
  std::vector<TaskProgress> all;
  for (const std::string& path : ProgressFiles(io, target)) {
    try {
      const Json record = ParseJson(ReadWholeFile(io, path, kMaxRecordBytes), path);
      all.push_back({record.at("task"), record.at("tasks"), record.at("done"), record.at("total"), record.at("seconds"),
                     record.at("time")});
    } catch (const Json::exception&) {  // of another version
    } catch (const Error& error) {      // gone by now, or torn
      if (error.code() != Code::kNotFound && error.code() != Code::kCorrupt) throw;
    }
  }
  return all;
}

}  // namespace reshard
