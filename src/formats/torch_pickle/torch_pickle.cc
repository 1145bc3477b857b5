#include "formats/torch_pickle/torch_pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <span>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"
#include "formats/torch_pickle/storage.h"

namespace reshard::torch_pickle {
namespace {

using pickle::Node;
using pickle::Type;
using namespace std::string_view_literals;

constexpr std::string_view kMagic = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"sv;
constexpr int64_t kLegacyVersion = 1001;
constexpr uint64_t kTarMagicOffset = 257;
constexpr int64_t kMaxVersion = 10;  // of the archive; torch.save writes 3
constexpr int kMaxWraps = 16;        // of a tensor in calls
// A tree of tensors takes about ten times the bytes of its pickle; a hostile one would take a hundred times.
constexpr uint64_t kTreePerByte = 16, kLeastTree = 8 * kMiB;
constexpr uint64_t kFirstWindow = 64 * kKiB;  // of a stream that does not say how long its pickles are
constexpr std::string_view kSaveAgain =
    "load the file where you trust it and save its state dict again with torch.save";

Error Corrupt(std::string message) { return Error(Code::kCorrupt, std::move(message)); }
Error Unsupported(std::string message) { return Error(Code::kUnsupported, std::move(message)); }

// Python 2 wrote its texts as bytes.
std::string_view TextOf(const Node* node) {
  return node->type == Type::kText || node->type == Type::kBytes ? node->text : std::string_view();
}

std::string NameOf(const Node& global) { return fmt::format("{}.{}", Visible(global.text), Visible(global.name)); }

// A storage as the pickle says that it is.
struct StorageId {
  std::string_view key;
  std::optional<Dtype> dtype;                 // nothing: bytes
  uint64_t elements = 0, view = 0, size = 0;  // `view`: where a view of it begins, in elements; `size`: bytes
};

uint64_t Whole(const Node* node, std::string_view what) {
  if (node->type != Type::kInt || node->integer < 0)
    throw Corrupt(fmt::format("{} is {}, expected a whole number from 0 on", what,
                              node->type == Type::kInt ? fmt::format("{}", node->integer) : "something else"));
  return static_cast<uint64_t>(node->integer);
}

// Nothing where it is no storage, but something else that the stream has once (a module's source text).
std::optional<StorageId> StorageIdOf(const Node& node) {
  if (node.type != Type::kPersistent || node.items[0]->type != Type::kTuple) return std::nullopt;
  const auto& items = node.items[0]->items;
  if (items.size() < 5 || TextOf(items[0]) != "storage" || items[1]->type != Type::kGlobal) return std::nullopt;
  const std::string_view name = items[1]->name;
  StorageId id;
  id.key = TextOf(items[2]);
  id.elements = Whole(items[4], "the storage's size");
  const StorageRow* row = FindStorage([&](const StorageRow& r) { return r.name == name; });
  if (row) id.dtype = row->dtype;
  if (!row && name != kUntyped)
    throw Unsupported(
        fmt::format("a storage of class {}, expected one of plain numbers; save the tensor in another "
                    "type",
                    NameOf(*items[1])));
  const std::optional<uint64_t> size = CheckedMultiply(id.elements, row ? ItemSize(row->dtype) : 1);
  if (!size) throw Corrupt(fmt::format("a storage of {} elements, expected fewer than 2^64 bytes", id.elements));
  id.size = *size;
  if (items.size() > 5 && items[5]->type == Type::kTuple && items[5]->items.size() == 3)
    id.view = Whole(items[5]->items[1], "the offset of the storage's view");
  return id;
}

// What lies in a file under a storage's key.
struct Storage {
  std::string_view key;
  ByteRange data;
};

// -- tensors ----------------------------------------------------------------------------------------------------------

Dims DimsOf(const Node* node, std::string_view what) {
  if (pickle::ClassOf(node) == "Size" && node->items.size() == 2) node = node->items[1];
  if (node->type != Type::kTuple && node->type != Type::kList)
    throw Corrupt(fmt::format("the {} is no tuple, expected one of numbers", what));
  if (node->items.size() > Dims::kMaxAxes)
    throw Unsupported(fmt::format("{} axes, expected at most {}", node->items.size(), Dims::kMaxAxes));
  Dims dims;
  for (const Node* item : node->items) dims.push_back(Whole(item, fmt::format("a number of the {}", what)));
  return dims;
}

// How far the element with the highest index lies from the first one; nothing where that does not fit 64 bits.
std::optional<uint64_t> Reach(const Dims& shape, const Dims& strides) {
  std::optional<uint64_t> reach = 0;
  for (size_t axis = 0; axis < shape.size() && reach; ++axis) {
    const auto span = CheckedMultiply(shape[axis] - 1, strides[axis]);
    reach = span ? CheckedAdd(*reach, *span) : std::nullopt;
  }
  return reach;
}

// Strides of axes with one element say nothing: they become those of a row-major array, where the others are.
Dims PlainStrides(const Dims& shape, const Dims& strides) {
  const Dims plain = RowMajorStrides(shape);
  for (size_t axis = 0; axis < shape.size(); ++axis)
    if (shape[axis] != 1 && strides[axis] != plain[axis]) return strides;
  return plain;
}

// A rebuilding function's arguments, as far as they say where elements are.
struct Parts {
  const Node *storage, *offset, *shape, *strides;
  std::optional<Dtype> dtype;  // of the storage where it has none
};

// The functions of torch._utils that build a tensor of a storage.
struct Rebuilder {
  std::string_view name;
  size_t least;     // arguments
  size_t metadata;  // the argument that says whether it is negated or conjugated; 0: there is none
};
constexpr Rebuilder kRebuilders[] = {
    {"_rebuild_tensor", 4, 0}, {"_rebuild_tensor_v2", 6, 6}, {"_rebuild_tensor_v3", 7, 7}};

// Those that wrap a tensor, which is their first argument.
bool IsWrapper(const Node& called) {
  return IsGlobal(&called, "torch._utils", "_rebuild_parameter") ||
         IsGlobal(&called, "torch._utils", "_rebuild_parameter_with_state") ||
         IsGlobal(&called, "torch.nn.parameter", "Parameter");
}

// Calls a function for a subclass of Tensor: function, class, its arguments, state.
bool IsTypedRebuild(const Node& called) {
  return IsGlobal(&called, "torch._tensor", "_rebuild_from_type_v2") ||
         IsGlobal(&called, "torch.tensor", "_rebuild_from_type_v2");
}

bool IsPlainClass(const Node* node) {
  return IsGlobal(node, "torch", "Tensor") || IsGlobal(node, "torch._tensor", "Tensor") ||
         IsGlobal(node, "torch.nn.parameter", "Parameter");
}

// Whether calling it gives a tensor, of a kind that is read or not.
bool GivesTensor(const Node& called) {
  return called.type == Type::kGlobal && (IsWrapper(called) || IsTypedRebuild(called) ||
                                          (called.text == "torch._utils" && called.name.starts_with("_rebuild_")));
}

bool IsTensor(const Node& node) { return node.type == Type::kObject && GivesTensor(*node.items[0]); }

using Arguments = std::span<const Node* const>;

Parts PartsOf(const Node& called, Arguments arguments, int wraps = 0) {
  const auto need = [&](size_t count) {
    if (arguments.size() < count)
      throw Corrupt(fmt::format("{} has {} arguments, expected at least {}", NameOf(called), arguments.size(), count));
  };
  if (wraps == kMaxWraps) throw Corrupt(fmt::format("a tensor in {} calls, expected fewer", wraps));
  if (IsWrapper(called)) {
    need(1);
    if (!IsTensor(*arguments[0])) throw Corrupt(fmt::format("{} has no tensor, expected one", NameOf(called)));
    const auto& inner = arguments[0]->items;
    return PartsOf(*inner[0], Arguments(inner).subspan(1), wraps + 1);
  }
  if (IsTypedRebuild(called)) {
    need(3);
    if (!IsPlainClass(arguments[1]))
      throw Unsupported(fmt::format("a tensor of class {}, expected torch.Tensor; {}",
                                    arguments[1]->type == Type::kGlobal ? NameOf(*arguments[1]) : "of no name",
                                    kSaveAgain));
    if (!GivesTensor(*arguments[0]) || arguments[2]->type != Type::kTuple)
      throw Corrupt(fmt::format("{} calls no function of tensors, expected one", NameOf(called)));
    return PartsOf(*arguments[0], arguments[2]->items, wraps + 1);
  }
  const auto* row = std::find_if(std::begin(kRebuilders), std::end(kRebuilders),
                                 [&](const Rebuilder& r) { return r.name == called.name; });
  if (row == std::end(kRebuilders))
    throw Unsupported(
        fmt::format("a tensor that {} builds (sparse, quantised or of a subclass), expected a dense one; "
                    "{}",
                    NameOf(called), kSaveAgain));
  need(row->least);
  if (row->metadata && arguments.size() > row->metadata) {
    const Node& metadata = *arguments[row->metadata];
    if (metadata.type != Type::kNone && (metadata.type != Type::kDict || !metadata.items.empty()))
      throw Unsupported(fmt::format("a view that is conjugated or negated, expected plain numbers; {}", kSaveAgain));
  }
  Parts parts{arguments[0], arguments[1], arguments[2], arguments[3], std::nullopt};
  if (row->least == 7) {
    const Node* dtype = arguments[6];
    if (dtype->type == Type::kGlobal) parts.dtype = DtypeFromTorch(dtype->name);
    if (!parts.dtype || ItemSize(*parts.dtype) == 0)
      throw Unsupported(fmt::format("a tensor of type {}, expected numbers of whole bytes",
                                    dtype->type == Type::kGlobal ? NameOf(*dtype) : "of no name"));
  }
  return parts;
}

Dims StridesOf(const Node* node) {
  const bool is_tuple = node->type == Type::kTuple;
  const auto is_negative = [](const Node* item) { return item->type == Type::kInt && item->integer < 0; };
  if (is_tuple && std::any_of(node->items.begin(), node->items.end(), is_negative))
    throw Unsupported("negative strides, expected none");
  return DimsOf(node, "strides");
}

// The one chunk of a tensor in its storage.
StoredTensor Placed(const Parts& parts, const StorageId& id, const Storage& storage, uint32_t file) {
  StoredTensor tensor;
  tensor.dtype = parts.dtype ? *parts.dtype : id.dtype.value_or(Dtype::kU8);
  tensor.shape = DimsOf(parts.shape, "shape");
  const Dims strides = StridesOf(parts.strides);
  if (strides.size() != tensor.shape.size())
    throw Corrupt(fmt::format("{} strides of {} axes, expected as many", strides.size(), tensor.shape.size()));
  const uint64_t item = ItemSize(tensor.dtype);
  std::optional<uint64_t> elements = 1;
  for (uint64_t extent : tensor.shape) elements = elements ? CheckedMultiply(*elements, extent) : std::nullopt;
  if (!elements || !CheckedMultiply(*elements, item))
    throw Corrupt(fmt::format("shape {}, expected fewer than 2^64 bytes", ToString(tensor.shape)));
  Chunk chunk{WholeBox(tensor.shape), PlainStrides(tensor.shape, strides), file, storage.data.offset};
  if (*elements > 0) {
    const uint64_t offset = Whole(parts.offset, "the offset in the storage");
    const auto reach = Reach(tensor.shape, strides), first = CheckedAdd(offset, id.view);
    const auto last = reach && first ? CheckedAdd(*first, *reach) : std::nullopt;
    if (!last || *last >= storage.data.size / item)
      throw Corrupt(
          fmt::format("shape {} with strides {} from element {} on, expected all within its storage '{}' of "
                      "{} bytes",
                      ToString(tensor.shape), ToString(strides), offset, Visible(storage.key), storage.data.size));
    chunk.offset += *first * item;
  }
  tensor.chunks = {chunk};
  return tensor;
}

// -- files ------------------------------------------------------------------------------------------------------------

// For a pickle that is no larger than the limit.
pickle::Limits TreeLimits(const Limits& limits, uint64_t pickle_size) {
  return {std::min(limits.max_header - pickle_size, kLeastTree + kTreePerByte * pickle_size)};
}

Error TooLong(std::string_view what, uint64_t size, uint64_t limit) {
  return Unsupported(
      fmt::format("a {} of {} bytes, expected at most {} within the memory limit; give a larger "
                  "--max_memory",
                  what, size, limit));
}

}  // namespace

struct TorchFile::State {
  std::string path;
  std::string bytes;               // of the pickles
  std::vector<ZipMember> members;  // of a zip, by name
  std::vector<Storage> storages;   // by key
  std::vector<std::unique_ptr<pickle::Tree>> trees;
  size_t object = 0;  // the tree of what was saved

