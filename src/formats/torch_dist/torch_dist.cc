#include "formats/torch_dist/torch_dist.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <tuple>

#include "archive/torch_zip.h"
#include "base/bytes.h"
#include "base/error.h"
#include "formats/torch_dist/metadata.h"

namespace reshard::torch_dist {
namespace {

constexpr std::string_view kMetadata = ".metadata";

// -- reading ----------------------------------------------------------------------------------------------------------

// Both ends of an item, read at once each: all of it but the tensor's bytes lies there, in many small pieces.
class Ends : public File {
 public:
  explicit Ends(File& file) : file_(file) {}

  // What is read from here on is of this item.
  void Take(ByteRange item) {
    item_ = item;
    const bool is_long = item.size > 2 * kEnd;
    head_.resize(is_long ? kEnd : item.size);
    tail_.resize(is_long ? kEnd : 0);
    if (!head_.empty()) file_.ReadAt(head_.data(), head_.size(), item.offset);
    if (!tail_.empty()) file_.ReadAt(tail_.data(), tail_.size(), item.end() - kEnd);
  }

  void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
    const bool copied = Copy(head_, item_.offset, buffer, size, offset) ||
                        Copy(tail_, item_.end() - tail_.size(), buffer, size, offset);
    if (!copied) file_.ReadAt(buffer, size, offset);
  }
  FileInfo Info() override { return file_.Info(); }

  // None of a source's.
  void WriteAt(const void*, uint64_t, uint64_t) override {}
  void Truncate(uint64_t) override {}
  void Sync() override {}
  void StartWriteBack(uint64_t, uint64_t) override {}
  void Forget(uint64_t, uint64_t) override {}

 private:
  static constexpr uint64_t kEnd = 4 * kKiB;

  static bool Copy(const std::string& bytes, uint64_t begin, void* buffer, uint64_t size, uint64_t offset) {
    if (offset < begin || size > bytes.size() || offset - begin > bytes.size() - size) return false;
    std::memcpy(buffer, bytes.data() + (offset - begin), size);
    return true;
  }

  File& file_;
  ByteRange item_;
  std::string head_, tail_;
};

// Of one item, whose pickle and directory have some hundred bytes each: what a hostile one may cost besides is little.
constexpr uint64_t kMaxItemHeader = 64 * kKiB, kMaxItemTensors = 100;

class Reader {
 public:
  Reader(Io& io, const std::string& folder, const torch_pickle::Limits& limits)
      : io_(io), folder_(folder), limits_(limits) {}

  Contents Read(const std::function<bool(std::string_view)>& wanted) {
    Metadata metadata = ReadMetadata(wanted);
    for (const std::string& name : metadata.files) OpenFile(name);
    ReadItems(metadata);
    for (Tensor& tensor : metadata.tensors) contents_.tensors.push_back(std::move(tensor.stored));
    for (Object& object : metadata.objects) contents_.objects.push_back(std::move(object.key));
    return std::move(contents_);
  }

 private:
  Metadata ReadMetadata(const std::function<bool(std::string_view)>& wanted) {
    const std::string path = JoinPath(folder_, std::string(kMetadata));
    if (auto info = io_.Stat(path); info && info->size > limits_.max_header)
      throw Error(Code::kUnsupported, fmt::format("{} bytes of metadata, expected at most {} within the memory limit; "
                                                  "give a larger --max_memory",
                                                  info->size, limits_.max_header))
          .At("reading", path);
    return ParseMetadata(ReadWholeFile(io_, path, limits_.max_header), path, limits_, wanted);
  }

  void OpenFile(const std::string& name) {
    const std::string path = JoinPath(folder_, name);
    auto info = io_.Stat(path);
    if (!info)
      throw Error(Code::kCorrupt,
                  ".metadata names this file and it is missing, expected it; the checkpoint may be "
                  "copied in part")
          .At("reading", path);
    contents_.files.push_back({path, name, info->size});
  }

  // Files one after the other, and each from its begin to its end.
  void ReadItems(Metadata& metadata) {
    struct Place {
      uint32_t file;
      uint64_t offset;
      size_t tensor, chunk;
    };
    std::vector<Place> places;
    for (size_t i = 0; i < metadata.tensors.size(); ++i)
      for (size_t j = 0; j < metadata.tensors[i].items.size(); ++j)
        places.push_back({metadata.tensors[i].stored.chunks[j].file, metadata.tensors[i].items[j].offset, i, j});
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return std::tie(a.file, a.offset, a.tensor, a.chunk) < std::tie(b.file, b.offset, b.tensor, b.chunk);
    });
    std::unique_ptr<File> file;
    std::unique_ptr<Ends> ends;
    uint32_t open = UINT32_MAX;
    for (const Place& place : places) {
      if (place.file != open) {
        file = io_.OpenRead(contents_.files[open = place.file].path);
        ends = std::make_unique<Ends>(*file);
      }
      Tensor& tensor = metadata.tensors[place.tensor];
      try {
        ReadItem(*ends, tensor.items[place.chunk], tensor.stored, tensor.stored.chunks[place.chunk]);
      } catch (Error& error) {
        error.At("reading", contents_.files[open].path).Tensor(tensor.stored.name);
        throw;
      }
    }
  }

  void ReadItem(Ends& ends, ByteRange item, const StoredTensor& tensor, Chunk& chunk) {
    const DataFile& whole = contents_.files[chunk.file];
    if (item.end() > whole.size)
      throw Error(Code::kCorrupt, fmt::format("the item of bytes {} to {} ends behind the file's {} bytes, expected it "
                                              "within; the file may be cut off",
                                              item.offset, item.end(), whole.size));
    ends.Take(item);
    const torch_pickle::TorchFile opened(ends, whole.path, item,
                                         {std::min(limits_.max_header, kMaxItemHeader), kMaxItemTensors});
    const std::optional<StoredTensor> found = opened.TensorOf(opened.root(), chunk.file);
    if (!found) throw Error(Code::kCorrupt, "the item is no tensor, expected one");
    if (found->dtype != tensor.dtype || !(found->shape == chunk.box.shape))
      throw Error(Code::kCorrupt, fmt::format("the item at byte {} is {} {}, expected {} {} as .metadata says",
                                              item.offset, Row(found->dtype).name, ToString(found->shape),
                                              Row(tensor.dtype).name, ToString(chunk.box.shape)));
    chunk.strides = found->chunks[0].strides;
    chunk.offset = found->chunks[0].offset;
  }

  Io& io_;
  const std::string& folder_;
  const torch_pickle::Limits& limits_;
  Contents contents_;
};

