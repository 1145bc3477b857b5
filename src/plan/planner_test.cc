#include "plan/planner.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "base/io.h"
#include "formats/safetensors/safetensors.h"

namespace reshard {
namespace {

using testing::Each;
using testing::IsEmpty;
using testing::Not;

// -- a small checkpoint -----------------------------------------------------------------------------------------------

constexpr const char* kConfig = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
  "vocab_size": 6, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "hidden_act": "silu",
  "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": false, "initializer_range": 0.02
})";

std::vector<StoredTensor> Weights() {
  std::vector<StoredTensor> tensors;
  auto add = [&](std::string name, Dims shape) { tensors.push_back({std::move(name), Dtype::kBF16, shape, {}, {}}); };
  add("model.embed_tokens.weight", {6, 8});
  add("lm_head.weight", {6, 8});
  add("model.norm.weight", {8});
  for (std::string layer : {"model.layers.0.", "model.layers.1."}) {
    add(layer + "self_attn.q_proj.weight", {8, 8});
    add(layer + "self_attn.k_proj.weight", {4, 8});
    add(layer + "self_attn.v_proj.weight", {4, 8});
    add(layer + "self_attn.o_proj.weight", {8, 8});
    add(layer + "mlp.gate_proj.weight", {10, 8});
    add(layer + "mlp.up_proj.weight", {10, 8});
    add(layer + "mlp.down_proj.weight", {8, 10});
    add(layer + "input_layernorm.weight", {8});
    add(layer + "post_attention_layernorm.weight", {8});
  }
  return tensors;
}

// A HuggingFace folder of it, there for one test.
class PlanOfALlama : public testing::Test {
 protected:
  PlanOfALlama() : folder_(testing::TempDir() + "planner_test." + std::to_string(getpid())) {
    PosixIo().MakeDirectories(folder_);
    std::vector<StoredTensor> tensors = Weights();
    std::vector<StoredTensor*> pointers;
    for (StoredTensor& tensor : tensors) {
      pointers.push_back(&tensor);
      data_bytes_ += ElementCount(tensor.shape) * ItemSize(tensor.dtype);
    }
    FileLayout layout = safetensors::LayOut("model.safetensors", pointers, 0);
    std::string bytes(layout.size, '\1');
    for (const Literal& literal : layout.literals)
      bytes.replace(literal.offset, literal.bytes.size(), literal.bytes.text());
    WriteWholeFile(PosixIo(), JoinPath(folder_, "model.safetensors"), bytes);
    WriteWholeFile(PosixIo(), JoinPath(folder_, "config.json"), kConfig);
  }
  ~PlanOfALlama() override { PosixIo().RemoveAll(folder_); }

  Checkpoint Open() {
    OpenOptions options;
    options.max_header = uint64_t{1} << 20;
    return OpenCheckpoint(PosixIo(), folder_, "hf", options);
  }

  Planned Make(const Kind& kind, std::optional<Dtype> dtype = {}) {
    TargetOptions options;
    options.dtype = dtype;
    options.max_shard_size = 1000;  // bytes: several shards
    return MakePlan(PosixIo(), Open(), kind, options);
  }

  // Plans of all kinds of targets.
  std::vector<Plan> Plans() { return {Make(kHuggingFace).plan, Make(kNemo).plan, Make(kNemo, Dtype::kF32).plan}; }

  std::string folder_;
  uint64_t data_bytes_ = 0;
};

Plan With(Plan plan, const std::function<void(Plan&)>& damage) {
  damage(plan);
  return plan;
}

// Damages each piece of one side in turn, in each plan; `damage` says false of a piece that it does not fit.
void ExpectFound(const std::vector<Plan>& plans, std::vector<Piece> Part::*side,
                 const std::function<bool(Plan&, Part&, size_t)>& damage) {
  size_t damaged = 0;
  for (const Plan& plan : plans) {
    for (size_t p = 0; p < plan.parts.size(); ++p) {
      for (size_t i = 0; i < (plan.parts[p].*side).size(); ++i) {
        Plan copy = plan;
        if (!damage(copy, copy.parts[p], i)) continue;
        ++damaged;
        EXPECT_THAT(Audit(copy), Not(IsEmpty())) << plan.parts[p].name << ", piece " << i;
      }
    }
  }
  EXPECT_GT(damaged, 0u);
}

// -- the audit --------------------------------------------------------------------------------------------------------

