// Blocks that several families share.
#pragma once

#include "models/schema.h"

namespace reshard {

extern const Block kTrunk;     // embedding, attention, final norm, head
extern const Block kQkNorm;    // norms on q and k, one head long
extern const Block kGatedMlp;  // gate, up, down and the norm before them

}  // namespace reshard