  void Open(File& file, ByteRange range, const Limits& limits);
  const Storage& Find(const StorageId& id) const;

 private:
  void RefuseOthers(std::string_view start) const;
  void OpenZip(File& file, ByteRange range, const Limits& limits);
  std::string Member(File& file, std::string_view top, std::string_view name, uint64_t limit) const;
  const ZipMember* FindMember(std::string_view top, std::string_view name) const;
  void CheckZip(File& file, std::string_view top) const;
  void OpenStream(File& file, ByteRange range, const Limits& limits);
  size_t ParseStream(const Limits& limits);
  void FindStreamStorages(File& file, ByteRange range, size_t pickles);
  void SortStorages();
};

void TorchFile::State::Open(File& file, ByteRange range, const Limits& limits) {
  std::string start(std::min<uint64_t>(range.size, 512), '\0');
  file.ReadAt(start.data(), start.size(), range.offset);
  if (start.starts_with("PK\x03\x04")) return OpenZip(file, range, limits);
  if (start.starts_with(kMagic)) return OpenStream(file, range, limits);
  RefuseOthers(start);
}

void TorchFile::State::RefuseOthers(std::string_view start) const {
  constexpr std::string_view kWanted = "expected what torch.save writes";
  if (start.starts_with("version"))
    throw Corrupt("a git-lfs pointer, expected weights; run 'git lfs pull' in the folder that it was cloned to");
  if (start.starts_with("PYTORCH1"))
    throw Unsupported(fmt::format("an archive of a torch before 1.0, {}; {}", kWanted, kSaveAgain));
  if (start.size() > kTarMagicOffset && start.substr(kTarMagicOffset).starts_with("ustar"))
    throw Unsupported(fmt::format("a tar, as torch 0.1 wrote it, {}; {}", kWanted, kSaveAgain));
  if (start.starts_with("\x1f\x8b") || start.starts_with("7z\xbc\xaf\x27\x1c") || start.starts_with("\x28\xb5\x2f\xfd"))
    throw Unsupported(fmt::format("a compressed file, {}; decompress it first", kWanted));
  if (start.starts_with('\x80')) throw Unsupported(fmt::format("a bare pickle, {}; {}", kWanted, kSaveAgain));
  if (start.empty()) throw Corrupt(fmt::format("the file is empty, {}; download it again", kWanted));
  throw Corrupt(
      fmt::format("the file begins with '{}', {}: a zip, or a pickle of its magic number; the file may be "
                  "damaged; download it again",
                  Visible(start.substr(0, 8)), kWanted));
}

void TorchFile::State::OpenZip(File& file, ByteRange range, const Limits& limits) {
  members = ReadZip(file, path, range, UINT64_MAX, limits.max_header);
  if (members.empty()) throw Corrupt("the zip is empty, expected data.pkl and storages");
  std::sort(members.begin(), members.end(), [](const ZipMember& a, const ZipMember& b) { return a.name < b.name; });
  const std::string top = members[0].name.substr(0, members[0].name.find('/') + 1);
  CheckZip(file, top);
  bytes = Member(file, top, "data.pkl", limits.max_header);
  trees.push_back(std::make_unique<pickle::Tree>(bytes, path, TreeLimits(limits, bytes.size())));
  const std::string folder = top + "data/";
  for (const ZipMember& member : members)
    if (member.name.starts_with(folder))
      storages.push_back({std::string_view(member.name).substr(folder.size()), member.data});
  SortStorages();
}

const ZipMember* TorchFile::State::FindMember(std::string_view top, std::string_view name) const {
  const std::string whole = std::string(top) + std::string(name);
  const auto found = std::lower_bound(members.begin(), members.end(), whole,
                                      [](const ZipMember& member, const std::string& n) { return member.name < n; });
  return found != members.end() && found->name == whole ? &*found : nullptr;
}

std::string TorchFile::State::Member(File& file, std::string_view top, std::string_view name, uint64_t limit) const {
  const ZipMember* member = FindMember(top, name);
  if (!member) throw Corrupt(fmt::format("the zip has no '{}{}', expected what torch.save writes", Visible(top), name));
  if (member->data.size > limit) throw TooLong(name, member->data.size, limit);
  std::string content(member->data.size, '\0');
  file.ReadAt(content.data(), content.size(), member->data.offset);
  if (const uint32_t crc = Crc32(content); crc != member->crc)
    throw Corrupt(fmt::format("the CRC of '{}' is {:08x}, expected {:08x}; the file is damaged; download it again",
                              name, crc, member->crc));
  return content;
}

void TorchFile::State::CheckZip(File& file, std::string_view top) const {
  constexpr uint64_t kMaxText = 64;
  if (FindMember(top, "constants.pkl"))
    throw Unsupported("a TorchScript archive, expected a state dict; save the model's state dict with torch.save");
  if (FindMember(top, "byteorder")) {
    const std::string order = Member(file, top, "byteorder", kMaxText);
    if (order == "big")
      throw Unsupported("a file of a big-endian machine, expected byteorder 'little'; load it and save it on another");
    if (order != "little") throw Corrupt(fmt::format("byteorder '{}', expected 'little'", Visible(order)));
  }
  std::string text = Member(file, top, FindMember(top, ".data/version") ? ".data/version" : "version", kMaxText);
  if (text.ends_with('\n')) text.pop_back();
  int64_t version = 0;
  const char* end = text.data() + text.size();
  if (const auto [stop, error] = std::from_chars(text.data(), end, version);
      error != std::errc() || stop != end || version < 1)
    throw Corrupt(fmt::format("version '{}', expected a number from 1 on", Visible(text)));
  if (version > kMaxVersion)
    throw Unsupported(fmt::format("an archive of version {}, expected at most {}", version, kMaxVersion));
}

void TorchFile::State::OpenStream(File& file, ByteRange range, const Limits& limits) {
  const uint64_t most = std::min(range.size, limits.max_header);
  for (uint64_t window = std::min(most, kFirstWindow);; window = std::min(most, 4 * window)) {
    bytes.assign(window, '\0');
    file.ReadAt(bytes.data(), window, range.offset);
    trees.clear();
    try {
      const size_t pickles = ParseStream(limits);
      return FindStreamStorages(file, range, pickles);
    } catch (const pickle::CutOff&) {
      if (window == range.size) throw;
      if (window == most) throw TooLong("pickle", window + 1, limits.max_header);
    }
  }
}

// Returns the bytes of its five pickles.
size_t TorchFile::State::ParseStream(const Limits& limits) {
  std::string_view rest = bytes;
  for (int i = 0; i < 5; ++i) {
    trees.push_back(std::make_unique<pickle::Tree>(rest, path, TreeLimits(limits, bytes.size())));
    rest.remove_prefix(trees.back()->size());
  }
  object = 3;
  const Node &version = trees[1]->root(), &system = trees[2]->root();
  if (version.type != Type::kInt || version.integer != kLegacyVersion)
    throw Corrupt(fmt::format("a stream of another version, expected {}", kLegacyVersion));
  const Node* order = pickle::Find(system, "little_endian");
  if (!order || order->type != Type::kBool)
    throw Corrupt("the stream does not say its byte order, expected little_endian");
  if (!order->integer)
    throw Unsupported("a file of a big-endian machine, expected a little-endian one's; load it and save it on another");
  return bytes.size() - rest.size();
}

// They follow the pickles, each behind the number of its elements, in the order of the last one.
void TorchFile::State::FindStreamStorages(File& file, ByteRange range, size_t pickles) {
  const Node& keys = trees[4]->root();
  if (keys.type != Type::kList) throw Corrupt("the stream has no list of storages, expected one behind the object");
  std::vector<StorageId> ids;
  for (const Node& node : trees[object]->nodes())
    if (const auto id = StorageIdOf(node)) ids.push_back(*id);
  const auto by_key = [](const StorageId& a, const StorageId& b) { return a.key < b.key; };
  std::stable_sort(ids.begin(), ids.end(), by_key);
  uint64_t at = range.offset + pickles;
  for (const Node* key : keys.items) {
    const auto id = std::lower_bound(ids.begin(), ids.end(), StorageId{TextOf(key)}, by_key);
    if (id == ids.end() || id->key != TextOf(key))
      throw Corrupt(
          fmt::format("storage '{}' belongs to no tensor, expected one to tell its type", Visible(TextOf(key))));
    uint64_t elements = 0;
    if (range.end() - at < sizeof elements || range.end() - at - sizeof elements < id->size)
      throw Corrupt(
          fmt::format("storage '{}' needs {} bytes and {} are left, expected them; the file may be cut off; "
                      "download it again",
                      Visible(id->key), sizeof elements + id->size, range.end() - at));
    file.ReadAt(&elements, sizeof elements, at);
    if (elements != id->elements)
      throw Corrupt(fmt::format("storage '{}' has {} elements, expected {}, as the pickle says", Visible(id->key),
                                elements, id->elements));
    storages.push_back({id->key, {at + sizeof elements, id->size}});
    at += sizeof elements + id->size;
  }
  SortStorages();
}

void TorchFile::State::SortStorages() {
  std::sort(storages.begin(), storages.end(), [](const Storage& a, const Storage& b) { return a.key < b.key; });
}

const Storage& TorchFile::State::Find(const StorageId& id) const {
  const auto found = std::lower_bound(storages.begin(), storages.end(), id.key,
                                      [](const Storage& storage, std::string_view key) { return storage.key < key; });
  if (found == storages.end() || found->key != id.key)
    throw Corrupt(fmt::format(
        "storage '{}' is not in the file, expected it; the file may be damaged; download it again", Visible(id.key)));
  if (found->data.size != id.size)
    throw Corrupt(fmt::format("storage '{}' has {} bytes, expected {}, as the pickle says", Visible(id.key),
                              found->data.size, id.size));
  return *found;
}

TorchFile::TorchFile(File& file, const std::string& path, ByteRange range, const Limits& limits)
    : state_(std::make_unique<State>()) {
  try {
    state_->path = path;
    state_->Open(file, range, limits);
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

TorchFile::~TorchFile() = default;

const Node& TorchFile::root() const { return state_->trees[state_->object]->root(); }

std::optional<StoredTensor> TorchFile::TensorOf(const Node& node, uint32_t file) const {
  if (!IsTensor(node)) return std::nullopt;
  try {
    const Parts parts = PartsOf(*node.items[0], Arguments(node.items).subspan(1));
    const auto id = StorageIdOf(*parts.storage);
    if (!id) throw Corrupt("the tensor has no storage, expected one");
    return Placed(parts, *id, state_->Find(*id), file);
  } catch (Error& error) {
    error.At("reading", state_->path);
    throw;
  }
}

// -- state dicts ------------------------------------------------------------------------------------------------------

namespace {

constexpr std::string_view kStateDictKeys[] = {"state_dict", "model", "module"};

bool HoldsTensors(const Node& dict) {
  if (dict.type != Type::kDict) return false;
  for (size_t i = 1; i < dict.items.size(); i += 2)
    if (IsTensor(*dict.items[i])) return true;
  return false;
}

// What a call gives is not known, as nothing is called.
[[noreturn]] void RefuseCall(const Node& object) {
  const Node* called = object.items[0];
  for (int i = 0; i < kMaxWraps && called->type == Type::kObject; ++i) called = called->items[0];
  throw Unsupported(fmt::format("what a call of {} would give, expected a tensor of torch's own; nothing is called; {}",
                                called->type == Type::kGlobal ? NameOf(*called) : "of no name", kSaveAgain));
}

// Of the objects that modules save with their tensors; no tensor, whatever they are.
bool IsExtraState(std::string_view name) { return name.ends_with("_extra_state"); }

const Node& StateDictOf(const Node& root) {
  if (HoldsTensors(root) || (root.type == Type::kDict && root.items.empty())) return root;
  for (std::string_view key : kStateDictKeys)
    if (const Node* dict = pickle::Find(root, key); dict && HoldsTensors(*dict)) return *dict;
  if (root.type == Type::kObject) RefuseCall(root);
  if (root.type == Type::kDict)
    for (size_t i = 1; i < root.items.size(); i += 2)
      if (root.items[i]->type == Type::kObject) RefuseCall(*root.items[i]);
  throw Unsupported(
      "there is no tensor in it, expected a dict of tensors, or one under 'state_dict', 'model' or 'module'");
}

void CheckName(std::string_view name) {
  if (!IsUtf8(name)) throw Corrupt(fmt::format("the tensor name '{}' is not UTF-8, expected UTF-8", Visible(name)));
  if (const std::optional<char32_t> hidden = FirstHidden(name))
    throw Corrupt(fmt::format("the tensor name '{}' holds U+{:04X}, expected no control and no bidi characters",
                              Visible(name), static_cast<uint32_t>(*hidden)));
}

void CheckNamesDiffer(const std::vector<StoredTensor>& tensors) {
  std::set<std::string_view> names;
  for (const StoredTensor& tensor : tensors)
    if (!names.insert(tensor.name).second)
      throw Corrupt("the name is there twice, expected each name once").Tensor(tensor.name);
}

std::vector<StoredTensor> TensorsOf(const TorchFile& torch, uint32_t file, uint64_t max_tensors,
                                    std::vector<std::string>& ignored) {
  const Node& dict = StateDictOf(torch.root());
  std::vector<StoredTensor> tensors;
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const std::string_view name = TextOf(dict.items[i]);
    const Node& value = *dict.items[i + 1];
    CheckName(name);
    try {
      std::optional<StoredTensor> tensor = IsExtraState(name) ? std::nullopt : torch.TensorOf(value, file);
      if (!tensor && value.type == Type::kObject && !IsExtraState(name)) RefuseCall(value);
      if (!tensor) {
        ignored.emplace_back(name);
        continue;
      }
      if (tensors.size() == max_tensors)
        throw Unsupported(
            fmt::format("more than {} tensors, expected at most so many within the memory limit; give a "
                        "larger --max_memory",
                        max_tensors));
      tensor->name = name;
      tensors.push_back(std::move(*tensor));
    } catch (Error& error) {
      error.Tensor(std::string(name));
      throw;
    }
  }
  CheckNamesDiffer(tensors);
  return tensors;
}

}  // namespace

std::vector<StoredTensor> ReadStateDict(Io& io, const std::string& path, uint32_t file, const Limits& limits,
                                        std::vector<std::string>& ignored) {
  try {
    const std::unique_ptr<File> source = io.OpenRead(path);
    const TorchFile torch(*source, path, {0, source->Info().size}, limits);
    return TensorsOf(torch, file, limits.max_tensors, ignored);
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

}  // namespace reshard::torch_pickle
