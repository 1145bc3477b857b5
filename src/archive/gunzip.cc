#include "archive/gunzip.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard {
namespace {

constexpr uint64_t kInput = 256 * kKiB, kOutput = kMiB;
// Deflate can make 1,032 bytes of one. Weights never come near that.
constexpr uint64_t kMaxRatio = 1000;

class Gunzipper {
 public:
  Gunzipper(File& file, const std::string& path) : file_(file), path_(path), size_(file.Info().size) {
    if (inflateInit2(&stream_, 16 + MAX_WBITS) != Z_OK) throw Error(Code::kInternal, "zlib does not start");
  }
  ~Gunzipper() { inflateEnd(&stream_); }
  Gunzipper(const Gunzipper&) = delete;
  Gunzipper& operator=(const Gunzipper&) = delete;

  void Run(const std::function<void(std::string_view, uint64_t)>& take) {
    while (!AtEnd()) {
      Refill();
      stream_.next_out = reinterpret_cast<Bytef*>(output_.data());
      stream_.avail_out = kOutput;
      const int result = inflate(&stream_, Z_NO_FLUSH);
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) throw Damaged();
      const uint64_t made = kOutput - stream_.avail_out;
      made_ += made;
      CheckRatio();
      if (made) take(std::string_view(output_).substr(0, made), Done());
      const bool whole = result == Z_STREAM_END;
      if (!whole && !made && stream_.avail_in == 0 && read_ == size_) throw CutOff();
      if (whole) inflateReset(&stream_);
      whole_ = whole;
    }
  }

 private:
  Error Corrupt(const std::string& problem) const {
    return Error(Code::kCorrupt, "the gzip file: " + problem).At("reading", path_);
  }

  uint64_t Done() const { return read_ - stream_.avail_in; }
  bool AtEnd() const { return whole_ && Done() == size_; }

  void Refill() {
    if (stream_.avail_in > 0 || read_ == size_) return;
    const uint64_t size = std::min(kInput, size_ - read_);
    file_.ReadAt(input_.data(), size, read_);
    read_ += size;
    stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
    stream_.avail_in = static_cast<uInt>(size);
  }

  // The begin of a member is zlib's to find: after a whole one, something else follows it.
  Error Followed() const {
    return Corrupt(fmt::format("other bytes follow its end, near byte {}, expected none", Done()));
  }
  Error CutOff() const {
    return whole_ ? Followed() : Corrupt("it ends in the middle, expected all of it; it may be cut off");
  }
  Error Damaged() const {
    if (whole_) return Followed();
    return Corrupt(fmt::format("it is damaged near byte {} ({}), expected what gzip wrote", Done(),
                               stream_.msg ? stream_.msg : "no message"));
  }

  // Not of the first megabyte, which a small file of zeros may have.
  void CheckRatio() const {
    if (made_ > kMiB && made_ / kMaxRatio >= Done())
      throw Corrupt(fmt::format("{} bytes of it unpack to {}, expected at most {} for each", Done(), made_, kMaxRatio));
  }

  File& file_;
  const std::string& path_;
  const uint64_t size_;
  std::string input_ = std::string(kInput, '\0'), output_ = std::string(kOutput, '\0');
  z_stream stream_{};
  uint64_t read_ = 0, made_ = 0;
  bool whole_ = false;  // a member has ended, and nothing is known of what follows it
};

}  // namespace

bool IsGzip(std::string_view begin) { return begin.starts_with("\x1f\x8b"); }

void Gunzip(File& file, const std::string& path, const std::function<void(std::string_view, uint64_t)>& take) {
  Gunzipper(file, path).Run(take);
}

}  // namespace reshard
