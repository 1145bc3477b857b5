#include "formats/zarr2/zarr2.h"

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fault/scratch_folder.h"

namespace reshard::zarr2 {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kFixtures = RESHARD_SOURCE_DIR "/tests/fixtures";

std::string Weights(const std::string& fixture, const std::string& key) {
  return std::string(kFixtures) + "/" + fixture + "/nemo/model_weights/model." + key;
}
std::string Slurp(const std::string& path) { return ReadWholeFile(PosixIo(), path, kMiB); }

// A .zarray as zarr-python writes it, with one field replaced (or left out, where `value` is empty).
std::string HeaderWith(const std::string& field, const std::string& value) {
  std::map<std::string, std::string> fields = {
      {"chunks", "[1, 3, 2]"}, {"compressor", "null"}, {"dtype", "\"bfloat16\""}, {"fill_value", "null"},
      {"filters", "null"},     {"order", "\"C\""},     {"shape", "[2, 6, 2]"},    {"zarr_format", "2"},
  };
  fields[field] = value;
  std::string text;
  for (const auto& [name, json] : fields)
    if (!json.empty()) text += (text.empty() ? "{\"" : ", \"") + name + "\": " + json;
  return text + "}";
}

std::string ErrorOf(Code code, const std::string& field, const std::string& value) {
  try {
    ParseHeader(HeaderWith(field, value), "w/.zarray");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(error.path(), "w/.zarray");
    return error.what();
  }
  return "no error";
}

TEST(Zarr2Header, ReadsWhatZarrPythonWrites) {
  Header header = ParseHeader(HeaderWith("order", "\"C\""), "x");
  EXPECT_EQ(header.dtype, Dtype::kBF16);
  EXPECT_EQ(header.shape, (Dims{2, 6, 2}));
  EXPECT_EQ(header.chunks, (Dims{1, 3, 2}));
  EXPECT_EQ(header.separator, '.');
}

TEST(Zarr2Header, AcceptsEverySpellingOfADtype) {
  for (const char* spelling : {"\"bfloat16\"", "\"<V2\"", "\"|V2\""})
    EXPECT_EQ(ParseHeader(HeaderWith("dtype", spelling), "x").dtype, Dtype::kBF16);
  EXPECT_EQ(ParseHeader(HeaderWith("dtype", "\"<f2\""), "x").dtype, Dtype::kF16);
  EXPECT_EQ(ParseHeader(HeaderWith("dtype", "\"<f4\""), "x").dtype, Dtype::kF32);
}

TEST(Zarr2Header, AcceptsSeparatorsFillValuesAndUnknownFields) {
  EXPECT_EQ(ParseHeader(HeaderWith("dimension_separator", "\".\""), "x").separator, '.');
  EXPECT_EQ(ParseHeader(HeaderWith("dimension_separator", "\"/\""), "x").separator, '/');
  for (const char* fill : {"null", "0", "0.0", "-1"}) EXPECT_NO_THROW(ParseHeader(HeaderWith("fill_value", fill), "x"));
  EXPECT_NO_THROW(ParseHeader(HeaderWith("note", "[1]"), "x"));
  EXPECT_EQ(ParseHeader(HeaderWith("chunks", "[5, 7, 9]"), "x").chunks, (Dims{5, 7, 9}));
}

TEST(Zarr2Header, RefusesWhatItCannotRead) {
  const std::pair<const char*, const char*> kCases[] = {
      {"zarr_format", "3"},
      {"order", "\"F\""},
      {"compressor", R"({"id": "blosc", "cname": "lz4"})"},
      {"filters", R"([{"id": "delta"}])"},
      {"dtype", "\"<f8\""},
      {"dtype", "\">f2\""},
      {"dtype", "\"<i4\""},
      {"dtype", R"([["x", "<f4"]])"},
      {"shape", "[1, 1, 1, 1, 1, 1, 1]"},
  };
  for (const auto& [field, value] : kCases)
    EXPECT_THAT(ErrorOf(Code::kUnsupported, field, value), AllOf(HasSubstr(field), HasSubstr("expected")));
  EXPECT_THAT(ErrorOf(Code::kUnsupported, "compressor", R"({"id": "blosc"})"), HasSubstr("blosc"));
}

TEST(Zarr2Header, RefusesMissingFields) {
  for (const char* field : {"chunks", "compressor", "dtype", "fill_value", "filters", "order", "shape", "zarr_format"})
    EXPECT_THAT(ErrorOf(Code::kCorrupt, field, ""), HasSubstr("no field '" + std::string(field) + "'"));
}

TEST(Zarr2Header, RefusesOddFields) {
  const std::pair<const char*, const char*> kCases[] = {
      {"shape", "[2, -6, 2]"},
      {"shape", "[2, 6.0, 2]"},
      {"shape", "[2, \"6\", 2]"},
      {"shape", "6"},
      {"shape", "[18446744073709551616, 1, 1]"},
      {"chunks", "[1, 0, 2]"},
      {"chunks", "[3, 2]"},
      {"chunks", "null"},
      {"order", "\"A\""},
      {"fill_value", "\"x\""},
      {"dimension_separator", "\"-\""},
      {"shape", "[4294967296, 4294967296, 2]"},
      {"chunks", "[1, 4611686018427387904, 2]"},
  };
  for (const auto& [field, value] : kCases)
    EXPECT_THAT(ErrorOf(Code::kCorrupt, field, value), HasSubstr(field)) << value;
}

TEST(Zarr2Header, RefusesWhatIsNoObject) {
  EXPECT_THROW(ParseHeader("{", "x"), Error);
  EXPECT_THROW(ParseHeader("[]", "x"), Error);
}

// Every .zarray of the fixtures was written by zarr-python 2 and renamed to bfloat16 by megatron-core.
TEST(Zarr2Header, WritesWhatZarrPythonDoes) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kFixtures)) {
    if (entry.path().filename() != ".zarray") continue;
    std::string text = Slurp(entry.path());
    EXPECT_EQ(HeaderText(ParseHeader(text, entry.path())), text) << entry.path();
    ++count;
  }
  EXPECT_GT(count, 50u);
}

