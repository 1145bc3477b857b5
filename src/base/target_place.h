// Where a target lies, and where what is kept of the work on it does. A target is a folder, or one file of a folder
// whose other entries are nobody's business:
//
//   a folder `out`          out/.reshard/         out/.reshard.json         out/conversion-logs/
//   a file `m.nemo`         .m.nemo.reshard/      .m.nemo.reshard.json      m.nemo-conversion-logs/
#pragma once

#include <string>
#include <vector>

#include "base/io.h"

namespace reshard {

class TargetPlace {
 public:
  static TargetPlace Folder(std::string path);
  static TargetPlace File(const std::string& path);
  // Of the target that is at `path`, or that a run has begun to make there; a folder where there is neither.
  static TargetPlace Existing(Io& io, const std::string& path);

  bool is_file() const { return !file_.empty(); }
  std::string path() const { return is_file() ? JoinPath(folder_, file_) : folder_; }
  const std::string& folder() const { return folder_; }  // that the target's files lie in
  const std::string& file() const { return file_; }      // the one, by its name there; empty: all of them
  std::string root() const { return JoinPath(folder_, Own(".reshard")); }  // of all work on it
  std::string receipt() const { return Own(".reshard.json"); }             // by its name in the folder
  std::string logs() const;

  // What of the folder is the target's: no work, no receipt, no logs.
  std::vector<std::string> Entries(Io& io) const;

 private:
  TargetPlace(std::string folder, std::string file) : folder_(std::move(folder)), file_(std::move(file)) {}
  std::string Own(const std::string& name) const { return is_file() ? "." + file_ + name : name; }

  std::string folder_, file_;
};

}  // namespace reshard
