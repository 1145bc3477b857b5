#include "base/json.h"

#include <limits>
#include <string>

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace reshard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  try {
    ParseJson(text, "config.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kCorrupt);
    EXPECT_EQ(error.path(), "config.json");
    return error.what();
  }
  return "no error";
}

std::string Nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

TEST(ParseJson, KeepsOrderAndSixtyFourBits) {
  Json json = ParseJson(R"({"z": 18446744073709551615, "a": [-9223372036854775808, 0.5, null, true, "\u00e9"]})", "x");
  EXPECT_EQ(json.begin().key(), "z");
  EXPECT_EQ(json["z"].get<uint64_t>(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(json["a"][0].get<int64_t>(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(json["a"][4], "é");
}

TEST(ParseJson, MakesLargerIntegersDoubles) {
  Json json = ParseJson("18446744073709551616", "x");
  EXPECT_TRUE(json.is_number_float());
  EXPECT_EQ(json.get<double>(), 18446744073709551616.0);
}

TEST(ParseJson, TellsLineAndColumn) {
  EXPECT_THAT(ErrorOf("{\n \"a\": [1,\n 2,],\n}"), AllOf(HasSubstr("reading config.json: line 3, column 4: no JSON")));
  EXPECT_THAT(ErrorOf(""), HasSubstr("line 1, column 1"));
}

TEST(ParseJson, RefusesWhatIsNoJson) {
  for (std::string_view text : {"{", "nul", "{} x", "[NaN]", "{'a': 1}", "[01]", "[1,]", "\"\x01\"", "\"\\ud800\""})
    EXPECT_THAT(ErrorOf(text), HasSubstr("no JSON")) << text;
}

TEST(ParseJson, RefusesTextBehindANul) {
  EXPECT_THAT(ErrorOf(std::string_view("{}\0x", 4)), HasSubstr("line 1, column 3: a NUL byte"));
}

TEST(ParseJson, RefusesInvalidUtf8) {
  EXPECT_THAT(ErrorOf("\"\xff\""), HasSubstr("UTF-8"));
  EXPECT_THAT(ErrorOf("\"\xed\xa0\x80\""), HasSubstr("UTF-8"));  // a surrogate
}

TEST(ParseJson, RefusesAByteOrderMark) { EXPECT_THAT(ErrorOf("\xef\xbb\xbf{}"), HasSubstr("byte order mark")); }

TEST(ParseJson, RefusesAKeyTwiceInOneObject) {
  EXPECT_THAT(ErrorOf(R"({"x": {"b": 1, "c": {"b": 2}, "\u0062": 3}})"), HasSubstr("key 'b' twice"));
  EXPECT_NO_THROW(ParseJson(R"([{"b": 1}, {"b": {"b": 2}}])", "x"));
}

TEST(ParseJson, BoundsTheLevels) {
  EXPECT_NO_THROW(ParseJson(Nested(64), "x"));
  EXPECT_THAT(ErrorOf(Nested(65)), HasSubstr("64 levels"));
  EXPECT_THAT(ErrorOf(std::string(1'000'000, '[')), HasSubstr("64 levels"));
}

TEST(ParseJson, RefusesNumbersBeyondDoubles) { EXPECT_THAT(ErrorOf("[1e999]"), HasSubstr("64-bit floats")); }

TEST(ParseJson, TakesManyKeys) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += "\"key" + std::to_string(i) + "\":0,";
  text.back() = '}';
  EXPECT_EQ(ParseJson(text, "x").size(), 200'000u);
}

// The expected texts are Python 3.11's json.dumps.
TEST(PythonJson, WritesWhatPythonDoes) {
  Json json = ParseJson(
      "{\"z\": [], \"a\": {}, \"é\": [\"\U0001F600\", \"\x7f\\u001f\\u2028\\b\\f\\\\\\\"/\\n\\t\"],"
      "\"n\": [1, -1, 18446744073709551615, -9223372036854775808, {\"b\": [null, true, false], \"a\": 1e-05}]}",
      "x");
  EXPECT_EQ(PythonJson(json, false), R"({
  "z": [],
  "a": {},
  "\u00e9": [
    "\ud83d\ude00",
    "\u007f\u001f\u2028\b\f\\\"/\n\t"
  ],
  "n": [
    1,
    -1,
    18446744073709551615,
    -9223372036854775808,
    {
      "b": [
        null,
        true,
        false
      ],
      "a": 1e-05
    }
  ]
})");
}

TEST(PythonJson, SortsKeysOnEveryLevel) {
  Json json = ParseJson(R"({"z": 0, "é": 1, "a": {"c": 2, "B": [{"y": 3, "x": 4}]}})", "x");
  EXPECT_EQ(PythonJson(json, true), R"({
  "a": {
    "B": [
      {
        "x": 4,
        "y": 3
      }
    ],
    "c": 2
  },
  "z": 0,
  "\u00e9": 1
})");
}

TEST(PythonJson, NamesWhatIsNoNumber) {
  double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(PythonJson(infinity, false), "Infinity");
  EXPECT_EQ(PythonJson(-infinity, false), "-Infinity");
  EXPECT_EQ(PythonJson(std::numeric_limits<double>::quiet_NaN(), false), "NaN");
}

// The expected texts are Python 3.11's repr.
TEST(PythonFloat, IsRepr) {
  struct Case {
    double value;
    const char* text;
  };
  constexpr Case kCases[] = {
      {1e-05, "1e-05"},
      {1e-06, "1e-06"},
      {500000.0, "500000.0"},
      {0.02, "0.02"},
      {1e16, "1e+16"},
      {1e22, "1e+22"},
      {5e-324, "5e-324"},
      {-0.0, "-0.0"},
      {1.7976931348623157e308, "1.7976931348623157e+308"},
      {0.1, "0.1"},
      {1e15, "1000000000000000.0"},
      {9999999999999998.0, "9999999999999998.0"},
      {1e-4, "0.0001"},
      {0.00012345, "0.00012345"},
      {123456789012345680.0, "1.2345678901234568e+17"},
      {1.5e-7, "1.5e-07"},
      {3.0, "3.0"},
      {-2.0 / 3, "-0.6666666666666666"},
  };
  for (const Case& row : kCases) EXPECT_EQ(PythonFloat(row.value), row.text);
}

TEST(ReplaceTopLevelValue, KeepsEveryOtherByte) {
  constexpr std::string_view kText =
      "\n{ \"a\" :{\"dtype\": \"x\", \"}\": [\"]\", 1]},\t\"dtype\":  \"bf\\\"16\\\\\" ,\"b\":[1,{}]}\n ";
  EXPECT_EQ(ReplaceTopLevelValue(kText, "dtype", "\"float32\""),
            "\n{ \"a\" :{\"dtype\": \"x\", \"}\": [\"]\", 1]},\t\"dtype\":  \"float32\" ,\"b\":[1,{}]}\n ");
  EXPECT_EQ(ReplaceTopLevelValue(kText, "a", "0"), "\n{ \"a\" :0,\t\"dtype\":  \"bf\\\"16\\\\\" ,\"b\":[1,{}]}\n ");
  EXPECT_EQ(ReplaceTopLevelValue(kText, "b", "[]"),
            "\n{ \"a\" :{\"dtype\": \"x\", \"}\": [\"]\", 1]},\t\"dtype\":  \"bf\\\"16\\\\\" ,\"b\":[]}\n ");
}

TEST(ReplaceTopLevelValue, KnowsEveryKindOfValue) {
  for (std::string value :
       {"1", "-1.5e-3", "true", "null", "\"\"", "\"\\\\\"", "[]", "{}", "[[1, 2], {\"x\": \"}\"}]"}) {
    EXPECT_EQ(ReplaceTopLevelValue("{\"x\":" + value + "}", "x", "0"), "{\"x\":0}");
    EXPECT_EQ(ReplaceTopLevelValue("{\"y\":" + value + " , \"x\" : 7}", "x", "0"), "{\"y\":" + value + " , \"x\" : 0}");
  }
}

TEST(ReplaceTopLevelValue, ReadsEscapesInKeys) {
  EXPECT_EQ(ReplaceTopLevelValue(R"({"\u0061\"": 1})", "a\"", "2"), R"({"\u0061\"": 2})");
}

TEST(ReplaceTopLevelValue, FindsNothingElsewhere) {
  EXPECT_EQ(ReplaceTopLevelValue(R"({"a": {"x": 1}, "b": "x"})", "x", "2"), std::nullopt);
  EXPECT_EQ(ReplaceTopLevelValue("{}", "x", "2"), std::nullopt);
  EXPECT_EQ(ReplaceTopLevelValue(R"(["x", 1])", "x", "2"), std::nullopt);
}

TEST(WithTopLevelValue, ReplacesOrComesFirst) {
  EXPECT_EQ(WithTopLevelValue("{\"a\": 1, \"x\": 2}", "x", "3"), "{\"a\": 1, \"x\": 3}");
  EXPECT_EQ(WithTopLevelValue("{\n  \"a\": {\"x\": 1}\n}\n", "x", "\"y\""),
            "{\n  \"x\": \"y\",\n  \"a\": {\"x\": 1}\n}\n");
  EXPECT_EQ(WithTopLevelValue(" { }", "x", "3"), " {\"x\": 3 }");
  EXPECT_EQ(WithTopLevelValue("{\"a\":[]}", "x\"", "[]"), R"({"x\"": [],"a":[]})");
}

}  // namespace
}  // namespace reshard