TEST(Zarr2Header, WritesASeparatorThatIsNoDot) {
  Header header{Dtype::kF32, {4}, {2}, '/'};
  EXPECT_EQ(ParseHeader(HeaderText(header), "x").separator, '/');
}

// Two layers of [96, 64], gate over up, saved by two ranks: four chunks a layer.
TEST(Zarr2Reader, ReadsAnArrayOfMegatronCore) {
  std::vector<ChunkFile> files(3);
  StoredTensor tensor =
      ReadArray(PosixIo(), Weights("llama-tp2-bf16-zarr", "decoder.layers.mlp.linear_fc1.weight"), "fc1", files);
  EXPECT_EQ(tensor.name, "fc1");
  EXPECT_EQ(tensor.dtype, Dtype::kBF16);
  EXPECT_EQ(tensor.shape, (Dims{2, 96, 64}));
  EXPECT_EQ(tensor.grid, (Dims{1, 24, 64}));
  ASSERT_EQ(tensor.chunks.size(), 8u);
  ASSERT_EQ(files.size(), 11u);

  const Chunk& chunk = tensor.chunks[6];
  EXPECT_EQ(chunk.box, (Box{{1, 48, 0}, {1, 24, 64}}));
  EXPECT_EQ(chunk.strides, (Dims{24 * 64, 64, 1}));
  EXPECT_EQ(chunk.offset, 0u);
  EXPECT_EQ(chunk.file, 9u);
  EXPECT_THAT(files[9].path, testing::EndsWith("linear_fc1.weight/1.2.0"));
  EXPECT_EQ(files[9].size, 24u * 64 * 2);
}

