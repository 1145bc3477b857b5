#include "formats/torch_pickle/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"

namespace reshard::pickle {
namespace {

// The opcodes of protocols 0 to 5 by Python's names (pickletools); those that are not read are named in the error.
enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kFloat = 'F',
  kBinFloat = 'G',
  kIntText = 'I',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kLongText = 'L',
  kBinInt2 = 'M',
  kNoneOpcode = 'N',
  kPersId = 'P',
  kBinPersId = 'Q',
  kReduce = 'R',
  kString = 'S',
  kBinString = 'T',
  kShortBinString = 'U',
  kUnicode = 'V',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobalOpcode = 'c',
  kDictOpcode = 'd',
  kAppends = 'e',
  kGet = 'g',
  kBinGet = 'h',
  kInst = 'i',
  kLongBinGet = 'j',
  kListOpcode = 'l',
  kObj = 'o',
  kPut = 'p',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTupleOpcode = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyTuple = ')',
  kProto = 0x80,
  kNewObj = 0x81,
  kExt1 = 0x82,
  kExt2 = 0x83,
  kExt4 = 0x84,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kByteArray8 = 0x96,
  kNextBuffer = 0x97,
  kReadOnlyBuffer = 0x98,
};

struct OpcodeName {
  Opcode opcode;
  std::string_view name;
};

constexpr OpcodeName kNames[] = {
    {kMark, "MARK"},
    {kStop, "STOP"},
    {kPop, "POP"},
    {kPopMark, "POP_MARK"},
    {kDup, "DUP"},
    {kBinBytes, "BINBYTES"},
    {kShortBinBytes, "SHORT_BINBYTES"},
    {kFloat, "FLOAT"},
    {kBinFloat, "BINFLOAT"},
    {kIntText, "INT"},
    {kBinInt, "BININT"},
    {kBinInt1, "BININT1"},
    {kLongText, "LONG"},
    {kBinInt2, "BININT2"},
    {kNoneOpcode, "NONE"},
    {kPersId, "PERSID"},
    {kBinPersId, "BINPERSID"},
    {kReduce, "REDUCE"},
    {kString, "STRING"},
    {kBinString, "BINSTRING"},
    {kShortBinString, "SHORT_BINSTRING"},
    {kUnicode, "UNICODE"},
    {kBinUnicode, "BINUNICODE"},
    {kEmptyList, "EMPTY_LIST"},
    {kAppend, "APPEND"},
    {kBuild, "BUILD"},
    {kGlobalOpcode, "GLOBAL"},
    {kDictOpcode, "DICT"},
    {kAppends, "APPENDS"},
    {kGet, "GET"},
    {kBinGet, "BINGET"},
    {kInst, "INST"},
    {kLongBinGet, "LONG_BINGET"},
    {kListOpcode, "LIST"},
    {kObj, "OBJ"},
    {kPut, "PUT"},
    {kBinPut, "BINPUT"},
    {kLongBinPut, "LONG_BINPUT"},
    {kSetItem, "SETITEM"},
    {kTupleOpcode, "TUPLE"},
    {kSetItems, "SETITEMS"},
    {kEmptyDict, "EMPTY_DICT"},
    {kEmptyTuple, "EMPTY_TUPLE"},
    {kProto, "PROTO"},
    {kNewObj, "NEWOBJ"},
    {kExt1, "EXT1"},
    {kExt2, "EXT2"},
    {kExt4, "EXT4"},
    {kTuple1, "TUPLE1"},
    {kTuple2, "TUPLE2"},
    {kTuple3, "TUPLE3"},
    {kNewTrue, "NEWTRUE"},
    {kNewFalse, "NEWFALSE"},
    {kLong1, "LONG1"},
    {kLong4, "LONG4"},
    {kShortBinUnicode, "SHORT_BINUNICODE"},
    {kBinUnicode8, "BINUNICODE8"},
    {kBinBytes8, "BINBYTES8"},
    {kEmptySet, "EMPTY_SET"},
    {kAddItems, "ADDITEMS"},
    {kFrozenSet, "FROZENSET"},
    {kNewObjEx, "NEWOBJ_EX"},
    {kStackGlobal, "STACK_GLOBAL"},
    {kMemoize, "MEMOIZE"},
    {kFrame, "FRAME"},
    {kByteArray8, "BYTEARRAY8"},
    {kNextBuffer, "NEXT_BUFFER"},
    {kReadOnlyBuffer, "READONLY_BUFFER"},
};

std::string NameOf(uint8_t opcode) {
  const auto* found =
      std::find_if(std::begin(kNames), std::end(kNames), [&](const OpcodeName& row) { return row.opcode == opcode; });
  return found == std::end(kNames) ? fmt::format("0x{:02x}", opcode) : std::string(found->name);
}

// Modules that Python 3 calls otherwise than Python 2, which wrote the pickle.
std::string_view ModuleToday(std::string_view module) {
  if (module == "__builtin__") return "builtins";
  if (module == "copy_reg") return "copyreg";
  return module;
}

// UTF-8, and single surrogates besides, as Python writes them.
bool IsPythonText(std::string_view text) {
  while (!text.empty()) {
    if (TakeCodePoint(text)) continue;
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    if (text.size() < 3 || byte(0) != 0xED || byte(1) < 0xA0 || byte(1) > 0xBF || (byte(2) & 0xC0) != 0x80)
      return false;
    text.remove_prefix(3);
  }
  return true;
}

bool IsDictClass(const Node& node) {
  return IsGlobal(&node, "collections", "OrderedDict") || IsGlobal(&node, "collections", "defaultdict") ||
         IsGlobal(&node, "collections", "Counter");
}

// What each thing costs in memory: the allocator's share included, and for a pointer the growth of its container.
constexpr uint64_t kNodeCost = sizeof(Node) + 8, kPointerCost = 2 * sizeof(Node*), kAllocation = 16;

}  // namespace

