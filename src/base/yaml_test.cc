#include "base/yaml.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/io.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace reshard {
namespace {

using testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  try {
    ParseYaml(text, "model_config.yaml");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kCorrupt);
    EXPECT_EQ(error.path(), "model_config.yaml");
    return error.what();
  }
  return "no error";
}

Json Load(std::string_view text) { return YamlValue(ParseYaml(text, "x")); }
Json LoadScalar(const std::string& text) { return Load("k: " + text).at("k"); }
std::string EmitScalar(const Json& value) {
  std::string text = EmitYaml({{"k", value}});
  return text.substr(3, text.size() - 4);
}
std::string Nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

TEST(ParseYaml, KeepsTheTextOfScalars) {
  Yaml yaml = ParseYaml("time: 12:00:00\nsize: 1_0\nname: '1'\nrest: |\n  1\nnone: ~\n", "x");
  EXPECT_EQ(yaml.Find("time")->text, "12:00:00");
  EXPECT_EQ(yaml.Find("size")->text, "1_0");
  EXPECT_FALSE(yaml.Find("size")->quoted);
  EXPECT_EQ(yaml.Find("name")->text, "1");
  EXPECT_TRUE(yaml.Find("name")->quoted);
  EXPECT_TRUE(yaml.Find("rest")->quoted);
  EXPECT_EQ(yaml.Find("none")->text, "null");
  EXPECT_EQ(yaml.Find("other"), nullptr);
}

TEST(ParseYaml, KeepsTheOrderOfKeys) {
  Yaml yaml = ParseYaml("b: 1\na: 2\n", "x");
  ASSERT_EQ(yaml.members.size(), 2u);
  EXPECT_EQ(yaml.members[0].key, "b");
}

TEST(ParseYaml, TakesNothingForAnEmptyMapping) {
  for (std::string_view text : {"", "\n\n", "# nothing\n"}) EXPECT_EQ(ParseYaml(text, "x").type, Yaml::Type::kMapping);
}

TEST(ParseYaml, AcceptsDocumentMarksCommentsAndWindowsLineEnds) {
  EXPECT_EQ(Load("# saved\r\n---\r\na: 1 # one\r\nb:\r\n- x\r\n...\r\n"), Json({{"a", 1}, {"b", {"x"}}}));
}

TEST(ParseYaml, FollowsAliases) {
  EXPECT_EQ(Load("a: &a [1, {x: y}]\nb: *a\nc: [*a]\n"),
            Json({{"a", {1, {{"x", "y"}}}}, {"b", {1, {{"x", "y"}}}}, {"c", {{1, {{"x", "y"}}}}}}));
}

TEST(ParseYaml, TellsTheLine) {
  EXPECT_THAT(ErrorOf("a: 1\nb: [1,\nc: }\n"), HasSubstr("reading model_config.yaml: line 3: "));
  EXPECT_THAT(ErrorOf("a: 1\nb: *none\n"), HasSubstr("line 2: "));
}

TEST(ParseYaml, RefusesTags) {
  EXPECT_THAT(ErrorOf("a: !!python/object:os.system x\n"),
              HasSubstr("tag 'tag:yaml.org,2002:python/object:os.system'"));
  EXPECT_THAT(ErrorOf("a: !!python/object/apply:os.system ['true']\n"), HasSubstr("tag"));
  EXPECT_THAT(ErrorOf("!x {a: b}\n"), HasSubstr("tag '!x'"));
  EXPECT_THAT(ErrorOf("a: !!int 1\n"), HasSubstr("tag"));
}

TEST(ParseYaml, RefusesAKeyTwiceInOneMapping) {
  EXPECT_THAT(ErrorOf("a: 1\nb: 2\na: 3\n"), HasSubstr("line 3: key 'a' twice"));
  EXPECT_THAT(ErrorOf("x: {a: 1, \"a\": 2}\n"), HasSubstr("key 'a' twice"));
  EXPECT_EQ(ErrorOf("a: {a: 1}\nb: [{a: 1}, {a: 2}]\n"), "no error");
}

TEST(ParseYaml, RefusesKeysThatAreNoScalars) {
  EXPECT_THAT(ErrorOf("? [a]\n: b\n"), HasSubstr("collection as a key"));
  EXPECT_THAT(ErrorOf("a: &a {x: 1}\nb:\n  <<: *a\n"), HasSubstr("line 3: merge key"));
}

