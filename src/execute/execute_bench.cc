// How fast a plan is executed, beside a copy of the same bytes: 1 MiB reads and writes, a hash, a sync at the end. Set
// TMPDIR to choose the file system; on tmpfs the figures are those of the processor alone.
#include "execute/execute.h"

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>

#include "base/bytes.h"
#include "base/hash.h"

namespace reshard {
namespace {

constexpr uint64_t kRows = 32768, kColumns = 4096, kBytes = kRows * kColumns * 2;  // 256 MiB of BF16

std::string Folder() {
  const char* folder = std::getenv("TMPDIR");
  return JoinPath(folder ? folder : "/tmp", "reshard_execute_bench");
}

Piece RowMajor(const Box& box, Dtype dtype, uint32_t file) {
  Piece piece;
  piece.box = box;
  piece.axes = {Axis{box.shape[0], box.shape[1], 0}, Axis{box.shape[1], 1, 0}};
  piece.file = file;
  piece.dtype = dtype;
  return piece;
}

std::vector<Piece> Chunks(uint32_t count, Dtype dtype) {
  std::vector<Piece> chunks;
  for (uint32_t i = 0; i < count; ++i)
    chunks.push_back(RowMajor({{0, i * kColumns / count}, {kRows, kColumns / count}}, dtype, i));
  return chunks;
}

// Columns of `from` files that become columns of `to` files.
Plan ColumnPlan(uint32_t from, uint32_t to, Dtype target) {
  Plan plan;
  plan.source_tensors = {"w"};
  for (uint32_t i = 0; i < from; ++i) {
    std::string name = "source" + std::to_string(i), path = JoinPath(Folder(), name);
    WriteWholeFile(PosixIo(), path, std::string(kBytes / from, '\1'));
    FileInfo info = *PosixIo().Stat(path);
    plan.sources.push_back({path, name, info.size, info.mtime_ns, info.inode});
  }
  for (uint32_t i = 0; i < to; ++i)
    plan.files.push_back({"target" + std::to_string(i), kRows * kColumns * ItemSize(target) / to, {}});
  plan.parts = {{"w", {kRows, kColumns}, Chunks(from, Dtype::kBF16), Chunks(to, target)}};
  return plan;
}

class FolderFixture {
 public:
  FolderFixture() { PosixIo().MakeDirectories(Folder()); }
  ~FolderFixture() { std::filesystem::remove_all(Folder()); }
};

void BM_Execute(benchmark::State& state) {
  FolderFixture folder;
  Plan plan = ColumnPlan(static_cast<uint32_t>(state.range(0)), static_cast<uint32_t>(state.range(1)),
                         state.range(2) ? Dtype::kF32 : Dtype::kBF16);
  ExecuteOptions options;
  options.workers = static_cast<unsigned>(state.range(3));
  for (auto _ : state) Execute(plan, JoinPath(Folder(), "out"), PosixIo(), options);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kBytes));
}
BENCHMARK(BM_Execute)
    ->ArgNames({"from", "to", "cast", "workers"})
    ->Args({1, 1, 0, 1})
    ->Args({1, 1, 0, 2})
    ->Args({1, 8, 0, 1})
    ->Args({8, 1, 0, 1})
    ->Args({1, 1, 1, 1})
    ->MeasureProcessCPUTime()
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void BM_Copy(benchmark::State& state) {
  FolderFixture folder;
  Plan plan = ColumnPlan(1, 1, Dtype::kBF16);
  std::string buffer(kMiB, '\0');
  for (auto _ : state) {
    std::unique_ptr<File> source = PosixIo().OpenRead(plan.sources[0].path);
    std::unique_ptr<File> target = PosixIo().OpenWrite(JoinPath(Folder(), "copy"));
    Xxh3 hash;
    for (uint64_t offset = 0; offset < kBytes; offset += kMiB) {
      source->ReadAt(buffer.data(), kMiB, offset);
      target->WriteAt(buffer.data(), kMiB, offset);
      hash.Update(buffer.data(), kMiB);
    }
    PosixIo().SyncFileSystem(Folder());
    target->Forget(0, kBytes);
    benchmark::DoNotOptimize(hash.Digest());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kBytes));
}
BENCHMARK(BM_Copy)->MeasureProcessCPUTime()->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace reshard
