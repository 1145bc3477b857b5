// Pickles for fuzz targets: opcodes in an order that the input chooses, most of which find on the stack what they need.
#pragma once

#include <fmt/format.h>

#include <iterator>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "tests/fuzz_bytes.h"

namespace reshard::pickle {

class BuiltPickle {
 public:
  explicit BuiltPickle(FuzzBytes& in) : in_(in) {}

  std::string Make() {
    for (size_t count = in_.Take<uint8_t>(); count > 0 && !in_.empty(); --count) Step();
    return out_ + ".";
  }

 private:
  static constexpr std::string_view kTexts[] = {"storage", "cpu",    "0",          "1",      "2",
                                                "weight",  "latin1", "state_dict", "module", "_extra_state"};
  static constexpr std::string_view kGlobals[] = {"torch._utils\n_rebuild_tensor_v2",
                                                  "torch._utils\n_rebuild_tensor_v3",
                                                  "torch._utils\n_rebuild_tensor",
                                                  "torch._utils\n_rebuild_parameter",
                                                  "torch._utils\n_rebuild_qtensor",
                                                  "torch._tensor\n_rebuild_from_type_v2",
                                                  "torch\nTensor",
                                                  "torch\nSize",
                                                  "torch\nHalfStorage",
                                                  "torch.storage\nUntypedStorage",
                                                  "torch\nfloat8_e4m3fn",
                                                  "collections\nOrderedDict",
                                                  "collections\ndefaultdict",
                                                  "__builtin__\nset",
                                                  "_codecs\nencode",
                                                  "os\nsystem"};
  static constexpr std::string_view kSimple[] = {"N",    "\x88", "\x89", "}",    "]", ")", "\x8f", "(",   "t",
                                                 "\x85", "\x86", "\x87", "a",    "e", "s", "u",    "R",   "b",
                                                 "\x81", "Q",    "\x90", "\x91", "0", "d", "l",    "\x93"};

  void Step() {
    switch (in_.Choose(8)) {
      case 0:
        return Text(kTexts[in_.Choose(std::size(kTexts))]);
      case 1:
        return Number();
      case 2:
        out_ += fmt::format("c{}\n", kGlobals[in_.Choose(std::size(kGlobals))]);
        return;
      case 3:
        out_ += 'q';
        out_ += static_cast<char>(in_.Choose(16));
        return;
      case 4:
        out_ += 'h';
        out_ += static_cast<char>(in_.Choose(16));
        return;
      case 5:
        return Tensor();
      case 6:
        out_ += in_.Text(in_.Choose(4));
        return;
      default:
        out_ += kSimple[in_.Choose(std::size(kSimple))];
    }
  }

  void Text(std::string_view text) {
    out_ += 'X';
    AppendLittle<uint32_t>(out_, static_cast<uint32_t>(text.size()));
    out_ += text;
  }

  // Small most of the time.
  void Number() {
    const size_t bytes = in_.Choose(4) ? 1 : 8;
    out_ += '\x8a';
    out_ += static_cast<char>(bytes);
    for (size_t i = 0; i < bytes; ++i) out_ += in_.Take<char>();
  }

  void Numbers(size_t count) {
    out_ += '(';
    while (count-- > 0) Number();
    out_ += 't';
  }

  void Tensor() {
    const size_t axes = in_.Choose(4);
    out_ += fmt::format("c{}\n((", kGlobals[in_.Choose(5)]);
    Text("storage");
    out_ += fmt::format("c{}\n", kGlobals[8 + in_.Choose(2)]);
    Text(kTexts[2 + in_.Choose(3)]);
    Text("cpu");
    Number();
    out_ += "tQ";
    Number();
    Numbers(axes);
    Numbers(axes);
    out_ += "\x89Nctorch\nfloat8_e4m3fn\ntR";
  }

  FuzzBytes& in_;
  std::string out_ = "\x80\x02";
};

}  // namespace reshard::pickle
