// What every format promises, tested in every format. Bytes are told by a formula, of the tensor's name and the place
// within it.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "tensor/testutil.h"
#include "tests/conformance/formats.h"
#include "tests/fault/faulty_io.h"
#include "tests/fault/scratch_folder.h"

namespace reshard::conformance {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using testing::IsEmpty;

using Tensors = std::vector<StoredTensor>;
using Files = std::map<std::string, std::string>;  // path -> bytes

StoredTensor TensorOf(std::string name, Dtype dtype, const Dims& shape) {
  return {std::move(name), dtype, shape, {}, {}};
}

// Bytes of an element; types below a byte are one element of all the tensor's bytes.
uint64_t UnitSize(const StoredTensor& tensor) {
  const uint64_t bits = Row(tensor.dtype).bits;
  return bits % 8 ? ElementCount(tensor.shape) * bits / 8 : bits / 8;
}

// The units of a chunk: visit(number of the unit in the tensor, in row-major order; byte of the file).
void ForEachUnit(const StoredTensor& tensor, const Chunk& chunk, const std::function<void(uint64_t, uint64_t)>& visit) {
  if (Row(tensor.dtype).bits % 8) return visit(0, chunk.offset);
  ForEachIndex(chunk.box.shape, [&](const Dims& index) {
    uint64_t number = 0, at = 0;
    for (size_t axis = 0; axis < index.size(); ++axis) {
      number = number * tensor.shape[axis] + chunk.box.origin[axis] + index[axis];
      at += index[axis] * chunk.strides[axis];
    }
    visit(number, chunk.offset + at * UnitSize(tensor));
  });
}

std::string UnitBytes(const StoredTensor& tensor, uint64_t number) {
  uint64_t hash = 14695981039346656037u;
  for (char c : tensor.name + "/" + std::to_string(number))
    hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  std::string bytes;
  for (uint64_t i = 0; i < UnitSize(tensor); ++i) bytes += static_cast<char>((hash + i * 37) >> 16);
  return bytes;
}

// The bytes of a layout: what no literal and no chunk gives has this value.
constexpr char kNothing = '\x5a';

// Checks on the way that the files are apart, and that no byte belongs to two.
Files Fill(const std::vector<FileLayout>& layouts, const Tensors& tensors) {
  std::vector<std::string> bytes;
  std::vector<std::vector<bool>> taken;
  for (const FileLayout& layout : layouts) {
    bytes.emplace_back(layout.size, kNothing);
    taken.emplace_back(layout.size);
  }
  auto put = [&](size_t file, uint64_t at, const std::string& value) {
    ASSERT_LT(file, layouts.size());
    ASSERT_LE(at + value.size(), layouts[file].size) << layouts[file].path;
    bytes[file].replace(at, value.size(), value);
    for (uint64_t i = at; i < at + value.size(); ++i) {
      EXPECT_FALSE(taken[file][i]) << layouts[file].path << ", byte " << i;
      taken[file][i] = true;
    }
  };
  for (size_t file = 0; file < layouts.size(); ++file)
    for (const Literal& literal : layouts[file].literals) put(file, literal.offset, literal.bytes);
  for (const StoredTensor& tensor : tensors)
    for (const Chunk& chunk : tensor.chunks)
      ForEachUnit(tensor, chunk, [&](uint64_t number, uint64_t at) { put(chunk.file, at, UnitBytes(tensor, number)); });
  Files files;
  for (size_t file = 0; file < layouts.size(); ++file) {
    EXPECT_TRUE(files.emplace(layouts[file].path, std::move(bytes[file])).second) << layouts[file].path << ", twice";
    for (const std::filesystem::path& part : std::filesystem::path(layouts[file].path))
      EXPECT_THAT(part.string(), testing::Not(AnyOf("", ".", "..", "/"))) << layouts[file].path;
  }
  return files;
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  WriteWholeFile(PosixIo(), path, bytes);
}

void Write(const Files& files, const std::string& folder) {
  for (const auto& [path, bytes] : files) WriteFile(JoinPath(folder, path), bytes);
}

const StoredTensor* Find(const Tensors& tensors, std::string_view name) {
  auto found = std::find_if(tensors.begin(), tensors.end(), [&](const StoredTensor& t) { return t.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

// What box.h says of a stored tensor: its chunks fill its shape once, and a grid is a grid.
void ExpectSound(const StoredTensor& tensor, const std::vector<std::string>& files) {
  SCOPED_TRACE(tensor.name);
  std::set<std::vector<uint64_t>> met;
  uint64_t cell = 0;
  for (const Chunk& chunk : tensor.chunks) {
    ASSERT_LT(chunk.file, files.size());
    const uint64_t size = std::filesystem::file_size(files[chunk.file]);
    ASSERT_EQ(chunk.box.shape.size(), tensor.shape.size());
    ASSERT_EQ(chunk.strides.size(), tensor.shape.size());
    ForEachUnit(tensor, chunk, [&](uint64_t, uint64_t at) { ASSERT_LE(at + UnitSize(tensor), size); });
    ForEachIndex(chunk.box.shape, [&](Dims index) {
      for (size_t axis = 0; axis < index.size(); ++axis) {
        index[axis] += chunk.box.origin[axis];
        ASSERT_LT(index[axis], tensor.shape[axis]);
        if (!tensor.grid.empty()) {
          EXPECT_EQ(index[axis] / tensor.grid[axis], chunk.box.origin[axis] / tensor.grid[axis]);
        }
      }
      EXPECT_TRUE(met.insert({index.begin(), index.end()}).second);
    });
    uint64_t number = 0;
    for (size_t axis = 0; axis < tensor.grid.size(); ++axis) {
      EXPECT_EQ(chunk.box.origin[axis] % tensor.grid[axis], 0u);
      const uint64_t cells = (tensor.shape[axis] + tensor.grid[axis] - 1) / tensor.grid[axis];
      number = number * cells + chunk.box.origin[axis] / tensor.grid[axis];
    }
    if (!tensor.grid.empty()) {
      EXPECT_EQ(number, cell++);
    }
  }
  EXPECT_EQ(met.size(), ElementCount(tensor.shape));
}

void ExpectSame(const Opened& opened, const Tensors& expected) {
  EXPECT_EQ(opened.tensors.size(), expected.size());
  std::map<std::string, std::string> bytes;
  for (const std::string& path : opened.files) bytes[path] = ReadWholeFile(PosixIo(), path, UINT64_MAX);
  for (const StoredTensor& wanted : expected) {
    SCOPED_TRACE(wanted.name);
    const StoredTensor* found = Find(opened.tensors, wanted.name);
    ASSERT_NE(found, nullptr);
    EXPECT_EQ(found->dtype, wanted.dtype);
    ASSERT_EQ(found->shape, wanted.shape);
    ExpectSound(*found, opened.files);
    for (const Chunk& chunk : found->chunks)
      ForEachUnit(*found, chunk, [&](uint64_t number, uint64_t at) {
        EXPECT_EQ(bytes[opened.files[chunk.file]].substr(at, UnitSize(wanted)), UnitBytes(wanted, number));
      });
  }
}

std::optional<Error> ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

class Conformance : public testing::TestWithParam<Format> {
 protected:
  Conformance() : folder_(ScratchFolder::InMemory()) {}

  Dtype Any() const { return GetParam().dtypes.back(); }

  Files LaidOut(Tensors& tensors) {
    const std::vector<FileLayout> layouts = GetParam().lay_out(tensors);
    return Fill(layouts, tensors);
  }
  Opened Open() { return GetParam().open(PosixIo(), folder_.path()); }

  void ExpectRoundTrip(Tensors tensors) {
    std::filesystem::remove_all(folder_.path());
    std::filesystem::create_directory(folder_.path());
    Write(LaidOut(tensors), folder_.path());
    ExpectSame(Open(), tensors);
  }

  // Tensors that every test of damage begins with: whole chunks, cut ones, a scalar.
  Tensors Several() const {
    const Dtype first = GetParam().dtypes.front();
    return {TensorOf("a.weight", Any(), {4, 6}), TensorOf("b", Any(), {}), TensorOf("c.bias", first, {3, 1, 5})};
  }

  // For each file of a folder that is whole: damages it by `damage`, which is told its path and bytes and what tensors
  // were written, and makes it whole again.
  void WithEachFile(const std::function<void(const std::string&, const std::string&, Tensors&)>& damage) {
    Tensors tensors = Several();
    const Files files = LaidOut(tensors);
    Write(files, folder_.path());
    for (const auto& [name, bytes] : files) {
      SCOPED_TRACE(name);
      const std::string path = folder_ / name;
      damage(path, bytes, tensors);
      if (HasFatalFailure()) return;
      WriteFile(path, bytes);
    }
    ExpectSame(Open(), tensors);
  }

  // What damage may lead to: an error that says the file is not right, or tensors that are sound, whatever they are.
  // Returns the error's code.
  std::optional<Code> ExpectRefusedOrSound(const Tensors& whole) {
    Opened opened;
    if (std::optional<Error> error = ErrorOf([&] { opened = Open(); })) {
      EXPECT_THAT(error->code(), AnyOf(Code::kCorrupt, Code::kUnsupported, Code::kNotFound)) << error->what();
      EXPECT_THAT(error->path(), HasSubstr(folder_.path()));
      return error->code();
    }
    for (const StoredTensor& tensor : opened.tensors) {
      ExpectSound(tensor, opened.files);
      const StoredTensor* before = Find(whole, tensor.name);
      if (!before || !GetParam().tells_shapes_twice) continue;
      EXPECT_EQ(tensor.dtype, before->dtype);
      EXPECT_EQ(tensor.shape, before->shape);
    }
    return std::nullopt;
  }

  ScratchFolder folder_;
};

// -- what is written is read back -------------------------------------------------------------------------------------

TEST_P(Conformance, ReadsBackEveryDtype) {
  for (Dtype dtype : GetParam().dtypes) {
    SCOPED_TRACE(Row(dtype).name);
    ExpectRoundTrip({TensorOf("x", dtype, {3, 8}), TensorOf("y", dtype, {4})});
  }
  Tensors all;
  for (Dtype dtype : GetParam().dtypes) all.push_back(TensorOf(std::string(Row(dtype).name), dtype, {5, 4}));
  ExpectRoundTrip(all);
}

TEST_P(Conformance, RefusesToWriteDtypesThatItDoesNotStore) {
  for (const DtypeRow& row : Dtypes()) {
    if (std::count(GetParam().dtypes.begin(), GetParam().dtypes.end(), row.dtype)) continue;
    SCOPED_TRACE(row.name);
    Tensors tensors = {TensorOf("the.tensor", row.dtype, {2, 8})};
    const std::optional<Error> error = ErrorOf([&] { GetParam().lay_out(tensors); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), Code::kUnsupported);
    EXPECT_EQ(error->tensor(), "the.tensor");
    EXPECT_THAT(error->what(), HasSubstr(std::string(row.name) + ", expected"));
  }
}

TEST_P(Conformance, RefusesToWriteHalfBytes) {
  for (Dtype dtype : GetParam().dtypes) {
    if (Row(dtype).bits % 8 == 0) continue;
    Tensors tensors = {TensorOf("the.tensor", dtype, {3, 1})};
    const std::optional<Error> error = ErrorOf([&] { GetParam().lay_out(tensors); });
    ASSERT_TRUE(error) << Row(dtype).name;
    EXPECT_EQ(error->code(), Code::kUnsupported);
    EXPECT_EQ(error->tensor(), "the.tensor");
  }
}

TEST_P(Conformance, ReadsBackEveryNumberOfAxes) {
  for (const Dims& shape : {Dims{}, Dims{1}, Dims{7}, Dims{1, 1}, Dims{3, 5}, Dims{2, 3, 4}, Dims{1, 5, 1, 3},
                            Dims{2, 1, 3, 2, 2}, Dims{2, 1, 3, 1, 2, 3}, Dims{1, 1, 1, 1, 1, 1}}) {
    SCOPED_TRACE(ToString(shape));
    ExpectRoundTrip({TensorOf("x", Any(), shape)});
  }
}

TEST_P(Conformance, ReadsBackTensorsWithoutElements) {
  for (const Dims& shape : {Dims{0}, Dims{0, 4}, Dims{4, 0}, Dims{2, 0, 3}, Dims{0, 0, 0, 0, 0, 0}}) {
    SCOPED_TRACE(ToString(shape));
    ExpectRoundTrip({TensorOf("x", Any(), shape)});
    ExpectRoundTrip({TensorOf("before", Any(), {3}), TensorOf("none", Any(), shape), TensorOf("z", Any(), {2, 2})});
  }
}

TEST_P(Conformance, ReadsBackNoTensors) { ExpectRoundTrip({}); }

TEST_P(Conformance, ReadsBackRandomTensors) {
  const std::vector<Dtype>& dtypes = GetParam().dtypes;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    Tensors tensors;
    for (uint64_t n = random() % 9; n > 0; --n) {
      const Dtype dtype = dtypes[random() % dtypes.size()];
      Dims shape;
      for (uint64_t axes = random() % 7; axes > 0; --axes)
        shape.push_back(random() % 5 ? 1 + random() % 4 : random() % 8);
      if (Row(dtype).bits % 8) shape = {random() % 4, 4};
      tensors.push_back(TensorOf(fmt::format("layers.{}.weight_{}", random() % 100, n), dtype, shape));
    }
    ExpectRoundTrip(tensors);
    if (HasFailure()) return;
  }
}

// -- names ------------------------------------------------------------------------------------------------------------

TEST_P(Conformance, ReadsBackUnusualNames) {
  for (const char* name :
       {"x", "a.b.c", ".hidden", "with blank", "caf\xC3\xA9", "\xE6\x97\xA5\xE6\x9C\xAC", "\xF0\x9F\x98\x80", "a\"b\\c",
        "a/b", "{L}", "%s", "-x", "0", "0.0", "null", "shape", "UPPER", "a:b*c?d|e"}) {
    SCOPED_TRACE(name);
    ExpectRoundTrip({TensorOf(name, Any(), {2, 3}), TensorOf("zz", Any(), {4})});
  }
  ExpectRoundTrip({TensorOf("x", Any(), {2}), TensorOf("X", Any(), {3}), TensorOf("x.", Any(), {4})});
  ExpectRoundTrip({TensorOf(std::string(200, 'n'), Any(), {2})});
}

// Names that some format cannot have. None may be stored as another one, or lead out of the folder.
TEST_P(Conformance, ReadsBackOrRefusesNamesThatAreNoNames) {
  for (const std::string& name : std::initializer_list<std::string>{
           "", ".", "..", "/", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", std::string("a\0b", 3), "a\nb", "\x1b[2J",
           "\x7f", "\xE2\x80\xAE", "\xFF", "a\xC0\xAF", "__metadata__"}) {
    SCOPED_TRACE(testing::PrintToString(name));
    std::filesystem::remove_all(folder_ / "in");
    Tensors tensors = {TensorOf(name, Any(), {2, 3})};
    Files files;
    if (std::optional<Error> error = ErrorOf([&] { files = LaidOut(tensors); })) {
      EXPECT_EQ(error->code(), Code::kUnsupported);
      EXPECT_THAT(error->message(), HasSubstr("expected"));
      continue;
    }
    Write(files, folder_ / "in");
    Opened opened;
    if (std::optional<Error> error = ErrorOf([&] { opened = GetParam().open(PosixIo(), folder_ / "in"); })) {
      EXPECT_EQ(error->code(), Code::kCorrupt) << error->what();
      continue;
    }
    ExpectSame(opened, tensors);
  }
}

// -- the layout -------------------------------------------------------------------------------------------------------

TEST_P(Conformance, LaysOutTheSameEachTime) {
  Tensors once = Several(), again = Several();
  const std::vector<FileLayout> first = GetParam().lay_out(once), second = GetParam().lay_out(again);
  ASSERT_EQ(first.size(), second.size());
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(first[i].path, second[i].path);
  EXPECT_EQ(Fill(first, once), Fill(second, again));
}

TEST_P(Conformance, LaysOutTheSameInAnyOrder) {
  Tensors tensors = Several();
  const Files files = LaidOut(tensors);
  std::reverse(tensors.begin(), tensors.end());
  EXPECT_EQ(LaidOut(tensors), files);
}

// What the tensors were before, in the format that they come from, does not show.
TEST_P(Conformance, ForgetsTheChunksThatItIsGiven) {
  Tensors fresh = Several(), used = Several();
  for (StoredTensor& tensor : used) {
    tensor.grid = tensor.shape;
    tensor.chunks.resize(3);
  }
  EXPECT_EQ(LaidOut(used), LaidOut(fresh));
}

// A tebibyte, nearly all of it a hole: reading it would take minutes.
TEST_P(Conformance, ReadsNoData) {
  Tensors tensors = {
      TensorOf("x", Any(), {uint64_t{1} << 20, (uint64_t{1} << 40) / UnitSize(TensorOf("", Any(), {1})) >> 20})};
  uint64_t size = 0;
  for (const FileLayout& layout : GetParam().lay_out(tensors)) {
    const std::string path = folder_ / layout.path;
    WriteFile(path, "");
    auto file = PosixIo().OpenWrite(path);
    for (const Literal& literal : layout.literals)
      file->WriteAt(literal.bytes.data(), literal.bytes.size(), literal.offset);
    file->Truncate(layout.size);
    size += layout.size;
  }
  EXPECT_GE(size, uint64_t{1} << 40);
  const Opened opened = Open();
  ASSERT_EQ(opened.tensors.size(), 1u);
  EXPECT_EQ(opened.tensors[0].shape, tensors[0].shape);
}

// -- damage -----------------------------------------------------------------------------------------------------------

TEST_P(Conformance, RefusesEveryFileCutOffAnywhere) {
  WithEachFile([&](const std::string& path, const std::string& bytes, Tensors& tensors) {
    for (uint64_t size = 0; size < bytes.size(); ++size) {
      WriteFile(path, bytes.substr(0, size));
      const std::optional<Code> code = ExpectRefusedOrSound(tensors);
      if (!code && GetParam().padded) {
        ExpectSame(Open(), tensors);
      } else {
        ASSERT_EQ(code, Code::kCorrupt) << "cut to " << size << " bytes";
      }
    }
  });
}

TEST_P(Conformance, RefusesBytesBehindTheEndOfAnyFile) {
  if (!GetParam().owns_whole_files) return;
  WithEachFile([&](const std::string& path, const std::string& bytes, Tensors& tensors) {
    WriteFile(path, bytes + "x");
    EXPECT_EQ(ExpectRefusedOrSound(tensors), Code::kCorrupt);
  });
}

// All that is not data, bit by bit.
TEST_P(Conformance, RefusesOrUnderstandsEveryBitOfAHeaderFlipped) {
  Tensors tensors = Several();
  const std::vector<FileLayout> layouts = GetParam().lay_out(tensors);
  Files files = Fill(layouts, tensors);
  Write(files, folder_.path());
  uint64_t refused = 0, flipped = 0;
  for (const FileLayout& layout : layouts) {
    SCOPED_TRACE(layout.path);
    std::string& bytes = files[layout.path];
    for (const Literal& literal : layout.literals)
      for (uint64_t at = literal.offset; at < literal.offset + literal.bytes.size(); ++at)
        for (int bit = 0; bit < 8; ++bit, ++flipped) {
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
          WriteFile(folder_ / layout.path, bytes);
          refused += ExpectRefusedOrSound(tensors).has_value();
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
          if (HasFailure()) FAIL() << "byte " << at << ", bit " << bit;
        }
    WriteFile(folder_ / layout.path, bytes);
  }
  EXPECT_GT(refused, flipped / 2);
  ExpectSame(Open(), tensors);
}

TEST_P(Conformance, RefusesFilesThatAreFolders) {
  WithEachFile([&](const std::string& path, const std::string&, Tensors& tensors) {
    std::filesystem::remove(path);
    std::filesystem::create_directory(path);
    EXPECT_EQ(ExpectRefusedOrSound(tensors), Code::kCorrupt);
    std::filesystem::remove(path);
  });
}

// A format whose files are found by looking for them cannot miss one; it gives the others.
TEST_P(Conformance, RefusesOrLacksWhatIsMissing) {
  WithEachFile([&](const std::string& path, const std::string&, Tensors& tensors) {
    std::filesystem::remove(path);
    if (!ExpectRefusedOrSound(tensors)) {
      EXPECT_LT(Open().tensors.size(), tensors.size());
    }
  });
}

TEST_P(Conformance, FindsNothingInAnEmptyFolder) {
  if (!ExpectRefusedOrSound({})) {
    EXPECT_THAT(Open().tensors, IsEmpty());
  }
}

TEST_P(Conformance, IgnoresFilesThatAreNotItsOwn) {
  Tensors tensors = Several();
  const Files files = LaidOut(tensors);
  Write(files, folder_.path());
  for (const auto& [path, bytes] : files)
    for (const char* name : {".DS_Store", "notes.txt", "lock.sync", "empty", ".zattrs"})
      WriteFile((std::filesystem::path(folder_ / path).parent_path() / name).string(), "other");
  std::filesystem::create_directories(folder_ / "a folder/within");
  ExpectSame(Open(), tensors);
}

// An error of the disk is told as one, at any call.
TEST_P(Conformance, TellsErrorsOfTheDiskFromDamage) {
  Tensors tensors = Several();
  Write(LaidOut(tensors), folder_.path());
  FaultyIo io(PosixIo());
  GetParam().open(io, folder_.path());
  const uint64_t calls = io.calls();
  ASSERT_GT(calls, 0u);
  for (uint64_t call = 1; call <= calls; ++call) {
    io.FailAt(call, EIO);
    const std::optional<Error> error = ErrorOf([&] { GetParam().open(io, folder_.path()); });
    ASSERT_TRUE(error) << call;
    EXPECT_EQ(error->code(), Code::kIo) << error->what();
    EXPECT_THAT(error->path(), HasSubstr(folder_.path()));
  }
}

// -- what another library wrote ---------------------------------------------------------------------------------------

std::string SampleFolder(const Format& format) {
  return std::string(RESHARD_SOURCE_DIR "/tests/fixtures/") + std::string(format.sample);
}

// Expected bytes: numpy.
TEST_P(Conformance, ReadsWhatItsOwnLibraryWrote) {
  const Opened opened = GetParam().open(PosixIo(), SampleFolder(GetParam()));
  for (const StoredTensor& tensor : opened.tensors) ExpectSound(tensor, opened.files);
  const StoredTensor* norm = Find(opened.tensors, GetParam().sample_tensor);
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->dtype, Dtype::kF32);
  ASSERT_EQ(norm->shape, Dims{48});
  std::vector<std::string> elements(48);
  for (const Chunk& chunk : norm->chunks)
    ForEachUnit(*norm, chunk, [&](uint64_t number, uint64_t at) {
      elements[number] = ReadWholeFile(PosixIo(), opened.files[chunk.file], UINT64_MAX).substr(at, 4);
    });
  EXPECT_EQ(elements[0], "\x7d\x60\x8d\x3f");
  EXPECT_EQ(elements[1], "\x79\xef\x85\x3f");
  EXPECT_EQ(elements[47], "\xbf\xdf\x78\x3f");
}

TEST_P(Conformance, RefusesWhatItsOwnLibraryWroteCutOff) {
  std::filesystem::copy(SampleFolder(GetParam()), folder_ / "in", std::filesystem::copy_options::recursive);
  const Opened whole = GetParam().open(PosixIo(), folder_ / "in");
  for (const std::string& path : whole.files) {
    SCOPED_TRACE(path);
    const std::string bytes = ReadWholeFile(PosixIo(), path, UINT64_MAX);
    for (uint64_t size : {uint64_t{0}, bytes.size() / 2, bytes.size() - 1}) {
      WriteFile(path, bytes.substr(0, size));
      const std::optional<Error> error = ErrorOf([&] { GetParam().open(PosixIo(), folder_ / "in"); });
      ASSERT_TRUE(error) << size;
      EXPECT_EQ(error->code(), Code::kCorrupt);
      EXPECT_EQ(error->path(), path);
    }
    WriteFile(path, bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Conformance, testing::ValuesIn(Formats().begin(), Formats().end()),
                         [](const auto& format) { return std::string(format.param.name); });

}  // namespace
}  // namespace reshard::conformance
