#include "formats/zarr2/zarr2.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "base/json.h"

namespace reshard::zarr2 {
namespace {

constexpr uint64_t kMaxHeaderBytes = kMiB;

// Byte counts above are no file's, and leave room to add.
constexpr uint64_t kMaxBytes = uint64_t{1} << 62;

Error Corrupt(std::string message) { return Error(Code::kCorrupt, std::move(message)); }
Error Unsupported(std::string message) { return Error(Code::kUnsupported, std::move(message)); }

const Json& Field(const Json& header, const char* name) {
  auto found = header.find(name);
  if (found == header.end()) throw Corrupt(fmt::format("no field '{}', expected one", name));
  return *found;
}

Dims Extents(const Json& header, const char* name, uint64_t least) {
  const Json& field = Field(header, name);
  if (!field.is_array()) throw Corrupt(fmt::format("field '{}' is no list, expected a list of integers", name));
  if (field.size() > Dims::kMaxAxes)
    throw Unsupported(fmt::format("field '{}' has {} axes, expected at most {}", name, field.size(), Dims::kMaxAxes));
  Dims extents;
  for (const Json& extent : field) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() < least)
      throw Corrupt(fmt::format("field '{}' holds {}, expected integers of at least {}", name, extent.dump(), least));
    extents.push_back(extent.get<uint64_t>());
  }
  return extents;
}

Dtype ParseDtype(const Json& header) {
  const Json& field = Field(header, "dtype");
  if (field == "<V2" || field == "|V2") return Dtype::kBF16;  // as zarr-python, which has no bfloat16, calls two bytes
  for (const DtypeRow& row : Dtypes())
    if (!row.zarr.empty() && field == row.zarr) return row.dtype;
  throw Unsupported(fmt::format("dtype {}, expected bfloat16, <V2, |V2, <f2 or <f4", field.dump()));
}

char ParseSeparator(const Json& header) {
  auto field = header.find("dimension_separator");
  if (field == header.end() || *field == ".") return '.';
  if (*field == "/") return '/';
  throw Corrupt(fmt::format("dimension_separator {}, expected \".\" or \"/\"", field->dump()));
}

void CheckEncoding(const Json& header) {
  const Json& version = Field(header, "zarr_format");
  if (version != 2) throw Unsupported(fmt::format("zarr_format {}, expected 2", version.dump()));
  const Json& order = Field(header, "order");
  if (order == "F") throw Unsupported("order \"F\" (column-major), expected \"C\"");
  if (order != "C") throw Corrupt(fmt::format("order {}, expected \"C\"", order.dump()));
  for (const char* name : {"compressor", "filters"}) {
    const Json& field = Field(header, name);
    if (!field.is_null()) throw Unsupported(fmt::format("{} {}, expected null", name, field.dump()));
  }
  const Json& fill = Field(header, "fill_value");
  if (!fill.is_null() && !fill.is_number())
    throw Corrupt(fmt::format("fill_value {}, expected null or a number", fill.dump()));
}

void CheckBytes(const char* name, const Dims& extents, Dtype dtype) {
  uint64_t bytes = ItemSize(dtype);
  for (uint64_t extent : extents) {
    if (extent == 0) return;
    bytes = CheckedMultiply(bytes, extent).value_or(UINT64_MAX);
    if (bytes > kMaxBytes)
      throw Corrupt(fmt::format("{} {}: more than 2^62 bytes, expected less", name, ToString(extents)));
  }
}

Header HeaderOf(const Json& json) {
  if (!json.is_object()) throw Corrupt("the header is no JSON object, expected one");
  CheckEncoding(json);
  Header header{ParseDtype(json), Extents(json, "shape", 0), Extents(json, "chunks", 1), ParseSeparator(json)};
  if (header.shape.size() != header.chunks.size())
    throw Corrupt(fmt::format("chunks {}, expected as many axes as in shape {}", ToString(header.chunks),
                              ToString(header.shape)));
  CheckBytes("shape", header.shape, header.dtype);
  CheckBytes("chunks", header.chunks, header.dtype);
  return header;
}

std::string ChunkName(const Dims& cell, char separator) {
  if (cell.empty()) return "0";  // the one chunk of a scalar
  std::string name;
  for (uint64_t index : cell) {
    if (!name.empty()) name += separator;
    name += std::to_string(index);
  }
  return name;
}

// Whether `name` is that of a cell of the grid.
bool IsChunkName(std::string_view name, const Dims& counts, char separator) {
  Dims cell;
  for (std::string_view rest = name; !rest.empty() && cell.size() < counts.size();) {
    uint64_t index = 0;
    auto [stop, error] = std::from_chars(rest.data(), rest.data() + rest.size(), index);
    if (error != std::errc() || index >= counts[cell.size()]) return false;
    cell.push_back(index);
    size_t used = stop - rest.data();
    rest.remove_prefix(std::min(used + 1, rest.size()));
  }
  return cell.size() == counts.size() && ChunkName(cell, separator) == name;
}

// The names below folder `path` with as many components as a chunk's name has, sorted.
std::vector<std::string> ListNames(Io& io, const std::string& path, size_t components) {
  std::vector<std::string> names = io.List(path);
  if (components <= 1) return names;
  std::vector<std::string> deeper;
  for (const std::string& name : names) {
    if (name.find_first_not_of("0123456789") != name.npos) continue;
    std::string folder = JoinPath(path, name);
    std::optional<FileInfo> info = io.Stat(folder);
    if (!info || info->type != FileInfo::Type::kDirectory) continue;
    for (const std::string& rest : ListNames(io, folder, components - 1)) deeper.push_back(name + "/" + rest);
  }
  std::sort(deeper.begin(), deeper.end());
  return deeper;
}