// Python's stack machine, without anything that it would run.
class Machine {
 public:
  Machine(Tree& tree, std::string_view bytes, const Limits& limits) : tree_(tree), bytes_(bytes), limits_(limits) {
    none_ = New(Type::kNone);
    empty_ = New(Type::kTuple);
    for (int64_t value : {0, 1}) {
      booleans_[value] = New(Type::kBool);
      booleans_[value]->integer = value;
    }
  }

  void Run() {
    if (bytes_.empty()) throw CutOff("the pickle has no bytes, expected the opcode PROTO; the file may be cut off");
    if (static_cast<uint8_t>(bytes_[0]) != kProto)
      throw Error(Code::kCorrupt, fmt::format("the pickle begins with {}, expected the opcode PROTO",
                                              NameOf(static_cast<uint8_t>(bytes_[0]))));
    for (size_t count = 0;; ++count) {
      if (count == limits_.max_opcodes)
        throw Error(Code::kUnsupported,
                    fmt::format("a pickle of more than {} opcodes, expected at most so many", limits_.max_opcodes));
      opcode_at_ = at_;
      opcode_ = static_cast<uint8_t>(Take(1)[0]);
      if (opcode_ == kStop) return Stop();
      Do();
    }
  }

 private:
  // -- errors and memory ----------------------------------------------------------------------------------------------

  [[noreturn]] void Refuse(std::string_view found_and_wanted) const {
    throw Error(Code::kCorrupt,
                fmt::format("the pickle's opcode {} at its byte {} {}", NameOf(opcode_), opcode_at_, found_and_wanted));
  }

  void Charge(uint64_t cost) {
    used_ += cost;
    if (used_ > limits_.max_memory)
      throw Error(Code::kUnsupported, fmt::format("a pickle whose objects take more than {} bytes, expected at most so "
                                                  "many within the memory limit; give a larger --max_memory",
                                                  limits_.max_memory));
  }

  Node* New(Type type) {
    Charge(kNodeCost);
    tree_.nodes_.emplace_back().type = type;
    return &tree_.nodes_.back();
  }

  void Give(Node* container, const Node* item) {
    Charge(kPointerCost);
    container->items.push_back(item);
  }

  std::string_view Keep(std::string text) {
    Charge(text.size() + sizeof(std::string) + kAllocation);
    return tree_.texts_.emplace_back(std::move(text));
  }

  // -- bytes ----------------------------------------------------------------------------------------------------------

