// A file system in memory that remembers what of it would survive a power loss: what was synced, and some of the rest.
//
// As strict as POSIX lets one be, within what journalling file systems agree on. File::Sync makes a file's data and
// size durable and not its name; SyncDirectory the names in that folder and neither the folder's own name nor any data;
// SyncFileSystem everything. What was not synced is kept or lost in any combination, chosen by a seed: 4 KiB pages,
// sizes, and changes of names one by one, but for changes of one name, which come in their order. A rename keeps at
// least one of its two names, and may keep both. Before that, too, some of it is written back at any time.
//
// The number of an inode is given again once nothing has it any more. Links are hard ones only.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/io.h"

namespace reshard {

class VolatileIo : public Io {
 public:
  explicit VolatileIo(uint64_t seed = 0) : random_(seed) {}

  // Everything that is not durable may be gone; the boot is another one. Files that are open are of no use any more.
  void LosePower() {
    std::lock_guard lock(mutex_);
    ++boots_;
    const uint64_t keep = random_() % 5;  // of four: nothing, some, all
    std::set<size_t> kept;
    for (size_t i = 0; i < changes_.size(); ++i)
      if (Chance(keep, 4)) kept.insert(i);
    Commit(kept, [&](const Change&) { return Chance(1, 4); });
    changes_.clear();
    Restart(*root_, keep);
  }

  // Writing data back failed, which is told once: pages that were not on the disk may be gone from memory, too.
  void LoseWriteBack() {
    std::lock_guard lock(mutex_);
    ForEachFile(*root_, [&](Node& node) {
      node.disk.resize(node.now.size());
      LosePages(node, 2);
    });
  }

  // From now on there is room for so many bytes more; a write that needs another page fails.
  void LetFree(uint64_t bytes) {
    std::lock_guard lock(mutex_);
    capacity_ = used_ + bytes;
  }