TEST_F(PlanOfALlama, HasNoProblems) {
  for (const Plan& plan : Plans()) EXPECT_THAT(Audit(plan), IsEmpty());
}

TEST_F(PlanOfALlama, MustWriteEveryByteOnce) {
  const std::vector<Plan> plans = Plans();
  ExpectFound(plans, &Part::targets, [](Plan&, Part& part, size_t i) {
    part.targets.erase(part.targets.begin() + static_cast<std::ptrdiff_t>(i));
    return true;
  });
  ExpectFound(plans, &Part::targets, [](Plan&, Part& part, size_t i) {
    part.targets.push_back(part.targets[i]);
    return true;
  });
  for (int64_t shift : {-2, -1, 1, 2})
    ExpectFound(plans, &Part::targets, [&](Plan&, Part& part, size_t i) {
      if (part.targets[i].offset == 0 && shift < 0) return false;
      part.targets[i].offset += static_cast<uint64_t>(shift);
      return true;
    });
  ExpectFound(plans, &Part::targets, [](Plan&, Part& part, size_t i) {
    if (part.targets[i].box.shape[0] < 2) return false;
    --part.targets[i].box.shape[0];
    return true;
  });
}

TEST_F(PlanOfALlama, MustStepFromElementToElementAsItsFilesDo) {
  for (size_t axis : {0, 1})
    ExpectFound(Plans(), &Part::targets, [&](Plan&, Part& part, size_t i) {
      Piece& piece = part.targets[i];
      if (axis >= piece.box.shape.size() || piece.box.shape[axis] < 2 || piece.axes[axis].block < 2) return false;
      ++piece.axes[axis].inner;
      return true;
    });
}

TEST_F(PlanOfALlama, MustStayWithinItsFiles) {
  const std::vector<Plan> plans = Plans();
  ExpectFound(plans, &Part::targets, [](Plan& plan, Part& part, size_t i) {
    part.targets[i].offset = plan.files[part.targets[i].file].size;
    return true;
  });
  ExpectFound(plans, &Part::targets, [](Plan& plan, Part& part, size_t i) {
    part.targets[i].file = static_cast<uint32_t>(plan.files.size());
    return true;
  });
  ExpectFound(plans, &Part::sources, [](Plan& plan, Part& part, size_t i) {
    part.sources[i].offset = plan.sources[part.sources[i].file].size;
    return true;
  });
  ExpectFound(plans, &Part::sources, [](Plan& plan, Part& part, size_t i) {
    part.sources[i].file = static_cast<uint32_t>(plan.sources.size());
    return true;
  });
}

TEST_F(PlanOfALlama, MustStayWithinItsParts) {
  for (auto side : {&Part::sources, &Part::targets})
    for (uint64_t beyond : {uint64_t{1}, uint64_t{1} << 20})
      ExpectFound(Plans(), side, [&](Plan&, Part& part, size_t i) {
        Box& box = (part.*side)[i].box;
        box.origin[0] = part.shape[0] - box.shape[0] + beyond;
        return true;
      });
}

TEST_F(PlanOfALlama, MustHaveSourcesForAllOfAPart) {
  for (size_t axis : {0, 1})
    for (bool front : {false, true})
      ExpectFound(Plans(), &Part::sources, [&](Plan&, Part& part, size_t i) {
        Box& box = part.sources[i].box;
        if (axis >= box.shape.size() || box.shape[axis] < 2) return false;
        --box.shape[axis];
        box.origin[axis] += front;
        return true;
      });
}

TEST_F(PlanOfALlama, MustFillFilesOfTheirSize) {
  for (const Plan& plan : Plans()) {
    for (size_t i = 0; i < plan.files.size(); ++i) {
      SCOPED_TRACE(plan.files[i].path);
      EXPECT_THAT(Audit(With(plan, [&](Plan& damaged) { ++damaged.files[i].size; })), Not(IsEmpty()));
      EXPECT_THAT(Audit(With(plan, [&](Plan& damaged) { --damaged.files[i].size; })), Not(IsEmpty()));
      if (plan.files[i].literals.empty()) continue;
      EXPECT_THAT(Audit(With(plan, [&](Plan& damaged) { damaged.files[i].literals.pop_back(); })), Not(IsEmpty()));
      EXPECT_THAT(Audit(With(plan, [&](Plan& damaged) { damaged.files[i].literals[0].bytes.Append(" "); })),
                  Not(IsEmpty()));
    }
    Plan cut_off = plan;
    --cut_off.sources[0].size;  // the last tensor ends where the file does
    EXPECT_THAT(Audit(cut_off), Not(IsEmpty()));
  }
}

