// Absorbed attention of one token a sequence (multi-head latent attention, DeepSeek-V2, section 2.1): queries of 576 = 512 + 64 values
// against one shared latent of 576 values a cached token, whose first 512 are also what is averaged.
//
// A block has 64 heads of one sequence and a share of its tokens (split), in pages of 64, two of which (73,728 bytes each) are in shared
// memory. Three warpgroups: one computes scores and the running softmax, two the averages (256 columns each, in registers). While the
// averages of a page are computed, the scores of the next one are.

constexpr int PAGE = 64, QK = 576, V = 512, PAGE_BYTES = PAGE * QK * 2, COLUMN = PAGE * 128;

struct Decode {
  static constexpr int BYTES = 3 * PAGE_BYTES + 64 * 128 + 128 * 4 + 16 * 8 + 1024;
};
extern "C" __device__ int mla_decode_bytes = Decode::BYTES;

// q [batch · heads][576], pages [..][576] bf16; table [batch][max_pages]; partial [splits][batch · heads][512] f32, lse [splits][batch · heads]
// (base 2); with one split, out [batch · heads][512] bf16 instead. scale = softmax scale · log2(e).
extern "C" __global__ void __launch_bounds__(384, 1) mla_decode(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap pages, const int* table, const int* lengths,
                                                               float* partial, float* lse, u16* out, int heads, int max_pages, float scale) {
  extern __shared__ u8 raw[];
  u8* base = (u8*)(((u64)raw + 1023) & ~1023ull);
  u8* q_tile = base;
  u8* kv = base + PAGE_BYTES;
  u8* p_tile = kv + 2 * PAGE_BYTES;
  float* rescale = (float*)(p_tile + 64 * 128);
  float* row_sum = rescale + 64;
  u64* bars = (u64*)(row_sum + 64);
  u64 *q_full = bars, *kv_full = bars + 1, *kv_empty = bars + 3, *p_full = bars + 5, *p_empty = bars + 6;

  const int thread = threadIdx.x, role = thread / 128, lane = thread % 32, warp = thread / 32 % 4;
  const int head0 = blockIdx.x * 64, split = blockIdx.y, splits = gridDim.y, sequence = blockIdx.z;
  const int length = lengths[sequence], n_pages = (length + PAGE - 1) / PAGE;
  const int from = (int)((long long)n_pages * split / splits), to = (int)((long long)n_pages * (split + 1) / splits);
  if (thread == 0) {
    barrier_init(q_full, 1);
    for (int s = 0; s < 2; ++s) barrier_init(kv_full + s, 1), barrier_init(kv_empty + s, 8);
    barrier_init(p_full, 128), barrier_init(p_empty, 8);
    barriers_ready();
  }
  __syncthreads();

  // Pages are copied by one thread of the warpgroup of scores.
  auto copy_page = [&](int i) {
    const int s = (i - from) & 1, row = table[sequence * max_pages + i] * PAGE;
    barrier_expect(kv_full + s, PAGE_BYTES);
    for (int c = 0; c < 9; ++c) copy_tile(kv + s * PAGE_BYTES + c * COLUMN, &pages, kv_full + s, c * 64, row);
  };

  if (role == 0) {
    if (thread == 0) {
      barrier_expect(q_full, PAGE_BYTES);
      for (int c = 0; c < 9; ++c) copy_tile(q_tile + c * COLUMN, &q, q_full, c * 64, sequence * heads + head0);
      for (int i = from; i < to && i < from + 2; ++i) copy_page(i);
    }
    __syncwarp();
    float top[2] = {-INFINITY_F, -INFINITY_F}, sum[2] = {0.f, 0.f};
    const int row = warp * 16 + lane / 4;
    barrier_wait(q_full, 0);
    const u64 a = descriptor(q_tile);
    for (int i = from; i < to; ++i) {
      const int s = (i - from) & 1, phase = ((i - from) >> 1) & 1;
      float d[32];
      barrier_wait(kv_full + s, phase);
      const u64 b = descriptor(kv + s * PAGE_BYTES);
      hold(d);
      products_begin();
#pragma unroll
      for (int c = 0; c < 9; ++c)
#pragma unroll
        for (int k = 0; k < 4; ++k) bf16_n64(d, moved(a, c * COLUMN + k * 32), moved(b, c * COLUMN + k * 32), c + k > 0);
      products_commit();
      if (thread == 0 && i > from && i + 1 < to) {  // into the place of the page before this one, once it has been averaged
        barrier_wait(kv_empty + (s ^ 1), ((i - from - 1) >> 1) & 1);
        copy_page(i + 1);
      }
      __syncwarp();
      products_wait<0>();
      hold(d);
      const int left = length - i * PAGE;
      float alpha[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = top[r];
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = d[4 * j + 2 * r + e];
            if (8 * j + 2 * (lane % 4) + e >= left) x = -INFINITY_F;
            most = fmaxf(most, x);
          }
        most = quad_max(most);
        alpha[r] = exp2_fast((top[r] - most) * scale);
        top[r] = most;
        float part = 0.f;
        const float shift = most * scale;
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = d[4 * j + 2 * r + e];
            x = exp2_fast(x * scale - shift), part += x;
          }
        sum[r] = sum[r] * alpha[r] + part;
      }
      barrier_wait(p_empty, ((i - from) & 1) ^ 1);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        if (lane % 4 == 0) rescale[at] = alpha[r];
#pragma unroll
        for (int j = 0; j < 8; ++j) *(u32*)(p_tile + at * 128 + ((j ^ (at & 7)) << 4) + 4 * (lane % 4)) = pack_bf16(d[4 * j + 2 * r], d[4 * j + 2 * r + 1]);
      }
      stores_ready();
      barrier_arrive(p_full);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = quad_sum(sum[r]);
      const int head = head0 + row + 8 * r;
      if (lane % 4 == 0) {
        row_sum[row + 8 * r] = total;
        if (splits > 1 && head < heads) lse[(u64)(split * gridDim.z + sequence) * heads + head] = total > 0.f ? top[r] * scale + log2f(total) : -INFINITY_F;
      }
    }
    named_barrier(1, 384);
  } else {
    const int half = role - 1, row = warp * 16 + lane / 4;
    float o[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0.f;
    const u64 a = descriptor(p_tile);
    for (int i = from; i < to; ++i) {
      const int s = (i - from) & 1;
      barrier_wait(p_full, s);
      const float r0 = rescale[row], r1 = rescale[row + 8];
      if (__any_sync(0xffffffffu, r0 != 1.f || r1 != 1.f)) {
#pragma unroll
        for (int j = 0; j < 32; ++j) o[4 * j] *= r0, o[4 * j + 1] *= r0, o[4 * j + 2] *= r1, o[4 * j + 3] *= r1;
      }
      const u64 b = descriptor(kv + s * PAGE_BYTES + half * 4 * COLUMN, COLUMN);
      hold(o);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) bf16_n256_rows(o, moved(a, k * 32), moved(b, k * 2048), 1);
      products_commit();
      products_wait<0>();
      hold(o);
      __syncwarp();
      if (lane == 0) barrier_arrive(p_empty), barrier_arrive(kv_empty + s);
    }
    named_barrier(1, 384);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = row + 8 * r, head = head0 + at;
      if (head >= heads) continue;
      const float total = row_sum[at], scale_out = total > 0.f ? 1.f / total : 0.f;
      const u64 column = half * 256 + 2 * (lane % 4);
      if (splits > 1) {
        float* to_row = partial + ((u64)(split * gridDim.z + sequence) * heads + head) * V + column;
#pragma unroll
        for (int j = 0; j < 32; ++j) *(float2*)(to_row + 8 * j) = make_float2(o[4 * j + 2 * r] * scale_out, o[4 * j + 2 * r + 1] * scale_out);
      } else {
        u16* to_row = out + ((u64)sequence * heads + head) * V + column;
#pragma unroll
        for (int j = 0; j < 32; ++j) *(u32*)(to_row + 8 * j) = pack_bf16(o[4 * j + 2 * r] * scale_out, o[4 * j + 2 * r + 1] * scale_out);
      }
    }
  }
}

// Puts the splits together: one block of 128 threads a row.
extern "C" __global__ void mla_combine(const float* partial, const float* lse, u16* out, int splits, int rows) {
  const int row = blockIdx.x;
  float top = -INFINITY_F, total = 0.f;
  for (int s = 0; s < splits; ++s) top = fmaxf(top, lse[(u64)s * rows + row]);
  float sum[4] = {};
  for (int s = 0; s < splits; ++s) {
    const float w = exp2_fast(lse[(u64)s * rows + row] - top);
    total += w;
    const float4 v = *(const float4*)(partial + ((u64)s * rows + row) * V + threadIdx.x * 4);
    sum[0] += w * v.x, sum[1] += w * v.y, sum[2] += w * v.z, sum[3] += w * v.w;
  }
  const float inverse = 1.f / total;
  *(uint2*)(out + (u64)row * V + threadIdx.x * 4) = make_uint2(pack_bf16(sum[0] * inverse, sum[1] * inverse), pack_bf16(sum[2] * inverse, sum[3] * inverse));
}
