// Which element is where is told by formulas for the tensors of transformers and of megatron-core, not by the tables.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "base/error.h"
#include "models/families/families.h"
#include "plan/pair_up.h"
#include "tensor/testutil.h"

namespace reshard {

extern const Family kLlama, kQwen3;

namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr uint64_t kHidden = 4, kHeads = 6, kGroups = 3, kHeadSize = 2, kFfn = 5;
constexpr uint64_t kQueries = kHeads / kGroups * kHeadSize;  // rows of q in a query group

Model ModelOf(const Family& family, std::vector<std::string_view> flags = {}) {
  Model model;
  model.family = &family;
  for (auto [letter, size] : {std::pair{'H', kHidden}, {'A', kHeads}, {'G', kGroups}, {'D', kHeadSize}, {'F', kFfn}})
    model.sizes[letter] = size;
  model.sizes['V'] = 7;
  model.sizes['L'] = 2;
  model.layers.assign(2, LayerKind::kDense);
  model.flags = std::move(flags);
  return model;
}

uint64_t FileOffset(uint32_t file) { return 3 * file + 5; }

// Each tensor as the rows of its first axis, a file each, or whole in one file.
std::vector<Chunk> ChunksOf(const Dims& shape, bool by_rows, uint32_t first_file) {
  std::vector<Chunk> chunks;
  for (uint64_t row = 0; row < (by_rows ? shape[0] : 1); ++row) {
    Box box = WholeBox(shape);
    box.origin[0] = row;
    if (by_rows) box.shape[0] = 1;
    const uint32_t file = first_file + static_cast<uint32_t>(row);
    chunks.push_back({box, RowMajorStrides(shape), file, FileOffset(file)});
  }
  return chunks;
}

// A checkpoint as OpenCheckpoint gives it. A tied model stores its head too where `stores_head` says so.
Checkpoint CheckpointOf(const Kind& kind, const Model& model, bool stores_head = true, Dtype dtype = Dtype::kBF16) {
  const bool nemo = kind.name == "nemo";
  Checkpoint checkpoint;
  checkpoint.folder = "the_folder";
  checkpoint.kind = kind.name;
  checkpoint.name_prefix = kind.name_prefix;
  checkpoint.model = model;
  checkpoint.ranks = {{{0, model.sizes['L']}, {0, 0}, model.sizes['V'], stores_head, nemo}};
  checkpoint.layouts = ChooseLayouts(model, checkpoint.ranks[0], kind.layouts, kind.name, [](auto&) { return true; });
  uint32_t files = 0;
  for (const TensorSpec& spec : TensorsOf(model, checkpoint.ranks, checkpoint.layouts)) {
    StoredTensor tensor{spec.name, dtype, spec.shape, {}, ChunksOf(spec.shape, nemo, files)};
    if (nemo) (tensor.grid = spec.shape)[0] = 1;
    files += static_cast<uint32_t>(tensor.chunks.size());
    checkpoint.tensors.push_back(std::move(tensor));
  }
  std::sort(checkpoint.tensors.begin(), checkpoint.tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  return checkpoint;
}

// -- what an element of a tensor is -----------------------------------------------------------------------------------

struct Element {
  std::string part;
  Dims index;
};

constexpr std::pair<std::string_view, std::string_view> kHfNames[] = {
    {"self_attn.q_proj", "q"},
    {"self_attn.k_proj", "k"},
    {"self_attn.v_proj", "v"},
    {"self_attn.o_proj", "o"},
    {"mlp.gate_proj", "gate"},
    {"mlp.up_proj", "up"},
    {"mlp.down_proj", "down"},
    {"self_attn.q_norm", "q_norm"},
    {"self_attn.k_norm", "k_norm"},
    {"input_layernorm", "attn_norm"},
    {"post_attention_layernorm", "mlp_norm"},
};

Element HfElement(std::string_view name, const Dims& index) {
  if (name == "model.embed_tokens.weight") return {"embed", index};
  if (name == "lm_head.weight") return {"head", index};
  if (name == "model.norm.weight") return {"final_norm", index};
  for (auto [module, role] : kHfNames)
    for (auto [field, suffix] : {std::pair{"weight", ""}, {"bias", "_bias"}})
      for (int layer = 0; layer < 3; ++layer)
        if (name == fmt::format("model.layers.{}.{}.{}", layer, module, field))
          return {fmt::format("{}{}, layer {}", role, suffix, layer), index};
  return {"unknown", index};
}

// Row `row` of a fused QKV: in each query group the rows of its heads' q, then of k, then of v.
std::pair<std::string, uint64_t> OfFusedQkv(uint64_t row) {
  constexpr uint64_t kRows = kQueries + 2 * kHeadSize;
  const uint64_t group = row / kRows, within = row % kRows;
  if (within < kQueries) return {"q", group * kQueries + within};
  if (within < kQueries + kHeadSize) return {"k", group * kHeadSize + within - kQueries};
  return {"v", group * kHeadSize + within - kQueries - kHeadSize};
}

Element NemoElement(std::string_view name, const Dims& index) {
  if (name == "model.embedding.word_embeddings.weight") return {"embed", index};
  if (name == "model.output_layer.weight") return {"head", index};
  if (name == "model.decoder.final_layernorm.weight") return {"final_norm", index};
  Dims rest;
  for (size_t axis = 1; axis < index.size(); ++axis) rest.push_back(index[axis]);
  const bool bias = name.ends_with(".bias");
  auto element = [&](std::string role, uint64_t row) {
    rest[0] = row;
    return Element{fmt::format("{}{}, layer {}", role, bias ? "_bias" : "", index[0]), rest};
  };
  if (name.find("layer_norm_weight") != name.npos)
    return element(name.find("qkv") != name.npos ? "attn_norm" : "mlp_norm", rest[0]);
  if (name.find("linear_qkv") != name.npos) {
    auto [role, row] = OfFusedQkv(rest[0]);
    return element(role, row);
  }
  if (name.find("linear_fc1") != name.npos) return element(rest[0] < kFfn ? "gate" : "up", rest[0] % kFfn);
  for (auto [module, role] :
       {std::pair{"linear_proj", "o"}, {"linear_fc2", "down"}, {"q_layernorm", "q_norm"}, {"k_layernorm", "k_norm"}})
    if (name.find(module) != name.npos) return element(role, rest[0]);
  return {"unknown", index};
}

// -- walking ----------------------------------------------------------------------------------------------------------

// The elements of a checkpoint, by file and byte.
using Places = std::map<std::pair<uint32_t, uint64_t>, Element>;

Places PlacesOf(const Checkpoint& checkpoint) {
  const bool nemo = checkpoint.kind == "nemo";
  Places places;
  for (const StoredTensor& tensor : checkpoint.tensors)
    for (const Chunk& chunk : tensor.chunks)
      ForEachIndex(chunk.box.shape, [&](Dims index) {
        uint64_t at = 0;
        for (size_t axis = 0; axis < index.size(); ++axis) at += index[axis] * chunk.strides[axis];
        for (size_t axis = 0; axis < index.size(); ++axis) index[axis] += chunk.box.origin[axis];
        places[{chunk.file, chunk.offset + at * ItemSize(tensor.dtype)}] =
            nemo ? NemoElement("model." + tensor.name, index) : HfElement(tensor.name, index);
      });
  return places;
}

// Checks that the pieces give every element of the part the number of times that is expected, and takes the elements
// out of `places`. In a tied model the head's elements are the embedding's.
void CheckPieces(const Part& part, const std::vector<Piece>& pieces, bool tied, Places& left, const Places& places) {
  std::set<std::vector<uint64_t>> met;
  for (const Piece& piece : pieces)
    ForEachIndex(piece.box.shape, [&](Dims index) {
      uint64_t at = 0;
      for (size_t axis = 0; axis < index.size(); ++axis) at += piece.axes[axis].At(index[axis]);
      for (size_t axis = 0; axis < index.size(); ++axis) index[axis] += piece.box.origin[axis];
      const std::pair place{piece.file, piece.offset + at * ItemSize(piece.dtype)};
      auto found = places.find(place);
      ASSERT_NE(found, places.end());
      EXPECT_EQ(found->second.index, index);
      if (tied) {
        EXPECT_THAT(found->second.part, testing::AnyOf(part.name, "embed", "head"));
      } else {
        EXPECT_EQ(found->second.part, part.name);
      }
      met.insert({index.begin(), index.end()});
      left.erase(place);
    });
  EXPECT_EQ(met.size(), ElementCount(part.shape));
}

// Every part whole on both sides, and every element of both in a part.
void ExpectAllPaired(const Checkpoint& a, const Checkpoint& b) {
  const Paired paired = PairUp(a, b);
  EXPECT_THAT(paired.missing, IsEmpty());
  EXPECT_THAT(paired.extra, IsEmpty());
  EXPECT_THAT(paired.misshapen, IsEmpty());
  const Places a_places = PlacesOf(a), b_places = PlacesOf(b);
  Places a_left = a_places, b_left = b_places;
  for (const Part& part : paired.parts) {
    SCOPED_TRACE(part.name);
    CheckPieces(part, part.sources, a.model.tied, a_left, a_places);
    CheckPieces(part, part.targets, b.model.tied, b_left, b_places);
  }
  EXPECT_THAT(a_left, IsEmpty());
  EXPECT_THAT(b_left, IsEmpty());
}

std::vector<std::string> NamesOf(const std::vector<Part>& parts) {
  std::vector<std::string> names;
  for (const Part& part : parts) names.push_back(part.name);
  return names;
}

// The tensors that the pieces lie in.
std::set<std::string> HeldIn(const std::vector<Piece>& pieces, const std::vector<std::string>& names) {
  std::set<std::string> tensors;
  for (const Piece& piece : pieces) tensors.insert(names.at(piece.tensor));
  return tensors;
}

const Part& PartNamed(const Paired& paired, std::string_view name) {
  return *std::find_if(paired.parts.begin(), paired.parts.end(), [&](const Part& part) { return part.name == name; });
}

const Kind* const kKinds[] = {&kHuggingFace, &kNemo};

// -- tests ------------------------------------------------------------------------------------------------------------

TEST(PairUp, BringsEveryElementTogetherWithItself) {
  const std::vector<std::string_view> kFlags[] = {{}, {"qkv_bias"}, {"qkv_bias", "o_bias", "mlp_bias"}};
  for (const Family* family : {&kLlama, &kQwen3})
    for (const auto& flags : kFlags)
      for (const Kind* a : kKinds)
        for (const Kind* b : kKinds) {
          SCOPED_TRACE(fmt::format("{} as {} and {}, {} flags", family->name, a->name, b->name, flags.size()));
          const Model model = ModelOf(*family, flags);
          ExpectAllPaired(CheckpointOf(*a, model), CheckpointOf(*b, model));
        }
}

TEST(PairUp, GivesEveryPieceItsTensorAndDtype) {
  const Model model = ModelOf(kLlama);
  const Paired paired =
      PairUp(CheckpointOf(kHuggingFace, model, true, Dtype::kF32), CheckpointOf(kNemo, model, true, Dtype::kF16));
  const Part& k = PartNamed(paired, "k, layer 1");
  EXPECT_EQ(k.shape, (Dims{kGroups * kHeadSize, kHidden}));
  EXPECT_THAT(HeldIn(k.sources, paired.a_tensors), ElementsAre("model.layers.1.self_attn.k_proj.weight"));
  EXPECT_THAT(HeldIn(k.targets, paired.b_tensors),
              ElementsAre("model.decoder.layers.self_attention.linear_qkv.weight"));
  for (const Part& part : paired.parts) {
    for (const Piece& piece : part.sources) EXPECT_EQ(piece.dtype, Dtype::kF32);
    for (const Piece& piece : part.targets) EXPECT_EQ(piece.dtype, Dtype::kF16);
  }
}

// Qwen3 has norms between its rows and Llama's, so that the same role has other numbers.
TEST(PairUp, GoesByRolesAndNamesWhatOneSideLacks) {
  const Checkpoint llama = CheckpointOf(kHuggingFace, ModelOf(kLlama)), qwen = CheckpointOf(kNemo, ModelOf(kQwen3));
  const Paired there = PairUp(llama, qwen), back = PairUp(qwen, llama);
  const auto norms = UnorderedElementsAre("model.decoder.layers.self_attention.q_layernorm.weight",
                                          "model.decoder.layers.self_attention.k_layernorm.weight");
  EXPECT_THAT(there.missing, IsEmpty());
  EXPECT_THAT(there.extra, norms);
  EXPECT_THAT(back.missing, norms);
  EXPECT_THAT(back.extra, IsEmpty());
  const Places llama_places = PlacesOf(llama), qwen_places = PlacesOf(qwen);
  Places llama_left = llama_places, qwen_left = qwen_places;
  for (const Part& part : there.parts) {
    CheckPieces(part, part.sources, false, llama_left, llama_places);
    CheckPieces(part, part.targets, false, qwen_left, qwen_places);
  }
  EXPECT_THAT(llama_left, IsEmpty());
  EXPECT_EQ(qwen_left.size(), 2 * 2 * kHeadSize);  // the norms of two layers
}

// A fused bias holds three parts of each layer.
TEST(PairUp, NamesATensorOnceThatHoldsSeveralParts) {
  const Checkpoint biased = CheckpointOf(kNemo, ModelOf(kLlama, {"qkv_bias"})),
                   gated = CheckpointOf(kNemo, ModelOf(kLlama, {"mlp_bias"}));
  const Paired paired = PairUp(biased, gated);
  EXPECT_THAT(paired.missing, ElementsAre("model.decoder.layers.self_attention.linear_qkv.bias"));
  EXPECT_THAT(paired.extra, UnorderedElementsAre("model.decoder.layers.mlp.linear_fc1.bias",
                                                 "model.decoder.layers.mlp.linear_fc2.bias"));
}

TEST(PairUp, NamesTheTensorsOfLayersThatOneSideLacks) {
  Model longer = ModelOf(kLlama);
  longer.sizes['L'] = 3;
  longer.layers.assign(3, LayerKind::kDense);
  const Checkpoint a = CheckpointOf(kHuggingFace, longer), b = CheckpointOf(kHuggingFace, ModelOf(kLlama));
  EXPECT_EQ(PairUp(a, b).missing.size(), 9u);
  EXPECT_THAT(PairUp(a, b).missing, testing::Each(testing::StartsWith("model.layers.2.")));
  EXPECT_THAT(PairUp(a, b).extra, IsEmpty());
  EXPECT_EQ(PairUp(b, a).extra, PairUp(a, b).missing);
}

TEST(PairUp, ReportsPartsOfOtherShapesAndDoesNotCompareThem) {
  Model wide = ModelOf(kLlama);
  wide.sizes['F'] = kFfn + 2;
  for (bool turned : {false, true}) {
    const Checkpoint a = CheckpointOf(kHuggingFace, turned ? wide : ModelOf(kLlama)),
                     b = CheckpointOf(kNemo, turned ? ModelOf(kLlama) : wide);
    const Paired paired = PairUp(a, b);
    EXPECT_THAT(paired.missing, IsEmpty());
    EXPECT_THAT(paired.extra, IsEmpty());
    EXPECT_EQ(paired.misshapen.size(), 6u);
    EXPECT_THAT(paired.misshapen, testing::Contains(turned ? "down, layer 1: [4, 7] in A, [4, 5] in B"
                                                           : "down, layer 1: [4, 5] in A, [4, 7] in B"));
    EXPECT_THAT(paired.misshapen, testing::Contains(turned ? "up, layer 0: [7, 4] in A, [5, 4] in B"
                                                           : "up, layer 0: [5, 4] in A, [7, 4] in B"));
    for (const std::string& name : NamesOf(paired.parts))
      EXPECT_FALSE(name.starts_with("gate") || name.starts_with("up") || name.starts_with("down")) << name;
  }
}

// -- the vocabulary ---------------------------------------------------------------------------------------------------

struct Head {
  bool tied, stored;
};
constexpr Head kHeadCases[] = {{false, true}, {true, false}, {true, true}};

Model WithHead(Head head, uint64_t vocabulary) {
  Model model = ModelOf(kLlama);
  model.tied = head.tied;
  model.sizes['V'] = vocabulary;
  return model;
}

TEST(PairUp, ComparesAHeadWithATiedEmbedding) {
  for (Head a : kHeadCases)
    for (Head b : kHeadCases)
      for (const Kind* kind : kKinds) {
        SCOPED_TRACE(fmt::format("{}, {} {}, {} {}", kind->name, a.tied, a.stored, b.tied, b.stored));
        const Checkpoint left = CheckpointOf(*kind, WithHead(a, 7), a.stored),
                         right = CheckpointOf(kNemo, WithHead(b, 7), b.stored);
        ExpectAllPaired(left, right);
        const std::vector<std::string> names = NamesOf(PairUp(left, right).parts);
        EXPECT_EQ(std::count(names.begin(), names.end(), "embed"), 1);
        EXPECT_EQ(std::count(names.begin(), names.end(), "head"), a.tied && b.tied ? 0 : 1);
      }
}

TEST(PairUp, TakesBothTensorsOfATiedModelThatStoresTwo) {
  const Paired paired = PairUp(CheckpointOf(kHuggingFace, WithHead({true, true}, 7), true),
                               CheckpointOf(kNemo, WithHead({true, true}, 7), true));
  const Part& embed = PartNamed(paired, "embed");
  EXPECT_THAT(HeldIn(embed.sources, paired.a_tensors), ElementsAre("lm_head.weight", "model.embed_tokens.weight"));
  EXPECT_THAT(HeldIn(embed.targets, paired.b_tensors),
              ElementsAre("model.embedding.word_embeddings.weight", "model.output_layer.weight"));
}

// Rows that only one side has are parts of that side alone, whatever stands for the head.
TEST(PairUp, SetsPaddingRowsApart) {
  for (auto [a_rows, b_rows] : {std::pair{7, 9}, {9, 7}})
    for (Head a : kHeadCases)
      for (Head b : kHeadCases) {
        SCOPED_TRACE(fmt::format("{} and {} rows; {} {}, {} {}", a_rows, b_rows, a.tied, a.stored, b.tied, b.stored));
        const Checkpoint left = CheckpointOf(kHuggingFace, WithHead(a, a_rows), a.stored),
                         right = CheckpointOf(kNemo, WithHead(b, b_rows), b.stored);
        const Places left_places = PlacesOf(left), right_places = PlacesOf(right);
        Places left_left = left_places, right_left = right_places;
        std::set<std::pair<uint32_t, uint64_t>> padding;
        for (const Part& part : PairUp(left, right).parts) {
          if (!part.sources.empty() && !part.targets.empty()) {
            CheckPieces(part, part.sources, a.tied, left_left, left_places);
            CheckPieces(part, part.targets, b.tied, right_left, right_places);
            continue;
          }
          EXPECT_EQ(part.sources.empty(), a_rows < b_rows);
          const Piece& piece = (part.sources.empty() ? part.targets : part.sources).at(0);
          EXPECT_EQ(piece.box, WholeBox(part.shape));
          ForEachIndex(part.shape, [&](const Dims& index) {
            padding.insert({piece.file, piece.offset + (piece.axes[0].At(index[0]) + piece.axes[1].At(index[1])) * 2});
          });
        }
        // What the others leave is rows 7 and 8, and these are what the padding is.
        Places& rest = a_rows < b_rows ? right_left : left_left;
        EXPECT_THAT(a_rows < b_rows ? left_left : right_left, IsEmpty());
        EXPECT_EQ(padding.size(), rest.size());
        EXPECT_EQ(rest.size(), ((a_rows < b_rows ? b : a).stored ? 2 : 1) * 2 * kHidden);
        for (const auto& [place, element] : rest) {
          EXPECT_GE(element.index[0], 7u);
          EXPECT_TRUE(padding.count(place));
        }
      }
}

TEST(PairUp, RefusesASourceThatIsStoredTwiceInTwoDtypes) {
  const Model model = WithHead({true, true}, 7);
  Checkpoint odd = CheckpointOf(kHuggingFace, model), even = CheckpointOf(kHuggingFace, model);
  odd.tensors[0].dtype = Dtype::kF32;
  ASSERT_EQ(odd.tensors[0].name, "lm_head.weight");
  try {
    PairUp(odd, even);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kMismatch);
    EXPECT_EQ(error.path(), "the_folder");
    EXPECT_THAT(error.what(),
                HasSubstr("tensor 'lm_head.weight': F32, expected BF16 as in 'model.embed_tokens.weight'"));
  }
  EXPECT_EQ(PartNamed(PairUp(even, odd), "embed").targets.size(), 2u);  // each of b's is compared by itself
}

}  // namespace
}  // namespace reshard