// -- the plan ---------------------------------------------------------------------------------------------------------

TEST_F(PlanOfALlama, IsTheSameEachTime) {
  const Plan plan = Make(kNemo).plan;
  EXPECT_EQ(plan.id.size(), 16u);
  EXPECT_THAT(plan.id, Each(testing::AnyOfArray(std::string("0123456789abcdef"))));
  EXPECT_EQ(Make(kNemo).plan.id, plan.id);
  EXPECT_NE(Make(kHuggingFace).plan.id, plan.id);
  EXPECT_NE(Make(kNemo, Dtype::kF32).plan.id, plan.id);
}

// Another model of the same shape, or a source that was overwritten, must not pass for the one that was converted.
TEST_F(PlanOfALlama, HasTheIdOfItsSources) {
  const std::string path = JoinPath(folder_, "model.safetensors");
  const std::string id = Make(kNemo).plan.id;
  const FileInfo before = *PosixIo().Stat(path);
  const auto set_time = [&](int64_t ns) {
    const timespec times[2] = {{0, UTIME_OMIT}, {ns / 1'000'000'000, ns % 1'000'000'000}};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  };
  set_time(before.mtime_ns + 1);
  EXPECT_NE(Make(kNemo).plan.id, id);
  set_time(before.mtime_ns);
  EXPECT_EQ(Make(kNemo).plan.id, id);

  // Another file with the same bytes and time: a copy, or a model out of an archive that rounds its times.
  WriteWholeFile(PosixIo(), path + ".copy", ReadWholeFile(PosixIo(), path, before.size));
  PosixIo().Rename(path + ".copy", path);
  set_time(before.mtime_ns);
  EXPECT_NE(Make(kNemo).plan.id, id);
}

TEST_F(PlanOfALlama, SaysWhereNormWeightsGetAnotherForm) {
  Plan plan = Make(kNemo, Dtype::kF32).plan;
  EXPECT_THAT(NotesOfShifts(plan), IsEmpty());
  for (Part& part : plan.parts) {
    if (!part.name.starts_with("final_norm") && !part.name.starts_with("attn_norm")) continue;
    for (Piece& piece : part.sources) piece.minus_one = true;
    if (part.name.ends_with("layer 0"))
      for (Piece& piece : part.targets) piece.minus_one = true;  // the same form on both sides
  }
  EXPECT_THAT(Audit(plan), IsEmpty());
  const std::string plus = "norm weights are written plus one, rounded to F32: the way back may not give the same bits";
  EXPECT_THAT(NotesOfShifts(plan), testing::ElementsAre(plus));
  for (Part& part : plan.parts) {
    if (!part.name.starts_with("mlp_norm")) continue;
    for (Piece& piece : part.targets) piece.minus_one = true;
  }
  EXPECT_THAT(NotesOfShifts(plan),
              testing::ElementsAre(plus,
                                   "norm weights are written minus one, rounded to F32: the way back may not "
                                   "give the same bits"));
}

TEST_F(PlanOfALlama, LeavesWhatIsNoFile) {
  const std::string templates = JoinPath(folder_, "additional_chat_templates");
  PosixIo().MakeDirectories(JoinPath(templates, "folder"));
  WriteWholeFile(PosixIo(), JoinPath(templates, "rag.jinja"), "rag");
  const Planned planned = Make(kHuggingFace);
  EXPECT_THAT(planned.copied, testing::ElementsAre("additional_chat_templates/rag.jinja"));
  EXPECT_THAT(planned.left, testing::Contains("additional_chat_templates/folder/"));
}

TEST_F(PlanOfALlama, ReadsEveryWeightOnceInSourceOrder) {
  for (const Plan& plan : Plans()) {
    const PlanTotals totals = TotalsOf(plan);
    EXPECT_EQ(totals.bytes_read, data_bytes_);
    uint64_t written = 0, last = 0;
    for (const FileLayout& file : plan.files) written += file.size;
    EXPECT_EQ(totals.bytes_written, written);
    EXPECT_GE(totals.ops, Weights().size());
    for (const Part& part : plan.parts) {
      if (part.sources.empty()) continue;
      EXPECT_GE(part.sources[0].offset, last);
      last = part.sources[0].offset;
    }
  }
}

}  // namespace
}  // namespace reshard