  std::unique_ptr<File> OpenRead(const std::string& path) override {
    std::lock_guard lock(mutex_);
    const NodePtr node = Find(path);
    if (!node) throw SystemError(ENOENT, "reading", path);
    if (node->is_directory)
      throw Error(Code::kCorrupt, "found a directory, expected a regular file").At("reading", path);
    return std::make_unique<VolatileFile>(*this, node, path);
  }
  std::unique_ptr<File> OpenWrite(const std::string& path) override {
    std::lock_guard lock(mutex_);
    NodePtr node = Find(path);
    if (node && node->is_directory) throw SystemError(EISDIR, "writing", path);
    if (!node) {
      const Place place = PlaceOf(path, "writing");
      node = NewNode(false);
      Enter({{place, node, nullptr}});
    }
    return std::make_unique<VolatileFile>(*this, node, path);
  }
  std::unique_ptr<File> OpenTemporary(const std::string& folder) override {
    std::lock_guard lock(mutex_);
    FindDirectory(folder, "making a temporary file in");
    return std::make_unique<VolatileFile>(*this, NewNode(false), folder);
  }
  std::optional<FileInfo> Stat(const std::string& path) override {
    std::lock_guard lock(mutex_);
    const NodePtr node = Find(path);
    if (!node) return std::nullopt;
    return InfoOf(*node);
  }
  std::vector<std::string> List(const std::string& path) override {
    std::lock_guard lock(mutex_);
    const NodePtr node = FindDirectory(path, "reading");
    std::vector<std::string> names;
    for (const auto& [name, entry] : node->entries) names.push_back(name);
    return names;
  }
  void MakeDirectories(const std::string& path) override {
    std::lock_guard lock(mutex_);
    NodePtr node = root_;
    for (const std::string& name : Split(path)) {
      if (node->entries.count(name) == 0) Enter({{{node, name}, NewNode(true), nullptr}});
      node = node->entries.at(name);
      if (!node->is_directory) throw Error(Code::kAlreadyExists, "found a file, expected a folder").At("making", path);
    }
  }
  void Rename(const std::string& from, const std::string& to) override {
    std::lock_guard lock(mutex_);
    const NodePtr node = Find(from), there = Find(to);
    if (!node) throw SystemError(ENOENT, "renaming", from);
    if (node == there) return;  // as POSIX has it for two links to one file
    if (there && there->is_directory != node->is_directory)
      throw SystemError(there->is_directory ? EISDIR : ENOTDIR, "renaming", from);
    if (there && !there->entries.empty()) throw SystemError(ENOTEMPTY, "renaming", from);
    const Place source = PlaceOf(from, "renaming"), target = PlaceOf(to, "renaming");
    Enter({{target, node, nullptr}, {source, nullptr, target.folder}});
  }
  bool Link(const std::string& from, const std::string& to) override {
    std::lock_guard lock(mutex_);
    const NodePtr node = Find(from);
    if (!node) throw SystemError(ENOENT, "linking", from);
    if (Find(to)) return false;
    Enter({{PlaceOf(to, "linking"), node, nullptr}});
    return true;
  }
  void RemoveAll(const std::string& path) override {
    std::lock_guard lock(mutex_);
    if (Find(path)) Remove(PlaceOf(path, "deleting"));
  }
  bool RemoveEmptyDirectory(const std::string& path) override {
    std::lock_guard lock(mutex_);
    const NodePtr node = Find(path);
    if (!node) return false;
    if (!node->is_directory) throw SystemError(ENOTDIR, "deleting", path);
    if (!node->entries.empty()) return false;
    Enter({{PlaceOf(path, "deleting"), nullptr, nullptr}});
    return true;
  }
  void SyncDirectory(const std::string& path) override {
    std::lock_guard lock(mutex_);
    const NodePtr folder = FindDirectory(path, "syncing");
    std::set<size_t> all;
    for (size_t i = 0; i < changes_.size(); ++i)
      if (Touches(changes_[i], *folder)) all.insert(i);
    // That a name is gone from another folder is not made durable here.
    Commit(all, [&](const Change& change) { return change[1].place.folder != folder; });
  }
  void SyncFileSystem(const std::string& path) override {
    std::lock_guard lock(mutex_);
    if (!Find(path)) throw SystemError(ENOENT, "syncing", path);
    std::set<size_t> all;
    for (size_t i = 0; i < changes_.size(); ++i) all.insert(i);
    Commit(all);
    ForEachFile(*root_, [](Node& node) { node.disk = node.now; });
  }
  FreeSpace Free(const std::string&) override {
    std::lock_guard lock(mutex_);
    return {capacity_ - std::min(capacity_, used_), UINT64_MAX};
  }
  std::string Canonical(const std::string& path) override {
    std::lock_guard lock(mutex_);
    if (!Find(path)) throw SystemError(ENOENT, "reading", path);
    std::string whole;
    for (const std::string& name : Split(path)) whole += "/" + name;
    return whole.empty() ? "/" : whole;
  }
  std::string BootId() override {
    std::lock_guard lock(mutex_);
    return "boot " + std::to_string(boots_);
  }

 private:
  static constexpr uint64_t kPage = 4096;

  struct Node;
  using NodePtr = std::shared_ptr<Node>;
  struct Node {
    Node(VolatileIo& owner, bool directory) : io(owner), is_directory(directory) {}
    ~Node() {
      io.free_numbers_.insert(number);
      io.used_ -= blocks.size() * kPage;
    }
    VolatileIo& io;
    const bool is_directory;
    uint64_t number = 0;
    int64_t mtime_ns = 0;
    std::string now, disk;                            // of a file
    std::set<uint64_t> blocks;                        // pages that have one
    std::map<std::string, NodePtr> entries, durable;  // of a directory
    std::weak_ptr<Node> parent;
  };
  struct Place {
    NodePtr folder;
    std::string name;
  };
  struct Step {
    Place place;
    NodePtr node;      // null: the name is gone
    NodePtr moved_to;  // of the old name of a rename: the folder of the new one
  };
  using Change = std::vector<Step>;  // one, or the new and the old name of a rename

