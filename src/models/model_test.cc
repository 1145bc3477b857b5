#include "models/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "models/families/blocks.h"
#include "models/families/families.h"

namespace reshard {

extern const Family kLlama;

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

// A block of three parts of one layer in one tensor.
std::vector<std::string> ProblemsOf(const Tree& tree) {
  static constexpr PartRow kThree[] = {
      {"wide", Scope::kLayer, "A*D H"}, {"narrow", Scope::kLayer, "G*D H"}, {"tall", Scope::kLayer, "H F"}};
  static Layout layout;
  layout = {"layers.{L}.x", tree};
  const Block block = {kThree, Layouts(std::span(&layout, 1)), Layouts()};
  std::vector<std::string> problems = CheckBlock(block);
  std::erase_if(problems, [](const std::string& problem) { return problem.find("is held") != problem.npos; });
  return problems;
}

TEST(CheckBlock, AcceptsCountsThatDivideInEveryModel) {
  for (const Tree& tree :
       {Interleave(0, 'G', {"wide", "narrow"}), Interleave(0, 'D', {"wide", "narrow"}), Interleave(0, 'A', {"wide"}),
        Interleave(0, 1, {"wide", "narrow"}), Interleave(0, 2, {"wide", "narrow"}), Interleave(1, 'F', {"tall"}),
        Concat({Grouped({"wide", "narrow"}), "wide"}), Grouped({Concat({"wide", "narrow"}), "wide"}),
        Stack('E', Grouped({"wide", "narrow"})), Interleave(0, 'E', {Stack('E', "tall")})})
    EXPECT_THAT(ProblemsOf(tree), IsEmpty());
}

TEST(CheckBlock, FindsACountThatNoShapeHas) {
  EXPECT_THAT(ProblemsOf(Interleave(0, 'A', {"wide", "narrow"})), ElementsAre("hf: 'layers.{L}.x' cuts G*D into A"));
  EXPECT_THAT(ProblemsOf(Interleave(0, 'H', {"wide"})), ElementsAre(HasSubstr("cuts A*D into H")));
  EXPECT_THAT(ProblemsOf(Interleave(1, 'G', {"tall"})), ElementsAre(HasSubstr("cuts F into G")));
  EXPECT_THAT(ProblemsOf(Interleave(0, 'Z', {"tall"})), ElementsAre(HasSubstr("cuts H into Z")));
  EXPECT_THAT(ProblemsOf(Interleave(0, 0, {"tall"})), ElementsAre(HasSubstr("cuts H into 0")));
  EXPECT_THAT(ProblemsOf(Interleave(0, 'A', {Concat({"wide", "narrow"})})),
              ElementsAre(HasSubstr("cuts A*D + G*D into A")));
}

TEST(CheckBlock, FindsMembersThatDoNotFitTogether) {
  EXPECT_THAT(ProblemsOf(Concat({"wide", "tall"})), ElementsAre(HasSubstr("differ along other axes")));
  EXPECT_THAT(ProblemsOf(Concat({"wide", Stack('E', "wide")})), ElementsAre(HasSubstr("differ along other axes")));
  EXPECT_THAT(ProblemsOf(Interleave(2, 1, {"wide"})), ElementsAre(HasSubstr("interleaves along axis 2 of 2")));
  EXPECT_THAT(ProblemsOf(Interleave(0, 1, {})), ElementsAre(HasSubstr("interleaves no members")));
  EXPECT_THAT(ProblemsOf(Stack('H', "wide")), ElementsAre(HasSubstr("stacks over H, expected L or E")));
}

TEST(CheckBlock, FindsATreeWhoseNodesAreNotOne) {
  Tree cut = Grouped({"wide", "narrow"});
  --cut.size;
  EXPECT_THAT(ProblemsOf(cut), ElementsAre(HasSubstr("ends within its tree")));
  Tree loose = Grouped({"wide", "narrow"});
  loose.nodes[0].members = 1;
  EXPECT_THAT(ProblemsOf(loose), ElementsAre(HasSubstr("has nodes behind its tree")));
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
  EXPECT_THAT(LayerPlan(family, 2, Json::object(), "config.json"), ElementsAre(kDense, kDense));
  family.layers = LayerRule::kAllMoe;
  EXPECT_THAT(LayerPlan(family, 2, Json::object(), "config.json"), ElementsAre(kMoe, kMoe));
  family.layers = LayerRule::kDenseFirst;
  EXPECT_THAT(LayerPlan(family, 4, Json::parse(R"({"first_k_dense_replace": 3})"), "config.json"),
              ElementsAre(kDense, kDense, kDense, kMoe));
  EXPECT_THAT(LayerPlan(family, 2, Json::parse(R"({"first_k_dense_replace": 0})"), "config.json"),
              ElementsAre(kMoe, kMoe));
  family.layers = LayerRule::kSparseSteps;
  EXPECT_THAT(LayerPlan(family, 4, Json::parse(R"({"decoder_sparse_step": 2})"), "config.json"),
              ElementsAre(kDense, kMoe, kDense, kMoe));
  EXPECT_THAT(
      LayerPlan(family, 4, Json::parse(R"({"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]})"), "config.json"),
      ElementsAre(kMoe, kDense, kDense, kMoe));
}

// nlohmann reads numbers without a sign as unsigned; those of a program or of YAML may be signed.
TEST(LayerPlan, TakesWholeNumbersOfAnyJsonType) {
  Family family;
  family.layers = LayerRule::kDenseFirst;
  for (const Json& count : {Json(int64_t{1}), Json(uint64_t{1})})
    EXPECT_THAT(LayerPlan(family, 2, {{"first_k_dense_replace", count}}, "config.json"), ElementsAre(kDense, kMoe));
  EXPECT_THAT(LayerPlan(family, 2, {{"first_k_dense_replace", nullptr}}, "config.json"), ElementsAre(kMoe, kMoe));
  family.layers = LayerRule::kSparseSteps;
  const Json config = {{"decoder_sparse_step", int64_t{2}}, {"mlp_only_layers", {int64_t{3}}}};
  EXPECT_THAT(LayerPlan(family, 4, config, "config.json"), ElementsAre(kDense, kMoe, kDense, kDense));
}

TEST(LayerPlan, RefusesWhatIsNoWholeNumber) {
  Family family;
  family.layers = LayerRule::kDenseFirst;
  for (const Json& count : {Json(-1), Json(1.5), Json("1"), Json::array(), Json(true)}) {
    try {
      LayerPlan(family, 2, {{"first_k_dense_replace", count}}, "config.json");
      FAIL() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt);
      EXPECT_EQ(error.path(), "config.json");
      EXPECT_THAT(error.what(), HasSubstr("first_k_dense_replace is " + count.dump() + ", expected a whole number"));
    }
  }
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
