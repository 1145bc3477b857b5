// All that is known to be done of a plan: by earlier runs and by the tasks that share it.
//
// A run alone keeps the journal at a path, task k of n keeps "<path>.<k>-of-<n>" beside it. Whatever the number of
// tasks is now, what all tasks of another number have done of an op counts.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "execute/journal.h"
#include "execute/shares.h"
#include "plan/plan.h"

namespace reshard {

class Journals {
 public:
  // Reads those that are there; of a path that is empty, none, and keeps none.
  Journals(const Plan& plan, Io& io, std::string path, TaskOf self);

  // The own one, or null.
  Journal* own() { return own_; }
  const Shares& shares() const { return shares_; }  // of as many tasks as this one is one of

  // Of the staged files, which are what they were: the inode of each, or 0 for one that is not there in its size.
  // Before this call all of them are taken for that. A file that another journal speaks of and that is not there is an
  // error for one of several tasks (kCorrupt), which must not repair what others work on; a run alone deletes such
  // journals.
  void Check(const std::vector<uint64_t>& inodes);

  bool deleted() const { return deleted_; }  // whether Check has deleted one

  // Whether all that is to be written here of an op was written. Not after the own journal has been written to.
  bool IsDone(uint64_t number, const Op& op) const;
  uint64_t OverflowsOf(uint64_t number) const;  // of an op that is done
  std::optional<uint64_t> HashOf(size_t file) const;
  // Bytes of targets that are done, at most.
  uint64_t BytesDone() const;

 private:
  struct Group {
    std::unique_ptr<Shares> shares;
    std::map<uint32_t, std::unique_ptr<Journal>> journals;  // by task
  };

  bool IsSame(const Journal& journal, size_t file) const;
  bool IsDoneBy(const Group& group, uint64_t number, const Op& op) const;
  void Add(TaskOf task, uint64_t ops);

  const Plan& plan_;
  Io& io_;
  const std::string path_;
  const TaskOf self_;
  const Shares shares_;
  std::map<uint32_t, Group> groups_;  // by the number of tasks
  Journal* own_ = nullptr;
  std::optional<std::vector<uint64_t>> inodes_;
  bool deleted_ = false;
};

// The path of a task's journal beside that of a run alone.
std::string JournalOf(const std::string& path, TaskOf task);

}  // namespace reshard