  std::string_view Take(uint64_t size) {
    if (size > bytes_.size() - at_) {
      const std::string name = at_ == opcode_at_ ? "next opcode" : fmt::format("opcode {}", NameOf(opcode_));
      throw CutOff(
          fmt::format("the pickle's {} at its byte {} needs {} bytes of {} that are left, expected a pickle "
                      "that ends with the opcode STOP; the file may be cut off",
                      name, opcode_at_, size, bytes_.size() - at_));
    }
    const std::string_view taken = bytes_.substr(at_, size);
    at_ += size;
    return taken;
  }
  template <typename T>
  T TakeLittle() {
    return LoadLittle<T>(Take(sizeof(T)).data());
  }
  std::string_view TakeLine() {
    const size_t end = bytes_.find('\n', at_);
    if (end == bytes_.npos)
      throw CutOff(
          fmt::format("the pickle's opcode {} at its byte {} has no end of its line, expected a newline; the "
                      "file may be cut off",
                      NameOf(opcode_), opcode_at_));
    const std::string_view line = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return line;
  }
  int64_t TakeNumberLine() {
    std::string_view line = TakeLine();
    if (opcode_ == kLongText && line.ends_with('L')) line.remove_suffix(1);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    if (error != std::errc() || end != line.data() + line.size() || line.empty())
      Refuse(fmt::format("has the text '{}', expected a whole number of 64 bits", Visible(line)));
    return value;
  }

  // -- stack and memo -------------------------------------------------------------------------------------------------

  void Push(Node* node) {
    if (stack_.size() == stack_high_) {
      Charge(kPointerCost);
      ++stack_high_;
    }
    stack_.push_back(node);
  }

  size_t Floor() const { return marks_.empty() ? 0 : marks_.back(); }

  void Need(size_t count) const {
    if (stack_.size() - Floor() < count)
      Refuse(fmt::format("finds {} objects on the stack, expected at least {}", stack_.size() - Floor(), count));
  }
  Node* Top() const {
    Need(1);
    return stack_.back();
  }
  Node* Pop() {
    Node* top = Top();
    stack_.pop_back();
    return top;
  }

  // Takes the mark off; what lies above it is at stack_[result].
  size_t PopMark() {
    if (marks_.empty()) Refuse("finds no mark on the stack, expected one");
    const size_t begin = marks_.back();
    marks_.pop_back();
    return begin;
  }

  // Writers count up: a place far beyond the others costs what lies between.
  void Memorise(uint64_t index) {
    Node* top = Top();
    if (index >= memo_.size()) {
      if (index > limits_.max_memory) Charge(limits_.max_memory);  // which is too much
      Charge((index + 1 - memo_.size()) * kPointerCost);
      memo_.resize(index + 1);
    }
    memorised_ += memo_[index] == nullptr;
    memo_[index] = top;
  }
  void Recall(uint64_t index) {
    if (index >= memo_.size() || !memo_[index])
      Refuse(fmt::format("gets object {} of the memo, expected one that was put there", index));
    Push(memo_[index]);
  }
  // Of the text opcodes.
  uint64_t TakeIndexLine() {
    const int64_t index = TakeNumberLine();
    if (index < 0) Refuse(fmt::format("has the number {}, expected none below zero", index));
    return static_cast<uint64_t>(index);
  }

  // -- values ---------------------------------------------------------------------------------------------------------

  void PushInteger(int64_t value) {
    const bool is_small = value >= 0 && value < static_cast<int64_t>(small_.size());
    if (is_small && small_[value]) return Push(small_[value]);
    Node* node = New(Type::kInt);
    node->integer = value;
    if (is_small) small_[value] = node;
    Push(node);
  }

  // Two's complement of any size.
  void PushLong(std::string_view bytes) {
    if (bytes.size() > sizeof(int64_t)) {
      Node* node = New(Type::kHugeInt);
      node->text = bytes;
      return Push(node);
    }
    const bool is_negative = !bytes.empty() && (bytes.back() & 0x80);
    std::array<char, sizeof(int64_t)> extended;
    extended.fill(is_negative ? '\xff' : '\0');
    std::copy(bytes.begin(), bytes.end(), extended.begin());
    PushInteger(LoadLittle<int64_t>(extended.data()));
  }

  void PushText(uint64_t size) {
    Node* node = New(Type::kText);
    node->text = Take(size);
    if (!IsPythonText(node->text)) Refuse(fmt::format("has the text '{}', expected UTF-8", Visible(node->text)));
    Push(node);
  }

  void PushBytes(uint64_t size) {
    Node* node = New(Type::kBytes);
    node->text = Take(size);
    Push(node);
  }

