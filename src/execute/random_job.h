// Random plans with what they must make, written by an element-by-element reference.
#pragma once

#include <zlib.h>

#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "base/hash.h"
#include "execute/execute.h"
#include "execute/testutil.h"
#include "tensor/cast.h"

namespace reshard::testing {

// A plan, its sources on disk, and the files that it must make.
struct Job {
  Plan plan;
  std::vector<std::string> images;
  uint64_t source_bytes = 0, target_bytes = 0;
};

inline constexpr Dtype kSourceDtypes[] = {Dtype::kF32, Dtype::kF16, Dtype::kBF16, Dtype::kU8, Dtype::kI64};
inline constexpr Dtype kCastable[] = {Dtype::kF32, Dtype::kF16, Dtype::kBF16};

// Places pieces for the boxes behind each other in the images, and writes the elements there.
inline std::vector<Piece> PlaceBoxes(Random& random, const std::vector<Box>& boxes, const ElementForm& form,
                                     const Dims& shape, const Elements& elements, std::vector<std::string>& images) {
  std::vector<Piece> pieces;
  for (const Box& box : boxes) {
    Piece piece;
    piece.dtype = form.dtype;
    piece.minus_one = form.minus_one;
    piece.file = static_cast<uint32_t>(Pick(random, 0, images.size() - 1));
    std::string& image = images[piece.file];
    piece.offset = image.size() + Pick(random, 0, 5);
    image.resize(piece.offset +
                 PlaceBox(random, box, static_cast<Nesting>(Pick(random, 0, 2)), piece) * ItemSize(form.dtype));
    PutPiece(piece, shape, elements, image);
    pieces.push_back(piece);
  }
  return pieces;
}

inline std::vector<Box> WithRepeats(Random& random, std::vector<Box> boxes, const Dims& shape) {
  if (Pick(random, 0, 2) == 0) boxes.push_back(RandomBoxIn(random, WholeBox(shape)));
  if (Pick(random, 0, 2) == 0) boxes.push_back(boxes[0]);
  return boxes;
}

inline void AddRandomPart(Random& random, Job& job, std::vector<std::string>& sources) {
  Part part;
  part.name = "part " + std::to_string(job.plan.parts.size());
  part.shape = RandomShape(random, 12);
  const uint64_t count = ElementCount(part.shape);
  const Box whole = WholeBox(part.shape);
  const Dtype from = kSourceDtypes[Pick(random, 0, std::size(kSourceDtypes) - 1)];
  const Dtype to = IsCastable(from) ? kCastable[Pick(random, 0, 2)] : from;
  const bool zeros = Pick(random, 0, 5) == 0;
  const ElementForm stored(from, IsCastable(from) && Pick(random, 0, 1)),
      wanted(to, IsCastable(to) && Pick(random, 0, 1));
  Elements elements = zeros ? Elements(count * ItemSize(from), '\0') : RandomElements(random, count * ItemSize(from));
  Elements cast(count * ItemSize(to), '\0');
  if (!zeros) Cast(stored, wanted, elements.data(), cast.data(), count);
  if (!zeros)
    part.sources = PlaceBoxes(random, WithRepeats(random, RandomCover(random, whole), part.shape), stored, part.shape,
                              elements, sources);
  part.targets = PlaceBoxes(random, WithRepeats(random, RandomCover(random, whole), part.shape), wanted, part.shape,
                            cast, job.images);
  for (const Piece& piece : part.sources) job.source_bytes += ElementCount(piece.box.shape) * ItemSize(from);
  for (const Piece& piece : part.targets) job.target_bytes += ElementCount(piece.box.shape) * ItemSize(to);
  job.plan.parts.push_back(part);
}

// The end of a file: checksums of two ranges before it, the sums by zlib.
inline void AddEnd(Random& random, FileLayout& file, std::string& image) {
  const uint64_t end = image.size(), middle = Pick(random, 0, end);
  std::string literal = RandomElements(random, Pick(random, 0, 5)) + std::string(16, '\0');
  const uint64_t first = end + literal.size() - 16;
  file.literals.push_back({end, literal + "end"});
  file.checksums = {{0, middle, {first, first + 8}}, {middle, end - middle, {first + 4, first + 12}}};
  image += literal + "end";
  for (const Checksum& checksum : file.checksums) {
    const auto* range = reinterpret_cast<const Bytef*>(image.data() + checksum.offset);
    const auto sum = static_cast<uint32_t>(crc32(0, range, static_cast<uInt>(checksum.size)));
    for (uint64_t place : checksum.places) std::memcpy(image.data() + place, &sum, sizeof sum);
  }
}

inline Job RandomJob(Random& random, const ScratchFolder& folder) {
  Job job;
  std::vector<std::string> sources(Pick(random, 1, 3), "header");
  job.images.resize(Pick(random, 1, 4));
  for (size_t i = 0; i < job.images.size(); ++i) {
    std::string literal = RandomElements(random, Pick(random, 0, 20));
    job.images[i] = literal;
    job.plan.files.push_back({std::string(i % 2 ? "a/" : "") + "file" + std::to_string(i), 0, {{0, literal}}});
  }
  for (uint64_t parts = Pick(random, 1, 5); parts > 0; --parts) AddRandomPart(random, job, sources);
  for (size_t i = 0; i < job.images.size(); ++i) {
    AddEnd(random, job.plan.files[i], job.images[i]);
    job.plan.files[i].size = job.images[i].size();
  }
  for (size_t i = 0; i < sources.size(); ++i)
    job.plan.sources.push_back(WriteSource(folder, "source" + std::to_string(i), sources[i]));
  job.plan.source_tensors = {"tensor"};
  return job;
}

inline void ExpectImages(const Job& job, const ExecuteReport& report, const ScratchFolder& folder,
                         const std::string& staging) {
  ASSERT_EQ(report.hashes.size(), job.images.size());
  for (size_t i = 0; i < job.images.size(); ++i) {
    ASSERT_TRUE(ReadFile(folder / (staging + "/" + job.plan.files[i].path)) == job.images[i]) << "file " << i;
    Xxh3 hash;
    hash.Update(job.images[i]);
    ASSERT_EQ(report.hashes[i], hash.Digest()) << "file " << i;
  }
}

}  // namespace reshard::testing
