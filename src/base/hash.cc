#include "base/hash.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <openssl/sha.h>
#include <xxhash.h>

namespace reshard {

struct Xxh3::State {
  XXH3_state_t value;
};

Xxh3::Xxh3() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->value); }
Xxh3::~Xxh3() = default;
void Xxh3::Update(const void* bytes, size_t size) { XXH3_64bits_update(&state_->value, bytes, size); }
uint64_t Xxh3::Digest() const { return XXH3_64bits_digest(&state_->value); }

std::string Hex(uint64_t value) { return fmt::format("{:016x}", value); }

std::string Sha256Hex(std::string_view bytes) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  std::string hex;
  for (unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace reshard