  uint64_t TakeLength() {
    const auto length = TakeLittle<int32_t>();
    if (length < 0) Refuse(fmt::format("has the length {}, expected none below zero", length));
    return static_cast<uint64_t>(length);
  }

  void PushReal() {
    Node* node = New(Type::kFloat);
    node->real = std::bit_cast<double>(__builtin_bswap64(TakeLittle<uint64_t>()));
    Push(node);
  }

  void PushGlobal(std::string_view module, std::string_view name) {
    Node* node = New(Type::kGlobal);
    node->text = ModuleToday(module);
    node->name = name;
    Push(node);
  }

  void PushStackGlobal() {
    Need(2);
    const Node *name = Pop(), *module = Pop();
    if (name->type != Type::kText || module->type != Type::kText)
      Refuse("takes a name that is no text, expected a module and a name");
    PushGlobal(module->text, name->text);
  }

  // -- containers -----------------------------------------------------------------------------------------------------

  void PushTuple(size_t begin) {
    Node* tuple = New(Type::kTuple);
    MoveTo(tuple, begin);
    Push(tuple);
  }

  // Takes everything from stack_[begin] on.
  void MoveTo(Node* container, size_t begin) {
    const uint64_t count = stack_.size() - begin;
    Charge(container->items.empty() ? count * sizeof(Node*) + kAllocation : count * kPointerCost);
    container->items.insert(container->items.end(), stack_.begin() + begin, stack_.end());
    stack_.resize(begin);
  }

  void PushContainer(Type type) {
    Node* container = New(type);
    const size_t begin = PopMark();
    if (type == Type::kDict) NeedPairs(begin);
    MoveTo(container, begin);
    Push(container);
  }

  void NeedPairs(size_t begin) const {
    if ((stack_.size() - begin) % 2) Refuse("finds a key without a value, expected pairs");
  }

  // Puts what lies from stack_[begin] on into the container below it.
  void Fill(Type type, size_t begin) {
    if (begin == Floor()) Refuse("finds nothing below its items, expected what takes them");
    Node* container = stack_[begin - 1];
    if (container->type == Type::kObject) return stack_.resize(begin);
    if (container->type != type) Refuse("finds another object below its items, expected one that takes them");
    if (type == Type::kDict) NeedPairs(begin);
    MoveTo(container, begin);
  }

  void FillOne(Type type, size_t count) {
    Need(count + 1);
    Fill(type, stack_.size() - count);
  }

  // -- calls that are not made ----------------------------------------------------------------------------------------

  void Call() {
    const bool has_keywords = opcode_ == kNewObjEx;
    Need(has_keywords ? 3 : 2);
    const Node* keywords = has_keywords ? Pop() : nullptr;
    const Node *arguments = Pop(), *called = Pop();
    if (called->type != Type::kGlobal && called->type != Type::kObject)
      Refuse("calls what is no function and no class, expected one");
    if (arguments->type != Type::kTuple) Refuse("has arguments that are no tuple, expected a tuple");
    if (keywords || !PushKnown(*called, arguments->items)) PushObject(called, arguments->items, keywords);
  }

  void PushObject(const Node* called, const std::vector<const Node*>& arguments, const Node* keywords) {
    Node* object = New(Type::kObject);
    const size_t count = 1 + arguments.size() + (keywords ? 1 : 0);
    Charge(count * sizeof(Node*) + kAllocation);
    object->items.reserve(count);
    object->items.push_back(called);
    object->items.insert(object->items.end(), arguments.begin(), arguments.end());
    if (keywords) object->items.push_back(keywords);
    Push(object);
  }

  // The few calls whose result is plain data.
  bool PushKnown(const Node& called, const std::vector<const Node*>& arguments) {
    if (IsDictClass(called)) return PushDict(arguments);
    if (IsGlobal(&called, "builtins", "set") || IsGlobal(&called, "builtins", "frozenset")) return PushSet(arguments);
    if (IsGlobal(&called, "_codecs", "encode")) return PushEncoded(arguments);
    return false;
  }

