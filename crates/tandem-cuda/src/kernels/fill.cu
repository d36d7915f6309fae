// Data to measure with, and the clock that it is measured at.

DEVICE u32 mixed(u64 x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return (u32)((x ^ (x >> 31)) >> 16);
}
// About normal with variance 1: zeros and flat bytes let a GPU run faster than data does.
DEVICE float normal(u64 i, u64 seed) {
  const u32 a = mixed(2 * i + seed), b = mixed(2 * i + 1 + seed);
  const float sum = (float)(a & 0xFFFF) + (float)(a >> 16) + (float)(b & 0xFFFF) + (float)(b >> 16);
  return (sum / 65536.f - 2.f) * 1.7320508f;
}
extern "C" __global__ void fill_bf16(u32* to, u64 pairs, float scale, u64 seed) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < pairs; i += (u64)gridDim.x * blockDim.x)
    to[i] = pack_bf16(scale * normal(2 * i, seed), scale * normal(2 * i + 1, seed));
}
extern "C" __global__ void fill_e4m3(u16* to, u64 pairs, float scale, u64 seed) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < pairs; i += (u64)gridDim.x * blockDim.x)
    to[i] = pack_e4m3(scale * normal(2 * i, seed), scale * normal(2 * i + 1, seed));
}
// Even between low and high.
extern "C" __global__ void fill_f32(float* to, u64 n, float low, float high, u64 seed) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) to[i] = low + (high - low) * (float)(mixed(i + seed) >> 8) / 16777216.f;
}
// Cycles and nanoseconds of about `cycles` cycles on one multiprocessor.
extern "C" __global__ void read_clock(u64* to, u64 cycles) {
  u64 ns0, ns1, c0, c1;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns0));
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(c0));
  do asm volatile("mov.u64 %0, %%clock64;" : "=l"(c1)); while (c1 - c0 < cycles);
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns1));
  to[0] = c1 - c0, to[1] = ns1 - ns0;
}
