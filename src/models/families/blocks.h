// Blocks that several families share.
#pragma once

#include "models/schema.h"

namespace reshard {

extern const Block kTrunk;           // embedding, attention, final norm, head
extern const Block kFusedTrunk;      // the same, with q, k and v in one matrix in HuggingFace
extern const Block kQkNorm;          // norms on q and k, one head long
extern const Block kMlpNorm;         // the norm before a dense feed-forward part
extern const Block kSandwichNorms;   // that, and norms behind attention and behind the feed-forward part
extern const Block kGatedMlp;        // gate, up, down
extern const Block kFusedMlp;        // the same, with gate and up in one matrix in HuggingFace
extern const Block kMoeNorm;         // the norm before experts
extern const Block kExperts;         // a router, and a gate, up and down for each expert
extern const Block kMixtralExperts;  // the same under Mixtral's names
extern const Block kSharedExpert;    // the expert that every token goes to, and its gate

}  // namespace reshard
