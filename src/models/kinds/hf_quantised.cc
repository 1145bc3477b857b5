#include "models/kinds/hf_quantised.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/bytes.h"
#include "base/error.h"
#include "models/kinds/config_reader.h"
#include "models/storage.h"

namespace reshard {
namespace {

constexpr std::string_view kKey = "quantization_config";
constexpr std::string_view kGptq = "gptq", kFbgemm = "fbgemm_fp8";
constexpr std::string_view kCodes = ".qweight", kZeros = ".qzeros", kScales = ".scales", kGroups = ".g_idx";
constexpr std::string_view kWeight = ".weight", kFp8Scale = ".weight_scale", kFp8Bound = ".input_scale_ub";
constexpr std::string_view kBias = ".bias";
constexpr uint64_t kGptqBits = 4, kColumnsAWord = 8;

std::string MethodOf(const Json& config) {
  if (!config.is_object() || !config.contains(kKey) || !config[std::string(kKey)].is_object()) return "";
  const Json& method = config[std::string(kKey)].value("quant_method", Json());
  return method.is_string() ? method.get<std::string>() : "";
}

std::string Stem(std::string_view name, std::string_view ending) {
  return std::string(name.substr(0, name.size() - ending.size()));
}

// The same tensor with its two axes the other way round.
StoredTensor Transposed(StoredTensor tensor) {
  auto swap = [](Dims& dims) { std::swap(dims[0], dims[1]); };
  swap(tensor.shape);
  for (Chunk& chunk : tensor.chunks)
    for (Dims* dims : {&chunk.box.origin, &chunk.box.shape, &chunk.strides}) swap(*dims);
  return tensor;
}

class Finder {
 public:
  Finder(Io& io, const OpenOptions& options, Checkpoint& checkpoint)
      : io_(io), options_(options), checkpoint_(checkpoint), method_(MethodOf(checkpoint.config)) {
    std::sort(checkpoint_.tensors.begin(), checkpoint_.tensors.end(),
              [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  }

  void Find() {
    const std::vector<std::string> codes = StemsOf(kCodes, Dtype::kI32), fp8 = StemsOf(kWeight, Dtype::kF8E4M3);
    if (!codes.empty()) FindGptq(codes);
    if (!fp8.empty() && method_ == kFbgemm) FindFp8(fp8);
    if (codes.empty() && method_ == kGptq) Disagree("gptq", kCodes);
    if (fp8.empty() && method_ == kFbgemm) Disagree("fbgemm_fp8", kFp8Scale);
    std::sort(checkpoint_.quantised.tensors.begin(), checkpoint_.quantised.tensors.end(),
              [](const EncodedTensor& a, const EncodedTensor& b) { return a.name < b.name; });
    std::erase_if(checkpoint_.tensors, [&](const StoredTensor& tensor) {
      return ignored_.count(tensor.name) > 0 || implied_.count(tensor.name) > 0;
    });
    checkpoint_.ignored.insert(checkpoint_.ignored.end(), ignored_.begin(), ignored_.end());
  }

 private:
  [[noreturn]] void Disagree(std::string_view method, std::string_view ending) {
    throw Error(Code::kMismatch, fmt::format("quantization_config says {} and no tensor is called '...{}', expected "
                                             "both or neither",
                                             method, ending))
        .At("reading", checkpoint_.config_path);
  }

  // Of the tensors that end so, in order.
  std::vector<std::string> StemsOf(std::string_view ending, Dtype dtype) const {
    std::vector<std::string> stems;
    for (const StoredTensor& tensor : checkpoint_.tensors)
      if (tensor.name.ends_with(ending) && tensor.dtype == dtype) stems.push_back(Stem(tensor.name, ending));
    return stems;
  }

  const StoredTensor& Get(const std::string& name, size_t axes) const {
    const StoredTensor* tensor = FindTensor(checkpoint_, 0, name);
    if (!tensor)
      throw Error(Code::kMismatch, "it is missing, expected it beside the quantised weight")
          .At("reading", checkpoint_.folder)
          .Tensor(name);
    if (tensor->shape.size() != axes || ElementCount(tensor->shape) == 0)
      throw Error(Code::kMismatch, fmt::format("shape {}, expected {} axes", ToString(tensor->shape), axes))
          .At("reading", checkpoint_.folder)
          .Tensor(name);
    return *tensor;
  }

  // -- GPTQ -----------------------------------------------------------------------------------------------------------

  void FindGptq(const std::vector<std::string>& stems) {
    QuantisedWeights& quantised = checkpoint_.quantised;
    quantised.what = "GPTQ int4";
    quantised.remedy = "--to=trtllm --weight_only_precision=int4_gptq takes them";
    quantised.encoded = {Encoding::kGptq, GroupOf(stems[0])};
    CheckGptqConfig();
    for (const std::string& stem : stems) {
      if (uint64_t group = GroupOf(stem); group != quantised.encoded.group)
        throw Error(Code::kUnsupported, fmt::format("groups of {} columns, expected {} as in '{}{}'", group,
                                                    quantised.encoded.group, stems[0], kScales))
            .At("reading", checkpoint_.folder)
            .Tensor(stem + std::string(kScales));
      CheckGroups(stem);
      EncodedTensor tensor{stem + std::string(kWeight), {}};
      for (std::string_view ending : {kCodes, kZeros, kScales})
        tensor.stored.push_back(Transposed(Get(stem + std::string(ending), 2)));
      quantised.tensors.push_back(std::move(tensor));
    }
    IgnoreBiases(stems);
  }

  // Columns of a group, by the shapes.
  uint64_t GroupOf(const std::string& stem) const {
    const uint64_t columns = Get(stem + std::string(kCodes), 2).shape[0] * kColumnsAWord;
    const uint64_t groups = Get(stem + std::string(kScales), 2).shape[0];
    if (columns % groups != 0 || columns / groups % kColumnsAWord != 0)
      throw Error(Code::kMismatch, fmt::format("{} groups of {} columns, expected groups of a multiple of {}", groups,
                                               columns, kColumnsAWord))
          .At("reading", checkpoint_.folder)
          .Tensor(stem + std::string(kScales));
    return columns / groups;
  }

  // What older files say in a file of their own.
  void CheckGptqConfig() {
    if (method_ == kGptq) return CheckGptqConfig(checkpoint_.config[std::string(kKey)], checkpoint_.config_path);
    const std::string path = JoinPath(ParentOf(checkpoint_.files[0].path), "quantize_config.json");
    if (io_.Stat(path)) CheckGptqConfig(ParseJson(ReadTreeText(io_, path, options_), path), path);
  }

  void CheckGptqConfig(const Json& config, const std::string& path) const {
    if (!config.is_object()) throw Error(Code::kCorrupt, "no object at the top, expected one").At("reading", path);
    const ConfigReader reader(config, path);
    auto refuse = [&](Code code, std::string message) { throw Error(code, std::move(message)).At("reading", path); };
    if (uint64_t bits = reader.Size("bits", kGptqBits); bits != kGptqBits)
      refuse(Code::kUnsupported, fmt::format("GPTQ of {} bits, expected {}", bits, kGptqBits));
    if (reader.Bool("desc_act", false))
      refuse(Code::kUnsupported,
             "GPTQ with columns in the order of their activations (desc_act), expected them in their own order: the "
             "kernels of TensorRT-LLM have no place for another; use a checkpoint made without desc_act");
    if (std::string format = reader.String("checkpoint_format", "gptq"); format != "gptq")
      refuse(Code::kUnsupported, fmt::format("GPTQ in the format '{}', expected 'gptq'", format));
    const Json group = reader.Number("group_size", nullptr);
    if (!group.is_null() && group != checkpoint_.quantised.encoded.group)
      refuse(Code::kMismatch, fmt::format("group_size {}, expected {} as the tensors have", group.dump(),
                                          checkpoint_.quantised.encoded.group));
  }

  // Column k must belong to group k / group: then the tensor that says so is not needed.
  void CheckGroups(const std::string& stem) {
    const std::string name = stem + std::string(kGroups);
    if (!FindTensor(checkpoint_, 0, name)) return;
    const StoredTensor& tensor = Get(name, 1);
    const uint64_t columns = Get(stem + std::string(kCodes), 2).shape[0] * kColumnsAWord;
    if (tensor.dtype != Dtype::kI32 || tensor.shape[0] != columns)
      throw Error(Code::kMismatch,
                  fmt::format("{} {}, expected I32 [{}]", Row(tensor.dtype).name, ToString(tensor.shape), columns))
          .At("reading", checkpoint_.files[tensor.chunks[0].file].path)
          .Tensor(name);
    const std::string bytes = Read(tensor);
    const uint64_t group = checkpoint_.quantised.encoded.group;
    for (uint64_t k = 0; k < tensor.shape[0]; ++k) {
      const uint32_t found = LoadLittle<uint32_t>(bytes.data() + k * sizeof(uint32_t));
      if (found != k / group)
        throw Error(Code::kUnsupported,
                    fmt::format("column {} is in group {}, expected {}: GPTQ with columns in another order (desc_act) "
                                "is not read; use a checkpoint made without it",
                                k, found, k / group))
            .At("reading", checkpoint_.files[tensor.chunks[0].file].path)
            .Tensor(name);
    }
    implied_.insert(name);
  }

  // Some writers give every quantised layer a bias, zero where the model has none.
  void IgnoreBiases(const std::vector<std::string>& stems) {
    const std::set<std::string> known = NamesOfModel();
    for (const std::string& stem : stems) {
      const std::string name = stem + std::string(kBias);
      const StoredTensor* bias = FindTensor(checkpoint_, 0, name);
      if (!bias || known.count(name)) continue;
      if (!IsZero(*bias))
        throw Error(Code::kMismatch, "a bias that the config knows nothing of and that is not zero, expected none")
            .At("reading", checkpoint_.folder)
            .Tensor(name);
      ignored_.insert(name);
    }
  }

  // Of either sign.
  bool IsZero(const StoredTensor& tensor) {
    const std::string bytes = Read(tensor);
    const uint64_t item = ItemSize(tensor.dtype);
    for (uint64_t i = 0; i < bytes.size(); ++i) {
      const unsigned byte = static_cast<unsigned char>(bytes[i]);
      if ((i % item == item - 1 ? byte & 0x7f : byte) != 0) return false;
    }
    return true;
  }

  std::set<std::string> NamesOfModel() const {
    auto any = [](const TensorSpec&) { return true; };
    const auto layouts =
        ChooseLayouts(checkpoint_.model, checkpoint_.ranks[0], kHuggingFace.layouts, kHuggingFace.name, any);
    std::set<std::string> names;
    for (TensorSpec& spec : TensorsOf(checkpoint_.model, checkpoint_.ranks, layouts))
      names.insert(std::move(spec.name));
    return names;
  }

  // The bytes of a small tensor.
  std::string Read(const StoredTensor& tensor) {
    const uint64_t size = ElementCount(tensor.shape) * ItemSize(tensor.dtype);
    if (size > kMaxTreeBytes)
      throw Error(Code::kUnsupported, fmt::format("{} bytes, expected at most {}", size, kMaxTreeBytes))
          .At("reading", checkpoint_.folder)
          .Tensor(tensor.name);
    std::string bytes(size, '\0');
    io_.OpenRead(checkpoint_.files[tensor.chunks[0].file].path)->ReadAt(bytes.data(), size, tensor.chunks[0].offset);
    return bytes;
  }

  // -- FP8 ------------------------------------------------------------------------------------------------------------

  void FindFp8(const std::vector<std::string>& stems) {
    QuantisedWeights& quantised = checkpoint_.quantised;
    quantised.what = "FP8 with a scale a row (fbgemm_fp8)";
    quantised.remedy = "--to=trtllm takes them as they are, without another quantisation";
    quantised.encoded = {Encoding::kFp8Rows, 0};
    const ConfigReader reader(checkpoint_.config[std::string(kKey)], checkpoint_.config_path);
    quantised.fp8_bound = reader.Positive("activation_scale_ub", 1200.0).get<double>();
    for (const std::string& stem : stems) {
      const std::string weight = stem + std::string(kWeight);
      EncodedTensor tensor{weight, {Get(weight, 2), Get(stem + std::string(kFp8Scale), 2)}};
      if (const std::string bound = stem + std::string(kFp8Bound); FindTensor(checkpoint_, 0, bound))
        ignored_.insert(bound);
      quantised.tensors.push_back(std::move(tensor));
    }
  }

  Io& io_;
  const OpenOptions& options_;
  Checkpoint& checkpoint_;
  const std::string method_;
  std::set<std::string> implied_;  // by what else is there
  std::set<std::string> ignored_;
};

}  // namespace

Json WithoutQuantisation(Json config) {
  const std::string method = MethodOf(config);
  if (method == kGptq || method == kFbgemm) config.erase(std::string(kKey));
  return config;
}

void FindQuantised(Io& io, const OpenOptions& options, Checkpoint& checkpoint) {
  Finder(io, options, checkpoint).Find();
}

}  // namespace reshard
