#include "formats/torch_dist/metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"
#include "formats/torch_dist/tiling.h"

namespace reshard::torch_dist {
namespace {

using pickle::Node;
using pickle::Type;

// Longer keys and paths are no one's, and would be compared and copied many times.
constexpr size_t kMaxName = 4096;

// Byte counts above are no file's, and leave room to add.
constexpr uint64_t kMaxBytes = uint64_t{1} << 62;

// What a byte of the pickle may take as a tree: 22 and less measured, of torch and of megatron-core.
constexpr uint64_t kTreePerByte = 48;

Error Corrupt(std::string message) { return Error(Code::kCorrupt, std::move(message)); }
Error Unsupported(std::string message) { return Error(Code::kUnsupported, std::move(message)); }

// -- reading ----------------------------------------------------------------------------------------------------------

bool Before(const Dims& a, const Dims& b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

// A field of an object that is built from a dict; null where it has none, or None.
const Node* FieldOf(const Node& object, std::string_view name) {
  const Node* field = object.state ? pickle::Find(*object.state, name) : nullptr;
  return field && field->type != Type::kNone ? field : nullptr;
}

const Node& Field(const Node& object, std::string_view name, Type type, std::string_view what) {
  const Node* field = FieldOf(object, name);
  if (!field || field->type != type)
    throw Corrupt(
        fmt::format("an object of the class {} has no {} '{}', expected one", pickle::ClassOf(&object), what, name));
  return *field;
}

const Node& DictOf(const Node& object, std::string_view name) { return Field(object, name, Type::kDict, "dict"); }

std::string_view TextOf(const Node& object, std::string_view name) {
  const std::string_view text = Field(object, name, Type::kText, "text").text;
  if (text.empty() || text.size() > kMaxName)
    throw Corrupt(fmt::format("'{}' has {} bytes, expected 1 to {}", name, text.size(), kMaxName));
  return text;
}

uint64_t NumberOf(const Node& object, std::string_view name) {
  const int64_t number = Field(object, name, Type::kInt, "whole number").integer;
  if (number < 0) throw Corrupt(fmt::format("'{}' is {}, expected none below zero", name, number));
  return static_cast<uint64_t>(number);
}

// The numbers of a torch.Size, or of a plain tuple or list.
const Node* SizeItems(const Node* size) {
  if (pickle::ClassOf(size) == "Size" && size->items.size() == 2) size = size->items[1];
  return size && (size->type == Type::kTuple || size->type == Type::kList) ? size : nullptr;
}

Dims DimsOf(const Node& object, std::string_view name) {
  const Node* size = SizeItems(FieldOf(object, name));
  if (!size)
    throw Corrupt(
        fmt::format("an object of the class {} has no size '{}', expected one", pickle::ClassOf(&object), name));
  if (size->items.size() > Dims::kMaxAxes)
    throw Unsupported(fmt::format("'{}' has {} axes, expected at most {}", name, size->items.size(), Dims::kMaxAxes));
  Dims dims;
  for (const Node* extent : size->items) {
    if (extent->type != Type::kInt || extent->integer < 0)
      throw Corrupt(fmt::format("'{}' holds what is no whole number of at least 0, expected such", name));
    dims.push_back(static_cast<uint64_t>(extent->integer));
  }
  return dims;
}

// Of TensorProperties, whose state is a tuple that begins with it.
Dtype DtypeOf(const Node& tensor) {
  const Node& properties = Field(tensor, "properties", Type::kObject, "object");
  const Node* dtype = FieldOf(properties, "dtype");
  if (const Node* state = properties.state; state && state->type == Type::kTuple && !state->items.empty())
    dtype = state->items[0];
  if (!dtype || dtype->type != Type::kGlobal) throw Corrupt("the properties have no dtype, expected one");
  if (auto known = DtypeFromTorch(dtype->name)) return *known;
  throw Unsupported(fmt::format("the dtype {}, expected one of the types of safetensors", Visible(dtype->name)));
}

void CheckBytes(const Dims& shape, Dtype dtype) {
  uint64_t bytes = ItemSize(dtype);
  for (uint64_t extent : shape) {
    if (extent == 0) return;
    bytes = CheckedMultiply(bytes, extent).value_or(UINT64_MAX);
    if (bytes > kMaxBytes) throw Corrupt(fmt::format("{}: more than 2^62 bytes, expected less", ToString(shape)));
  }
}

// A path below the folder, so that no file outside is read.
void CheckPath(std::string_view path) {
  const std::string slashed = fmt::format("/{}/", path);
  bool leaves = path.find('\0') != path.npos;
  for (std::string_view odd : {"//", "/./", "/../"}) leaves = leaves || slashed.find(odd) != slashed.npos;
  if (leaves) throw Corrupt(fmt::format("the file '{}', expected one below the folder", Visible(path)));
}

bool IsShown(std::string_view text) { return IsUtf8(text) && !FirstHidden(text); }

class Parser {
 public:
  Parser(const torch_pickle::Limits& limits, const std::function<bool(std::string_view)>& wanted)
      : limits_(limits), wanted_(wanted) {}

  Metadata Parse(const Node& root) {
    if (!pickle::ClassOf(&root).ends_with("Metadata"))
      throw Corrupt("the pickle is no object of the class Metadata, expected one");
    ListKeys(DictOf(root, "state_dict_metadata"));
    ListStored(DictOf(root, "storage_data"));
    for (const Named& tensor : in_order_) AddTensor(tensor);
    return std::move(metadata_);
  }

  const std::string& key() const { return key_; }  // that is being read

 private:
  struct Named {
    std::string_view key;
    const Node* node;
  };
  struct Stored {
    std::string_view key;
    Dims offset;
    const Node* info;

    bool operator<(const Stored& other) const {
      return key != other.key ? key < other.key : Before(offset, other.offset);
    }
  };

  void ListKeys(const Node& dict) {
    for (size_t i = 0; i < dict.items.size(); i += 2) {
      const Node &key = *dict.items[i], *entry = dict.items[i + 1];
      if (key.type != Type::kText || key.text.empty() || key.text.size() > kMaxName || !IsShown(key.text))
        throw Corrupt(fmt::format("a key that is no text of 1 to {} visible characters, expected such", kMaxName));
      if (!wanted_(key.text)) continue;
      key_ = key.text;
      if (pickle::ClassOf(entry) == "TensorStorageMetadata") {
        in_order_.push_back({key.text, entry});
      } else if (pickle::ClassOf(entry) == "BytesStorageMetadata") {
        metadata_.objects.push_back({key_});
      } else {
        throw Unsupported("it is stored as neither tensor nor bytes, expected one of them");
      }
      if (in_order_.size() + metadata_.objects.size() > limits_.max_tensors)
        throw Unsupported(
            fmt::format("more than {} tensors, expected at most so many within the memory limit; give a larger "
                        "--max_memory",
                        limits_.max_tensors));
    }
    for (const Named& tensor : in_order_) sorted_.push_back(tensor.key);
    std::sort(sorted_.begin(), sorted_.end());
    if (auto same = std::adjacent_find(sorted_.begin(), sorted_.end()); same != sorted_.end()) {
      key_ = *same;
      throw Corrupt("it is there twice, expected it once");
    }
    key_.clear();
  }

  // Byte objects have no offset.
  void ListStored(const Node& dict) {
    for (size_t i = 0; i < dict.items.size(); i += 2) {
      const Node& index = *dict.items[i];
      if (pickle::ClassOf(&index) != "MetadataIndex")
        throw Corrupt("storage_data has a key that is no MetadataIndex, expected such");
      const std::string_view key = TextOf(index, "fqn");
      if (!std::binary_search(sorted_.begin(), sorted_.end(), key) || !FieldOf(index, "offset")) continue;
      key_ = key;
      stored_.push_back({key, DimsOf(index, "offset"), dict.items[i + 1]});
    }
    std::sort(stored_.begin(), stored_.end());
    for (size_t i = 1; i < stored_.size(); ++i) {
      if (stored_[i - 1] < stored_[i]) continue;
      key_ = stored_[i].key;
      throw Corrupt(fmt::format("the chunk at {} is stored twice, expected once", ToString(stored_[i].offset)));
    }
    key_.clear();
  }

  void AddTensor(const Named& named) {
    key_ = named.key;
    Tensor tensor;
    StoredTensor& stored = tensor.stored;
    stored.name = named.key;
    stored.dtype = DtypeOf(*named.node);
    stored.shape = DimsOf(*named.node, "size");
    CheckBytes(stored.shape, stored.dtype);
    std::vector<Box> boxes = BoxesOf(*named.node, stored.shape);
    std::vector<size_t> order(boxes.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (ElementCount(stored.shape) > 0) {
      if (std::optional<Grid> grid = boxes.empty() ? std::nullopt : GridOf(boxes, stored.shape)) {
        stored.grid = grid->shape;
        order = std::move(grid->order);
      } else if (std::string problem = TilingProblem(boxes, stored.shape); !problem.empty()) {
        throw Corrupt(std::move(problem));
      }
    }
    for (size_t i : order) AddChunk(boxes[i], tensor);
    metadata_.tensors.push_back(std::move(tensor));
  }

  // Those that hold something: a rank with no share of a tensor may have stored an empty chunk.
  std::vector<Box> BoxesOf(const Node& node, const Dims& shape) {
    const Node& chunks = Field(node, "chunks", Type::kList, "list");
    // Each is stored by itself, so that a list that is there many times costs no more than it is long.
    chunks_ += chunks.items.size();
    if (chunks_ > stored_.size())
      throw Corrupt(
          fmt::format("{} chunks up to here, expected at most the {} that are stored", chunks_, stored_.size()));
    std::vector<Box> boxes;
    for (const Node* chunk : chunks.items) {
      if (pickle::ClassOf(chunk) != "ChunkStorageMetadata")
        throw Corrupt("a chunk that is no ChunkStorageMetadata, expected such");
      Box box{DimsOf(*chunk, "offsets"), DimsOf(*chunk, "sizes")};
      if (box.origin.size() != shape.size() || box.shape.size() != shape.size())
        throw Corrupt(fmt::format("a chunk at {} of {}, expected as many axes as in {}", ToString(box.origin),
                                  ToString(box.shape), ToString(shape)));
      bool is_empty = false;
      for (size_t axis = 0; axis < shape.size(); ++axis) {
        if (box.origin[axis] > shape[axis] || box.shape[axis] > shape[axis] - box.origin[axis])
          throw Corrupt(fmt::format("a chunk at {} of {}, expected it within {}", ToString(box.origin),
                                    ToString(box.shape), ToString(shape)));
        is_empty = is_empty || box.shape[axis] == 0;
      }
      if (!is_empty) boxes.push_back(box);
    }
    return boxes;
  }

  void AddChunk(const Box& box, Tensor& tensor) {
    const Stored wanted{key_, box.origin, nullptr};
    const auto found = std::lower_bound(stored_.begin(), stored_.end(), wanted);
    if (found == stored_.end() || wanted < *found)
      throw Corrupt(fmt::format("the chunk at {} is not stored, expected it in storage_data", ToString(box.origin)));
    const Node& info = *found->info;
    const std::string_view path = TextOf(info, "relative_path");
    CheckPath(path);
    if (const Node* transforms = FieldOf(info, "transform_descriptors"); transforms && !transforms->items.empty())
      throw Unsupported("its items are transformed (transform_descriptors), expected plain ones");
    const auto [file, is_new] = files_.emplace(path, static_cast<uint32_t>(metadata_.files.size()));
    if (is_new) metadata_.files.emplace_back(path);
    const ByteRange item{NumberOf(info, "offset"), NumberOf(info, "length")};
    if (item.offset > kMaxBytes || item.size > kMaxBytes)
      throw Corrupt(fmt::format("an item of {} bytes at byte {}, expected less than 2^62", item.size, item.offset));
    tensor.stored.chunks.push_back({box, {}, file->second, 0});
    tensor.items.push_back(item);
  }

  const torch_pickle::Limits& limits_;
  const std::function<bool(std::string_view)>& wanted_;
  std::string key_;
  std::vector<Named> in_order_;
  std::vector<std::string_view> sorted_;
  std::vector<Stored> stored_;
  std::unordered_map<std::string_view, uint32_t> files_;
  size_t chunks_ = 0;
  Metadata metadata_;
};

// -- writing ----------------------------------------------------------------------------------------------------------

constexpr std::string_view kModule = "torch.distributed.checkpoint.metadata";
// Where torch 2.3 and older have TensorProperties; later ones have it there, too, and one more elsewhere.
constexpr std::string_view kOldModule = "torch.distributed._shard.sharded_tensor.metadata";

// Opcodes of protocol 4. Texts and globals that come again are taken from the memo.
class Pickler {
 public:
  Pickler() : bytes_("\x80\x04") {}

  std::string Finish() {
    bytes_ += '.';
    return std::move(bytes_);
  }

  void Text(std::string_view text) {
    if (Recall(text)) return;
    if (text.size() < 256) {
      bytes_ += '\x8c';
      bytes_ += static_cast<char>(text.size());
    } else {
      bytes_ += 'X';
      AppendLittle(bytes_, static_cast<uint32_t>(text.size()));
    }
    bytes_ += text;
    Memorise(text);
  }

  void Global(std::string_view module, std::string_view name) {
    const std::string key = fmt::format("{}\n{}", module, name);  // no text has a newline
    if (Recall(key)) return;
    Text(module);
    Text(name);
    bytes_ += '\x93';
    Memorise(key);
  }

  void Integer(uint64_t value) {
    if (value < 1u << 8) {
      bytes_ += 'K';
      bytes_ += static_cast<char>(value);
    } else if (value < 1u << 16) {
      bytes_ += 'M';
      AppendLittle(bytes_, static_cast<uint16_t>(value));
    } else if (value < 1u << 31) {
      bytes_ += 'J';
      AppendLittle(bytes_, static_cast<uint32_t>(value));
    } else {
      std::string number;  // with a bit for the sign
      for (uint64_t rest = value; rest > 0 || (number.back() & 0x80); rest >>= 8) number += static_cast<char>(rest);
      bytes_ += '\x8a';
      bytes_ += static_cast<char>(number.size());
      bytes_ += number;
    }
  }

  void None() { bytes_ += 'N'; }
  void False() { bytes_ += '\x89'; }
  void Mark() { bytes_ += '('; }
  void Tuple() { bytes_ += 't'; }  // from the mark on
  void Tuple1() { bytes_ += '\x85'; }
  void Reduce() { bytes_ += 'R'; }
  void Build() { bytes_ += 'b'; }

  void BeginDict() { bytes_ += "}("; }
  void EndDict() { bytes_ += 'u'; }
  void EmptyDict() { bytes_ += '}'; }
  void BeginList() { bytes_ += "]("; }
  void EndList() { bytes_ += 'e'; }

  // An object of a class, not built yet.
  void Object(std::string_view module, std::string_view name) {
    Global(module, name);
    bytes_ += ")\x81";
  }

  void Size(const Dims& dims) {
    Global("torch", "Size");
    Mark();
    for (uint64_t extent : dims) Integer(extent);
    Tuple();
    Tuple1();
    Reduce();
  }

 private:
  bool Recall(std::string_view key) {
    const auto found = memo_.find(std::string(key));
    if (found == memo_.end()) return false;
    if (found->second < 256) {
      bytes_ += 'h';
      bytes_ += static_cast<char>(found->second);
    } else {
      bytes_ += 'j';
      AppendLittle(bytes_, found->second);
    }
    return true;
  }

  void Memorise(std::string_view key) {
    bytes_ += '\x94';
    memo_.emplace(key, static_cast<uint32_t>(memo_.size()));
  }

  std::string bytes_;
  std::unordered_map<std::string, uint32_t> memo_;
};

void AddProperties(Dtype dtype, Pickler& out) {
  out.Object(kOldModule, "TensorProperties");
  out.Mark();
  out.Global("torch", Row(dtype).torch);
  out.Global("torch.serialization", "_get_layout");
  out.Text("torch.strided");
  out.Tuple1();
  out.Reduce();
  out.False();  // requires_grad
  out.Global(kOldModule, "MEM_FORMAT_ENCODING");
  out.Integer(0);  // contiguous
  out.Tuple1();
  out.Reduce();
  out.False();  // pin_memory
  out.Tuple();
  out.Build();
}

void AddTensor(const StoredTensor& tensor, Pickler& out) {
  out.Object(kModule, "TensorStorageMetadata");
  out.BeginDict();
  out.Text("properties");
  AddProperties(tensor.dtype, out);
  out.Text("size");
  out.Size(tensor.shape);
  out.Text("chunks");
  out.BeginList();
  for (const Chunk& chunk : tensor.chunks) {
    out.Object(kModule, "ChunkStorageMetadata");
    out.BeginDict();
    out.Text("offsets");
    out.Size(chunk.box.origin);
    out.Text("sizes");
    out.Size(chunk.box.shape);
    out.EndDict();
    out.Build();
  }
  out.EndList();
  out.EndDict();
  out.Build();
}

// `origin`: of a chunk; null: of an object.
void AddStored(std::string_view key, const Dims* origin, const std::string& file, const ByteRange& item, Pickler& out) {
  out.Object(kModule, "MetadataIndex");
  out.BeginDict();
  out.Text("fqn");
  out.Text(key);
  out.Text("index");
  out.None();
  if (origin) {
    out.Text("offset");
    out.Size(*origin);
  }
  out.EndDict();
  out.Build();
  out.Object("torch.distributed.checkpoint.filesystem", "_StorageInfo");
  out.BeginDict();
  out.Text("relative_path");
  out.Text(file);
  out.Text("offset");
  out.Integer(item.offset);
  out.Text("length");
  out.Integer(item.size);
  out.EndDict();
  out.Build();
}

// What a plan of nested dicts would be flattened from: each key by itself.
void AddPlanned(std::string_view key, Pickler& out) {
  out.Text(key);
  out.Text(key);
  out.Tuple1();
}

}  // namespace

Metadata ParseMetadata(std::string_view bytes, const std::string& path, const torch_pickle::Limits& limits,
                       const std::function<bool(std::string_view key)>& wanted) {
  Parser parser(limits, wanted);
  try {
    const uint64_t memory = std::min(limits.max_header - bytes.size(), kTreePerByte * bytes.size() + kMiB);
    const pickle::Tree tree(bytes, path, {.max_memory = memory});
    return parser.Parse(tree.root());
  } catch (Error& error) {
    error.At("reading", path);
    if (!parser.key().empty()) error.Tensor(parser.key());
    throw;
  }
}

std::string MetadataText(const Metadata& metadata) {
  Pickler out;
  out.Object(kModule, "Metadata");
  out.BeginDict();
  out.Text("state_dict_metadata");
  out.BeginDict();
  for (const Object& object : metadata.objects) {
    out.Text(object.key);
    out.Object(kModule, "BytesStorageMetadata");
  }
  for (const Tensor& tensor : metadata.tensors) {
    out.Text(tensor.stored.name);
    AddTensor(tensor.stored, out);
  }
  out.EndDict();
  out.Text("planner_data");
  out.BeginDict();
  for (const Object& object : metadata.objects) AddPlanned(object.key, out);
  for (const Tensor& tensor : metadata.tensors) AddPlanned(tensor.stored.name, out);
  out.EndDict();
  out.Text("storage_data");
  out.BeginDict();
  for (const Object& object : metadata.objects)
    AddStored(object.key, nullptr, metadata.files[object.file], object.item, out);
  for (const Tensor& tensor : metadata.tensors)
    for (size_t i = 0; i < tensor.items.size(); ++i)
      AddStored(tensor.stored.name, &tensor.stored.chunks[i].box.origin, metadata.files[tensor.stored.chunks[i].file],
                tensor.items[i], out);
  out.EndDict();
  out.Text("mcore_data");  // of tensors that megatron-core has flattened; it looks up every one
  out.BeginDict();
  for (const Tensor& tensor : metadata.tensors) {
    out.Text(tensor.stored.name);
    out.EmptyDict();
  }
  out.EndDict();
  out.EndDict();
  out.Build();
  return out.Finish();
}

}  // namespace reshard::torch_dist
