#include "formats/torch_pickle/pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard::pickle {
namespace {

using testing::HasSubstr;
using namespace std::string_literals;

constexpr Limits kLimits{1 << 20};

void ExpectRefused(const std::string& bytes, Code code, const std::string& message, const Limits& limits = kLimits) {
  try {
    Tree tree(bytes, "data.pkl", limits);
    FAIL() << "accepted, expected " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(message));
    EXPECT_EQ(error.path(), "data.pkl");
  }
}

// A pickle of protocol 2 around these opcodes.
std::string P(const std::string& opcodes) { return "\x80\x02" + opcodes + "."; }
std::string P4(const std::string& opcodes) { return "\x80\x04" + opcodes + "."; }
std::string Text(const std::string& text) {
  std::string bytes = "X";
  AppendLittle<uint32_t>(bytes, static_cast<uint32_t>(text.size()));
  return bytes + text;
}

int64_t IntegerOf(const std::string& bytes) {
  Tree tree(bytes, "", kLimits);
  EXPECT_EQ(tree.root().type, Type::kInt);
  return tree.root().integer;
}

TEST(PickleTree, ReadsNumbers) {
  EXPECT_EQ(IntegerOf(P("K\xff")), 255);
  EXPECT_EQ(IntegerOf(P("M\x01\x80")), 32769);
  EXPECT_EQ(IntegerOf(P("J\xfe\xff\xff\xff")), -2);
  EXPECT_EQ(IntegerOf(P("\x8a\x00"s)), 0);
  EXPECT_EQ(IntegerOf(P("\x8a\x01\xff"s)), -1);
  EXPECT_EQ(IntegerOf(P("\x8a\x05\x00\x9c\xe4\xa6\x00"s)), 2'800'000'000);
  EXPECT_EQ(IntegerOf(P("\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80"s)), INT64_MIN);
  EXPECT_EQ(IntegerOf(P("\x8b\x02\x00\x00\x00\x00\x01"s)), 256);
  EXPECT_EQ(IntegerOf(P("I-17\n")), -17);
  EXPECT_EQ(IntegerOf(P("L123456789012L\n")), 123456789012);
  const std::string huge = P("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01"s);
  Tree tree(huge, "", kLimits);
  EXPECT_EQ(tree.root().type, Type::kHugeInt);
  EXPECT_EQ(tree.root().text.size(), 9u);
  const std::string real = P("G\x3f\xf8\x00\x00\x00\x00\x00\x00"s);
  EXPECT_EQ(Tree(real, "", kLimits).root().real, 1.5);
}

TEST(PickleTree, ReadsBooleansAndNone) {
  for (const auto& [opcodes, value] : {std::pair("\x88", 1), std::pair("\x89", 0), std::pair("I01\n", 1)}) {
    const std::string bytes = P(opcodes);
    Tree tree(bytes, "", kLimits);
    EXPECT_EQ(tree.root().type, Type::kBool);
    EXPECT_EQ(tree.root().integer, value);
  }
  const std::string none = P("N");
  EXPECT_EQ(Tree(none, "", kLimits).root().type, Type::kNone);
}

TEST(PickleTree, ReadsTextsAndBytes) {
  for (const std::string& opcodes : {Text("h\xc3\xa9"), "\x8c\x03h\xc3\xa9"s, "\x8d\x03\0\0\0\0\0\0\0h\xc3\xa9"s}) {
    const std::string bytes = P4(opcodes);
    Tree tree(bytes, "", kLimits);
    EXPECT_EQ(tree.root().type, Type::kText);
    EXPECT_EQ(tree.root().text, "h\xc3\xa9");
  }
  for (const std::string& opcodes : {"C\x02\x00\xff"s, "B\x02\0\0\0\x00\xff"s, "\x8e\x02\0\0\0\0\0\0\0\x00\xff"s,
                                     "\x96\x02\0\0\0\0\0\0\0\x00\xff"s, "U\x02\x00\xff"s, "T\x02\0\0\0\x00\xff"s}) {
    const std::string bytes = P4(opcodes);
    Tree tree(bytes, "", kLimits);
    EXPECT_EQ(tree.root().type, Type::kBytes);
    EXPECT_EQ(tree.root().text, "\x00\xff"s);
  }
  ExpectRefused(P(Text("a\xff")), Code::kCorrupt, "expected UTF-8");
  const std::string surrogate = P(Text("\xed\xa0\x80"));  // as Python writes a lone one
  EXPECT_EQ(Tree(surrogate, "", kLimits).root().text, "\xed\xa0\x80");
}

TEST(PickleTree, ReadsContainers) {
  const std::string bytes = P("}(" + Text("a") + "](K\x01K\x02" + "e" + Text("b") + "K\x03\x85" + "u");
  Tree tree(bytes, "", kLimits);
  const Node* list = Find(tree.root(), "a");
  ASSERT_TRUE(list);
  EXPECT_EQ(list->type, Type::kList);
  ASSERT_EQ(list->items.size(), 2u);
  EXPECT_EQ(list->items[1]->integer, 2);
  EXPECT_EQ(Find(tree.root(), "b")->type, Type::kTuple);
  EXPECT_EQ(Find(tree.root(), "c"), nullptr);
  EXPECT_EQ(Find(*list, "a"), nullptr);
}

TEST(PickleTree, FindGivesTheLastOfEqualKeys) {
  const std::string bytes = P("}(" + Text("a") + "K\x01" + Text("a") + "K\x02" + "u");
  EXPECT_EQ(Find(Tree(bytes, "", kLimits).root(), "a")->integer, 2);
}

TEST(PickleTree, MakesDictsOfOrderedDictsAndTheirLike) {
  const std::string pairs = "](](" + Text("a") + "K\x01" + "ee";
  for (const std::string& opcodes :
       {"ccollections\nOrderedDict\n)R" + Text("a") + "K\x01s", "ccollections\nOrderedDict\n" + pairs + "\x85R",
        "ccollections\ndefaultdict\nc__builtin__\nint\n\x85R" + Text("a") + "K\x01s",
        "ccollections\nCounter\n}" + Text("a") + "K\x01s\x85R"}) {
    const std::string bytes = P(opcodes);
    Tree tree(bytes, "", kLimits);
    const Node* found = Find(tree.root(), "a");
    ASSERT_TRUE(found) << opcodes;
    EXPECT_EQ(found->integer, 1);
  }
}

TEST(PickleTree, MakesSets) {
  for (const std::string& opcodes : {"c__builtin__\nset\n](K\x01K\x02"
                                     "e\x85R"s,
                                     "\x8f(K\x01K\x02\x90"s, "(K\x01K\x02\x91"s}) {
    const std::string bytes = P4(opcodes);
    Tree tree(bytes, "", kLimits);
    EXPECT_EQ(tree.root().type, Type::kSet) << opcodes;
    EXPECT_EQ(tree.root().items.size(), 2u) << opcodes;
  }
}

TEST(PickleTree, DecodesBytesOfProtocol2) {
  const std::string bytes = P("c_codecs\nencode\n" + Text("a\xc3\xbf") + Text("latin1") + "\x86R");
  Tree tree(bytes, "", kLimits);
  EXPECT_EQ(tree.root().type, Type::kBytes);
  EXPECT_EQ(tree.root().text, "a\xff");
  const std::string rot = P("c_codecs\nencode\n" + Text("a") + Text("rot13") + "\x86R");
  EXPECT_EQ(Tree(rot, "", kLimits).root().type, Type::kObject);
}

TEST(PickleTree, CallsNothing) {
  const std::string bytes = P("cos\nsystem\n" + Text("true") + "\x85R");
  Tree tree(bytes, "", kLimits);
  EXPECT_EQ(tree.root().type, Type::kObject);
  EXPECT_EQ(ClassOf(&tree.root()), "system");
  ASSERT_EQ(tree.root().items.size(), 2u);
  EXPECT_TRUE(IsGlobal(tree.root().items[0], "os", "system"));
  EXPECT_TRUE(IsGlobal(tree.root().items[0], "", "system"));
  EXPECT_FALSE(IsGlobal(tree.root().items[0], "posix", "system"));
  EXPECT_EQ(tree.root().items[1]->text, "true");
}

TEST(PickleTree, KeepsTheStateOfObjects) {
  const std::string bytes =
      P4("\x8c\x01m\x8c\x01"
         "C\x93)\x81}\x8c\x01xK\x05sb");
  Tree tree(bytes, "", kLimits);
  EXPECT_EQ(ClassOf(&tree.root()), "C");
  EXPECT_EQ(Find(*tree.root().state, "x")->integer, 5);
}

TEST(PickleTree, MapsTheNamesOfPython2) {
  const std::string bytes = P("c__builtin__\neval\n");
  EXPECT_TRUE(IsGlobal(&Tree(bytes, "", kLimits).root(), "builtins", "eval"));
}

TEST(PickleTree, RemembersByEveryOpcode) {
  for (const std::string& opcodes : {"K\x07q\x05"
                                     "0h\x05"s,
                                     "K\x07r\x00\x01\x00\x00"
                                     "0j\x00\x01\x00\x00"s,
                                     "K\x07p300\n0g300\n"s,
                                     "K\x07\x94"
                                     "0h\x00"s})
    EXPECT_EQ(IntegerOf(P4(opcodes)), 7) << opcodes;
}

TEST(PickleTree, HoldsCirclesAndDepths) {
  const std::string circle =
      P("]q\x00h\x00"
        "a"s);
  Tree tree(circle, "", kLimits);
  EXPECT_EQ(tree.root().items[0], &tree.root());
  std::string deep = "K\x01";
  for (int i = 0; i < 1'000'000; ++i) deep += '\x85';
  deep = P(deep);
  Tree tower(deep, "", {uint64_t{1} << 30});
  EXPECT_EQ(tower.root().type, Type::kTuple);
}

TEST(PickleTree, EndsAtStop) {
  const std::string bytes = P("K\x01") + "more";
  EXPECT_EQ(Tree(bytes, "", kLimits).size(), bytes.size() - 4);
}

TEST(PickleTree, RefusesWhatIsCutOff) {
  const std::string whole = P("}(" + Text("abc") + "J\1\0\0\0"s + "ccollections\nOrderedDict\n)R" + "N" + "u");
  EXPECT_NO_THROW(Tree(whole, "", kLimits));
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_THROW(Tree(std::string_view(whole).substr(0, size), "", kLimits), CutOff) << size;
  ExpectRefused("\x80\x02K\x01", Code::kCorrupt, "opcode STOP; the file may be cut off");
  ExpectRefused("", Code::kCorrupt, "has no bytes, expected the opcode PROTO");
  ExpectRefused("cos\nsystem\n.", Code::kCorrupt, "begins with GLOBAL, expected the opcode PROTO");
  ExpectRefused(P("X\xff\xff\xff\x7f"
                  "ab"),
                Code::kCorrupt, "needs 2147483647 bytes of");
}

TEST(PickleTree, RefusesBrokenStacksAndMemos) {
  ExpectRefused(P(""), Code::kCorrupt, "STOP at its byte 2 finds 0 objects");
  ExpectRefused(P("("), Code::kCorrupt, "nothing has taken off");
  ExpectRefused(P("t"), Code::kCorrupt, "TUPLE at its byte 2 finds no mark");
  ExpectRefused(P("K\x01(0"
                  "00"),
                Code::kCorrupt, "finds 0 objects");
  ExpectRefused(P("(K\x01\x86"), Code::kCorrupt, "TUPLE2");
  ExpectRefused(P("h\x05"), Code::kCorrupt, "gets object 5 of the memo");
  ExpectRefused(P("K\x01"
                  "K\x02"
                  "a"),
                Code::kCorrupt, "APPEND");
  ExpectRefused(P("](K\x01"
                  "K\x02"
                  "u"),
                Code::kCorrupt, "SETITEMS");
  ExpectRefused(P("}(K\x01"
                  "u"),
                Code::kCorrupt, "a key without a value");
  ExpectRefused(P("}}b"
                  "K\x01}b"),
                Code::kCorrupt, "BUILD");
  ExpectRefused(P("X\x01\0\0\0f)R"s), Code::kCorrupt, "calls what is no function");
  ExpectRefused(P("cos\nsystem\nK\x01R"), Code::kCorrupt, "arguments that are no tuple");
  ExpectRefused(P("(e"), Code::kCorrupt, "finds nothing below its items");
}

TEST(PickleTree, NamesTheOpcodesThatItDoesNotRead) {
  for (const auto& [opcodes, name] :
       {std::pair("(S'x'\nios\nsystem\n", "STRING"), std::pair("(ios\nsystem\n", "INST"),
        std::pair("(cos\nx\no", "OBJ"), std::pair("\x82\x01", "EXT1"), std::pair("P1\n", "PERSID"),
        std::pair("K\x01"
                  "2",
                  "DUP"),
        std::pair("\x97", "NEXT_BUFFER"), std::pair("\xfe", "0xfe")})
    ExpectRefused(P(opcodes), Code::kUnsupported, name);
  ExpectRefused("\x80\x06N.", Code::kUnsupported, "protocol 6");
  ExpectRefused("\x80\x01N.", Code::kUnsupported, "protocol 1");
}

TEST(PickleTree, RefusesFramesThatLie) {
  EXPECT_EQ(IntegerOf(P4("\x95\x03\0\0\0\0\0\0\0K\x01"s)), 1);
  ExpectRefused(P4("\x95\xff\xff\xff\xff\xff\xff\xff\xffK\x01"s), Code::kCorrupt, "frame");
}

TEST(PickleTree, BoundsItsMemoryAndItsOpcodes) {
  std::string lists;
  for (int i = 0; i < 100'000; ++i) lists += ']';
  ExpectRefused(P(lists), Code::kUnsupported, "--max_memory");
  // Copies of a dict, each by five bytes.
  std::string copies =
      "ccollections\nOrderedDict\nq\x00"
      "]("
      "K\x01K\x02\x86q\x01"s;
  for (int i = 0; i < 1000; ++i) copies += "h\x01"s;
  copies += "e\x85q\x02"s;
  for (int i = 0; i < 1000; ++i) copies += "0h\x00h\x02R"s;
  ExpectRefused(P(copies), Code::kUnsupported, "--max_memory");
  ExpectRefused(P("Nr\xff\xff\xff\xff"), Code::kUnsupported, "--max_memory");
  ExpectRefused(P("Np9223372036854775807\n"), Code::kUnsupported, "--max_memory");
  ExpectRefused(P("NNNN"), Code::kUnsupported, "more than 3 opcodes", {1 << 20, 3});
}

}  // namespace
}  // namespace reshard::pickle