// -- writing ----------------------------------------------------------------------------------------------------------

// A file is closed before it has more bytes, so that it is complete, and read to be hashed, while it is in the page
// cache and others are written: 2.5 GB took 0.6 of cp's time, in files of 4 GiB 1.2.
constexpr uint64_t kFileBytes = 512 * kMiB;

class Writer {
 public:
  Writer(const std::string& folder, std::vector<FileLayout>& files)
      : folder_(folder), files_(files), first_(files.size()) {}

  void AddObject(const std::string& key) {
    FileLayout& file = Next(object_.size());
    const uint64_t begin = file.size;
    file.literals.push_back({begin, object_});
    file.size += object_.size();
    metadata_.objects.push_back({key, Number(), {begin, object_.size()}});
  }

  void AddTensor(StoredTensor& tensor) {
    const Dims grid = tensor.grid;
    Tensor added;
    tensor.chunks.clear();
    // Of a tensor without elements, one chunk without elements, as torch has it.
    if (ElementCount(tensor.shape) == 0) {
      tensor.grid = Dims();
      AddItem(WholeBox(tensor.shape), tensor, added);
      added.stored.chunks.swap(tensor.chunks);
    } else {
      ForEachCell(CellCounts(tensor.shape, grid),
                  [&](const Dims& cell) { AddItem(CellBox(cell, tensor.shape, grid), tensor, added); });
      added.stored.chunks = tensor.chunks;
    }
    added.stored.name = tensor.name;
    added.stored.dtype = tensor.dtype;
    added.stored.shape = tensor.shape;
    for (Chunk& chunk : added.stored.chunks) chunk.file -= static_cast<uint32_t>(first_);
    metadata_.tensors.push_back(std::move(added));
  }

  void Finish() { files_.push_back(LiteralFile(JoinPath(folder_, std::string(kMetadata)), MetadataText(metadata_))); }

 private:
  // The file that an item of so many bytes goes to.
  FileLayout& Next(uint64_t bytes) {
    if (metadata_.files.empty() || (files_.back().size > 0 && files_.back().size + bytes > kFileBytes)) {
      metadata_.files.push_back(fmt::format("__0_{}.distcp", metadata_.files.size()));
      files_.push_back({JoinPath(folder_, metadata_.files.back()), 0, {}});
    }
    return files_.back();
  }
  uint32_t Number() const { return static_cast<uint32_t>(metadata_.files.size() - 1); }

  void AddItem(const Box& box, StoredTensor& tensor, Tensor& added) {
    FileLayout& file = Next(ElementCount(box.shape) * ItemSize(tensor.dtype));
    const uint64_t begin = file.size;
    const size_t before = file.literals.empty() ? 0 : file.literals.size() - 1;
    const uint64_t offset = torch_pickle::AppendTensor(file, tensor, box.shape);
    // All but the last, which what comes next makes longer, are the same for items of one shape.
    for (size_t i = before; i + 1 < file.literals.size(); ++i) pool_.Share(file.literals[i]);
    tensor.chunks.push_back({box, RowMajorStrides(box.shape), static_cast<uint32_t>(files_.size() - 1), offset});
    added.items.push_back({begin, file.size - begin});
  }

  const std::string& folder_;
  std::vector<FileLayout>& files_;
  const size_t first_;
  const SharedText object_{TorchZip("archive", kPickledListOfNone)};
  LiteralPool pool_;
  Metadata metadata_;
};

}  // namespace

Contents Read(Io& io, const std::string& folder, const torch_pickle::Limits& limits,
              const std::function<bool(std::string_view key)>& wanted) {
  return Reader(io, folder, limits).Read(wanted);
}

void LayOut(const std::string& folder, const std::vector<StoredTensor*>& tensors,
            const std::vector<std::string>& objects, std::vector<FileLayout>& files) {
  Writer writer(folder, files);
  for (const std::string& key : objects) writer.AddObject(key);
  for (StoredTensor* tensor : tensors) {
    try {
      writer.AddTensor(*tensor);
    } catch (Error& error) {
      error.At("writing", JoinPath(folder, std::string(kMetadata))).Tensor(tensor->name);
      throw;
    }
  }
  writer.Finish();
}

}  // namespace reshard::torch_dist
