// Hashes. XXH3 (64 bit) is ours alone: plan ids, receipts. SHA-256 is for names that others may want to reproduce.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace reshard {

class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  void Update(const void* bytes, size_t size);
  void Update(std::string_view bytes) { Update(bytes.data(), bytes.size()); }
  uint64_t Digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Hex(uint64_t value);  // 16 lower-case digits

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(std::string_view bytes);
  std::string Hex();  // 64 lower-case digits; once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(std::string_view bytes);

// The CRC-32 of zip and gzip, of bytes behind those of which `before` is the CRC.
uint32_t Crc32(const void* bytes, size_t size, uint32_t before = 0);
inline uint32_t Crc32(std::string_view bytes) { return Crc32(bytes.data(), bytes.size()); }

}  // namespace reshard
