// What of a plan is done, so that a run that was stopped goes on where it was.
//
// A file of records of 24 bytes, little-endian: kind u32, check u32 (XXH3 of the check before and of the rest), a u64,
// b u64. The first that is damaged or torn, or does not go with those before it, ends what is believed.
//
//   begin   a: hash of the boot id     what follows was recorded in that boot
//   file    a: number, b: inode        a staged file was made anew; what was done in it before is void
//   op      a: number, b: overflows    all its writes have returned
//   hash    a: number, b: XXH3         of a complete file
//   synced  a: number of records       what the records before that one speak of is on the disk
//
// What was recorded in this boot is believed: a process that dies takes nothing from the page cache with it. After a
// power loss, and on another machine, what was synced is.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/io.h"

namespace reshard {

class Journal {
 public:
  // Reads what is there of a plan with so many ops and files. `boot` is Io::BootId() but in tests.
  Journal(Io& io, std::string path, uint64_t ops, size_t files, const std::string& boot);

  // Whether the op was done since the file was made: an inode may come back.
  bool IsDone(uint64_t op, size_t file) const { return done_[op] > made_[file]; }
  // How many finite values the casts of an op that is done made infinite.
  uint64_t OverflowsOf(uint64_t op) const;
  std::optional<uint64_t> HashOf(size_t file) const { return hashes_[file]; }
  std::optional<uint64_t> InodeOf(size_t file) const { return inodes_[file]; }

  // From the first of these calls on, what is found is in the file only. Any thread at any time.
  void AddFile(size_t file, uint64_t inode);
  void AddOp(uint64_t op, uint64_t overflows);
  void AddHash(size_t file, uint64_t hash);
  // The number of records so far, then, once all that they speak of is on the disk, the mark.
  uint64_t count();
  void AddSynced(uint64_t records);

  // Writing back has failed, which the system tells once: what was recorded behind the last mark may not be so. It
  // goes, and nothing is added any more.
  void TakeBack();

 private:
  enum class Kind : uint32_t { kBegin = 1, kFile, kOp, kHash, kSynced };
  struct Record;

  void Read(uint64_t ops, size_t files);
  void Believe(const Record& record, uint64_t number);
  void Add(Kind kind, uint64_t a, uint64_t b);

  Io& io_;
  const std::string path_;
  const uint64_t boot_;
  std::vector<uint64_t> done_, made_;       // the numbers of the last records of ops and files; 0: none
  std::map<uint64_t, uint64_t> overflows_;  // of ops that have any
  std::vector<std::optional<uint64_t>> hashes_, inodes_;

  // How many records there are, and the check of the last.
  struct End {
    uint64_t count = 0;
    uint32_t check = 0;
  };

  std::mutex mutex_;  // of what is below
  std::unique_ptr<File> file_;
  End end_;
  uint64_t marked_ = 0;  // records with the last mark
  bool closed_ = false;
};

}  // namespace reshard
