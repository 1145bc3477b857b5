#include "base/hash.h"

#include <string>

#include "gtest/gtest.h"

namespace reshard {
namespace {

std::string Xxh3Hex(const std::string& bytes) {
  Xxh3 hash;
  hash.Update(bytes);
  return Hex(hash.Digest());
}

std::string Counting(size_t size) {
  std::string bytes;
  for (size_t i = 0; i < size; ++i) bytes += static_cast<char>(i % 251);
  return bytes;
}

// Expected values: `xxhsum -H3` 0.8.1.
TEST(Xxh3, AgreesWithXxhsum) {
  EXPECT_EQ(Xxh3Hex(""), "2d06800538d394c2");
  EXPECT_EQ(Xxh3Hex("abc"), "78af5f94892f3950");
  EXPECT_EQ(Xxh3Hex(Counting(100'000)), "42c23aeead96750d");
}

TEST(Xxh3, DoesNotDependOnHowTheBytesAreCut) {
  const std::string bytes = Counting(100'000);
  Xxh3 hash;
  for (size_t at = 0; at < bytes.size(); at += 777) hash.Update(std::string_view(bytes).substr(at, 777));
  EXPECT_EQ(Hex(hash.Digest()), Xxh3Hex(bytes));
}

TEST(Hex, HasSixteenLowerCaseDigits) {
  EXPECT_EQ(Hex(0), "0000000000000000");
  EXPECT_EQ(Hex(0xABCDEF), "0000000000abcdef");
  EXPECT_EQ(Hex(UINT64_MAX), "ffffffffffffffff");
}

// FIPS 180-2, appendix B.1 and B.2; the empty text by `sha256sum`.
TEST(Sha256Hex, AgreesWithTheStandard) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(Sha256, TakesItsBytesInPieces) {
  Sha256 hash;
  for (const char* piece : {"", "a", "bc"}) hash.Update(piece);
  EXPECT_EQ(hash.Hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// The check value of CRC-32/ISO-HDLC in Koopman's and other catalogues; the other is Python's zlib.crc32.
TEST(Crc32, IsTheOneOfZip) {
  EXPECT_EQ(Crc32("123456789"), 0xcbf43926u);
  EXPECT_EQ(Crc32(""), 0u);
  EXPECT_EQ(Crc32("6789", 4, Crc32("12345")), 0xcbf43926u);
}

}  // namespace
}  // namespace reshard