class Zarr2Folder : public testing::Test {
 protected:
  void WriteHeader(const std::string& text) { Write(".zarray", text); }
  void Write(const std::string& name, const std::string& bytes) {
    std::string path = folder_ / name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    WriteWholeFile(PosixIo(), path, bytes);
  }
  StoredTensor Read() {
    files_.clear();
    return ReadArray(PosixIo(), folder_.path(), "the.key", files_);
  }
  std::string ReadError(const std::string& in = "") {
    try {
      Read();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt);
      EXPECT_EQ(error.tensor(), "the.key");
      EXPECT_EQ(error.path(), in.empty() ? folder_.path() : folder_ / in);
      return error.what();
    }
    return "no error";
  }
  std::vector<std::string> FileNames() {
    std::vector<std::string> names;
    for (const ChunkFile& file : files_) names.push_back(file.path.substr(folder_.path().size() + 1));
    return names;
  }

  ScratchFolder folder_;
  std::vector<ChunkFile> files_;
};

TEST_F(Zarr2Folder, ClipsTheBoxesOfEdgeChunks) {
  WriteHeader(HeaderText({Dtype::kF32, {3, 5}, {2, 4}}));
  for (const char* name : {"0.0", "0.1", "1.0", "1.1"}) Write(name, std::string(32, '\0'));
  StoredTensor tensor = Read();
  EXPECT_THAT(FileNames(), ElementsAre("0.0", "0.1", "1.0", "1.1"));
  EXPECT_EQ(tensor.chunks[3].box, (Box{{2, 4}, {1, 1}}));
  EXPECT_EQ(tensor.chunks[3].strides, (Dims{4, 1}));
}

TEST_F(Zarr2Folder, IgnoresOtherFiles) {
  WriteHeader(HeaderText({Dtype::kF16, {2}, {1}}));
  for (const char* name : {"0", "1"}) Write(name, "ab");
  for (const char* name : {".zattrs", "0.sync", "00", "2", "0.0", "-1", "0.", "x/0"}) Write(name, "other");
  Read();
  EXPECT_THAT(FileNames(), ElementsAre("0", "1"));
}

TEST_F(Zarr2Folder, ReadsNestedChunkFiles) {
  WriteHeader(HeaderText({Dtype::kF16, {2, 1, 2}, {1, 1, 1}, '/'}));
  for (const char* name : {"0/0/0", "0/0/1", "1/0/0", "1/0/1"}) Write(name, "ab");
  Write("0/0/x", "other");
  Write("7", "other");
  StoredTensor tensor = Read();
  EXPECT_THAT(FileNames(), ElementsAre("0/0/0", "0/0/1", "1/0/0", "1/0/1"));
  EXPECT_EQ(tensor.chunks[2].box.origin, (Dims{1, 0, 0}));
}

TEST_F(Zarr2Folder, ReadsScalarsAndEmptyArrays) {
  WriteHeader(HeaderText({Dtype::kF32, {}, {}}));
  Write("0", "1234");
  EXPECT_EQ(Read().chunks.size(), 1u);
  WriteHeader(HeaderText({Dtype::kF32, {0, 4}, {1, 4}}));
  EXPECT_EQ(Read().chunks.size(), 0u);
}

TEST_F(Zarr2Folder, NamesTheFirstMissingChunkFile) {
  WriteHeader(HeaderText({Dtype::kF16, {3, 2}, {1, 1}}));
  for (const char* name : {"0.0", "0.1", "1.0", "2.1"}) Write(name, "ab");
  EXPECT_THAT(ReadError(), HasSubstr("2 of 6 chunk files are missing, expected all; the first is 1.1"));
}

TEST_F(Zarr2Folder, MissesChunkFilesWhateverFillValueSays) {
  WriteHeader(R"({"chunks": [1], "compressor": null, "dtype": "<f4", "fill_value": 0.0, "filters": null, "order": "C",
                  "shape": [2], "zarr_format": 2})");
  Write("0", "1234");
  EXPECT_THAT(ReadError(), HasSubstr("1 of 2 chunk files are missing, expected all; the first is 1"));
}

TEST_F(Zarr2Folder, RefusesATrillionMissingChunksAtOnce) {
  WriteHeader(HeaderText({Dtype::kF16, {1000000, 1000000}, {1, 1}}));
  Write("0.0", "ab");
  EXPECT_THAT(ReadError(),
              HasSubstr("999999999999 of 1000000000000 chunk files are missing, expected all; the first is 0.1"));
}

