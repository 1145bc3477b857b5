#include "execute/journals.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "execute/op_bytes.h"

namespace reshard {
namespace {

uint64_t OpsOf(const Plan& plan) {
  uint64_t ops = 0;
  Op op;
  for (OpCursor cursor(plan.parts); cursor.Next(op);) ++ops;
  return ops;
}

// The task of a journal named "journal.<k>-of-<n>".
std::optional<TaskOf> ParseTask(std::string_view name, std::string_view base) {
  if (!name.starts_with(base) || name.size() == base.size() || name[base.size()] != '.') return std::nullopt;
  TaskOf task;
  const char *begin = name.data() + base.size() + 1, *end = name.data() + name.size();
  const auto number = std::from_chars(begin, end, task.number);
  constexpr std::string_view kOf = "-of-";
  if (!std::string_view(number.ptr, static_cast<size_t>(end - number.ptr)).starts_with(kOf)) return std::nullopt;
  const auto count = std::from_chars(number.ptr + kOf.size(), end, task.count);
  if (count.ptr != end || task.count < 2 || task.count > kMaxTasks || task.number >= task.count) return std::nullopt;
  return task;
}

}  // namespace

std::string JournalOf(const std::string& path, TaskOf task) {
  return task.count == 1 ? path : fmt::format("{}.{}-of-{}", path, task.number, task.count);
}

Journals::Journals(const Plan& plan, Io& io, std::string path, TaskOf self)
    : plan_(plan), io_(io), path_(std::move(path)), self_(self), shares_(plan.files, self.count) {
  if (path_.empty()) return;
  const uint64_t ops = OpsOf(plan);
  const std::filesystem::path base(path_);
  const std::string folder = base.parent_path().string();
  if (io.Stat(folder)) {
    for (const std::string& name : io.List(folder)) {
      const std::optional<TaskOf> task = ParseTask(name, base.filename().string());
      if (task && *task != self) Add(*task, ops);
    }
    if (self.count > 1 && io.Stat(path_)) Add({}, ops);
  }
  Add(self, ops);
  own_ = groups_[self.count].journals[self.number].get();
}

void Journals::Add(TaskOf task, uint64_t ops) {
  Group& group = groups_[task.count];
  if (!group.shares) group.shares = std::make_unique<Shares>(plan_.files, task.count);
  group.journals[task.number] =
      std::make_unique<Journal>(io_, JournalOf(path_, task), ops, plan_.files.size(), io_.BootId());
}

void Journals::Check(const std::vector<uint64_t>& inodes) {
  inodes_ = inodes;
  for (auto& [count, group] : groups_) {
    for (auto it = group.journals.begin(); it != group.journals.end();) {
      const Journal& journal = *it->second;
      size_t gone = 0;
      while (gone < inodes.size() && (inodes[gone] != 0 || journal.InodeOf(gone).value_or(0) == 0)) ++gone;
      if (&journal == own_ || gone == inodes.size()) {
        ++it;
        continue;
      }
      if (self_.count > 1)
        throw Error(Code::kCorrupt,
                    fmt::format("found no staged file of {} bytes, which another task has written to; run the command "
                                "once without --convert_tasks, which mends that",
                                plan_.files[gone].size))
            .At("reading", plan_.files[gone].path);
      io_.RemoveAll(JournalOf(path_, {it->first, count}));
      deleted_ = true;
      it = group.journals.erase(it);
    }
  }
}

bool Journals::IsSame(const Journal& journal, size_t file) const {
  return !inodes_ || ((*inodes_)[file] != 0 && journal.InodeOf(file) == (*inodes_)[file]);
}

bool Journals::IsDoneBy(const Group& group, uint64_t number, const Op& op) const {
  const Part& part = plan_.parts[op.part];
  const bool own = own_ && group.shares->tasks() == self_.count;
  return std::all_of(part.targets.begin(), part.targets.end(), [&](const Piece& target) {
    bool done = true;
    ForEachWriter(part, target, op.box, *group.shares, [&](uint32_t task, uint64_t) {
      if (own && task != self_.number) return;  // which is not to be done here
      const auto found = group.journals.find(task);
      done = done && found != group.journals.end() && IsSame(*found->second, target.file) &&
             found->second->IsDone(number, target.file);
    });
    return done;
  });
}

bool Journals::IsDone(uint64_t number, const Op& op) const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [&](const auto& group) { return IsDoneBy(group.second, number, op); });
}

uint64_t Journals::OverflowsOf(uint64_t number) const {
  uint64_t most = 0;
  for (const auto& [count, group] : groups_) {
    uint64_t all = 0;
    for (const auto& [task, journal] : group.journals)
      if (count != self_.count || journal.get() == own_) all += journal->OverflowsOf(number);
    most = std::max(most, all);
  }
  return most;
}

std::optional<uint64_t> Journals::HashOf(size_t file) const {
  for (const auto& [count, group] : groups_)
    for (const auto& [task, journal] : group.journals)
      if (IsSame(*journal, file) && journal->HashOf(file)) return journal->HashOf(file);
  return std::nullopt;
}

uint64_t Journals::BytesDone() const {
  uint64_t most = 0;
  for (const auto& entry : groups_) {
    const Group& group = entry.second;  // a name that a lambda can see
    uint64_t number = 0, bytes = 0;
    Op op;
    for (OpCursor cursor(plan_.parts); cursor.Next(op); ++number) {
      const Part& part = plan_.parts[op.part];
      for (const Piece& target : part.targets)
        ForEachWriter(part, target, op.box, *group.shares, [&](uint32_t task, uint64_t some) {
          const auto found = group.journals.find(task);
          if (found != group.journals.end() && found->second->IsDone(number, target.file)) bytes += some;
        });
    }
    most = std::max(most, bytes);
  }
  return most;
}

}  // namespace reshard
