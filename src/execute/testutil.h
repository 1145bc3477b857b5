// For the tests of this folder: random pieces and what an element-by-element reference makes of them; an Io that
// counts.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/io.h"
#include "plan/plan.h"
#include "tensor/testutil.h"
#include "tests/fault/scratch_folder.h"

namespace reshard::testing {

using Random = std::mt19937_64;

inline uint64_t Pick(Random& random, uint64_t low, uint64_t high) { return low + random() % (high - low + 1); }

inline Dims RandomShape(Random& random, uint64_t longest) {
  Dims shape;
  for (uint64_t axes = Pick(random, 1, 3); axes > 0; --axes) shape.push_back(Pick(random, 1, longest));
  return shape;
}

inline Box RandomBoxIn(Random& random, const Box& outer) {
  Box box = outer;
  for (size_t a = 0; a < outer.shape.size(); ++a) {
    box.shape[a] = Pick(random, 1, outer.shape[a]);
    box.origin[a] += Pick(random, 0, outer.shape[a] - box.shape[a]);
  }
  return box;
}

inline uint64_t Linear(const Dims& index, const Box& box) {
  uint64_t linear = 0;
  for (size_t a = 0; a < index.size(); ++a) linear = linear * box.shape[a] + index[a] - box.origin[a];
  return linear;
}

inline uint64_t FileElement(const Piece& piece, const Dims& index) {
  uint64_t element = 0;
  for (size_t a = 0; a < index.size(); ++a) element += piece.axes[a].At(index[a] - piece.box.origin[a]);
  return element;
}

enum class Nesting { kRowMajor, kAnyOrder, kBlocksInside };

// Gives the box places in a file: loops over blocks and within blocks, nested in some order, with gaps now and then.
// Returns the elements from the first to behind the last. With kBlocksInside the loop over an axis's blocks may be the
// inner one.
inline uint64_t PlaceBox(Random& random, const Box& box, Nesting nesting, Piece& piece) {
  struct Loop {
    size_t axis;
    bool blocks;
    uint64_t count;
  };
  piece.box = box;
  std::vector<Loop> loops;
  for (size_t a = 0; a < box.shape.size(); ++a) {
    uint64_t block = Pick(random, 0, 1) ? box.shape[a] : Pick(random, 1, box.shape[a]);
    piece.axes[a] = {block, 0, 0};
    loops.push_back({a, true, (box.shape[a] + block - 1) / block});
    loops.push_back({a, false, block});
  }
  if (nesting != Nesting::kRowMajor) std::shuffle(loops.begin(), loops.end(), random);
  if (nesting == Nesting::kAnyOrder) {
    for (auto i = loops.begin(); i != loops.end(); ++i)
      for (auto j = i + 1; j != loops.end(); ++j)
        if (j->axis == i->axis && j->blocks) std::swap(*i, *j);
  }
  uint64_t stride = 1;
  for (size_t i = loops.size(); i-- > 0;) {
    Axis& axis = piece.axes[loops[i].axis];
    (loops[i].blocks ? axis.outer : axis.inner) = stride;
    stride *= loops[i].count + (Pick(random, 0, 4) == 0 ? Pick(random, 1, 3) : 0);
  }
  return stride;
}

// Boxes that fill `box`, once each.
inline std::vector<Box> RandomCover(Random& random, const Box& box) {
  std::vector<Box> boxes{box};
  for (uint64_t cuts = Pick(random, 0, 3); cuts > 0; --cuts) {
    size_t victim = Pick(random, 0, boxes.size() - 1);
    Box hole = RandomBoxIn(random, boxes[victim]);
    std::vector<Box> rest = Subtract(boxes[victim], hole);
    boxes[victim] = hole;
    boxes.insert(boxes.end(), rest.begin(), rest.end());
  }
  return boxes;
}

inline SourceFile WriteSource(const ScratchFolder& folder, const std::string& name, const std::string& bytes) {
  WriteWholeFile(PosixIo(), folder / name, bytes);
  FileInfo info = *PosixIo().Stat(folder / name);
  return {folder / name, name, info.size, info.mtime_ns, info.inode};
}

inline std::string ReadFile(const std::string& path) { return ReadWholeFile(PosixIo(), path, uint64_t{1} << 32); }

// Elements of a part as bytes, in row-major order.
using Elements = std::string;

inline Elements RandomElements(Random& random, uint64_t bytes) {
  Elements elements(bytes, '\0');
  for (char& byte : elements) byte = static_cast<char>(random());
  return elements;
}

// Writes the elements that the piece has of the part into the image of its file, growing it where needed.
inline void PutPiece(const Piece& piece, const Dims& shape, const Elements& elements, std::string& image) {
  const uint64_t item = ItemSize(piece.dtype);
  ForEachIndex(piece.box, [&](const Dims& index) {
    uint64_t at = piece.offset + FileElement(piece, index) * item;
    if (image.size() < at + item) image.resize(at + item);
    image.replace(at, item, elements, Linear(index, WholeBox(shape)) * item, item);
  });
}

// The real files, without waiting for the disk; counts calls. `on_write` is called before each WriteAt.
class TestIo : public Io {
 public:
  std::atomic<uint64_t> reads{0}, writes{0}, open{0}, most_open{0}, file_system_syncs{0}, file_syncs{0}, write_backs{0};
  std::function<void()> on_write = [] {};
  std::vector<std::string> synced_folders;

