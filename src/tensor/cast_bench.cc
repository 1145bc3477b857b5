// Source bytes cast per second, of every pair, in a buffer that stays in the cache.
#include <benchmark/benchmark.h>

#include <cstring>
#include <random>
#include <vector>

#include "tensor/cast.h"

namespace reshard {
namespace {

// Values as weights have them, some of them subnormal in F16.
std::vector<char> Weights(Dtype dtype, size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> weight(0.0f, 1e-4f);
  std::vector<float> values(count);
  for (float& value : values) value = weight(random);
  std::vector<char> bytes(count * ItemSize(dtype));
  Cast(Dtype::kF32, dtype, values.data(), bytes.data(), count);
  return bytes;
}

void BM_Cast(benchmark::State& state, ElementForm from, ElementForm to) {
  constexpr size_t kCount = 64 * 1024;
  std::vector<char> source = Weights(from.dtype, kCount), target(kCount * ItemSize(to.dtype));
  for (auto _ : state) {
    benchmark::DoNotOptimize(Cast(from, to, source.data(), target.data(), kCount));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * source.size()));
}

BENCHMARK_CAPTURE(BM_Cast, F32_to_F32, Dtype::kF32, Dtype::kF32);
BENCHMARK_CAPTURE(BM_Cast, F32_to_BF16, Dtype::kF32, Dtype::kBF16);
BENCHMARK_CAPTURE(BM_Cast, F32_to_F16, Dtype::kF32, Dtype::kF16);
BENCHMARK_CAPTURE(BM_Cast, BF16_to_F32, Dtype::kBF16, Dtype::kF32);
BENCHMARK_CAPTURE(BM_Cast, BF16_to_F16, Dtype::kBF16, Dtype::kF16);
BENCHMARK_CAPTURE(BM_Cast, F16_to_F32, Dtype::kF16, Dtype::kF32);
BENCHMARK_CAPTURE(BM_Cast, F16_to_BF16, Dtype::kF16, Dtype::kBF16);
BENCHMARK_CAPTURE(BM_Cast, BF16_minus_one_to_BF16, ElementForm(Dtype::kBF16, true), Dtype::kBF16);
BENCHMARK_CAPTURE(BM_Cast, F32_to_BF16_minus_one, Dtype::kF32, ElementForm(Dtype::kBF16, true));

}  // namespace
}  // namespace reshard
