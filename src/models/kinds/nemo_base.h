// The two model_config.yaml that NeMo-Skills' converters start from (node `model` of nemo_config.yaml and
// nemo_config_qwen.yaml), all keys in their order. Values that a conversion sets are overwritten in place.
#pragma once

#include <string_view>

namespace reshard {

extern const std::string_view kNemoBaseLlama, kNemoBaseQwen;

}  // namespace reshard