  std::unique_ptr<File> OpenRead(const std::string& path) override { return Wrap(io_.OpenRead(path)); }
  std::unique_ptr<File> OpenWrite(const std::string& path) override { return Wrap(io_.OpenWrite(path)); }
  std::unique_ptr<File> OpenTemporary(const std::string& folder) override { return Wrap(io_.OpenTemporary(folder)); }
  std::optional<FileInfo> Stat(const std::string& path) override { return io_.Stat(path); }
  std::vector<std::string> List(const std::string& path) override { return io_.List(path); }
  void MakeDirectories(const std::string& path) override { io_.MakeDirectories(path); }
  void Rename(const std::string& from, const std::string& to) override { io_.Rename(from, to); }
  bool Link(const std::string& from, const std::string& to) override { return io_.Link(from, to); }
  void RemoveAll(const std::string& path) override { io_.RemoveAll(path); }
  bool RemoveEmptyDirectory(const std::string& path) override { return io_.RemoveEmptyDirectory(path); }
  void SyncDirectory(const std::string& path) override { synced_folders.push_back(path); }
  void SyncFileSystem(const std::string&) override { ++file_system_syncs; }
  FreeSpace Free(const std::string& path) override { return io_.Free(path); }
  std::string Canonical(const std::string& path) override { return io_.Canonical(path); }
  std::string BootId() override { return io_.BootId(); }

 private:
  class CountedFile : public File {
   public:
    CountedFile(TestIo& io, std::unique_ptr<File> file) : io_(io), file_(std::move(file)) {
      uint64_t now = ++io.open, most = io.most_open;
      while (now > most && !io.most_open.compare_exchange_weak(most, now)) continue;
    }
    ~CountedFile() override { --io_.open; }
    void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
      ++io_.reads;
      file_->ReadAt(buffer, size, offset);
    }
    void WriteAt(const void* buffer, uint64_t size, uint64_t offset) override {
      io_.on_write();
      ++io_.writes;
      file_->WriteAt(buffer, size, offset);
    }
    void Truncate(uint64_t size) override { file_->Truncate(size); }
    void Sync() override { ++io_.file_syncs; }
    void StartWriteBack(uint64_t, uint64_t) override { ++io_.write_backs; }
    void Forget(uint64_t, uint64_t) override {}
    FileInfo Info() override { return file_->Info(); }

   private:
    TestIo& io_;
    std::unique_ptr<File> file_;
  };

  std::unique_ptr<File> Wrap(std::unique_ptr<File> file) {
    return std::make_unique<CountedFile>(*this, std::move(file));
  }

  Io& io_ = PosixIo();
};

// A row-major piece of a file.
inline Piece RowMajorPiece(const Box& box, Dtype dtype, uint32_t file, uint64_t offset, uint32_t tensor = 0) {
  Piece piece;
  piece.box = box;
  Dims strides = RowMajorStrides(box.shape);
  for (size_t a = 0; a < box.shape.size(); ++a) piece.axes[a] = {std::max<uint64_t>(box.shape[a], 1), strides[a], 0};
  piece.file = file;
  piece.offset = offset;
  piece.tensor = tensor;
  piece.dtype = dtype;
  return piece;
}

template <typename T>
std::string Bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace reshard::testing
