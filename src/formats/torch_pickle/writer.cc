#include <fmt/format.h>

#include <map>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"
#include "formats/torch_pickle/storage.h"
#include "formats/torch_pickle/torch_pickle.h"

namespace reshard::torch_pickle {
namespace {

using namespace std::string_view_literals;

constexpr size_t kBatch = 1000;  // pairs that one opcode puts into a dict
// torch makes one of a hash that differs between its builds, and no reader looks at it.
constexpr std::string_view kSerializationId = "0000000000000000000000000000000000000000"sv;

// The opcodes that Python's pickler writes for tensors, protocol 2. What comes again is taken from the memo.
class PickleWriter {
 public:
  // Tensors by name, then names of None.
  void Dict(const std::vector<StoredTensor*>& tensors, const std::vector<std::string>& nones) {
    const size_t count = tensors.size() + nones.size();
    auto pair = [&](size_t i) { i < tensors.size() ? Pair(*tensors[i]) : None(nones[i - tensors.size()]); };
    out_ += "}"sv;
    Memorise();
    if (count == 1) {
      pair(0);
      out_ += "s"sv;
      return;
    }
    size_t next = 0;
    while (next < count) {
      out_ += "("sv;
      const size_t end = std::min(count, next + kBatch);
      while (next < end) pair(next++);
      out_ += "u"sv;
    }
    // A whole batch is followed by one more, of nothing.
    if (count > 0 && count % kBatch == 0) out_ += "(u"sv;
  }

