#include "api/progress.h"

#include <ctime>

#include "base/error.h"
#include "base/json.h"
#include "execute/op_bytes.h"

namespace reshard {
namespace {

constexpr auto kWriteEvery = std::chrono::seconds(2);

}  // namespace

ProgressFile::ProgressFile(Observer& next, Io& io, std::string path, const Plan& plan, TaskOf task)
    : next_(next), io_(io), path_(std::move(path)), task_(task) {
  const Shares shares(plan.files, task.count);
  for (const Part& part : plan.parts)
    for (const Piece& target : part.targets) {
      all_ += ElementCount(target.box.shape) * ItemSize(target.dtype);
      share_ += BytesOf(target, shares, task.number);
    }
}

void ProgressFile::OnProgress(uint64_t done, uint64_t total) {
  next_.OnProgress(done, total);
  const auto now = Clock::now();
  if (done < total && now - written_ < kWriteEvery) return;
  written_ = now;
  const uint64_t spared = share_ - total;
  const Json record = {{"task", task_.number},
                       {"tasks", task_.count},
                       {"done", spared + done},
                       {"total", share_},
                       {"spared", spared},
                       {"all", all_},
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
