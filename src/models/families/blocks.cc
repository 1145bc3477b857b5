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
    {"attn_norm", kLayer, "H"},
    {"final_norm", kGlobal, "H"},
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

constexpr std::string_view kTrunkObjects[] = {"self_attention.linear_qkv", "self_attention.linear_proj",
                                              "self_attention.core_attention"};

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
    {"q_norm", kLayer, "D"},
    {"k_norm", kLayer, "D"},
};

constexpr Layout kQkNormHf[] = {
    {"model.layers.{L}.self_attn.q_norm.weight", "q_norm"},
    {"model.layers.{L}.self_attn.k_norm.weight", "k_norm"},
};

constexpr Layout kQkNormNemo[] = {
    {"decoder.layers.{L}.self_attention.q_layernorm.weight", "q_norm"},
    {"decoder.layers.{L}.self_attention.k_layernorm.weight", "k_norm"},
};

constexpr PartRow kGatedMlpRows[] = {
    {"mlp_norm", kLayer, "H"},
    {"gate", kLayer, "F H", {0, 'F'}},
    {"gate_bias", kLayer, "F", {0, 'F'}, "mlp_bias"},
    {"up", kLayer, "F H", {0, 'F'}},
    {"up_bias", kLayer, "F", {0, 'F'}, "mlp_bias"},
    {"down", kLayer, "H F", {1, 'F'}},
    {"down_bias", kLayer, "H", {}, "mlp_bias"},
};

constexpr Layout kGatedMlpHf[] = {
    {"model.layers.{L}.mlp.gate_proj.weight", "gate"},
    {"model.layers.{L}.mlp.gate_proj.bias", "gate_bias"},
    {"model.layers.{L}.mlp.up_proj.weight", "up"},
    {"model.layers.{L}.mlp.up_proj.bias", "up_bias"},
    {"model.layers.{L}.mlp.down_proj.weight", "down"},
    {"model.layers.{L}.mlp.down_proj.bias", "down_bias"},
    {"model.layers.{L}.post_attention_layernorm.weight", "mlp_norm"},
};

constexpr Layout kGatedMlpNemo[] = {
    {"decoder.layers.{L}.mlp.linear_fc1.layer_norm_weight", "mlp_norm"},
    {"decoder.layers.{L}.mlp.linear_fc1.weight", Concat({"gate", "up"}), 2},
    {"decoder.layers.{L}.mlp.linear_fc1.bias", Concat({"gate_bias", "up_bias"}), 2},
    {"decoder.layers.{L}.mlp.linear_fc2.weight", "down"},
    {"decoder.layers.{L}.mlp.linear_fc2.bias", "down_bias"},
};

constexpr Layout kGatedMlpOldNemo[] = {
    {"encoder.layers.{L}.post_attention_layernorm.weight", "mlp_norm"},
    {"encoder.layers.{L}.mlp.dense_h_to_4h.weight", Concat({"gate", "up"}), 2},
    {"encoder.layers.{L}.mlp.dense_h_to_4h.bias", Concat({"gate_bias", "up_bias"}), 2},
    {"encoder.layers.{L}.mlp.dense_4h_to_h.weight", "down"},
    {"encoder.layers.{L}.mlp.dense_4h_to_h.bias", "down_bias"},
};

// `fc` is the activated one.
constexpr Layout kGatedMlpTrtllm[] = {
    {"transformer.layers.{L}.post_layernorm.weight", "mlp_norm"},
    {"transformer.layers.{L}.mlp.fc.weight", "gate"},
    {"transformer.layers.{L}.mlp.gate.weight", "up"},
    {"transformer.layers.{L}.mlp.proj.weight", "down"},
};

// The original drops them; a model that has them is refused.
constexpr std::string_view kMlpBiases[] = {"gate_bias", "up_bias", "down_bias"};

constexpr std::string_view kGatedMlpObjects[] = {"mlp.linear_fc1", "mlp.linear_fc2"};

}  // namespace

const Block kTrunk = {kTrunkRows, Layouts(kTrunkHf), Layouts(kTrunkNemo, kTrunkOldNemo), kTrunkObjects,
                      Layouts(kTrunkTrtllm)};
const Block kQkNorm = {kQkNormRows, Layouts(kQkNormHf), Layouts(kQkNormNemo)};
const Block kGatedMlp = {kGatedMlpRows, Layouts(kGatedMlpHf), Layouts(kGatedMlpNemo, kGatedMlpOldNemo),
                         kGatedMlpObjects, Layouts(kGatedMlpTrtllm).Without(kMlpBiases)};

}  // namespace reshard
