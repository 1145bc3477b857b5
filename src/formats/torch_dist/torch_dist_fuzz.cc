// Any bytes as a .metadata: boxes that fill their tensors, and the same again from the text we write of them; or Error
// and nothing else. Bytes that begin with '!' are no pickle but numbers, of which a Metadata is made that is odd in
// every way that its fields allow: a fuzzer that flips the bytes of a pickle seldom comes that far.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/error.h"
#include "formats/torch_dist/metadata.h"

using namespace reshard;
using namespace reshard::torch_dist;

namespace {

constexpr uint64_t kMaxCells = 200;

bool All(std::string_view) { return true; }

// Numbers from the front of the input; zeros behind its end.
class Numbers {
 public:
  explicit Numbers(std::string_view bytes) : bytes_(bytes) {}

  bool ended() const { return bytes_.empty(); }

  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const uint8_t byte = static_cast<uint8_t>(bytes_[0]);
    bytes_.remove_prefix(1);
    return byte;
  }
  uint64_t Below(uint64_t limit) { return Byte() % limit; }

  // Mostly small, sometimes at an edge of what 64 bits hold.
  uint64_t Extent() {
    const uint8_t byte = Byte();
    constexpr uint64_t kEdges[] = {uint64_t{1} << 31, uint64_t{1} << 32, uint64_t{1} << 62, INT64_MAX};
    return byte < 240 ? byte % 12 : kEdges[byte % 4];
  }
  Dims Extents(size_t axes) {
    Dims dims;
    while (dims.size() < axes) dims.push_back(Extent());
    return dims;
  }

 private:
  std::string_view bytes_;
};

Tensor TensorOf(Numbers& numbers) {
  Tensor tensor;
  tensor.stored.name = "tensor." + std::to_string(numbers.Below(8));
  do {
    tensor.stored.dtype = static_cast<Dtype>(numbers.Below(Dtypes().size()));
  } while (Row(tensor.stored.dtype).torch.empty() && !numbers.ended());
  const size_t axes = numbers.Below(Dims::kMaxAxes + 1);
  tensor.stored.shape = numbers.Extents(axes);
  // Cells of a grid, of which some may be left out, or boxes of any kind, or both.
  Dims grid = numbers.Extents(axes);
  for (size_t axis = 0; axis < axes; ++axis) grid[axis] = std::max<uint64_t>(grid[axis], 1);
  const Dims counts = CellCounts(tensor.stored.shape, grid);
  uint64_t cells = 1;
  for (uint64_t count : counts) cells = CheckedMultiply(cells, count).value_or(UINT64_MAX);
  const uint64_t left_out = numbers.Below(256);
  if (cells <= kMaxCells)
    ForEachCell(counts, [&](const Dims& cell) {
      if (tensor.stored.chunks.size() == left_out) return;
      tensor.stored.chunks.push_back({CellBox(cell, tensor.stored.shape, grid), {}, 0, 0});
    });
  for (uint64_t more = numbers.Below(4); more > 0; --more)
    tensor.stored.chunks.push_back({{numbers.Extents(axes), numbers.Extents(axes)}, {}, 0, 0});
  for (Chunk& chunk : tensor.stored.chunks) {
    chunk.file = static_cast<uint32_t>(numbers.Below(2));
    tensor.items.push_back({numbers.Extent(), numbers.Extent()});
  }
  return tensor;
}

std::string OddMetadata(std::string_view bytes) {
  Numbers numbers(bytes);
  Metadata metadata;
  metadata.files = {"__0_0.distcp", numbers.Below(8) ? "a/b" : "../c"};
  while (!numbers.ended() && metadata.tensors.size() < 50) metadata.tensors.push_back(TensorOf(numbers));
  for (uint64_t objects = numbers.Below(3); objects > 0; --objects)
    metadata.objects.push_back({"object", 0, {numbers.Extent(), numbers.Extent()}});
  return MetadataText(metadata);
}

bool IsFilled(const StoredTensor& tensor) {
  uint64_t elements = 0;
  for (const Chunk& chunk : tensor.chunks) {
    if (chunk.box.origin.size() != tensor.shape.size() || chunk.box.shape.size() != tensor.shape.size()) return false;
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis)
      if (chunk.box.end(axis) > tensor.shape[axis] || chunk.box.end(axis) < chunk.box.origin[axis]) return false;
    elements += ElementCount(chunk.box.shape);
  }
  return elements == ElementCount(tensor.shape);
}

bool IsEqual(const Metadata& a, const Metadata& b) {
  if (a.tensors.size() != b.tensors.size() || a.objects.size() != b.objects.size()) return false;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const StoredTensor &x = a.tensors[i].stored, &y = b.tensors[i].stored;
    if (x.name != y.name || x.dtype != y.dtype || !(x.shape == y.shape) || !(x.grid == y.grid)) return false;
    if (x.chunks.size() != y.chunks.size()) return false;
    for (size_t j = 0; j < x.chunks.size(); ++j) {
      const ByteRange &p = a.tensors[i].items[j], &q = b.tensors[i].items[j];
      if (!(x.chunks[j].box == y.chunks[j].box) || p.offset != q.offset || p.size != q.size) return false;
      if (a.files[x.chunks[j].file] != b.files[y.chunks[j].file]) return false;
    }
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const torch_pickle::Limits limits{16 * kMiB, 10000};
  try {
    const Metadata metadata = bytes.starts_with('!') ? ParseMetadata(OddMetadata(bytes.substr(1)), "input", limits, All)
                                                     : ParseMetadata(bytes, "input", limits, All);
    for (const Tensor& tensor : metadata.tensors)
      if (!IsFilled(tensor.stored)) std::abort();
    Metadata again = metadata;  // objects lie nowhere in what is read
    if (again.files.empty()) again.files.push_back("x");
    if (!IsEqual(metadata, ParseMetadata(MetadataText(again), "output", limits, All))) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
