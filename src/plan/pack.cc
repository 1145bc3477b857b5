#include "plan/pack.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <string_view>
#include <vector>

#include "archive/tar.h"

namespace reshard {
namespace {

// The folders of a path, outermost first: "a", "a/b" of "a/b/c".
std::vector<std::string_view> FoldersOf(std::string_view path) {
  std::vector<std::string_view> folders;
  for (size_t slash = path.find('/'); slash != path.npos; slash = path.find('/', slash + 1))
    folders.push_back(path.substr(0, slash));
  return folders;
}

// Names by their bytes, what lies in a folder right behind it: '/' is less than any other byte.
bool Before(std::string_view a, std::string_view b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return x != y && (x == '/' || (y != '/' && x < y));
  });
}

class Packer {
 public:
  explicit Packer(std::string name) : packed_{std::move(name), 0, {}}, tar_(packed_) { tar_.AddFolder(""); }

  // Returns where the file begins.
  uint64_t Add(FileLayout& file) {
    for (std::string_view folder : FoldersOf(file.path)) {
      if (folder.size() <= folder_.size() && folder_.compare(0, folder.size(), folder) == 0 &&
          (folder_.size() == folder.size() || folder_[folder.size()] == '/'))
        continue;
      tar_.AddFolder(folder);
      folder_ = folder;
    }
    const uint64_t begin = tar_.AddFile(file.path, file.size);
    for (Literal& literal : file.literals) literals_.push_back({begin + literal.offset, std::move(literal.bytes)});
    for (Checksum checksum : file.checksums) {
      checksum.offset += begin;
      for (uint64_t& place : checksum.places) place += begin;
      packed_.checksums.push_back(checksum);
    }
    return begin;
  }

  FileLayout Finish() {
    tar_.Finish();
    std::move(literals_.begin(), literals_.end(), std::back_inserter(packed_.literals));
    std::sort(packed_.literals.begin(), packed_.literals.end(),
              [](const Literal& a, const Literal& b) { return a.offset < b.offset; });
    return std::move(packed_);
  }

 private:
  FileLayout packed_;
  TarLayout tar_;
  std::string folder_;             // the last one that was added
  std::vector<Literal> literals_;  // of the files
};

}  // namespace

void PackTar(Plan& plan, const std::string& name) {
  std::vector<size_t> order(plan.files.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return Before(plan.files[a].path, plan.files[b].path); });
  Packer packer(name);
  std::vector<uint64_t> begins(plan.files.size());
  for (size_t file : order) begins[file] = packer.Add(plan.files[file]);
  plan.files = {packer.Finish()};
  for (Part& part : plan.parts) {
    for (Piece& piece : part.targets) {
      piece.offset += begins[piece.file];
      piece.file = 0;
    }
  }
}

}  // namespace reshard
