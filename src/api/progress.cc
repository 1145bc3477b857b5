#include "api/progress.h"

#include <ctime>

#include "base/error.h"
#include "base/json.h"

namespace reshard {
namespace {

constexpr auto kWriteEvery = std::chrono::seconds(2);

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

}  // namespace reshard
