// What the family tables are made of. Data only: a table names no rank, no file and no condition but the closed lists
// here.
//
//   PartRow one logical part: role, scope, shape over named sizes, how tensor parallelism splits it, when it exists
//   Layout  one stored tensor of a kind: a name pattern and a tree of box primitives over the parts that it holds
//   Block   rows, and in every kind the layouts that hold each of them exactly once
//   Family  blocks, and what the model's config means
//
// Sizes are one letter each: V vocabulary, H hidden size, L layers, A attention heads, G query groups, D head size, F
// ffn hidden size, E experts. Rows of linear weights are output features, as in HuggingFace and Megatron.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "tensor/dtype.h"

namespace reshard {

enum class Scope : uint8_t { kGlobal, kLayer, kExpert };  // kExpert: one for every layer and expert

// The feed-forward part of a layer, and the set of layers that a row is for.
enum class LayerKind : uint8_t { kDense = 1, kMoe = 2 };
using LayerKinds = uint8_t;
constexpr LayerKinds kAllLayers = 0xff;
constexpr LayerKinds kDenseLayers = static_cast<LayerKinds>(LayerKind::kDense);
constexpr LayerKinds kMoeLayers = static_cast<LayerKinds>(LayerKind::kMoe);

// Which axis is cut over ranks, in which units; unit 0: not at all. The unit also says what happens where ranks do not
// divide it: V pads with zero rows, G replicates, anything else is refused.
struct Split {
  uint8_t axis = 0;
  char unit = 0;
};

struct PartRow {
  std::string_view role;  // "q", "gate", "attn_norm"
  Scope scope;
  std::string_view shape;  // axes apart by a blank, factors by '*': "A*D H"
  Split split = {};
  std::string_view when = {};  // a flag of the model; empty: always
  LayerKinds on = kAllLayers;
};

// -- trees of box primitives ------------------------------------------------------------------------------------------

struct Node {
  enum class Type : uint8_t { kPart, kInterleave, kStack };
  Type type = Type::kPart;
  std::string_view role = {};  // kPart
  uint8_t axis = 0;            // kInterleave: of its members
  char count = 1;              // kInterleave: a number below 32, or a size's letter
  char index = 0;              // kStack: 'L' or 'E'
  uint8_t members = 0;
};

// A tree in prefix order.
struct Tree {
  static constexpr size_t kMaxNodes = 10;
  std::array<Node, kMaxNodes> nodes{};
  size_t size = 0;

  constexpr Tree() = default;
  constexpr Tree(const char* role) : size(1) { nodes[0].role = role; }
  constexpr Tree(Node root, std::initializer_list<Tree> members) {
    root.members = static_cast<uint8_t>(members.size());
    nodes[size++] = root;
    for (const Tree& member : members)
      for (size_t i = 0; i < member.size; ++i) nodes[size++] = member.nodes[i];
  }
};

// For i < count: of each member in turn its i-th count-th along `axis`.
constexpr Tree Interleave(uint8_t axis, char count, std::initializer_list<Tree> members) {
  return Tree({.type = Node::Type::kInterleave, .axis = axis, .count = count}, members);
}
constexpr Tree Concat(std::initializer_list<Tree> members) { return Interleave(0, 1, members); }
// Megatron's order of q, k and v: group by query group.
constexpr Tree Grouped(std::initializer_list<Tree> members) { return Interleave(0, 'G', members); }
// A new leading axis over the experts (or layers) that the checkpoint holds.
constexpr Tree Stack(char index, Tree member) { return Tree({.type = Node::Type::kStack, .index = index}, {member}); }

struct Layout {
  std::string_view name;  // {L} the layer, {E} the expert; nothing else is replaced
  Tree tree;
  uint8_t fragments = 1;            // chunks along the first axis of a part in formats that chunk: fc1 has two
  std::optional<Dtype> dtype = {};  // where the kind fixes one, whatever the model's is
};

// The layouts of a block in one kind. Several forms are alternatives: a reader takes the first whose names are all
// there, a writer the first. A kind that does not know the block has `known` false; one that has no place for some of
// its rows names them in `lacks`, and refuses models that have them.
struct Layouts {
  bool known = false;
  std::array<std::span<const Layout>, 2> forms = {};
  std::span<const std::string_view> lacks = {};

  constexpr Layouts() = default;
  constexpr Layouts(std::span<const Layout> first, std::span<const Layout> second = {})
      : known(true), forms{first, second} {}
  constexpr Layouts Without(std::span<const std::string_view> roles) const {
    Layouts less = *this;
    less.lacks = roles;
    return less;
  }
};

struct Block {
  std::span<const PartRow> rows;
  Layouts hf;
  Layouts nemo;                                         // layer tensors by their numbered names; the kind stacks them
  std::span<const std::string_view> nemo_objects = {};  // modules that have an _extra_state
  Layouts trtllm = {};
};

// -- what a config means ----------------------------------------------------------------------------------------------

// The value that a HuggingFace config class gives a key that config.json lacks; `value` is JSON. No row, or null: the
// rule of the key (head_dim: hidden_size / heads; num_key_value_heads: heads).
struct ConfigDefault {
  std::string_view key, value;
};

// A flag is set where the boolean key of config.json is true, or always where the key is empty.
struct Flag {
  std::string_view flag, key;
};

// How a layer's kind follows from the config; keys are config.json's.
enum class LayerRule : uint8_t {
  kAllDense,
  kAllMoe,
  kDenseFirst,   // the first `first_k_dense_replace` layers are dense, the others not
  kSparseSteps,  // layer n is not dense if (n + 1) % decoder_sparse_step == 0 and n is not in mlp_only_layers
};

// Which config class of TensorRT-LLM a family's config.json is for; kNone: it has none.
enum class TrtllmConfig : uint8_t { kNone, kLlama, kQwen };

// Which of the two originals' model_config.yaml a NeMo checkpoint of the family starts from.
enum class NemoBase : uint8_t { kLlama, kQwen };

// The classes that a NeMo 2 checkpoint of the family names (nemo.collections.llm.gpt.model.<module>), and those of
// Megatron-Bridge.
struct MegatronClasses {
  std::string_view module, model, config;
  std::string_view llama3_config = {};  // the config with Llama 3.1's rope scaling; empty: there is none
  std::string_view bridge = "megatron.bridge.models.gpt_provider.GPTModelProvider";
};

struct Family {
  std::string_view name;        // also model_type of config.json
  std::string_view group;       // what --model_type calls it: llama, qwen
  std::string_view class_name;  // of `architectures`
  std::span<const Block* const> blocks;
  std::span<const ConfigDefault> defaults;
  std::span<const Flag> flags;
  LayerRule layers = LayerRule::kAllDense;
  NemoBase nemo_base = NemoBase::kLlama;
  MegatronClasses megatron = {};
  TrtllmConfig trtllm_config = TrtllmConfig::kNone;
  // The key of config.json that must be true for sliding_window to count; empty: it always counts.
  std::string_view window_switch = {};
};

}  // namespace reshard
