#include "archive/archive_io.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "archive/gunzip.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"

namespace reshard {
namespace {

constexpr uint64_t kFirst = 512;           // bytes that tell what a file is
constexpr uint64_t kLeftFree = 64 * kMiB;  // by a spool, for everybody else
constexpr uint64_t kCheckFreeEvery = 16 * kMiB;

// A range of a file as a file.
class MemberFile : public File {
 public:
  MemberFile(std::shared_ptr<File> file, std::string path, ByteRange range, std::function<FileInfo()> info)
      : file_(std::move(file)), path_(std::move(path)), range_(range), info_(std::move(info)) {}

  void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
    if (offset > range_.size || size > range_.size - offset)
      throw Error(Code::kCorrupt, fmt::format("the file has {} bytes, expected at least {}; it may be cut off",
                                              range_.size, offset + size))
          .At("reading", path_);
    file_->ReadAt(buffer, size, range_.offset + offset);
  }
  void WriteAt(const void*, uint64_t, uint64_t) override { throw ReadOnly(); }
  void Truncate(uint64_t) override { throw ReadOnly(); }
  void Sync() override {}
  void StartWriteBack(uint64_t, uint64_t) override {}
  void Forget(uint64_t offset, uint64_t size) override { file_->Forget(range_.offset + offset, size); }
  FileInfo Info() override { return info_(); }

 private:
  Error ReadOnly() const { return Error(Code::kInternal, "it is opened for reading").At("writing", path_); }

  std::shared_ptr<File> file_;
  const std::string path_;
  const ByteRange range_;
  std::function<FileInfo()> info_;
};

// What is in a tar, by name.
class ArchiveIo : public Io {
 public:
  // `file` holds the tar that `path` is, or is a gzip of.
  ArchiveIo(Io& base, std::string path, std::shared_ptr<File> file, const std::vector<TarMember>& members)
      : base_(base), path_(std::move(path)), file_(std::move(file)) {
    entries_[""] = std::nullopt;
    for (const TarMember& member : members) {
      for (size_t slash = member.name.find('/'); slash != std::string::npos; slash = member.name.find('/', slash + 1))
        entries_[member.name.substr(0, slash)] = std::nullopt;
      entries_[member.name] = member.folder ? std::nullopt : std::optional(member.data);
    }
  }

  std::unique_ptr<File> OpenRead(const std::string& path) override {
    const std::optional<std::string> name = NameOf(path);
    if (!name) return base_.OpenRead(path);
    const Entry* entry = Find(*name);
    if (!entry) throw Error(Code::kNotFound, "there is no such member in the archive").At("reading", path);
    if (!*entry) throw Error(Code::kCorrupt, "found a directory, expected a regular file").At("reading", path);
    auto info = [this, entry] {
      if (std::optional<FileInfo> known = InfoOf(*entry)) return *known;
      throw Error(Code::kMismatch, "the file vanished while it was read").At("reading", path_);
    };
    return std::make_unique<MemberFile>(file_, path, **entry, info);
  }

  std::optional<FileInfo> Stat(const std::string& path) override {
    const std::optional<std::string> name = NameOf(path);
    if (!name) return base_.Stat(path);
    const Entry* entry = Find(*name);
    return entry ? InfoOf(*entry) : std::nullopt;
  }

  std::vector<std::string> List(const std::string& path) override {
    const std::optional<std::string> folder = NameOf(path);
    if (!folder) return base_.List(path);
    const Entry* entry = Find(*folder);
    if (!entry || *entry) throw Error(Code::kNotFound, "there is no such folder in the archive").At("reading", path);
    const std::string before = folder->empty() ? "" : *folder + "/";
    std::vector<std::string> names;
    for (auto at = entries_.upper_bound(before); at != entries_.end() && at->first.starts_with(before);) {
      names.push_back(at->first.substr(before.size(), at->first.find('/', before.size()) - before.size()));
      // Past what lies below it, which begins with its name and a slash: '0' follows that.
      const std::string below = before + names.back();
      ++at;
      if (at != entries_.end() && at->first.starts_with(below + "/")) at = entries_.lower_bound(below + "0");
    }
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    return names;
  }

  std::string Canonical(const std::string& path) override {
    const std::optional<std::string> name = NameOf(path);
    if (!name) return base_.Canonical(path);
    if (!Find(*name)) throw Error(Code::kNotFound, "there is no such member in the archive").At("reading", path);
    return name->empty() ? base_.Canonical(path_) : JoinPath(base_.Canonical(path_), *name);
  }

  std::unique_ptr<File> OpenWrite(const std::string& path) override { return base_.OpenWrite(path); }
  std::unique_ptr<File> OpenTemporary(const std::string& folder) override { return base_.OpenTemporary(folder); }
  void MakeDirectories(const std::string& path) override { base_.MakeDirectories(path); }
  void Rename(const std::string& from, const std::string& to) override { base_.Rename(from, to); }
  bool Link(const std::string& from, const std::string& to) override { return base_.Link(from, to); }
  void RemoveAll(const std::string& path) override { base_.RemoveAll(path); }
  bool RemoveEmptyDirectory(const std::string& path) override { return base_.RemoveEmptyDirectory(path); }
  void SyncDirectory(const std::string& path) override { base_.SyncDirectory(path); }
  void SyncFileSystem(const std::string& path) override { base_.SyncFileSystem(path); }
  FreeSpace Free(const std::string& path) override { return base_.Free(NameOf(path) ? ParentOf(path_) : path); }
  std::string BootId() override { return base_.BootId(); }

