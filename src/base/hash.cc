#include "base/hash.h"

#define XXH_INLINE_ALL
// The one-shot SHA256 looks its algorithm up, and drags all of libcrypto into a static program, sockets and names of
// hosts too; these do not, and are only called deprecated.
#define OPENSSL_SUPPRESS_DEPRECATED
#include <fmt/format.h>
#include <libdeflate.h>
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

struct Sha256::State {
  SHA256_CTX value;
};

Sha256::Sha256() : state_(std::make_unique<State>()) { SHA256_Init(&state_->value); }
Sha256::~Sha256() = default;
void Sha256::Update(std::string_view bytes) { SHA256_Update(&state_->value, bytes.data(), bytes.size()); }

std::string Sha256::Hex() {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256_Final(digest, &state_->value);
  std::string hex;
  for (unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

std::string Sha256Hex(std::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.Hex();
}

uint32_t Crc32(const void* bytes, size_t size, uint32_t before) { return libdeflate_crc32(before, bytes, size); }

}  // namespace reshard
