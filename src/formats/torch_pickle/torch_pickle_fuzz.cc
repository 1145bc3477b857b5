// A torch file of a built pickle, as a zip or as a stream, damaged where the input says, or any bytes: the reader gives
// tensors that lie within the file, or throws Error and nothing else. The first byte chooses.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "formats/torch_pickle/testutil.h"
#include "formats/torch_pickle/torch_pickle.h"
#include "tests/memory_file.h"

using namespace reshard;
using namespace std::string_literals;

namespace {

std::string BuiltZip(FuzzBytes& in) {
  FileLayout file;
  ZipLayout zip(file, "archive");
  zip.Add("data.pkl", pickle::BuiltPickle(in).Make());
  for (const char* name : {"data/0", "data/1", "data/2"}) zip.Add(name, std::string(in.Choose(200), 'd'));
  zip.Add("version", "3\n");
  zip.Finish();
  std::string bytes = file.literals[0].bytes;
  Damage(bytes, in);
  return bytes;
}

std::string BuiltStream(FuzzBytes& in) {
  std::string bytes = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e\x80\x02M\xe9\x03."s;
  bytes += "\x80\x02}X\x0d\0\0\0little_endian\x88s."s + pickle::BuiltPickle(in).Make();
  bytes +=
      "\x80\x02](X\x01\0\0\0"
      "0X\x01\0\0\0"
      "1e."s;
  for (int i = 0; i < 2; ++i) {
    const size_t elements = in.Choose(100);
    AppendLittle<uint64_t>(bytes, elements);
    bytes.append(2 * elements, 'd');
  }
  Damage(bytes, in);
  return bytes;
}

std::string FileOf(FuzzBytes& in) {
  switch (in.Choose(3)) {
    case 0:
      return in.Rest();
    case 1:
      return BuiltZip(in);
    default:
      return BuiltStream(in);
  }
}

bool LiesWithin(const StoredTensor& tensor, uint64_t size) {
  const Chunk& chunk = tensor.chunks.at(0);
  if (!(chunk.box == WholeBox(tensor.shape)) || chunk.strides.size() != tensor.shape.size()) return false;
  if (ElementCount(tensor.shape) == 0) return true;
  uint64_t last = 0;
  for (size_t axis = 0; axis < tensor.shape.size(); ++axis) last += (tensor.shape[axis] - 1) * chunk.strides[axis];
  const uint64_t item = ItemSize(tensor.dtype);
  return item > 0 && last < size && chunk.offset <= size && (last + 1) * item <= size - chunk.offset;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzBytes in(data, size);
  const std::string bytes = FileOf(in);
  MemoryIo io(bytes);
  std::vector<std::string> ignored;
  try {
    for (const StoredTensor& tensor : torch_pickle::ReadStateDict(io, "input", 0, {1 << 20, 1000}, ignored))
      if (!LiesWithin(tensor, bytes.size())) std::abort();
  } catch (const Error& error) {
    if (error.code() == Code::kInternal) std::abort();
  }
  return 0;
}
