#include "base/hash.h"

#define XXH_INLINE_ALL
// The one-shot SHA256 looks its algorithm up, and drags all of libcrypto into a static program, sockets and names of
// hosts too; these do not, and are only called deprecated.
#define OPENSSL_SUPPRESS_DEPRECATED
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
  SHA256_CTX state;
  SHA256_Init(&state);
  SHA256_Update(&state, bytes.data(), bytes.size());
  SHA256_Final(digest, &state);
  std::string hex;
  for (unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace reshard
