// A built pickle, or any bytes, as a pickle: a tree whose nodes are what they say, within the memory that it may take,
// or Error and nothing else. The first byte chooses.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "formats/torch_pickle/pickle.h"
#include "formats/torch_pickle/testutil.h"

using namespace reshard;

namespace {

constexpr uint64_t kMaxMemory = 4 << 20;

bool IsSound(const pickle::Node& node) {
  for (const pickle::Node* item : node.items)
    if (!item) return false;
  if (node.type == pickle::Type::kDict) return node.items.size() % 2 == 0;
  if (node.type == pickle::Type::kObject) return !node.items.empty();
  if (node.type == pickle::Type::kPersistent) return node.items.size() == 1;
  return true;
}

void Check(const pickle::Tree& tree, size_t bytes) {
  uint64_t memory = 0;
  for (const pickle::Node& node : tree.nodes()) {
    if (!IsSound(node)) std::abort();
    pickle::Find(node, "weight");
    pickle::ClassOf(&node);
    memory += sizeof node + node.items.capacity() * sizeof(void*);
  }
  if (memory > kMaxMemory || tree.size() > bytes) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzBytes in(data, size);
  const std::string bytes = in.Choose(2) ? pickle::BuiltPickle(in).Make() : in.Rest();
  try {
    Check(pickle::Tree(bytes, "input", {kMaxMemory}), bytes.size());
  } catch (const Error& error) {
    if (error.code() == Code::kInternal) std::abort();
  }
  return 0;
}
