// Python pickles (protocols 2 to 5) as trees of inert values. Nothing is imported, called or built: a global is a pair
// of names, and what a pickle would call is a node that says what with. What a tree means is for its reader to say.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace reshard::pickle {

enum class Type : uint8_t {
  kNone,
  kBool,
  kInt,
  kHugeInt,  // beyond 64 bits: `text` are its bytes, two's complement, little-endian
  kFloat,
  kText,
  kBytes,  // of bytes and bytearray, and what Python 2 called str
  kList,
  kTuple,
  kSet,
  kDict,        // also OrderedDict, defaultdict and Counter
  kGlobal,      // a class or a function, by name
  kPersistent,  // what a persistent id stands for
  kObject,      // what calling something gives; what is put into it afterwards, as into a dict or a list, is dropped
};

// Nodes point to one another, also in circles: who walks a tree bounds its depth.
struct Node {
  Type type = Type::kNone;
  int64_t integer = 0;                  // kBool, kInt
  double real = 0;                      // kFloat
  std::string_view text;                // kText, kBytes, kHugeInt; kGlobal: the module
  std::string_view name;                // kGlobal: in the module
  std::vector<const Node*> items = {};  // of a container; kDict: key and value by turns; kPersistent: the id; kObject:
                                        // what is called, then its arguments
  const Node* state = nullptr;          // kObject, kDict: what BUILD gave it; null: nothing
};

// The value of a text key of a kDict (the last, if there are several); null where there is none, or no dict.
const Node* Find(const Node& dict, std::string_view key);
// Whether a node is the global `module.name`; of any module where `module` is empty.
bool IsGlobal(const Node* node, std::string_view module, std::string_view name);
// The class or function of a kObject by name, without module; empty for any other node.
std::string_view ClassOf(const Node* node);

struct Limits {
  uint64_t max_memory = 0;  // bytes of all nodes
  size_t max_opcodes = SIZE_MAX;
};

// The Error where the bytes end before the pickle does.
struct CutOff : Error {
  explicit CutOff(std::string message) : Error(Code::kCorrupt, std::move(message)) {}
};

// A parsed pickle. The nodes' texts lie in `bytes`, which must outlive it.
class Tree {
 public:
  // Reads one pickle from the front of `bytes`. Errors, all with `path` and "reading": CutOff; kCorrupt (an empty
  // stack, no mark, a memo that was not set, BUILD or SETITEMS on what takes none), kUnsupported (an opcode that is not
  // handled, named; more than the limits allow, naming --max_memory).
  Tree(std::string_view bytes, const std::string& path, const Limits& limits);

  const Node& root() const { return *root_; }
  const std::deque<Node>& nodes() const { return nodes_; }  // all that were made, in that order
  size_t size() const { return size_; }                     // bytes of the pickle

 private:
  friend class Machine;
  std::deque<Node> nodes_;
  std::deque<std::string> texts_;  // those that are not in `bytes`
  const Node* root_ = nullptr;
  size_t size_ = 0;
};

}  // namespace reshard::pickle