  void Tensor(Dtype dtype, const Dims& shape) {
    const StorageRow* row = FindStorage([&](const StorageRow& r) { return r.dtype == dtype; });
    const uint64_t elements = ElementCount(shape);
    Global("torch._utils", row ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
    out_ += "(("sv;
    SharedText("storage");
    row ? Global("torch", row->name) : Global("torch.storage", kUntyped);
    Text(fmt::format("{}", keys_++));
    SharedText("cpu");
    Integer(row ? elements : elements * ItemSize(dtype));
    out_ += "t"sv;
    Memorise();
    out_ += "Q"sv;
    Integer(0);
    Tuple(shape);
    Tuple(StridesOfTorch(shape));
    out_ += "\x89"sv;
    Global("collections", "OrderedDict");
    out_ += ")R"sv;
    Memorise();
    if (!row) Global("torch", Row(dtype).torch);
    out_ += "t"sv;
    Memorise();
    out_ += "R"sv;
    Memorise();
  }

  std::string Finish() && { return std::move(out_) + "."; }

 private:
  void Pair(const StoredTensor& tensor) {
    Text(tensor.name);
    Tensor(tensor.dtype, tensor.shape);
  }

  void None(const std::string& name) {
    Text(name);
    out_ += "N"sv;
  }

  // An axis without elements counts as if it had one.
  static Dims StridesOfTorch(Dims shape) {
    Dims whole;
    for (uint64_t extent : shape) whole.push_back(std::max<uint64_t>(extent, 1));
    return RowMajorStrides(whole);
  }

  void Memorise() { Place('q', 'r', memo_++); }
  // Of the memo, by the opcode for a byte or the one for four.
  void Place(char narrow, char wide, uint32_t index) {
    const bool is_narrow = index <= 0xFF;
    out_ += is_narrow ? narrow : wide;
    is_narrow ? AppendLittle<uint8_t>(out_, static_cast<uint8_t>(index)) : AppendLittle<uint32_t>(out_, index);
  }

  void Text(std::string_view text) {
    out_ += "X"sv;
    AppendLittle<uint32_t>(out_, static_cast<uint32_t>(text.size()));
    out_ += text;
    Memorise();
  }

  // Whether `opcodes` stand in the memo already; if not, the next place is theirs.
  bool Recall(const std::string& opcodes) {
    const auto [known, added] = shared_.emplace(opcodes, memo_);
    if (!added) Place('h', 'j', known->second);
    return !added;
  }
  void SharedText(const std::string& text) {
    if (!Recall("X" + text)) Text(text);
  }
  void Global(std::string_view module, std::string_view name) {
    const std::string opcodes = fmt::format("c{}\n{}\n", module, name);
    if (Recall(opcodes)) return;
    out_ += opcodes;
    Memorise();
  }

  void Integer(uint64_t value) {
    if (value <= 0xFF) {
      out_ += "K"sv;
      AppendLittle<uint8_t>(out_, static_cast<uint8_t>(value));
    } else if (value <= 0xFFFF) {
      out_ += "M"sv;
      AppendLittle<uint16_t>(out_, static_cast<uint16_t>(value));
    } else if (value <= INT32_MAX) {
      out_ += "J"sv;
      AppendLittle<int32_t>(out_, static_cast<int32_t>(value));
    } else {
      LongInteger(value);
    }
  }
  // As few bytes as leave room for the sign.
  void LongInteger(uint64_t value) {
    std::string bytes;
    AppendLittle<uint64_t>(bytes, value);
    bytes += '\0';
    while (bytes[bytes.size() - 1] == '\0' && !(bytes[bytes.size() - 2] & 0x80)) bytes.pop_back();
    out_ += "\x8a"sv;
    out_ += static_cast<char>(bytes.size());
    out_ += bytes;
  }

  void Tuple(const Dims& values) {
    if (values.empty()) {
      out_ += ")"sv;
      return;
    }
    const bool is_long = values.size() > 3;
    if (is_long) out_ += "("sv;
    for (uint64_t value : values) Integer(value);
    out_ += is_long ? 't' : static_cast<char>(0x84 + values.size());
    Memorise();
  }

  std::string out_ = "\x80\x02";
  uint32_t memo_ = 0;
  size_t keys_ = 0;
  std::map<std::string, uint32_t> shared_;  // opcodes to their place in the memo
};

// Offsets of the data of storages of these sizes.
std::vector<uint64_t> AppendZip(FileLayout& file, std::string_view top, std::string_view pickle,
                                const std::vector<uint64_t>& sizes) {
  ZipLayout zip(file, top);
  zip.Add("data.pkl", pickle);
  zip.Add(".format_version", "1");
  zip.Add(".storage_alignment", "64");
  zip.Add("byteorder", "little");
  std::vector<uint64_t> offsets;
  for (size_t i = 0; i < sizes.size(); ++i) offsets.push_back(zip.AddData(fmt::format("data/{}", i), sizes[i]));
  zip.Add("version", "3\n");
  zip.Add(".data/serialization_id", kSerializationId);
  zip.Finish();
  return offsets;
}

void CheckWritable(const StoredTensor& tensor, const std::string& path) {
  std::string problem;
  if (ItemSize(tensor.dtype) == 0)
    problem = fmt::format("torch stores no {}, expected numbers of whole bytes", Row(tensor.dtype).name);
  if (!IsUtf8(tensor.name)) problem = "a name that is not UTF-8, expected UTF-8";
  if (!problem.empty()) throw Error(Code::kUnsupported, std::move(problem)).At("writing", path).Tensor(tensor.name);
}

uint64_t ByteSize(Dtype dtype, const Dims& shape) { return ElementCount(shape) * ItemSize(dtype); }

// The name without folders and without what stands behind the last dot.
std::string_view StemOf(std::string_view path) {
  path.remove_prefix(path.rfind('/') + 1);
  return path.substr(0, path.rfind('.'));
}

}  // namespace

FileLayout LayOut(std::string path, const std::vector<StoredTensor*>& tensors, uint32_t file,
                  const std::vector<std::string>& nones) {
  PickleWriter writer;
  std::vector<uint64_t> sizes;
  for (const StoredTensor* tensor : tensors) {
    CheckWritable(*tensor, path);
    sizes.push_back(ByteSize(tensor->dtype, tensor->shape));
  }
  writer.Dict(tensors, nones);
  FileLayout layout{std::move(path), 0, {}};
  const auto offsets = AppendZip(layout, StemOf(layout.path), std::move(writer).Finish(), sizes);
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i]->grid = Dims();
    tensors[i]->chunks = {{WholeBox(tensors[i]->shape), RowMajorStrides(tensors[i]->shape), file, offsets[i]}};
  }
  return layout;
}

uint64_t AppendTensor(FileLayout& file, const StoredTensor& tensor, const Dims& shape) {
  CheckWritable(tensor, file.path);
  PickleWriter writer;
  writer.Tensor(tensor.dtype, shape);
  return AppendZip(file, "archive", std::move(writer).Finish(), {ByteSize(tensor.dtype, shape)})[0];
}

}  // namespace reshard::torch_pickle
