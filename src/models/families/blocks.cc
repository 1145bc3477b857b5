// Names: docs/formats/huggingface.md, nemo.md and trtllm.md. Written from the state dicts of transformers and of
// megatron-core's GPTModel, and from what TensorRT-LLM's own conversion writes.
#include "models/families/blocks.h"

namespace reshard {
namespace {

using enum Scope;

constexpr PartRow kTrunkRows[] = {
    {"embed", kGlobal, "V H", {0, 'V'}},
    {"q", kLayer, "A*D H", {0, 'A'}},
    {"q_bias", kLayer, "A*D", {0, 'A'}, "qkv_bias"},
    {"k", kLayer, "G*D H", {0, 'G'}},
    {"k_bias", kLayer, "G*D", {0, 'G'}, "qkv_bias"},
    {"v", kLayer, "G*D H", {0, 'G'}},
    {"v_bias", kLayer, "G*D", {0, 'G'}, "qkv_bias"},
    {"o", kLayer, "H A*D", {1, 'A'}},
    {"o_bias", kLayer, "H", {}, "o_bias"},
    NormRow("attn_norm", kLayer, "H"),
    NormRow("final_norm", kGlobal, "H"),
    {"head", kGlobal, "V H", {0, 'V'}},
};

constexpr Layout kTrunkHf[] = {
    {"model.embed_tokens.weight", "embed"},
    {"model.layers.{L}.self_attn.q_proj.weight", "q"},
    {"model.layers.{L}.self_attn.q_proj.bias", "q_bias"},
    {"model.layers.{L}.self_attn.k_proj.weight", "k"},
    {"model.layers.{L}.self_attn.k_proj.bias", "k_bias"},
    {"model.layers.{L}.self_attn.v_proj.weight", "v"},
    {"model.layers.{L}.self_attn.v_proj.bias", "v_bias"},
    {"model.layers.{L}.self_attn.o_proj.weight", "o"},
    {"model.layers.{L}.self_attn.o_proj.bias", "o_bias"},
    {"model.layers.{L}.input_layernorm.weight", "attn_norm"},
    {"model.norm.weight", "final_norm"},
    {"lm_head.weight", "head"},
};

constexpr Layout kTrunkNemo[] = {
    {"embedding.word_embeddings.weight", "embed"},
    {"decoder.layers.{L}.self_attention.linear_qkv.weight", Grouped({"q", "k", "v"})},
    {"decoder.layers.{L}.self_attention.linear_qkv.bias", Grouped({"q_bias", "k_bias", "v_bias"})},
    {"decoder.layers.{L}.self_attention.linear_qkv.layer_norm_weight", "attn_norm"},
    {"decoder.layers.{L}.self_attention.linear_proj.weight", "o"},
    {"decoder.layers.{L}.self_attention.linear_proj.bias", "o_bias"},
    {"decoder.final_layernorm.weight", "final_norm"},
    {"output_layer.weight", "head"},
};

// Of NeMo before megatron-core.
constexpr Layout kTrunkOldNemo[] = {
    {"embedding.word_embeddings.weight", "embed"},
    {"encoder.layers.{L}.self_attention.query_key_value.weight", Grouped({"q", "k", "v"})},
    {"encoder.layers.{L}.self_attention.query_key_value.bias", Grouped({"q_bias", "k_bias", "v_bias"})},
    {"encoder.layers.{L}.input_layernorm.weight", "attn_norm"},
    {"encoder.layers.{L}.self_attention.dense.weight", "o"},
    {"encoder.layers.{L}.self_attention.dense.bias", "o_bias"},
    {"encoder.final_layernorm.weight", "final_norm"},
    {"output_layer.weight", "head"},
};

constexpr NemoObject kTrunkObjects[] = {
    {"self_attention.linear_qkv"}, {"self_attention.linear_proj"}, {"self_attention.core_attention"}};

constexpr Layout kTrunkTrtllm[] = {
    {"transformer.vocab_embedding.weight", "embed"},
    {"transformer.layers.{L}.input_layernorm.weight", "attn_norm"},
    {"transformer.layers.{L}.attention.qkv.weight", Concat({"q", "k", "v"})},
    {"transformer.layers.{L}.attention.qkv.bias", Concat({"q_bias", "k_bias", "v_bias"})},
    {"transformer.layers.{L}.attention.dense.weight", "o"},
    {"transformer.layers.{L}.attention.dense.bias", "o_bias"},
    {"transformer.ln_f.weight", "final_norm"},
    {"lm_head.weight", "head"},
};

constexpr PartRow kQkNormRows[] = {
    NormRow("q_norm", kLayer, "D"),
    NormRow("k_norm", kLayer, "D"),
};

constexpr Layout kQkNormHf[] = {
    {"model.layers.{L}.self_attn.q_norm.weight", "q_norm"},
    {"model.layers.{L}.self_attn.k_norm.weight", "k_norm"},
};

constexpr Layout kQkNormNemo[] = {
    {"decoder.layers.{L}.self_attention.q_layernorm.weight", "q_norm"},
    {"decoder.layers.{L}.self_attention.k_layernorm.weight", "k_norm"},
};

// The second norm of a layer, where the feed-forward part is dense.
constexpr PartRow kMlpNormRows[] = {NormRow("mlp_norm", kLayer, "H")};

constexpr Layout kMlpNormHf[] = {{"model.layers.{L}.post_attention_layernorm.weight", "mlp_norm"}};
constexpr Layout kMlpNormNemo[] = {{"decoder.layers.{L}.mlp.linear_fc1.layer_norm_weight", "mlp_norm"}};
constexpr Layout kMlpNormOldNemo[] = {{"encoder.layers.{L}.post_attention_layernorm.weight", "mlp_norm"}};
constexpr Layout kMlpNormTrtllm[] = {{"transformer.layers.{L}.post_layernorm.weight", "mlp_norm"}};

// Norms before and behind attention and the feed-forward part; the first of them is the trunk's.
constexpr PartRow kSandwichNormRows[] = {
    NormRow("attn_post_norm", kLayer, "H"),
    NormRow("mlp_norm", kLayer, "H"),
    NormRow("mlp_post_norm", kLayer, "H"),
};

constexpr Layout kSandwichNormHf[] = {
    {"model.layers.{L}.post_attention_layernorm.weight", "attn_post_norm"},
    {"model.layers.{L}.pre_feedforward_layernorm.weight", "mlp_norm"},
    {"model.layers.{L}.post_feedforward_layernorm.weight", "mlp_post_norm"},
};

constexpr Layout kSandwichNormNemo[] = {
    {"decoder.layers.{L}.self_attention.linear_proj.post_layernorm.weight", "attn_post_norm"},
    {"decoder.layers.{L}.mlp.linear_fc1.layer_norm_weight", "mlp_norm"},
    {"decoder.layers.{L}.mlp.linear_fc2.post_layernorm.weight", "mlp_post_norm"},
};

constexpr PartRow kGatedMlpRows[] = {
    {"gate", kLayer, "F H", {0, 'F'}}, {"gate_bias", kLayer, "F", {0, 'F'}, "mlp_bias"},
    {"up", kLayer, "F H", {0, 'F'}},   {"up_bias", kLayer, "F", {0, 'F'}, "mlp_bias"},
    {"down", kLayer, "H F", {1, 'F'}}, {"down_bias", kLayer, "H", {}, "mlp_bias"},
};

constexpr Layout kGatedMlpHf[] = {
    {"model.layers.{L}.mlp.gate_proj.weight", "gate"}, {"model.layers.{L}.mlp.gate_proj.bias", "gate_bias"},
    {"model.layers.{L}.mlp.up_proj.weight", "up"},     {"model.layers.{L}.mlp.up_proj.bias", "up_bias"},
    {"model.layers.{L}.mlp.down_proj.weight", "down"}, {"model.layers.{L}.mlp.down_proj.bias", "down_bias"},
};

constexpr Layout kGatedMlpNemo[] = {
    {"decoder.layers.{L}.mlp.linear_fc1.weight", Concat({"gate", "up"}), 2},
    {"decoder.layers.{L}.mlp.linear_fc1.bias", Concat({"gate_bias", "up_bias"}), 2},
    {"decoder.layers.{L}.mlp.linear_fc2.weight", "down"},
    {"decoder.layers.{L}.mlp.linear_fc2.bias", "down_bias"},
};

constexpr Layout kGatedMlpOldNemo[] = {
    {"encoder.layers.{L}.mlp.dense_h_to_4h.weight", Concat({"gate", "up"}), 2},
    {"encoder.layers.{L}.mlp.dense_h_to_4h.bias", Concat({"gate_bias", "up_bias"}), 2},
    {"encoder.layers.{L}.mlp.dense_4h_to_h.weight", "down"},
    {"encoder.layers.{L}.mlp.dense_4h_to_h.bias", "down_bias"},
};

// singleton_local_shards: gate and up apart.
constexpr Layout kHalvedMlpNemo[] = {
    {"decoder.layers.{L}.mlp.linear_fc1.weight_w", "gate"},    {"decoder.layers.{L}.mlp.linear_fc1.weight_v", "up"},
    {"decoder.layers.{L}.mlp.linear_fc1.bias_w", "gate_bias"}, {"decoder.layers.{L}.mlp.linear_fc1.bias_v", "up_bias"},
    {"decoder.layers.{L}.mlp.linear_fc2.weight", "down"},      {"decoder.layers.{L}.mlp.linear_fc2.bias", "down_bias"},
};

// `fc` is the activated one.
constexpr Layout kGatedMlpTrtllm[] = {
    {"transformer.layers.{L}.mlp.fc.weight", "gate"},
    {"transformer.layers.{L}.mlp.gate.weight", "up"},
    {"transformer.layers.{L}.mlp.proj.weight", "down"},
};

// The original drops them; a model that has them is refused.
constexpr std::string_view kMlpBiases[] = {"gate_bias", "up_bias", "down_bias"};

constexpr NemoObject kGatedMlpObjects[] = {{"mlp.linear_fc1"}, {"mlp.linear_fc2"}};

// What several families store as one matrix.
constexpr Layout kFusedTrunkHf[] = {
    {"model.embed_tokens.weight", "embed"},
    {"model.layers.{L}.self_attn.o_proj.weight", "o"},
    {"model.layers.{L}.self_attn.o_proj.bias", "o_bias"},
    {"model.layers.{L}.self_attn.qkv_proj.weight", Concat({"q", "k", "v"})},
    {"model.layers.{L}.self_attn.qkv_proj.bias", Concat({"q_bias", "k_bias", "v_bias"})},
    {"model.layers.{L}.input_layernorm.weight", "attn_norm"},
    {"model.norm.weight", "final_norm"},
    {"lm_head.weight", "head"},
};

constexpr Layout kFusedMlpHf[] = {
    {"model.layers.{L}.mlp.gate_up_proj.weight", Concat({"gate", "up"})},
    {"model.layers.{L}.mlp.gate_up_proj.bias", Concat({"gate_bias", "up_bias"})},
    {"model.layers.{L}.mlp.down_proj.weight", "down"},
    {"model.layers.{L}.mlp.down_proj.bias", "down_bias"},
};

// -- experts ----------------------------------------------------------------------------------------------------------

// The second norm of a layer that has experts.
constexpr PartRow kMoeNormRows[] = {NormRow("moe_norm", kLayer, "H")};

constexpr Layout kMoeNormHf[] = {{"model.layers.{L}.post_attention_layernorm.weight", "moe_norm"}};
constexpr Layout kMoeNormNemo[] = {{"decoder.layers.{L}.pre_mlp_layernorm.weight", "moe_norm"}};
// Of models that are built without Transformer Engine.
constexpr Layout kLocalMoeNormNemo[] = {{"decoder.layers.{L}.mlp.linear_fc1.layer_norm_weight", "moe_norm"}};
constexpr Layout kMoeNormTrtllm[] = {{"transformer.layers.{L}.post_layernorm.weight", "moe_norm"}};

constexpr PartRow kExpertRows[] = {
    {"router", kLayer, "E H"},
    {"expert_gate", kExpert, "M H", {0, 'M'}},
    {"expert_up", kExpert, "M H", {0, 'M'}},
    {"expert_down", kExpert, "H M", {1, 'M'}},
};

constexpr Tree kExpertGateUp = Concat({"expert_gate", "expert_up"});
constexpr Tree kAllGateUp = Stack('E', kExpertGateUp), kAllDown = Stack('E', "expert_down");

// A tensor for each expert, as published.
constexpr Layout kExpertsHf[] = {
    {"model.layers.{L}.mlp.gate.weight", "router"},
    {"model.layers.{L}.mlp.experts.{E}.gate_proj.weight", "expert_gate"},
    {"model.layers.{L}.mlp.experts.{E}.up_proj.weight", "expert_up"},
    {"model.layers.{L}.mlp.experts.{E}.down_proj.weight", "expert_down"},
};

// As transformers 5 has them in memory, and with the ending of a module.
constexpr Layout kPackedExpertsHf[] = {
    {"model.layers.{L}.mlp.gate.weight", "router"},
    {"model.layers.{L}.mlp.experts.gate_up_proj", kAllGateUp},
    {"model.layers.{L}.mlp.experts.down_proj", kAllDown},
};
constexpr Layout kPackedWeightsHf[] = {
    {"model.layers.{L}.mlp.gate.weight", "router"},
    {"model.layers.{L}.mlp.experts.gate_up_proj.weight", kAllGateUp},
    {"model.layers.{L}.mlp.experts.down_proj.weight", kAllDown},
};

constexpr Layout kMixtralExpertsHf[] = {
    {"model.layers.{L}.block_sparse_moe.gate.weight", "router"},
    {"model.layers.{L}.block_sparse_moe.experts.{E}.w1.weight", "expert_gate"},
    {"model.layers.{L}.block_sparse_moe.experts.{E}.w2.weight", "expert_down"},
    {"model.layers.{L}.block_sparse_moe.experts.{E}.w3.weight", "expert_up"},
};

// All layers' and experts' in one array, or all experts' of a layer.
constexpr Layout kExpertsNemo[] = {
    {"decoder.layers.{L}.mlp.router.weight", "router"},
    {"decoder.layers.{L}.mlp.experts.experts.linear_fc1.weight", kAllGateUp, 2},
    {"decoder.layers.{L}.mlp.experts.experts.linear_fc2.weight", kAllDown},
};

// The same under the key of older readers.
constexpr Layout kOldExpertsNemo[] = {
    {"decoder.layers.{L}.mlp.router.weight", "router"},
    {"decoder.layers.{L}.mlp.experts.linear_fc1.weight", kAllGateUp, 2},
    {"decoder.layers.{L}.mlp.experts.linear_fc2.weight", kAllDown},
};

// As modules call them: experts one behind the other, and as one grouped module.
constexpr Layout kSequentialExpertsNemo[] = {
    {"decoder.layers.{L}.mlp.router.weight", "router"},
    {"decoder.layers.{L}.mlp.experts.local_experts.{E}.linear_fc1.weight", kExpertGateUp, 2},
    {"decoder.layers.{L}.mlp.experts.local_experts.{E}.linear_fc2.weight", "expert_down"},
};
constexpr Layout kGroupedExpertsNemo[] = {
    {"decoder.layers.{L}.mlp.router.weight", "router"},
    {"decoder.layers.{L}.mlp.experts.linear_fc1.weight{E}", kExpertGateUp, 2},
    {"decoder.layers.{L}.mlp.experts.linear_fc2.weight{E}", "expert_down"},
};

// singleton_local_shards: an array for each expert, and of old for each half of fc1.
constexpr Layout kSingleExpertsNemo[] = {
    {"decoder.layers.{L}.mlp.router.weight", "router"},
    {"decoder.layers.{L}.mlp.experts.experts.{E}.linear_fc1.weight_w", "expert_gate"},
    {"decoder.layers.{L}.mlp.experts.experts.{E}.linear_fc1.weight_v", "expert_up"},
    {"decoder.layers.{L}.mlp.experts.experts.{E}.linear_fc2.weight", "expert_down"},
};
constexpr Layout kNumberedExpertsNemo[] = {
    {"decoder.layers.{L}.mlp.router.weight", "router"},
    {"decoder.layers.{L}.mlp.experts.experts.{E}.linear_fc1.weight", kExpertGateUp, 2},
    {"decoder.layers.{L}.mlp.experts.experts.{E}.linear_fc2.weight", "expert_down"},
};

constexpr NemoObject kExpertObjects[] = {
    {"mlp.experts.experts.linear_fc1", kExpert, "mlp.experts.local_experts.{E}.linear_fc1"},
    {"mlp.experts.experts.linear_fc2", kExpert, "mlp.experts.local_experts.{E}.linear_fc2"},
};

// `fc` has up before gate.
constexpr Layout kExpertsTrtllm[] = {
    {"transformer.layers.{L}.mlp.router.weight", "router", 1, Dtype::kF32},
    {"transformer.layers.{L}.mlp.fc.weight", Stack('E', Concat({"expert_up", "expert_gate"}))},
    {"transformer.layers.{L}.mlp.proj.weight", kAllDown},
};

constexpr Layouts kExpertLayoutsNemo = Layouts(kExpertsNemo, kOldExpertsNemo, kSequentialExpertsNemo,
                                               kGroupedExpertsNemo, kSingleExpertsNemo, kNumberedExpertsNemo)
                                           .ByModule(2);

constexpr PartRow kSharedExpertRows[] = {
    {"shared_gate", kLayer, "S H", {0, 'S'}},
    {"shared_up", kLayer, "S H", {0, 'S'}},
    {"shared_down", kLayer, "H S", {1, 'S'}},
    {"shared_router", kLayer, "1 H"},
};

constexpr Layout kSharedExpertHf[] = {
    {"model.layers.{L}.mlp.shared_expert.gate_proj.weight", "shared_gate"},
    {"model.layers.{L}.mlp.shared_expert.up_proj.weight", "shared_up"},
    {"model.layers.{L}.mlp.shared_expert.down_proj.weight", "shared_down"},
    {"model.layers.{L}.mlp.shared_expert_gate.weight", "shared_router"},
};

constexpr Layout kSharedExpertNemo[] = {
    {"decoder.layers.{L}.mlp.shared_experts.linear_fc1.weight", Concat({"shared_gate", "shared_up"}), 2},
    {"decoder.layers.{L}.mlp.shared_experts.linear_fc2.weight", "shared_down"},
    {"decoder.layers.{L}.mlp.shared_experts.gate_weight", "shared_router"},
};

constexpr Layout kHalvedSharedExpertNemo[] = {
    {"decoder.layers.{L}.mlp.shared_experts.linear_fc1.weight_w", "shared_gate"},
    {"decoder.layers.{L}.mlp.shared_experts.linear_fc1.weight_v", "shared_up"},
    {"decoder.layers.{L}.mlp.shared_experts.linear_fc2.weight", "shared_down"},
    {"decoder.layers.{L}.mlp.shared_experts.gate_weight", "shared_router"},
};

constexpr NemoObject kSharedExpertObjects[] = {{"mlp.shared_experts.linear_fc1"}, {"mlp.shared_experts.linear_fc2"}};

constexpr Layout kSharedExpertTrtllm[] = {
    {"transformer.layers.{L}.shared_expert.fc.weight", Concat({"shared_up", "shared_gate"})},
    {"transformer.layers.{L}.shared_expert.proj.weight", "shared_down"},
    {"transformer.layers.{L}.shared_expert_gate.weight", "shared_router"},
};

}  // namespace

const Block kTrunk = {kTrunkRows, Layouts(kTrunkHf), Layouts(kTrunkNemo, kTrunkOldNemo), kTrunkObjects,
                      Layouts(kTrunkTrtllm)};
const Block kFusedTrunk = {kTrunkRows, Layouts(kFusedTrunkHf), Layouts(kTrunkNemo, kTrunkOldNemo), kTrunkObjects};
const Block kQkNorm = {kQkNormRows, Layouts(kQkNormHf), Layouts(kQkNormNemo)};
const Block kMlpNorm = {kMlpNormRows, Layouts(kMlpNormHf),     Layouts(kMlpNormNemo, kMlpNormOldNemo),
                        {},           Layouts(kMlpNormTrtllm), kDenseLayers};
const Block kSandwichNorms = {kSandwichNormRows, Layouts(kSandwichNormHf), Layouts(kSandwichNormNemo)};
const Block kGatedMlp = {kGatedMlpRows,
                         Layouts(kGatedMlpHf),
                         Layouts(kGatedMlpNemo, kGatedMlpOldNemo, kHalvedMlpNemo),
                         kGatedMlpObjects,
                         Layouts(kGatedMlpTrtllm).Without(kMlpBiases),
                         kDenseLayers};
const Block kFusedMlp = {
    kGatedMlpRows, Layouts(kFusedMlpHf), Layouts(kGatedMlpNemo, kGatedMlpOldNemo, kHalvedMlpNemo), kGatedMlpObjects, {},
    kDenseLayers};
const Block kMoeNorm = {kMoeNormRows, Layouts(kMoeNormHf),     Layouts(kMoeNormNemo, kLocalMoeNormNemo),
                        {},           Layouts(kMoeNormTrtllm), kMoeLayers};
const Block kExperts = {kExpertRows,
                        Layouts(kExpertsHf, kPackedExpertsHf, kPackedWeightsHf),
                        kExpertLayoutsNemo,
                        kExpertObjects,
                        Layouts(kExpertsTrtllm),
                        kMoeLayers};
const Block kMixtralExperts = {kExpertRows,
                               Layouts(kMixtralExpertsHf, kPackedExpertsHf, kPackedWeightsHf),
                               kExpertLayoutsNemo,
                               kExpertObjects,
                               Layouts(kExpertsTrtllm),
                               kMoeLayers};
const Block kSharedExpert = {
    kSharedExpertRows,    Layouts(kSharedExpertHf),     Layouts(kSharedExpertNemo, kHalvedSharedExpertNemo),
    kSharedExpertObjects, Layouts(kSharedExpertTrtllm), kMoeLayers};

}  // namespace reshard