  class VolatileFile : public File {
   public:
    VolatileFile(VolatileIo& io, NodePtr node, std::string path)
        : io_(io), node_(std::move(node)), path_(std::move(path)) {}
    ~VolatileFile() override {
      std::lock_guard lock(io_.mutex_);
      node_.reset();
    }
    void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
      std::lock_guard lock(io_.mutex_);
      if (size == 0) return;
      if (offset + size > node_->now.size())
        throw Error(Code::kCorrupt, "the file may be cut off").At("reading", path_);
      std::memcpy(buffer, node_->now.data() + offset, size);
    }
    void WriteAt(const void* buffer, uint64_t size, uint64_t offset) override {
      std::lock_guard lock(io_.mutex_);
      io_.Write(*node_, std::string(static_cast<const char*>(buffer), size), offset, path_);
    }
    void Truncate(uint64_t size) override {
      std::lock_guard lock(io_.mutex_);
      node_->now.resize(size);
      io_.Touch(*node_);
      const auto end = node_->blocks.lower_bound((size + kPage - 1) / kPage);
      io_.used_ -= static_cast<uint64_t>(std::distance(end, node_->blocks.end())) * kPage;
      node_->blocks.erase(end, node_->blocks.end());
    }
    void Sync() override {
      std::lock_guard lock(io_.mutex_);
      node_->disk = node_->now;
    }
    void StartWriteBack(uint64_t, uint64_t) override {}
    void Forget(uint64_t, uint64_t) override {}
    FileInfo Info() override {
      std::lock_guard lock(io_.mutex_);
      return io_.InfoOf(*node_);
    }

   private:
    VolatileIo& io_;
    NodePtr node_;
    const std::string path_;
  };

  bool Chance(uint64_t some, uint64_t of) { return random_() % of < some; }

  static std::vector<std::string> Split(const std::string& path) {
    std::vector<std::string> names;
    for (size_t begin = 0; begin < path.size();) {
      const size_t end = std::min(path.find('/', begin), path.size());
      const std::string name = path.substr(begin, end - begin);
      if (!name.empty() && name != ".") names.push_back(name);
      begin = end + 1;
    }
    return names;
  }

  NodePtr Find(const std::vector<std::string>& names) const {
    NodePtr node = root_;
    for (const std::string& name : names) {
      const auto found = node->entries.find(name);
      if (found == node->entries.end()) return nullptr;
      node = found->second;
    }
    return node;
  }
  NodePtr Find(const std::string& path) const { return Find(Split(path)); }

  NodePtr FindDirectory(const std::string& path, const char* doing) const {
    const NodePtr node = Find(path);
    if (!node) throw SystemError(ENOENT, doing, path);
    if (!node->is_directory) throw SystemError(ENOTDIR, doing, path);
    return node;
  }

  Place PlaceOf(const std::string& path, const char* doing) const {
    std::vector<std::string> names = Split(path);
    const std::string name = names.back();
    names.pop_back();
    const NodePtr folder = Find(names);
    if (!folder) throw SystemError(ENOENT, doing, path);
    if (!folder->is_directory) throw SystemError(ENOTDIR, doing, path);
    return {folder, name};
  }

  NodePtr NewNode(bool is_directory) {
    NodePtr node = std::make_shared<Node>(*this, is_directory);
    if (free_numbers_.empty()) free_numbers_.insert(++numbers_);
    node->number = *free_numbers_.begin();
    free_numbers_.erase(free_numbers_.begin());
    Touch(*node);
    return node;
  }

  void Touch(Node& node) { node.mtime_ns = ++clock_; }

  static FileInfo InfoOf(const Node& node) {
    return {node.is_directory ? FileInfo::Type::kDirectory : FileInfo::Type::kFile, node.now.size(), node.mtime_ns,
            node.number, 1};
  }

  static void Set(std::map<std::string, NodePtr>& entries, const std::string& name, const NodePtr& node) {
    if (node) {
      entries[name] = node;
    } else {
      entries.erase(name);
    }
  }

  void Enter(Change change) {
    for (const Step& step : change) {
      Set(step.place.folder->entries, step.place.name, step.node);
      if (step.node) step.node->parent = step.place.folder;
    }
    changes_.push_back(std::move(change));
    if (Chance(1, 8)) Commit({random_() % changes_.size()});
  }

  void Remove(const Place& place) {
    const NodePtr node = place.folder->entries.at(place.name);
    while (!node->entries.empty()) Remove({node, node->entries.begin()->first});
    Enter({{place, nullptr, nullptr}});
  }

