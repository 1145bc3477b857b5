// What a packed plan makes is what tarfile would have made of the files, as far as a reader of tars sees it.
#include "plan/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "archive/tar.h"
#include "plan/planner.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A literal file, and two with a piece of eight bytes behind a literal.
Plan ThreeFiles() {
  Plan plan;
  plan.sources = {{"in", "in", 16, 0, 0}};
  plan.source_tensors = {"a"};
  plan.target_tensors = {"b"};
  plan.files = {LiteralFile("w/b.x/1", "literal"), {"w/b/0", 12 + 8, {}}, {"c.yaml", 8, {}}};
  plan.files[1].literals = {{8, "text"}, {12, std::string(8, '\0')}};
  plan.files[1].checksums = {{0, 8, {12, 16}}};
  for (uint32_t file : {1, 2}) {
    Part part{"part", {4}, {{}}, {{}}};
    for (Piece* piece : {&part.sources[0], &part.targets[0]}) {
      piece->box = WholeBox({4});
      piece->axes[0] = {4, 1, 0};
      piece->dtype = Dtype::kBF16;
    }
    part.targets[0].file = file;
    part.sources[0].offset = 8 * (file - 1);
    plan.parts.push_back(part);
  }
  return plan;
}

TEST(PackTar, MakesTheFilesMembersInTheOrderOfTarfile) {
  Plan plan = ThreeFiles();
  ASSERT_THAT(Audit(plan), IsEmpty());
  PackTar(plan, "m.nemo");
  EXPECT_THAT(Audit(plan), IsEmpty());
  ASSERT_EQ(plan.files.size(), 1u);
  const FileLayout& packed = plan.files[0];
  EXPECT_EQ(packed.path, "m.nemo");

  ScratchFolder scratch;
  std::string image(packed.size, '?');
  for (const Literal& literal : packed.literals) image.replace(literal.offset, literal.bytes.size(), literal.bytes);
  WriteWholeFile(PosixIo(), scratch / "m.nemo", image);
  auto file = PosixIo().OpenRead(scratch / "m.nemo");
  const auto members = ReadTar(*file, "m.nemo", image.size(), {100, 1 << 20});
  std::vector<std::string> names;
  for (const TarMember& member : members) names.push_back(member.name + (member.folder ? "/" : ""));
  // Python: sorted(["c.yaml", "w"]), sorted(["b", "b.x"])
  ASSERT_THAT(names, ElementsAre("c.yaml", "w/", "w/b/", "w/b/0", "w/b.x/", "w/b.x/1"));
  EXPECT_EQ(image.substr(members[5].data.offset, 7), "literal");
  EXPECT_EQ(plan.parts[0].targets[0].offset, members[3].data.offset);
  EXPECT_EQ(plan.parts[1].targets[0].offset, members[0].data.offset);
  EXPECT_EQ(packed.checksums[0].offset, members[3].data.offset);
  EXPECT_EQ(packed.checksums[0].places[1], members[3].data.offset + 16);
}

}  // namespace
}  // namespace reshard