  // Of nothing, of what a defaultdict makes its values of, of a dict, or of a list of pairs.
  bool PushDict(const std::vector<const Node*>& arguments) {
    Node* dict = New(Type::kDict);
    const Node* content = arguments.empty() ? nullptr : arguments.back();
    if (content && content->type == Type::kDict) {
      for (const Node* item : content->items) Give(dict, item);
    } else if (content && content->type == Type::kList) {
      for (const Node* pair : content->items) {
        if ((pair->type != Type::kList && pair->type != Type::kTuple) || pair->items.size() != 2)
          Refuse("builds a dict of a list that has what is no pair, expected pairs");
        for (const Node* item : pair->items) Give(dict, item);
      }
    }
    Push(dict);
    return true;
  }

  bool PushSet(const std::vector<const Node*>& arguments) {
    Node* set = New(Type::kSet);
    if (!arguments.empty())
      for (const Node* item : arguments[0]->items) Give(set, item);
    Push(set);
    return true;
  }

  // Bytes as protocol 2 has them: a text whose characters they are.
  bool PushEncoded(const std::vector<const Node*>& arguments) {
    const auto is_text = [](const Node* node) { return node->type == Type::kText; };
    if (arguments.size() != 2 || !std::all_of(arguments.begin(), arguments.end(), is_text)) return false;
    const std::string_view encoding = arguments[1]->text;
    if (encoding != "latin1" && encoding != "latin-1") return false;
    std::string bytes;
    for (std::string_view rest = arguments[0]->text; !rest.empty();) {
      const std::optional<char32_t> point = TakeCodePoint(rest);
      if (!point || *point > 0xFF) Refuse("encodes a text that is not latin-1, expected one that is");
      bytes += static_cast<char>(*point);
    }
    Node* node = New(Type::kBytes);
    node->text = Keep(std::move(bytes));
    Push(node);
    return true;
  }

  void Build() {
    Need(2);
    const Node* state = Pop();
    Node* built = Top();
    if (built->type != Type::kObject && built->type != Type::kDict)
      Refuse("gives a state to what takes none, expected an object");
    built->state = state;
  }

  void PushPersistent() {
    const Node* id = Pop();
    Node* node = New(Type::kPersistent);
    Give(node, id);
    Push(node);
  }

  // -- the machine ----------------------------------------------------------------------------------------------------

  void Stop() {
    if (!marks_.empty()) Refuse("finds a mark that nothing has taken off, expected none");
    tree_.root_ = Top();
    tree_.size_ = at_;
  }

  void CheckProtocol(uint8_t protocol) {
    if (protocol < 2 || protocol > 5)
      throw Error(Code::kUnsupported, fmt::format("a pickle of protocol {}, expected 2 to 5", protocol));
  }

  void CheckFrame(uint64_t size) {
    if (size > bytes_.size() - at_)
      Refuse(
          fmt::format("begins a frame of {} bytes where {} are left, expected at most so many; the file may be cut "
                      "off",
                      size, bytes_.size() - at_));
  }

  void Do() {
    switch (opcode_) {
      case kProto:
        return CheckProtocol(TakeLittle<uint8_t>());
      case kFrame:
        return CheckFrame(TakeLittle<uint64_t>());
      case kMark:
        Charge(kPointerCost);
        return marks_.push_back(stack_.size());
      case kPop:
        if (stack_.size() == Floor() && !marks_.empty()) return marks_.pop_back();
        Pop();
        return;
      case kNoneOpcode:
        return Push(none_);
      case kNewTrue:
      case kNewFalse:
        return Push(booleans_[opcode_ == kNewTrue]);
      case kIntText:
        return DoIntText();
      case kLongText:
        return PushInteger(TakeNumberLine());
      case kBinInt:
        return PushInteger(TakeLittle<int32_t>());
      case kBinInt1:
        return PushInteger(TakeLittle<uint8_t>());
      case kBinInt2:
        return PushInteger(TakeLittle<uint16_t>());
      case kLong1:
        return PushLong(Take(TakeLittle<uint8_t>()));
      case kLong4:
        return PushLong(Take(TakeLength()));
      case kBinFloat:
        return PushReal();
      case kBinUnicode:
        return PushText(TakeLittle<uint32_t>());
      case kShortBinUnicode:
        return PushText(TakeLittle<uint8_t>());
      case kBinUnicode8:
        return PushText(TakeLittle<uint64_t>());
      case kBinString:
        return PushBytes(TakeLength());
      case kBinBytes:
        return PushBytes(TakeLittle<uint32_t>());
      case kShortBinBytes:
      case kShortBinString:
        return PushBytes(TakeLittle<uint8_t>());
      case kBinBytes8:
      case kByteArray8:
        return PushBytes(TakeLittle<uint64_t>());
      default:
        return DoObject();
    }
  }