 private:
  using Entry = std::optional<ByteRange>;  // nothing: a folder

  // Of a member by a path, "" for the archive itself; nothing for a path elsewhere.
  std::optional<std::string> NameOf(const std::string& path) const {
    if (!path.starts_with(path_)) return std::nullopt;
    if (path.size() > path_.size() && path[path_.size()] != '/') return std::nullopt;
    const std::string rest = WithoutSlashes(path.substr(path_.size()));
    return rest.substr(std::min(rest.find_first_not_of('/'), rest.size()));
  }

  const Entry* Find(const std::string& name) const {
    auto found = entries_.find(name);
    return found == entries_.end() ? nullptr : &found->second;
  }

  // Asked anew each time, so that a change of the archive is seen as one of its members.
  std::optional<FileInfo> InfoOf(const Entry& entry) const {
    std::optional<FileInfo> info = base_.Stat(path_);
    if (!info) return std::nullopt;
    info->type = entry ? FileInfo::Type::kFile : FileInfo::Type::kDirectory;
    info->size = entry ? entry->size : 0;
    return info;
  }

  Io& base_;
  const std::string path_;
  const std::shared_ptr<File> file_;
  std::map<std::string, Entry> entries_;
};

// Unpacks a gzip of a tar into a file without a name.
class Spooler {
 public:
  Spooler(Io& base, const std::string& path, const ArchiveOptions& options)
      : base_(base), path_(path), options_(options), spool_(base.OpenTemporary(options.spool_folder)) {}

  std::unique_ptr<File> Fill(File& packed) {
    const uint64_t total = packed.Info().size;
    std::string begin;
    Gunzip(packed, path_, [&](std::string_view piece, uint64_t done) {
      if (begin.size() < kFirst) {
        begin += piece.substr(0, kFirst - begin.size());
        if (begin.size() == kFirst && !IsTar(begin)) throw NoTar();
      }
      Write(piece);
      if (options_.progress) options_.progress(done, total, written_);
    });
    if (!IsTar(begin)) throw NoTar();
    return std::move(spool_);
  }

 private:
  Error NoTar() const {
    return Error(Code::kCorrupt, "the gzip file holds no tar, expected a packed checkpoint").At("reading", path_);
  }

  void Write(std::string_view piece) {
    if (written_ >= next_check_) {
      const uint64_t free = base_.Free(options_.spool_folder).bytes;
      if (free < kLeftFree + kCheckFreeEvery) throw NoRoom(fmt::format("{} are free", HumanBytes(free)));
      next_check_ = written_ + kCheckFreeEvery;
    }
    try {
      spool_->WriteAt(piece.data(), piece.size(), written_);
    } catch (const Error& error) {
      if (error.code() != Code::kNoSpace) throw;
      throw NoRoom("no space is left");
    }
    written_ += piece.size();
  }

  Error NoRoom(const std::string& found) const {
    return Error(Code::kNoSpace, fmt::format("{} in {} with {} of it unpacked there, expected room for all of it; {}",
                                             found, options_.spool_folder, HumanBytes(written_), options_.spool_remedy))
        .At("unpacking", path_);
  }

  Io& base_;
  const std::string& path_;
  const ArchiveOptions& options_;
  std::unique_ptr<File> spool_;
  uint64_t written_ = 0, next_check_ = 0;
};

std::string FirstBytes(File& file, uint64_t size) {
  std::string bytes(std::min(size, kFirst), '\0');
  if (!bytes.empty()) file.ReadAt(bytes.data(), bytes.size(), 0);
  return bytes;
}

}  // namespace

std::unique_ptr<Io> OpenArchive(Io& base, const std::string& given, const ArchiveOptions& options) {
  const std::string path = WithoutSlashes(given);
  const std::optional<FileInfo> info = base.Stat(path);
  if (!info || info->type != FileInfo::Type::kFile) return nullptr;
  std::unique_ptr<File> file = base.OpenRead(path);
  const std::string begin = FirstBytes(*file, info->size);
  if (IsGzip(begin)) {
    file = Spooler(base, path, options).Fill(*file);
  } else if (begin.starts_with("version https://git-lfs")) {
    throw Error(Code::kCorrupt,
                "a git-lfs pointer, expected weights; run 'git lfs pull' in the folder that it was "
                "cloned to")
        .At("reading", path);
  } else if (!IsTar(begin) && !path.ends_with(".nemo")) {
    return nullptr;
  }
  const std::vector<TarMember> members = ReadTar(*file, path, file->Info().size, options.limits);
  return std::make_unique<ArchiveIo>(base, path, std::move(file), members);
}

}  // namespace reshard