// Costs no more than the folder has entries, however many cells the header claims.
void CheckAllPresent(Io& io, const std::string& path, const Header& header, const Dims& counts) {
  size_t components = header.separator == '/' ? counts.size() : 1;
  std::vector<std::string> names = ListNames(io, path, components);
  std::erase_if(names, [&](const std::string& name) { return !IsChunkName(name, counts, header.separator); });
  uint64_t cells = ElementCount(counts);
  if (names.size() == cells) return;

  Dims cell = Dims::Filled(counts.size(), 0);
  while (std::binary_search(names.begin(), names.end(), ChunkName(cell, header.separator))) NextCell(counts, cell);
  throw Corrupt(fmt::format("{} of {} chunk files are missing, expected all; the first is {}", cells - names.size(),
                            cells, ChunkName(cell, header.separator)));
}

ChunkFile WholeChunkFile(Io& io, const std::string& path, uint64_t size) {
  std::optional<FileInfo> info = io.Stat(path);
  if (!info || info->type != FileInfo::Type::kFile)
    throw Corrupt("no regular file, expected a chunk").At("reading", path);
  if (info->size != size)
    throw Corrupt(fmt::format("{} bytes, expected {} (a whole chunk){}", info->size, size,
                              info->size < size ? "; the file may be cut off" : ""))
        .At("reading", path);
  return {path, size};
}

// The chunk in a cell: its file holds a whole chunk, of which an edge chunk uses the part inside the array.
Chunk ChunkAt(const Dims& cell, const Dims& shape, const Dims& grid, size_t file) {
  Chunk chunk;
  chunk.box = CellBox(cell, shape, grid);
  chunk.strides = RowMajorStrides(grid);
  chunk.file = static_cast<uint32_t>(file);
  return chunk;
}

uint64_t ChunkBytes(const Dims& grid, Dtype dtype) { return ElementCount(grid) * ItemSize(dtype); }

// Refuses what a reader of .zarray would not know, and folders that are not where they seem to be.
void CheckWritable(const std::string& path, const StoredTensor& tensor) {
  std::string problem;
  if (Row(tensor.dtype).zarr.empty()) problem = fmt::format("{}, expected BF16, F16 or F32", Row(tensor.dtype).name);
  const std::string slashed = path.empty() ? "" : "/" + path + "/";
  for (std::string_view odd : {"//", "/./", "/../"})
    if (slashed.find(odd) != slashed.npos)
      problem = fmt::format("a folder with \"{}\", expected names and single slashes", odd);
  if (path.find('\0') != path.npos) problem = "a folder with a zero byte, expected none";
  if (!problem.empty()) throw Unsupported(std::move(problem)).At("writing", path).Tensor(tensor.name);
}

}  // namespace

Header ParseHeader(std::string_view text, const std::string& path) {
  Json json = ParseJson(text, path);
  try {
    return HeaderOf(json);
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

std::string HeaderText(const Header& header) {
  auto list = [](const Dims& dims) { return Json(std::vector<uint64_t>(dims.begin(), dims.end())); };
  Json json;
  json["chunks"] = list(header.chunks);
  json["compressor"] = nullptr;
  if (header.separator != '.') json["dimension_separator"] = std::string(1, header.separator);
  json["dtype"] = Row(header.dtype).zarr;
  json["fill_value"] = nullptr;
  json["filters"] = nullptr;
  json["order"] = "C";
  json["shape"] = list(header.shape);
  json["zarr_format"] = 2;
  return json.dump(4);
}

StoredTensor ReadArray(Io& io, const std::string& path, std::string name, std::vector<ChunkFile>& files) {
  try {
    std::string header_path = JoinPath(path, ".zarray");
    Header header = ParseHeader(ReadWholeFile(io, header_path, kMaxHeaderBytes), header_path);
    Dims counts = CellCounts(header.shape, header.chunks);
    CheckAllPresent(io, path, header, counts);

    StoredTensor tensor{name, header.dtype, header.shape, header.chunks, {}};
    uint64_t bytes = ChunkBytes(header.chunks, header.dtype);
    ForEachCell(counts, [&](const Dims& cell) {
      tensor.chunks.push_back(ChunkAt(cell, header.shape, header.chunks, files.size()));
      files.push_back(WholeChunkFile(io, JoinPath(path, ChunkName(cell, header.separator)), bytes));
    });
    return tensor;
  } catch (Error& error) {
    error.At("reading", path).Tensor(name);
    throw;
  }
}

void LayOut(const std::string& path, const Dims& grid, StoredTensor& tensor, std::vector<FileLayout>& files) {
  CheckWritable(path, tensor);
  files.push_back(LiteralFile(JoinPath(path, ".zarray"), HeaderText({tensor.dtype, tensor.shape, grid})));
  tensor.grid = grid;
  tensor.chunks.clear();
  ForEachCell(CellCounts(tensor.shape, grid), [&](const Dims& cell) {
    tensor.chunks.push_back(ChunkAt(cell, tensor.shape, grid, files.size()));
    files.push_back({JoinPath(path, ChunkName(cell, '.')), ChunkBytes(grid, tensor.dtype), {}});
  });
}

}  // namespace reshard::zarr2
