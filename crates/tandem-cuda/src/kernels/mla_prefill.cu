// Causal attention over whole prompts with expanded heads (192 values of queries and keys, 128 of values), after FlashAttention-3
// (arXiv 2407.08608): 128 queries a block, 64 for each of two warpgroups; a third one copies tiles of 128 keys and values, two deep.
// Probabilities stay in registers. Queries with the most keys start first.

constexpr int KEYS = 128, QK = 192, V = 128, COLUMN = 128 * 128, K_BYTES = 3 * COLUMN, V_BYTES = 2 * COLUMN;

struct Prefill {
  static constexpr int BYTES = 3 * K_BYTES + 2 * V_BYTES + 16 * 8 + 1024;
};
extern "C" __device__ int mla_prefill_bytes = Prefill::BYTES;

// q, k [batch · length][heads · 192], v [batch · length][heads · 128], out the same as v; all bf16. scale = softmax scale · log2(e).
extern "C" __global__ void __launch_bounds__(384, 1) mla_prefill(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, u16* out,
                                                                int heads, int length, float scale) {
  extern __shared__ u8 raw[];
  u8* q_tile = (u8*)(((u64)raw + 1023) & ~1023ull);
  u8* k_tiles = q_tile + K_BYTES;
  u8* v_tiles = k_tiles + 2 * K_BYTES;
  u64* bars = (u64*)(v_tiles + 2 * V_BYTES);
  u64 *q_full = bars, *k_full = bars + 1, *k_empty = bars + 3, *v_full = bars + 5, *v_empty = bars + 7;
  const int thread = threadIdx.x, role = thread / 128, lane = thread % 32, warp = thread / 32 % 4;
  const int q0 = (gridDim.x - 1 - blockIdx.x) * 128, head = blockIdx.y, row0 = blockIdx.z * length, n_tiles = q0 / KEYS + 1;
  if (thread == 0) {
    barrier_init(q_full, 1);
    for (int s = 0; s < 2; ++s) barrier_init(k_full + s, 1), barrier_init(v_full + s, 1), barrier_init(k_empty + s, 8), barrier_init(v_empty + s, 8);
    barriers_ready();
  }
  __syncthreads();

  if (role == 0) {
    registers_down<24>();
    if (thread == 0) {
      barrier_expect(q_full, K_BYTES);
      for (int c = 0; c < 3; ++c) copy_tile(q_tile + c * COLUMN, &q, q_full, head * QK + c * 64, row0 + q0);
      for (int i = 0; i < n_tiles; ++i) {
        const int s = i & 1, phase = (i >> 1) & 1;
        barrier_wait(k_empty + s, phase ^ 1);
        barrier_expect(k_full + s, K_BYTES);
        for (int c = 0; c < 3; ++c) copy_tile(k_tiles + s * K_BYTES + c * COLUMN, &k, k_full + s, head * QK + c * 64, row0 + i * KEYS);
        barrier_wait(v_empty + s, phase ^ 1);
        barrier_expect(v_full + s, V_BYTES);
        for (int c = 0; c < 2; ++c) copy_tile(v_tiles + s * V_BYTES + c * COLUMN, &v, v_full + s, head * V + c * 64, row0 + i * KEYS);
      }
    }
    return;
  }
  registers_up<240>();
  const int half = role - 1, row = q0 + half * 64 + warp * 16 + lane / 4;
  float o[64], d[64], top[2] = {-INFINITY_F, -INFINITY_F}, sum[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < 64; ++i) o[i] = 0.f;
  barrier_wait(q_full, 0);
  const u64 a = descriptor(q_tile + half * 64 * 128);
  for (int i = 0; i < n_tiles; ++i) {
    const int s = i & 1, phase = (i >> 1) & 1;
    barrier_wait(k_full + s, phase);
    const u64 b = descriptor(k_tiles + s * K_BYTES);
    hold(d);
    products_begin();
#pragma unroll
    for (int c = 0; c < 3; ++c)
#pragma unroll
      for (int x = 0; x < 4; ++x) bf16_n128(d, moved(a, c * COLUMN + x * 32), moved(b, c * COLUMN + x * 32), c + x > 0);
    products_commit();
    products_wait<0>();
    hold(d);
    if (lane == 0) barrier_arrive(k_empty + s);
    if (i == n_tiles - 1) {  // the tile on the diagonal
#pragma unroll
      for (int j = 0; j < 64; ++j)
        if (i * KEYS + j / 4 * 8 + 2 * (lane % 4) + j % 2 > row + j / 2 % 2 * 8) d[j] = -INFINITY_F;
    }
    float alpha[2];
    u32 p[8][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = top[r];
#pragma unroll
      for (int j = 0; j < 16; ++j) most = fmaxf(most, fmaxf(d[4 * j + 2 * r], d[4 * j + 2 * r + 1]));
      most = quad_max(most);
      alpha[r] = exp2_fast((top[r] - most) * scale);
      top[r] = most;
      const float shift = most * scale;
      float part = 0.f;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const float x0 = exp2_fast(d[4 * j + 2 * r] * scale - shift), x1 = exp2_fast(d[4 * j + 2 * r + 1] * scale - shift);
        part += x0 + x1;
        p[j / 2][j % 2 * 2 + r] = pack_bf16(x0, x1);
      }
      sum[r] = sum[r] * alpha[r] + part;
    }
#pragma unroll
    for (int j = 0; j < 16; ++j) o[4 * j] *= alpha[0], o[4 * j + 1] *= alpha[0], o[4 * j + 2] *= alpha[1], o[4 * j + 3] *= alpha[1];
    barrier_wait(v_full + s, phase);
    const u64 w = descriptor(v_tiles + s * V_BYTES, COLUMN);
    hold(o);
    products_begin();
#pragma unroll
    for (int x = 0; x < 8; ++x) bf16_n128_rows_registers(o, p[x], moved(w, x * 2048));
    products_commit();
    products_wait<0>();
    hold(o);
    if (lane == 0) barrier_arrive(v_empty + s);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float inverse = 1.f / quad_sum(sum[r]);
    const int at = row + 8 * r;
    if (at >= length) continue;
    u16* to = out + ((u64)(row0 + at) * heads + head) * V + 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < 16; ++j) *(u32*)(to + 8 * j) = pack_bf16(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse);
  }
}
