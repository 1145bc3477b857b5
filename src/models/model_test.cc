#include "models/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "models/families/blocks.h"
#include "models/families/families.h"

namespace reshard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr LayerKind kDense = LayerKind::kDense, kMoe = LayerKind::kMoe;

TEST(CheckBlock, FindsNothingInTheFamilies) {
  for (const Family* family : Families()) {
    SCOPED_TRACE(family->name);
    EXPECT_FALSE(family->blocks.empty());
    for (const Block* block : family->blocks) EXPECT_THAT(CheckBlock(*block), IsEmpty());
  }
}

// Every layout of every block, damaged: left out, twice, and of a role that no row has.
TEST(CheckBlock, FindsADamagedLayout) {
  for (const Block* block : {&kTrunk, &kQkNorm, &kGatedMlp}) {
    for (Layouts Block::*kind : {&Block::hf, &Block::nemo}) {
      const std::span<const Layout> good = (block->*kind).forms[0];
      for (size_t i = 0; i < good.size(); ++i) {
        SCOPED_TRACE(good[i].name);
        auto problems = [&](const std::vector<Layout>& layouts) {
          Block damaged = *block;
          damaged.*kind = Layouts(layouts);
          return CheckBlock(damaged);
        };
        std::vector<Layout> layouts(good.begin(), good.end());
        layouts.push_back(good[i]);
        EXPECT_THAT(problems(layouts), testing::Contains(HasSubstr("held 2 times")));
        layouts.pop_back();
        layouts.erase(layouts.begin() + static_cast<std::ptrdiff_t>(i));
        EXPECT_THAT(problems(layouts), testing::Contains(HasSubstr("held 0 times")));
        layouts.push_back({good[i].name, "no_such_role"});
        EXPECT_THAT(problems(layouts), testing::Contains(HasSubstr("'no_such_role'")));
      }
    }
  }
}

TEST(CheckBlock, LooksAtTheSecondForm) {
  static constexpr Layout kOne[] = {{"layers.{L}.norms", "q_norm"}};
  Block damaged = kQkNorm;
  damaged.nemo.forms[1] = kOne;
  EXPECT_THAT(CheckBlock(damaged), ElementsAre(HasSubstr("'k_norm' is held 0 times")));
}

TEST(RowsOf, ComputesShapesFromSizes) {
  Model model;
  model.family = &kLlama;
  for (auto [letter, size] : {std::pair{'V', 11}, {'H', 8}, {'A', 6}, {'G', 3}, {'D', 5}, {'F', 7}})
    model.sizes[letter] = size;
  auto shape_of = [&](std::string_view role) {
    for (const ModelRow& row : RowsOf(model))
      if (row.row->role == role) return row.shape;
    return Dims();
  };
  EXPECT_EQ(shape_of("embed"), (Dims{11, 8}));
  EXPECT_EQ(shape_of("q"), (Dims{30, 8}));
  EXPECT_EQ(shape_of("k"), (Dims{15, 8}));
  EXPECT_EQ(shape_of("o"), (Dims{8, 30}));
  EXPECT_EQ(shape_of("down"), (Dims{8, 7}));
  EXPECT_EQ(shape_of("final_norm"), (Dims{8}));
  EXPECT_EQ(shape_of("q_bias"), Dims());
  model.flags = {"qkv_bias"};
  EXPECT_EQ(shape_of("q_bias"), (Dims{30}));
  EXPECT_EQ(shape_of("o_bias"), Dims());
}

// Formulas: transformers' modeling_deepseek_v3.py and modeling_qwen3_moe.py.
TEST(LayerPlan, FollowsTheRule) {
  Family family;
  family.layers = LayerRule::kAllDense;
  EXPECT_THAT(LayerPlan(family, 2, Json::object()), ElementsAre(kDense, kDense));
  family.layers = LayerRule::kAllMoe;
  EXPECT_THAT(LayerPlan(family, 2, Json::object()), ElementsAre(kMoe, kMoe));
  family.layers = LayerRule::kDenseFirst;
  EXPECT_THAT(LayerPlan(family, 4, Json::parse(R"({"first_k_dense_replace": 3})")),
              ElementsAre(kDense, kDense, kDense, kMoe));
  EXPECT_THAT(LayerPlan(family, 2, Json::parse(R"({"first_k_dense_replace": 0})")), ElementsAre(kMoe, kMoe));
  family.layers = LayerRule::kSparseSteps;
  EXPECT_THAT(LayerPlan(family, 4, Json::parse(R"({"decoder_sparse_step": 2})")),
              ElementsAre(kDense, kMoe, kDense, kMoe));
  EXPECT_THAT(LayerPlan(family, 4, Json::parse(R"({"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]})")),
              ElementsAre(kMoe, kDense, kDense, kMoe));
}

Model WithHeads(uint64_t hidden, uint64_t heads, uint64_t groups, uint64_t head_size) {
  Model model;
  model.sizes['H'] = hidden;
  model.sizes['A'] = heads;
  model.sizes['G'] = groups;
  model.sizes['D'] = head_size;
  return model;
}

TEST(CompleteSizes, FillsInTheHeadSizeWhereItIsLacking) {
  Model model = WithHeads(96, 6, 3, 0);
  CompleteSizes(model, "heads", "groups", "config.json");
  EXPECT_EQ(model.sizes['D'], 16u);
  model = WithHeads(100, 6, 3, 32);
  CompleteSizes(model, "heads", "groups", "config.json");
  EXPECT_EQ(model.sizes['D'], 32u);
}

void ExpectMismatch(Model model, const std::vector<std::string>& texts) {
  try {
    CompleteSizes(model, "heads", "groups", "config.json");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kMismatch);
    EXPECT_EQ(error.path(), "config.json");
    for (const std::string& text : texts) EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

TEST(CompleteSizes, RefusesHeadsThatDoNotFit) {
  ExpectMismatch(WithHeads(96, 6, 4, 16), {"heads is 6", "groups 4"});
  ExpectMismatch(WithHeads(97, 6, 3, 0), {"97", "heads 6"});
  constexpr uint64_t kLargest = uint64_t{1} << 23;  // size that a config may give
  ExpectMismatch(WithHeads(8, kLargest, 1, 2), {"8388608 heads of 2", "at most 8388608"});
  ExpectMismatch(WithHeads(8, kLargest, 1, kLargest), {"at most 8388608"});
}

}  // namespace
}  // namespace reshard
