#include "base/error.h"

#include <cerrno>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace reshard {
namespace {

TEST(Error, ReadsAsTheMessageGrammarSays) {
  Error error(Code::kCorrupt, "data_offsets give 8190 bytes, expected 8192; the file may be cut off");
  EXPECT_STREQ(error.what(), "data_offsets give 8190 bytes, expected 8192; the file may be cut off");
  error.Tensor("model.norm.weight");
  EXPECT_STREQ(error.what(),
               "tensor 'model.norm.weight': data_offsets give 8190 bytes, expected 8192; the file may be cut off");
  error.At("reading", "a.safetensors");
  EXPECT_STREQ(error.what(),
               "reading a.safetensors, tensor 'model.norm.weight': data_offsets give 8190 bytes, expected 8192; "
               "the file may be cut off");
}

TEST(Error, KeepsWhatADeeperLayerSaid) {
  Error error(Code::kIo, "Input/output error");
  error.At("reading", "inner").Tensor("deep");
  error.At("opening", "outer").Tensor("shallow");
  EXPECT_EQ(error.path(), "inner");
  EXPECT_EQ(error.tensor(), "deep");
  EXPECT_STREQ(error.what(), "reading inner, tensor 'deep': Input/output error");
}

TEST(Error, ListsFurtherProblemsOnLinesOfTheirOwn) {
  Error error(Code::kMismatch, "2 tensors are missing");
  error.Also({"tensor 'a'", "tensor 'b'"}).At("planning", "model");
  EXPECT_STREQ(error.what(), "planning model: 2 tensors are missing\n  tensor 'a'\n  tensor 'b'");
}

// The table of the design's section 7.
TEST(Code, HasTheDocumentedExitCodeAndName) {
  const struct {
    Code code;
    int exit;
    std::string name;
  } kRows[] = {
      {Code::kInvalidArgument, 2, "invalid_argument"},
      {Code::kNotFound, 3, "not_found"},
      {Code::kAlreadyExists, 3, "already_exists"},
      {Code::kPermission, 3, "permission"},
      {Code::kCorrupt, 4, "corrupt"},
      {Code::kUnsupported, 5, "unsupported"},
      {Code::kMismatch, 6, "mismatch"},
      {Code::kIo, 7, "io"},
      {Code::kNoSpace, 7, "no_space"},
      {Code::kInternal, 70, "internal"},
      {Code::kCancelled, 130, "cancelled"},
  };
  for (const auto& row : kRows) {
    EXPECT_EQ(ExitCode(row.code), row.exit) << row.name;
    EXPECT_EQ(CodeName(row.code), row.name);
  }
}

TEST(Error, ShowsTwoHundredProblemsCountsTheRestAndKeepsAll) {
  Error few(Code::kMismatch, "many"), many = few;
  few.Also(std::vector<std::string>(200, "x"));
  EXPECT_EQ(few.Shown(), std::vector<std::string>(200, "x"));
  many.Also(std::vector<std::string>(205, "x"));
  EXPECT_EQ(many.also().size(), 205u);
  ASSERT_EQ(many.Shown().size(), 201u);
  EXPECT_EQ(many.Shown().back(), "and 5 more");
  EXPECT_TRUE(std::string(many.what()).ends_with("\n  x\n  and 5 more"));
  EXPECT_EQ(many.Sentence(), "many");
}

TEST(Gathered, MakesTheFirstProblemTheMessage) {
  const Error one = Gathered(Code::kMismatch, {"a"}), three = Gathered(Code::kUnsupported, {"a", "b", "c"});
  EXPECT_EQ(one.code(), Code::kMismatch);
  EXPECT_STREQ(one.what(), "a");
  EXPECT_EQ(three.code(), Code::kUnsupported);
  EXPECT_STREQ(three.what(), "a\n  b\n  c");
  EXPECT_STREQ(Gathered(Code::kMismatch, {"a", "b", "a", "c", "b"}).what(), "a\n  b\n  c");
}

TEST(SystemError, TellsTheCodeFromTheErrorNumber) {
  const struct {
    int number;
    Code code;
  } kRows[] = {
      {ENOSPC, Code::kNoSpace},   {EDQUOT, Code::kNoSpace},       {ENOENT, Code::kNotFound},
      {ELOOP, Code::kCorrupt},    {EACCES, Code::kPermission},    {EPERM, Code::kPermission},
      {EROFS, Code::kPermission}, {EEXIST, Code::kAlreadyExists}, {ENOTEMPTY, Code::kAlreadyExists},
      {EIO, Code::kIo},           {ENAMETOOLONG, Code::kIo},      {EMFILE, Code::kIo},
      {EFBIG, Code::kIo},
  };
  for (const auto& row : kRows) EXPECT_EQ(SystemError(row.number, "writing", "x").code(), row.code) << row.number;
  EXPECT_STREQ(SystemError(ENOSPC, "writing", "out/a").what(), "writing out/a: No space left on device");
}

}  // namespace
}  // namespace reshard
