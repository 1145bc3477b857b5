#include "execute/journal.h"

#include <algorithm>
#include <cstring>

#include "base/bytes.h"
#include "base/hash.h"

namespace reshard {
namespace {

constexpr size_t kRecordBytes = 24;

uint64_t HashOfText(const std::string& text) {
  Xxh3 hash;
  hash.Update(text);
  return hash.Digest();
}

}  // namespace

struct Journal::Record {
  Kind kind;
  uint64_t a, b;

  uint32_t Check(uint32_t before) const {
    const uint64_t values[] = {before, static_cast<uint64_t>(kind), a, b};
    Xxh3 hash;
    hash.Update(values, sizeof values);
    return static_cast<uint32_t>(hash.Digest());
  }

  // Behind others that end so.
  void Append(std::string& bytes, End& end) const {
    end = {end.count + 1, Check(end.check)};
    AppendLittle<uint32_t>(bytes, static_cast<uint32_t>(kind));
    AppendLittle<uint32_t>(bytes, end.check);
    AppendLittle<uint64_t>(bytes, a);
    AppendLittle<uint64_t>(bytes, b);
  }

  static std::optional<Record> FromBytes(const char* bytes, uint32_t before) {
    const Record record{static_cast<Kind>(LoadLittle<uint32_t>(bytes)), LoadLittle<uint64_t>(bytes + 8),
                        LoadLittle<uint64_t>(bytes + 16)};
    if (LoadLittle<uint32_t>(bytes + 4) != record.Check(before)) return std::nullopt;
    return record;
  }
};

Journal::Journal(Io& io, std::string path, uint64_t ops, size_t files, const std::string& boot)
    : io_(io),
      path_(std::move(path)),
      boot_(HashOfText(boot)),
      done_(ops),
      made_(files),
      hashes_(files),
      inodes_(files) {
  Read(ops, files);
}

// Believes the records before the last mark, and behind it those of this boot.
void Journal::Read(uint64_t ops, size_t files) {
  const std::optional<FileInfo> info = io_.Stat(path_);
  if (!info) return;
  const std::unique_ptr<File> file = io_.OpenRead(path_);
  std::vector<Record> doubtful;
  uint64_t doubtful_from = 0, boot = 0;
  auto believe = [&](uint64_t before) {
    const uint64_t some = std::min<uint64_t>(std::max(before, doubtful_from) - doubtful_from, doubtful.size());
    for (uint64_t i = 0; i < some; ++i) Believe(doubtful[i], doubtful_from + i);
    doubtful.erase(doubtful.begin(), doubtful.begin() + static_cast<std::ptrdiff_t>(some));
    doubtful_from += some;
  };
  char bytes[kRecordBytes];
  while ((end_.count + 1) * kRecordBytes <= info->size) {
    file->ReadAt(bytes, sizeof bytes, end_.count * kRecordBytes);
    const std::optional<Record> record = Record::FromBytes(bytes, end_.check);
    if (!record) break;
    const uint64_t limit = record->kind == Kind::kOp ? ops : files;
    const bool numbers = record->kind == Kind::kOp || record->kind == Kind::kFile || record->kind == Kind::kHash;
    if (numbers && record->a >= limit) break;
    if (record->kind == Kind::kSynced) believe(record->a);
    if (record->kind == Kind::kBegin && record->a != boot) {
      doubtful.clear();
      doubtful_from = end_.count;
      boot = record->a;
    }
    doubtful.push_back(*record);
    end_ = {end_.count + 1, record->Check(end_.check)};
    if (record->kind == Kind::kSynced) marked_ = end_.count;
  }
  if (boot == boot_) believe(end_.count);
}

void Journal::Believe(const Record& record, uint64_t number) {
  switch (record.kind) {
    case Kind::kFile:
      made_[record.a] = number;
      inodes_[record.a] = record.b;
      hashes_[record.a] = std::nullopt;
      break;
    case Kind::kOp:
      done_[record.a] = number;
      overflows_.erase(record.a);
      if (record.b > 0) overflows_[record.a] = record.b;
      break;
    case Kind::kHash:
      hashes_[record.a] = record.b;
      break;
    case Kind::kBegin:
    case Kind::kSynced:
      break;
  }
}

uint64_t Journal::OverflowsOf(uint64_t op) const {
  const auto found = overflows_.find(op);
  return found == overflows_.end() ? 0 : found->second;
}

void Journal::Add(Kind kind, uint64_t a, uint64_t b) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  End end = end_;
  std::string bytes;
  if (!file_) {
    file_ = io_.OpenWrite(path_);
    Record{Kind::kBegin, boot_, 0}.Append(bytes, end);
  }
  Record{kind, a, b}.Append(bytes, end);
  file_->WriteAt(bytes.data(), bytes.size(), end_.count * kRecordBytes);
  end_ = end;
  if (kind == Kind::kSynced) marked_ = end_.count;
}

void Journal::AddFile(size_t file, uint64_t inode) { Add(Kind::kFile, file, inode); }
void Journal::AddOp(uint64_t op, uint64_t overflows) { Add(Kind::kOp, op, overflows); }
void Journal::AddHash(size_t file, uint64_t hash) { Add(Kind::kHash, file, hash); }

uint64_t Journal::count() {
  std::lock_guard lock(mutex_);
  return end_.count;
}

void Journal::AddSynced(uint64_t records) {
  Add(Kind::kSynced, records, 0);
  if (file_) file_->Sync();
}

void Journal::TakeBack() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  if (!file_) file_ = io_.OpenWrite(path_);
  file_->Truncate(marked_ * kRecordBytes);
}

}  // namespace reshard