TEST_F(Zarr2Folder, RefusesChunkFilesOfAnotherSize) {
  WriteHeader(HeaderText({Dtype::kF32, {2, 4}, {1, 4}}));
  Write("0.0", std::string(16, '\0'));
  Write("1.0", std::string(14, '\0'));
  EXPECT_THAT(ReadError("1.0"), HasSubstr("14 bytes, expected 16 (a whole chunk); the file may be cut off"));
  Write("1.0", std::string(18, '\0'));
  EXPECT_THAT(ReadError("1.0"), HasSubstr("18 bytes, expected 16 (a whole chunk)"));
}

TEST_F(Zarr2Folder, RefusesChunksThatAreNoFiles) {
  WriteHeader(HeaderText({Dtype::kF32, {1}, {1}}));
  Write("0/x", "other");
  EXPECT_THAT(ReadError("0"), HasSubstr("no regular file"));
}

TEST_F(Zarr2Folder, NamesTheTensorInErrorsOfTheHeader) {
  WriteHeader("{");
  EXPECT_THAT(ReadError(".zarray"), HasSubstr("tensor 'the.key': line 1, column 2: no JSON"));
}

TEST_F(Zarr2Folder, NeedsAHeader) {
  try {
    Read();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNotFound);
    EXPECT_EQ(error.path(), folder_ / ".zarray");
    EXPECT_EQ(error.tensor(), "the.key");
  }
}

// Laid out with the shape and grid of an array of megatron-core's, the files are that array's: names, sizes, header.
TEST(Zarr2Writer, LaysOutWhatMegatronCoreDoes) {
  for (const char* key : {"decoder.layers.mlp.linear_fc1.weight", "decoder.layers.self_attention.linear_proj.weight",
                          "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"}) {
    std::string folder = Weights("llama-tp2-bf16-zarr", key);
    std::vector<ChunkFile> stored;
    StoredTensor wanted = ReadArray(PosixIo(), folder, key, stored);

    StoredTensor tensor{key, wanted.dtype, wanted.shape, {}, {}};
    std::vector<FileLayout> files = {LiteralFile("model_config.yaml", "")};
    LayOut(std::string("model_weights/model.") + key, wanted.grid, tensor, files);

    std::map<std::string, uint64_t> sizes;
    for (const FileLayout& file : files)
      if (file.path != "model_config.yaml") sizes[std::filesystem::path(file.path).filename()] = file.size;
    std::map<std::string, uint64_t> wanted_sizes;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      wanted_sizes[entry.path().filename()] = entry.file_size();
    EXPECT_EQ(sizes, wanted_sizes);
    EXPECT_EQ(files[1].path, std::string("model_weights/model.") + key + "/.zarray");
    EXPECT_EQ(files[1].literals.at(0).bytes, Slurp(folder + "/.zarray"));

    ASSERT_EQ(tensor.chunks.size(), wanted.chunks.size());
    EXPECT_EQ(tensor.grid, wanted.grid);
    for (size_t i = 0; i < tensor.chunks.size(); ++i) {
      EXPECT_EQ(tensor.chunks[i].box, wanted.chunks[i].box);
      EXPECT_EQ(tensor.chunks[i].strides, wanted.chunks[i].strides);
      EXPECT_EQ(std::filesystem::path(files[tensor.chunks[i].file].path).filename(),
                std::filesystem::path(stored[wanted.chunks[i].file].path).filename());
    }
  }
}

TEST(Zarr2Writer, MakesEdgeChunksWholeFiles) {
  StoredTensor tensor{"x", Dtype::kF32, {5}, {}, {}};
  std::vector<FileLayout> files;
  LayOut("a", {3}, tensor, files);
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(files[2].path, "a/1");
  EXPECT_EQ(files[2].size, 12u);
  EXPECT_EQ(tensor.chunks[1].box, (Box{{3}, {2}}));
}

}  // namespace
}  // namespace reshard::zarr2
