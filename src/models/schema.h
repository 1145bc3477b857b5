// What the family tables are made of. Data only: a table names no rank, no file and no condition but the closed lists
// here.
//
//   PartRow one logical part: role, scope, shape over named sizes, how tensor parallelism splits it, when it exists
//   Layout  one stored tensor of a kind: a name pattern and a tree of box primitives over the parts that it holds
//   Block   rows, the layers that have them, and in every kind the layouts that hold each of them exactly once
//   Family  blocks, and what the model's config means
//
// Sizes are one letter each: V vocabulary, H hidden size, L layers, A attention heads, G query groups, D head size, F
// ffn hidden size, E experts, M ffn hidden size of an expert, S of the shared expert. Rows of linear weights are output
// features, as in HuggingFace and Megatron.
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

// The feed-forward part of a layer, and the set of layers that a block is for.
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
  bool norm = false;           // the weight of a norm, which a kind may store minus one
};

constexpr PartRow NormRow(std::string_view role, Scope scope, std::string_view shape) {
  return {role, scope, shape, {}, {}, true};
}

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
  static constexpr size_t kMaxForms = 8;
  bool known = false;
  std::array<std::span<const Layout>, kMaxForms> forms = {};
  uint8_t by_module = 0;  // the form that calls tensors as modules do, which files of ranks have
  std::span<const std::string_view> lacks = {};

  constexpr Layouts() = default;
  template <typename... More>
  constexpr Layouts(std::span<const Layout> first, const More&... more)
      : known(true), forms{first, std::span<const Layout>(more)...} {}
  constexpr Layouts ByModule(uint8_t form) const {
    Layouts same = *this;
    same.by_module = form;
    return same;
  }
  constexpr Layouts Without(std::span<const std::string_view> roles) const {
    Layouts less = *this;
    less.lacks = roles;
    return less;
  }
};

// A module of a layer that has an _extra_state; of every expert where its scope says so.
struct NemoObject {
  std::string_view module;
  Scope scope = Scope::kLayer;
  std::string_view by_module = {};  // what the module itself is called, where it is otherwise; {E} the expert
};

struct Block {
  std::span<const PartRow> rows;
  Layouts hf;
  Layouts nemo;  // layer tensors by their numbered names; the kind stacks them
  std::span<const NemoObject> nemo_objects = {};
  Layouts trtllm = {};
  LayerKinds on = kAllLayers;  // the layers that have its layered rows
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
  std::string_view synonym = {};  // another name of the key
};

// How Megatron's value follows from HuggingFace's.
enum class Change : uint8_t {
  kNone,
  kNot,                // of a truth value
  kInverseSquareRoot,  // of a number; null where that is the head size
  kScale,              // the same number; null where it is the head size's inverse square root
};

// A key of config.json besides those that all families have, and the key by which Megatron's configs say the same:
// that of megatron-core (of Megatron-Bridge and NeMo 2), and that of model_config.yaml where it has another, both with
// dots into objects. Empty: there is no place for it.
struct ConfigKey {
  std::string_view hf, mcore = {};
  char size = 0;  // the size that it is; 0: a hyper-parameter
  Change change = Change::kNone;
  std::string_view synonym = {};  // another name in config.json
  // JSON, HuggingFace's value: with it the model computes what one without the key does. So where another family knows
  // the key and this one does not, it may have that value only. Empty: another family does not care.
  std::string_view neutral = {};
  std::string_view nemo = {};
  std::string_view absent = {};  // JSON: what Megatron takes where its key is not there; empty: null
  bool of_training = false;      // it changes how a model is trained and not what it computes
};

// A key that Megatron's configs of the family have at one value always. `absent` (JSON) is what it means where it is
// not there; empty: the key says nothing of what the model computes, and is not read.
struct FixedKey {
  enum class Where : uint8_t { kBoth, kMcore, kNemo };
  std::string_view key, value, absent = {};
  Where where = Where::kBoth;
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
  // Whether the arguments of Megatron-LM can say what the model computes; where not, a checkpoint has none.
  bool arguments = true;
};

// A class that holds a model of the family beside others (of images); `text_config` of its config.json is the model's.
struct Wrapper {
  std::string_view model_type, class_name;
};

// Which layers have the sliding window, where one is given.
enum class WindowRule : uint8_t {
  kNone,      // none: the config has no such key
  kAll,       // all
  kSwitched,  // with use_sliding_window those of layer_types, or from max_window_layers on
  kPeriodic,  // all but every n-th
};

struct Family {
  std::string_view name;        // also model_type of config.json
  std::string_view group;       // what --model_type calls it: llama, qwen
  std::string_view class_name;  // of `architectures`
  std::span<const Block* const> blocks;
  std::span<const ConfigDefault> defaults;
  std::span<const Flag> flags;
  std::span<const ConfigKey> keys = {};
  std::span<const FixedKey> fixed = {};
  std::span<const Wrapper> wrappers = {};
  std::string_view other_class = {};  // another that files of the same model_type have in `architectures`
  LayerRule layers = LayerRule::kAllDense;
  bool zero_centred = false;   // HuggingFace stores the weights of its norms minus one
  bool nemo_adds_one = false;  // NeMo 1 does not, and adds it
  std::string_view act_key = "hidden_act", act = "silu", old_act = {};  // old_act: what files call it, too
  bool has_layers_without_rope = false;                                 // no_rope_layers is read
  // JSON: what its class needs in rope_parameters whatever the type; empty: it makes do without rope_parameters.
  std::string_view rope_fields = {};
  WindowRule window = WindowRule::kNone;
  uint8_t window_period = 1;             // kPeriodic: every so manieth layer has none
  std::string_view rope_local_key = {};  // rope_theta of layers with a window, where they have one of their own
  bool partial_rotation = false;         // partial_rotary_factor is read
  bool rope_interleaved = false;         // rotated are neighbours, not the halves of a head
  NemoBase nemo_base = NemoBase::kLlama;
  MegatronClasses megatron = {};
  TrtllmConfig trtllm_config = TrtllmConfig::kNone;
};

}  // namespace reshard