TEST(ParseYaml, RefusesTabsInTheIndentation) {
  for (std::string_view text : {"a:\n\tb: 1\n", "a:\n  \tb: 1\n", "a:\n\tfoo\n", "a:\n\t- 1\n", "a: [\n\t1]\n"})
    EXPECT_THAT(ErrorOf(text), HasSubstr("line 2: ")) << text;
  EXPECT_EQ(ErrorOf("a: |\n  x\n  \ty\nb: 'x\n\ty'\n"), "no error");  // here they are text
}

TEST(ParseYaml, BoundsTheLevels) {
  EXPECT_EQ(ErrorOf("a: " + Nested(63)), "no error");
  EXPECT_THAT(ErrorOf("a: " + Nested(64)), HasSubstr("64 levels of nesting"));
  EXPECT_THAT(ErrorOf("a: " + Nested(100'000)), HasSubstr("64 levels of nesting"));
  std::string sequences;
  for (int i = 0; i < 100'000; ++i) sequences += "- ";
  EXPECT_THAT(ErrorOf(sequences), HasSubstr("64 levels of nesting"));
  EXPECT_NE(ErrorOf(std::string(100'000, '[')), "no error");
  EXPECT_NE(ErrorOf(std::string(100'000, '{')), "no error");
}

TEST(ParseYaml, CountsLevelsBehindAliases) {
  std::string text = "a: &a " + Nested(40) + "\nb: ";
  EXPECT_EQ(ErrorOf(text + std::string(23, '[') + "*a" + std::string(23, ']')), "no error");
  EXPECT_THAT(ErrorOf(text + std::string(24, '[') + "*a" + std::string(24, ']')), HasSubstr("64 levels of nesting"));
}

TEST(ParseYaml, BoundsTheNodesBehindAliases) {
  std::string text = "a0: &a0 [x, x]\n";
  for (int i = 1; i < 10; ++i) {
    std::string alias = "*a" + std::to_string(i - 1);
    text += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + alias;
    for (int k = 1; k < 10; ++k) text += ", " + alias;
    text += "]\n";
  }
  EXPECT_THAT(ErrorOf(text), HasSubstr("50000 nodes"));
}

TEST(ParseYaml, CountsWhatAnchorsKeep) {
  std::string text;
  for (int i = 0; i < 60'000; ++i) text += "- &a 1\n";
  EXPECT_THAT(ErrorOf(text), HasSubstr("50000 nodes"));
}

TEST(ParseYaml, BoundsTheTextBehindAliases) {
  std::string text = "a: &a " + std::string(kMiB, 'x') + "\n";
  for (int i = 0; i < 20; ++i) text += "b" + std::to_string(i) + ": *a\n";
  EXPECT_THAT(ErrorOf(text), HasSubstr("4194304 bytes of scalars"));
}

TEST(ParseYaml, RefusesAnAliasInsideItsNode) { EXPECT_THAT(ErrorOf("a: &a [*a]\n"), HasSubstr("alias inside")); }

TEST(ParseYaml, BoundsTheText) {
  EXPECT_EQ(ErrorOf("a: " + std::string(3 * kMiB, 'x')), "no error");
  EXPECT_THAT(ErrorOf("a: " + std::string(4 * kMiB, 'x')), HasSubstr("4194307 bytes, expected at most 4194304"));
}

TEST(ParseYaml, RefusesSeveralDocuments) {
  EXPECT_THAT(ErrorOf("a: 1\n---\nb: 2\n"), HasSubstr("second document"));
  EXPECT_THAT(ErrorOf("[1] foo\n"), HasSubstr("second document"));
}

TEST(ParseYaml, RefusesBytesThatAreNoText) {
  EXPECT_THAT(ErrorOf("a: 1\nb: \xff\n"), HasSubstr("line 2: bytes that are no UTF-8"));
  EXPECT_THAT(ErrorOf("a: \xed\xa0\x80\n"), HasSubstr("no UTF-8"));  // a surrogate
  EXPECT_THAT(ErrorOf("a: \xc0\xaf\n"), HasSubstr("no UTF-8"));      // longer than need be
  EXPECT_THAT(ErrorOf("a: \xe2\x82"), HasSubstr("no UTF-8"));        // cut off
  EXPECT_THAT(ErrorOf("a: b\nc: \"\\N\"\n"), HasSubstr("line 2: an escape that makes no UTF-8"));
  EXPECT_THAT(ErrorOf("a: \"\\_\"\n"), HasSubstr("an escape that makes no UTF-8"));
  EXPECT_THAT(ErrorOf("a: 1\n\x04\nb: 2\n"), HasSubstr("line 2: character U+0004"));
  EXPECT_THAT(ErrorOf(std::string_view("a: \0", 4)), HasSubstr("character U+0000"));
}

// Values of PyYAML 6.0.3's safe_load.
TEST(YamlValue, ReadsScalarsAsPyYaml) {
  struct Case {
    const char* text;
    Json value;
  };
  const Case kCases[] = {
      {"", nullptr},
      {"~", nullptr},
      {"null", nullptr},
      {"Null", nullptr},
      {"NULL", nullptr},
      {"nULL", "nULL"},
      {"yes", true},
      {"Yes", true},
      {"ON", true},
      {"True", true},
      {"TRUE", true},
      {"tRUE", "tRUE"},
      {"no", false},
      {"off", false},
      {"False", false},
      {"y", "y"},
      {"N", "N"},
      {"0", 0},
      {"-7", -7},
      {"+12", 12},
      {"1_000", 1000},
      {"0x1F", 31},
      {"-0x1f", -31},
      {"0123", 83},
      {"0b101", 5},
      {"0o17", "0o17"},
      {"08", "08"},
      {"0x", "0x"},
      {"_1", "_1"},
      {"1.0", 1.0},
      {"1.", 1.0},
      {".5", 0.5},
      {"-.5", "-.5"},
      {"1.0e-05", 1e-5},
      {"1.0E+5", 1e5},
      {"1.0e5", "1.0e5"},
      {"1e-5", "1e-5"},
      {"1e5", "1e5"},
      {"1_0.5", 10.5},
      {"-0.0", -0.0},
      {"1.5.2", "1.5.2"},
      {"2.0.0rc1", "2.0.0rc1"},
      {"\"1\"", "1"},
      {"'null'", "null"},
      {"''", ""},
      {"4294967296", 4294967296},
      {"18446744073709551615", 18446744073709551615u},
      {"-9223372036854775808", std::numeric_limits<int64_t>::min()},
      {"inf", "inf"},
      {".", "."},
      {"900,50,50", "900,50,50"},
      {"nemo:x", "nemo:x"},
  };
  for (const Case& row : kCases) {
    Json value = LoadScalar(row.text);
    EXPECT_EQ(value, row.value) << row.text;
    EXPECT_EQ(value.type_name(), std::string(row.value.type_name())) << row.text;
    EXPECT_EQ(value.is_number_float(), row.value.is_number_float()) << row.text;
  }
}

TEST(YamlValue, ReadsInfinitiesAndNan) {
  EXPECT_EQ(LoadScalar(".inf"), std::numeric_limits<double>::infinity());
  EXPECT_EQ(LoadScalar("1.0e+999"), std::numeric_limits<double>::infinity());
  EXPECT_EQ(LoadScalar("1.0e-999"), 0.0);
  EXPECT_EQ(LoadScalar("-.INF"), -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(LoadScalar(".NaN").get<double>()));
}

// Where PyYAML gives 43200, a date, and an integer that no 64 bits hold.
TEST(YamlValue, LeavesTimesDatesAndHugeIntegersStrings) {
  for (const char* text : {"12:00:00", "-1:30", "1:30.5", "2024-01-01", "18446744073709551616", "-9223372036854775809"})
    EXPECT_EQ(LoadScalar(text), text);
}

TEST(YamlValue, BuildsCollections) {
  EXPECT_EQ(Load("a: []\nb: {}\nc:\n- 1\n- [x, {y: 2}]\n"),
            Json({{"a", Json::array()}, {"b", Json::object()}, {"c", {1, {"x", {{"y", 2}}}}}}));
}

// Written by OmegaConf.
TEST(EmitYaml, GivesModelConfigsBackByteForByte) {
  size_t count = 0;
  for (const auto& folder : std::filesystem::directory_iterator(RESHARD_SOURCE_DIR "/tests/fixtures")) {
    std::string path = folder.path() / "nemo" / "model_config.yaml";
    if (!PosixIo().Stat(path)) continue;
    std::string text = ReadWholeFile(PosixIo(), path, kMiB);
    EXPECT_EQ(EmitYaml(Load(text)), text) << path;
    ++count;
  }
  EXPECT_GT(count, 5u);
}

// The expected texts are those of PyYAML 6.0.3's own dumper with OmegaConf 2.4's rule for strings.
TEST(EmitYaml, QuotesStringsAsOmegaConfDoes) {
  constexpr const char* kQuoted[] = {
      "",           "true", "123", "1.0",      "null",  "a: b",  "- x", "with # hash", "12:00:00", "0x1F",
      "yes",        "@x",   "-",   "1e-5",     "y",     "~",     "=",   " lead",       "trail ",   "<<",
      "2024-01-01", "---",  "?",   "a:",       "#a",    "a #b",  "[a",  "{a}",         "&a",       "*a",
      "!a",         "|",    "%a",  "`a",       "\"a",   ",a",    ">",   "08",          "+1",       ".5",
      "nan",        ".inf", "0b1", "Infinity", "1_000", "null ", "017", "NULL",        "-.5",
  };
  for (std::string text : kQuoted) EXPECT_EQ(EmitScalar(text), "'" + text + "'");
  constexpr const char* kPlain[] = {
      "it's",     "nemo:abc",     "é",          "a#b", "a[b", "a\"b", "900,50,50",
      "a\\b",     "http://a.b/c", "?a",         "-a",  ":a",  "a  b", "a}",
      "2.0.0rc1", "fast-swiglu",  "\U0001F600", "0o7", "_1",  "nULL", "1:60",
  };
  for (std::string text : kPlain) EXPECT_EQ(EmitScalar(text), text);
  EXPECT_EQ(EmitScalar("'a"), "'''a'");
  EXPECT_EQ(EmitScalar("a\tb"), "\"a\\tb\"");
  EXPECT_EQ(EmitScalar("\"\\\x01é\x7f"), "\"\\\"\\\\\\x01é\\x7F\"");
  EXPECT_EQ(EmitYaml({{"true", {{"a: b", 1}}}}), "'true':\n  'a: b': 1\n");
}

TEST(EmitYaml, WritesLineBreaksSoThatTheyReadBackEqual) {
  for (std::string text : {"a\nb", "\n", "a\n", " \n ", "\r\n", "\xc2\x85", "x\u2028y", "\ufeffx", "a\\nb\n"})
    EXPECT_EQ(LoadScalar(EmitScalar(text)), text);
  EXPECT_EQ(EmitScalar("a\nb\u2028"), "\"a\\nb\\u2028\"");
}

TEST(EmitYaml, WritesNumbersAsPyYaml) {
  double infinity = std::numeric_limits<double>::infinity();
  const std::pair<Json, const char*> kCases[] = {
      {1e-5, "1.0e-05"},
      {1e-6, "1.0e-06"},
      {0.02, "0.02"},
      {500000.0, "500000.0"},
      {1e16, "1.0e+16"},
      {1e22, "1.0e+22"},
      {1.5e-7, "1.5e-07"},
      {5e-324, "5.0e-324"},
      {-0.0, "-0.0"},
      {infinity, ".inf"},
      {-infinity, "-.inf"},
      {std::nan(""), ".nan"},
      {18446744073709551615u, "18446744073709551615"},
      {-7, "-7"},
      {nullptr, "null"},
      {true, "true"},
      {false, "false"},
  };
  for (const auto& [value, text] : kCases) EXPECT_EQ(EmitScalar(value), text);
}

// PyYAML's text of the same mapping.
TEST(EmitYaml, IndentsAsPyYaml) {
  Json json = ParseJson(R"({"a": [], "b": {}, "c": [1, [2, [3, 4]], {"d": [5, {"e": 6, "f": {}}], "g": 7}],
                            "h": {"i": {"j": [[], {}]}}})",
                        "x");
  EXPECT_EQ(EmitYaml(json), R"(a: []
b: {}
c:
- 1
- - 2
  - - 3
    - 4
- d:
  - 5
  - e: 6
    f: {}
  g: 7
h:
  i:
    j:
    - []
    - {}
)");
  EXPECT_EQ(EmitYaml(Json::object()), "{}\n");
}

}  // namespace
}  // namespace reshard