  // Protocol 1 has the booleans as numbers of two digits.
  void DoIntText() {
    const std::string_view rest = bytes_.substr(at_);
    if (!rest.starts_with("00\n") && !rest.starts_with("01\n")) return PushInteger(TakeNumberLine());
    Push(booleans_[TakeLine() == "01"]);
  }

  // What is made of other objects.
  void DoObject() {
    switch (opcode_) {
      case kEmptyList:
        return Push(New(Type::kList));
      case kEmptyDict:
        return Push(New(Type::kDict));
      case kEmptySet:
        return Push(New(Type::kSet));
      case kEmptyTuple:
        return Push(empty_);
      case kListOpcode:
        return PushContainer(Type::kList);
      case kDictOpcode:
        return PushContainer(Type::kDict);
      case kTupleOpcode:
        return PushContainer(Type::kTuple);
      case kFrozenSet:
        return PushContainer(Type::kSet);
      case kTuple1:
      case kTuple2:
      case kTuple3:
        Need(opcode_ - kTuple1 + 1u);
        return PushTuple(stack_.size() - (opcode_ - kTuple1 + 1u));
      case kAppend:
        return FillOne(Type::kList, 1);
      case kSetItem:
        return FillOne(Type::kDict, 2);
      case kAppends:
        return Fill(Type::kList, PopMark());
      case kSetItems:
        return Fill(Type::kDict, PopMark());
      case kAddItems:
        return Fill(Type::kSet, PopMark());
      case kReduce:
      case kNewObj:
      case kNewObjEx:
        return Call();
      case kBuild:
        return Build();
      case kBinPersId:
        return PushPersistent();
      case kGlobalOpcode: {
        const std::string_view module = TakeLine(), name = TakeLine();
        return PushGlobal(module, name);
      }
      case kStackGlobal:
        return PushStackGlobal();
      default:
        return DoMemo();
    }
  }

  void DoMemo() {
    switch (opcode_) {
      case kMemoize:
        return Memorise(memorised_);
      case kPut:
        return Memorise(TakeIndexLine());
      case kBinPut:
        return Memorise(TakeLittle<uint8_t>());
      case kLongBinPut:
        return Memorise(TakeLittle<uint32_t>());
      case kGet:
        return Recall(TakeIndexLine());
      case kBinGet:
        return Recall(TakeLittle<uint8_t>());
      case kLongBinGet:
        return Recall(TakeLittle<uint32_t>());
      default:
        throw Error(Code::kUnsupported,
                    fmt::format("the pickle's opcode {} at its byte {} is not read, expected those that torch.save "
                                "writes; load the file where you trust it and save its tensors again",
                                NameOf(opcode_), opcode_at_));
    }
  }

  Tree& tree_;
  const std::string_view bytes_;
  const Limits& limits_;
  size_t at_ = 0, opcode_at_ = 0;
  uint8_t opcode_ = 0;
  uint64_t used_ = 0;
  std::vector<Node*> stack_;
  size_t stack_high_ = 0;
  std::vector<size_t> marks_;
  std::vector<Node*> memo_;
  uint64_t memorised_ = 0;  // of it
  Node *none_, *empty_;     // which nothing changes: one is enough
  std::array<Node*, 2> booleans_{};
  std::array<Node*, 256> small_{};  // integers that were pushed before
};

Tree::Tree(std::string_view bytes, const std::string& path, const Limits& limits) {
  try {
    Machine(*this, bytes, limits).Run();
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

const Node* Find(const Node& dict, std::string_view key) {
  if (dict.type != Type::kDict) return nullptr;
  for (size_t i = dict.items.size(); i >= 2; i -= 2)
    if (dict.items[i - 2]->type == Type::kText && dict.items[i - 2]->text == key) return dict.items[i - 1];
  return nullptr;
}

bool IsGlobal(const Node* node, std::string_view module, std::string_view name) {
  return node && node->type == Type::kGlobal && node->name == name && (module.empty() || node->text == module);
}

std::string_view ClassOf(const Node* node) {
  const bool is_object = node && node->type == Type::kObject && node->items[0]->type == Type::kGlobal;
  return is_object ? node->items[0]->name : std::string_view();
}

}  // namespace reshard::pickle