  static bool Touches(const Change& change, const Node& folder) {
    return std::any_of(change.begin(), change.end(),
                       [&](const Step& step) { return step.place.folder.get() == &folder; });
  }

  // Makes changes durable, with those before them that they need: of the same names, and, for a name that is given up
  // in a rename, of the folders that lead to the new one. Of a rename that `halve` chooses, the new name is made
  // durable and the loss of the old one is not: both are there then.
  template <typename Halve>
  void Commit(const std::set<size_t>& asked, Halve halve) {
    std::set<size_t> chosen, halved;
    std::set<std::pair<Node*, std::string>> names;
    std::set<Node*> folders;
    for (size_t i = changes_.size(); i-- > 0;) {
      const Change& change = changes_[i];
      const bool needed = std::any_of(change.begin(), change.end(), [&](const Step& step) {
        return names.count({step.place.folder.get(), step.place.name}) > 0 || folders.count(step.node.get()) > 0;
      });
      if (!needed && asked.count(i) == 0) continue;
      chosen.insert(i);
      if (change.size() == 2 && halve(change)) halved.insert(i);
      for (const Step& step : change) {
        names.emplace(step.place.folder.get(), step.place.name);
        if (halved.count(i) > 0) continue;
        for (NodePtr folder = step.moved_to; folder; folder = folder->parent.lock()) folders.insert(folder.get());
      }
    }
    std::vector<Change> rest;
    for (size_t i = 0; i < changes_.size(); ++i) {
      Change& change = changes_[i];
      if (chosen.count(i) == 0) {
        rest.push_back(std::move(change));
        continue;
      }
      if (halved.count(i) > 0) {
        rest.push_back({change.back()});
        change.pop_back();
      }
      for (const Step& step : change) Set(step.place.folder->durable, step.place.name, step.node);
    }
    changes_ = std::move(rest);
  }
  void Commit(const std::set<size_t>& asked) {
    Commit(asked, [](const Change&) { return false; });
  }

  void Write(Node& node, const std::string& bytes, uint64_t offset, const std::string& path) {
    for (uint64_t done = 0; done < bytes.size();) {
      const uint64_t at = offset + done, count = std::min(kPage - at % kPage, bytes.size() - done);
      if (node.blocks.count(at / kPage) == 0) {
        if (used_ + kPage > capacity_) throw SystemError(ENOSPC, "writing", path);
        node.blocks.insert(at / kPage);
        used_ += kPage;
      }
      if (node.now.size() < at + count) node.now.resize(at + count);
      node.now.replace(at, count, bytes, done, count);
      done += count;
      if (Chance(1, 16)) WriteBack(node, at / kPage);
    }
    Touch(node);
  }

  static void WriteBack(Node& node, uint64_t page) {
    const uint64_t begin = page * kPage, end = std::min<uint64_t>(begin + kPage, node.now.size());
    if (begin >= end) return;
    if (node.disk.size() < end) node.disk.resize(end);
    node.disk.replace(begin, end - begin, node.now, begin, end - begin);
  }

  // Keeps the pages of so many of four.
  void LosePages(Node& node, uint64_t keep) {
    if (node.now == node.disk) return;
    if (Chance(keep, 4)) node.disk.resize(node.now.size());
    for (uint64_t page = 0; page * kPage < node.disk.size(); ++page)
      if (Chance(keep, 4)) WriteBack(node, page);
    node.now = node.disk;
  }

  void Restart(Node& node, uint64_t keep) {
    if (!node.is_directory) return LosePages(node, keep);
    node.entries = node.durable;
    for (const auto& [name, entry] : node.entries) Restart(*entry, keep);
  }

  template <typename Visit>
  static void ForEachFile(Node& node, Visit visit) {
    if (!node.is_directory) visit(node);
    for (const auto& [name, entry] : node.entries) ForEachFile(*entry, visit);
  }

  std::mutex mutex_;
  std::mt19937_64 random_;
  uint64_t boots_ = 0, capacity_ = UINT64_MAX, used_ = 0, numbers_ = 0;
  int64_t clock_ = 0;
  std::set<uint64_t> free_numbers_;
  std::vector<Change> changes_;  // that are not durable, in their order
  NodePtr root_ = std::make_shared<Node>(*this, true);
};

}  // namespace reshard
