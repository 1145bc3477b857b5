// Writes a torch file for tests that compare it with torch's own: `lay_out_torch OUT`, with a line "name dtype extent
// ..." for each tensor on stdin. The data of tensor i are bytes of value i modulo 256, those of tensor 0 a hole.
#include <cstdio>
#include <iostream>
#include <sstream>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "formats/torch_pickle/torch_pickle.h"

using namespace reshard;

namespace {

std::vector<StoredTensor> ReadTensors(std::istream& lines) {
  std::vector<StoredTensor> tensors;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    StoredTensor& tensor = tensors.emplace_back();
    std::string dtype;
    words >> tensor.name >> dtype;
    tensor.dtype = DtypeFromTorch(dtype).value();
    for (uint64_t extent; words >> extent;) tensor.shape.push_back(extent);
  }
  return tensors;
}

// Fills `size` bytes, and returns their CRC.
uint32_t Fill(File& file, uint64_t offset, uint64_t size, char value) {
  const std::string piece(kMiB, value);
  uint32_t crc = 0;
  for (uint64_t done = 0; done < size; done += piece.size()) {
    const uint64_t count = std::min<uint64_t>(piece.size(), size - done);
    if (value) file.WriteAt(piece.data(), count, offset + done);
    crc = Crc32(piece.data(), count, crc);
  }
  return crc;
}

void Write(const std::string& path, std::vector<StoredTensor> tensors) {
  std::vector<StoredTensor*> pointers;
  for (StoredTensor& tensor : tensors) pointers.push_back(&tensor);
  const FileLayout layout = torch_pickle::LayOut(path, pointers, 0);
  const auto file = PosixIo().OpenWrite(path);
  file->Truncate(0);
  file->Truncate(layout.size);
  for (const Literal& literal : layout.literals)
    file->WriteAt(literal.bytes.data(), literal.bytes.size(), literal.offset);
  size_t next = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (ElementCount(tensors[i].shape) == 0) continue;
    const Checksum& sum = layout.checksums.at(next++);
    const uint32_t crc = Fill(*file, sum.offset, sum.size, static_cast<char>(i));
    for (uint64_t place : sum.places) file->WriteAt(&crc, sizeof crc, place);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    Write(argv[1], ReadTensors(std::cin));
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
