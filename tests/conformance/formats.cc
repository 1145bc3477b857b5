#include "tests/conformance/formats.h"

#include <algorithm>

#include "archive/archive_io.h"
#include "base/bytes.h"
#include "formats/safetensors/safetensors.h"
#include "formats/torch_dist/torch_dist.h"
#include "formats/torch_pickle/torch_pickle.h"
#include "formats/zarr2/zarr2.h"

namespace reshard::conformance {
namespace {

// -- safetensors: a folder of one file --------------------------------------------------------------------------------

constexpr const char* kSafetensors = "model.safetensors";

std::vector<FileLayout> LayOutSafetensors(std::vector<StoredTensor>& tensors) {
  std::vector<StoredTensor*> pointers;
  for (StoredTensor& tensor : tensors) pointers.push_back(&tensor);
  return {safetensors::LayOut(kSafetensors, pointers, 0)};
}

Opened OpenSafetensors(Io& io, const std::string& folder) {
  const std::string path = JoinPath(folder, kSafetensors);
  return {safetensors::ReadFile(io, path, 0, kGiB, UINT64_MAX), {path}};
}

std::vector<Dtype> AllDtypes() {
  std::vector<Dtype> dtypes;
  for (const DtypeRow& row : Dtypes()) dtypes.push_back(row.dtype);
  return dtypes;
}

// -- zarr2: a folder of arrays, each named by its path ----------------------------------------------------------------

// About two chunks along every axis, so that those at the edge are cut where an extent is odd.
Dims HalfOf(const Dims& shape) {
  Dims grid = shape;
  for (size_t axis = 0; axis < shape.size(); ++axis) grid[axis] = std::max<uint64_t>(CeilDiv(shape[axis], 2), 1);
  return grid;
}

std::vector<FileLayout> LayOutZarr2(std::vector<StoredTensor>& tensors) {
  std::vector<FileLayout> files;
  for (StoredTensor& tensor : tensors) zarr2::LayOut(tensor.name, HalfOf(tensor.shape), tensor, files);
  return files;
}

void OpenArrays(Io& io, const std::string& folder, const std::string& name, std::vector<zarr2::ChunkFile>& files,
                std::vector<StoredTensor>& tensors) {
  if (name.ends_with("_extra_state")) return;  // objects that megatron-core keeps among its arrays
  const std::string path = JoinPath(folder, name);
  const std::vector<std::string> entries = io.List(path);
  if (std::find(entries.begin(), entries.end(), ".zarray") != entries.end())
    tensors.push_back(zarr2::ReadArray(io, path, name, files));
  for (const std::string& entry : entries)
    if (io.Stat(JoinPath(path, entry))->type == FileInfo::Type::kDirectory)
      OpenArrays(io, folder, JoinPath(name, entry), files, tensors);
}

Opened OpenZarr2(Io& io, const std::string& folder) {
  std::vector<zarr2::ChunkFile> files;
  Opened opened;
  OpenArrays(io, folder, "", files, opened.tensors);
  for (const zarr2::ChunkFile& file : files) opened.files.push_back(file.path);
  return opened;
}

// -- torch_pickle: a folder of one file, whose tensors lie in the order that they are given in ------------------------

constexpr const char* kTorchPickle = "pytorch_model.bin";

std::vector<FileLayout> LayOutTorchPickle(std::vector<StoredTensor>& tensors) {
  std::vector<StoredTensor*> sorted;
  for (StoredTensor& tensor : tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  return {torch_pickle::LayOut(kTorchPickle, sorted, 0)};
}

Opened OpenTorchPickle(Io& io, const std::string& folder) {
  const std::string path = JoinPath(folder, kTorchPickle);
  std::vector<std::string> ignored;
  return {torch_pickle::ReadStateDict(io, path, 0, {kGiB, UINT64_MAX}, ignored), {path}};
}

std::vector<Dtype> WholeByteDtypes() {
  std::vector<Dtype> dtypes = AllDtypes();
  std::erase_if(dtypes, [](Dtype dtype) { return ItemSize(dtype) == 0; });
  return dtypes;
}

// -- a tar of one safetensors file: an archive keeps what the format within promises
// ------------------------------------

constexpr const char* kTar = "model.nemo";

std::vector<FileLayout> LayOutTar(std::vector<StoredTensor>& tensors) {
  const FileLayout inner = LayOutSafetensors(tensors)[0];
  FileLayout file{kTar, 0, {}};
  TarLayout tar(file);
  tar.AddFolder("");
  const uint64_t begin = tar.AddFile(kSafetensors, inner.size);
  tar.Finish();
  for (Literal literal : inner.literals) file.literals.push_back({begin + literal.offset, std::move(literal.bytes)});
  for (StoredTensor& tensor : tensors)
    for (Chunk& chunk : tensor.chunks) chunk.offset += begin;
  return {file};
}

Opened OpenTar(Io& io, const std::string& folder) {
  const std::string path = JoinPath(folder, kTar);
  const TarLimits limits{100, kMiB};
  const std::unique_ptr<Io> archive = OpenArchive(io, path, {limits, folder, ""});
  if (!archive) return io.OpenRead(path), Opened();  // an error: there is none, or it is a folder
  Opened opened{safetensors::ReadFile(*archive, JoinPath(path, kSafetensors), 0, kGiB, UINT64_MAX), {path}};
  const std::unique_ptr<File> file = io.OpenRead(path);
  for (const TarMember& member : ReadTar(*file, path, file->Info().size, limits))
    if (member.name == kSafetensors)
      for (StoredTensor& tensor : opened.tensors)
        for (Chunk& chunk : tensor.chunks) chunk.offset += member.data.offset;
  return opened;
}

// -- torch_dist: a folder of one checkpoint ---------------------------------------------------------------------------

// In an order of their names: which one, is for who lays out to say.
std::vector<FileLayout> LayOutTorchDist(std::vector<StoredTensor>& tensors) {
  std::vector<StoredTensor*> pointers;
  for (StoredTensor& tensor : tensors) {
    tensor.grid = HalfOf(tensor.shape);
    pointers.push_back(&tensor);
  }
  std::sort(pointers.begin(), pointers.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  std::vector<FileLayout> files;
  torch_dist::LayOut("", pointers, {}, files);
  return files;
}

Opened OpenTorchDist(Io& io, const std::string& folder) {
  torch_dist::Contents contents = torch_dist::Read(io, folder, {kGiB, 1000}, [](std::string_view) { return true; });
  Opened opened{std::move(contents.tensors), {}};
  for (const torch_dist::DataFile& file : contents.files) opened.files.push_back(file.path);
  return opened;
}

// Those of which torch has whole bytes.
std::vector<Dtype> TorchDtypes() {
  std::vector<Dtype> dtypes;
  for (const DtypeRow& row : Dtypes())
    if (!row.torch.empty() && row.bits % 8 == 0) dtypes.push_back(row.dtype);
  return dtypes;
}

}  // namespace

std::span<const Format> Formats() {
  static const Format kFormats[] = {
      {"safetensors", AllDtypes(), true, false, true, LayOutSafetensors, OpenSafetensors, "tied-shared-fp32-zarr/hf",
       "model.norm.weight"},
      {"zarr2",
       {Dtype::kF16, Dtype::kBF16, Dtype::kF32},
       false,
       false,
       true,
       LayOutZarr2,
       OpenZarr2,
       "tied-shared-fp32-zarr/nemo/model_weights",
       "model.decoder.final_layernorm.weight"},
      {"safetensors_in_tar", AllDtypes(), true, true, true, LayOutTar, OpenTar, "packed", "model.norm.weight"},
      {"torch_dist", TorchDtypes(), true, false, false, LayOutTorchDist, OpenTorchDist, "tied-shared-fp32-zarr/dcp",
       "model.norm.weight"},
      {"torch_pickle", WholeByteDtypes(), true, false, true, LayOutTorchPickle, OpenTorchPickle, "pickled",
       "model.norm.weight"},
  };
  return kFormats;
}

}  // namespace reshard::conformance
