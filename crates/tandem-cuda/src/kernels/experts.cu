// Routed experts: a grouped product of FP8 with DeepSeek's scales, and what stands around it.
//
// out[row, :] = Σ_kb (weights[slot, :, kb] · tokens[row, kb]) · weight_scale[slot, n/128, kb] · token_scale[kb, row]
//
// Weights are the M side of the tensor cores' product and tokens the N side, so that few tokens an expert waste nothing: a tile is
// 128 · SUBS rows of weights × NT tokens. With many tokens the L2 cache bounds (32 KB for each 128 × 128 × 128 products are 15 TB/s at
// the full rate), so tiles are larger then. One warpgroup copies (bulk tensor copies, STAGES deep), two multiply (64 rows of weights each) and
// add each 128 columns to FP32 sums outside the tensor cores, as the scales need it, while the next ones are multiplied. Blocks stay on their multiprocessor and walk
// over the tiles of all groups: the token tiles of one block of weights stand together, so that weights are read once.

constexpr int MAX_GROUPS = 512;

template <int NT, int SUBS, int STAGES> struct Grouped {
  static constexpr int ROWS = 128 * SUBS, W = ROWS * 128, X = NT * 128, S = NT * 4, OUT_ROW = ROWS * 2 + 16;
  // Tokens whose results are in shared memory at once, on their way out.
  static constexpr int PASS = SUBS == 1 ? NT : 32;
  static constexpr int BYTES = STAGES * (W + X + S) + PASS * OUT_ROW + STAGES * 16 + (MAX_GROUPS + 1) * 4 + 1024;
};

template <int NT, int SUBS, int STAGES>
DEVICE void grouped_product(const TensorMap* weights, const TensorMap* tokens, const float* weight_scales, const float* token_scales, u16* out, const int* start,
                            const int* rows, const int* slot, int n_groups, int n, int k, int row_stride) {
  using Sizes = Grouped<NT, SUBS, STAGES>;
  extern __shared__ u8 raw[];
  u8* base = (u8*)(((u64)raw + 1023) & ~1023ull);
  u8* w_tiles = base;
  u8* x_tiles = w_tiles + STAGES * Sizes::W;
  float* scales = (float*)(x_tiles + STAGES * Sizes::X);
  u8* staging = (u8*)scales + STAGES * Sizes::S;
  u64* full = (u64*)(staging + Sizes::PASS * Sizes::OUT_ROW);
  u64* empty = full + STAGES;
  int* first = (int*)(empty + STAGES);  // first tile of each group

  const int thread = threadIdx.x, role = thread / 128, blocks = n / Sizes::ROWS, steps = k / 128;
  if (thread == 0) {
    for (int s = 0; s < STAGES; ++s) barrier_init(full + s, 1), barrier_init(empty + s, 8);
    barriers_ready();
  }
  if (thread < 32) {  // running sums of tiles over the groups, by one warp
    int before = 0;
    for (int g0 = 0; g0 < n_groups; g0 += 32) {
      int g = g0 + thread, tiles = g < n_groups ? (rows[g] + NT - 1) / NT * blocks : 0, sum = tiles;
      for (int d = 1; d < 32; d *= 2) {
        int up = __shfl_up_sync(0xffffffffu, sum, d);
        if (thread >= d) sum += up;
      }
      if (g < n_groups) first[g] = before + sum - tiles;
      before += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (thread == 0) first[n_groups] = before;
  }
  __syncthreads();
  const int tiles = first[n_groups];
  // The last group whose first tile is not after `tile`; groups without rows have no tiles of their own.
  auto group_of = [&](int tile) {
    int low = 0, high = n_groups;
    while (high - low > 1) {
      int middle = (low + high) / 2;
      if (first[middle] <= tile) low = middle; else high = middle;
    }
    return low;
  };

  if (role == 0) {
    registers_down<40>();
    if (thread == 0) {
      int stage = 0, phase = 0;
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int g = group_of(tile), local = tile - first[g], across = (rows[g] + NT - 1) / NT;
        const int row = start[g] + local % across * NT, w_row = slot[g] * n + local / across * Sizes::ROWS;
        for (int kb = 0; kb < steps; ++kb) {
          barrier_wait(empty + stage, phase ^ 1);
          barrier_expect(full + stage, Sizes::W + Sizes::X + Sizes::S);
          copy_tile(w_tiles + stage * Sizes::W, weights, full + stage, kb * 128, w_row);
          copy_tile(x_tiles + stage * Sizes::X, tokens, full + stage, kb * 128, row);
          copy_bytes(scales + stage * NT, token_scales + (u64)kb * row_stride + row, Sizes::S, full + stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    registers_up<232>();
    const int half = role - 1, warp = thread / 32 % 4, lane = thread % 32;
    int stage = 0, phase = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int g = group_of(tile), local = tile - first[g], across = (rows[g] + NT - 1) / NT;
      const int token = local % across * NT, block = local / across, here = min(NT, rows[g] - token);
      // With two rows of blocks each warpgroup has one.
      const float* weight_scale = weight_scales + ((u64)slot[g] * (n / 128) + block * SUBS + (SUBS - 1) * half) * steps;
      float sum[SUBS][NT / 2], even[NT / 2], odd[NT / 2];
#pragma unroll
      for (int i = 0; i < SUBS * NT / 2; ++i) sum[i / (NT / 2)][i % (NT / 2)] = 0.f;
      // 64 rows of the weights' tile in this stage, which has come.
      auto begin = [&](float(&d)[NT / 2], int sub) {
        const u64 a = descriptor(w_tiles + stage * Sizes::W + (half * SUBS + sub) * 8192), b = descriptor(x_tiles + stage * Sizes::X);
        hold(d);
        products_begin();
#pragma unroll
        for (int i = 0; i < 4; ++i) Fp8<NT>::product(d, moved(a, i * 32), moved(b, i * 32), i > 0);
        products_commit();
      };
      auto add = [&](float(&d)[NT / 2], float(&to)[NT / 2], float sw, int at) {
        hold(d);
        const float2* sx = (const float2*)(scales + at * NT) + lane % 4;
#pragma unroll
        for (int j = 0; j < NT / 8; ++j) {
          const float2 s = sx[j * 4];
          const float s0 = s.x * sw, s1 = s.y * sw;
          to[4 * j] += d[4 * j] * s0, to[4 * j + 1] += d[4 * j + 1] * s1;
          to[4 * j + 2] += d[4 * j + 2] * s0, to[4 * j + 3] += d[4 * j + 3] * s1;
        }
      };
      auto release = [&](int at) {
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + at);
      };
      auto step = [&]() {
        const int at = stage;
        if (++stage == STAGES) stage = 0, phase ^= 1;
        return at;
      };
      float sw = __ldg(weight_scale), next;
      if constexpr (SUBS == 2) {
        for (int kb = 0; kb < steps; ++kb) {
          next = kb + 1 < steps ? __ldg(weight_scale + kb + 1) : 0.f;
          barrier_wait(full + stage, phase);
          begin(even, 0);
          products_wait<0>();
          add(even, sum[0], sw, stage);
          begin(even, 1);
          products_wait<0>();
          add(even, sum[1], sw, stage);
          release(step());
          sw = next;
        }
      } else {
        // Products of 128 columns are begun before those of the 128 before them are added; `even` is being multiplied whenever the loop begins.
        auto columns = [&](float(&d)[NT / 2], float(&before)[NT / 2], int kb, int at) {
          next = __ldg(weight_scale + kb);
          barrier_wait(full + stage, phase);
          begin(d, 0);
          products_wait<1>();
          add(before, sum[0], sw, at);
          release(at);
          sw = next;
          return step();
        };
        barrier_wait(full + stage, phase);
        begin(even, 0);
        int at = step(), kb = 1;
        for (; kb + 1 < steps; kb += 2) {
          at = columns(odd, even, kb, at);
          at = columns(even, odd, kb + 1, at);
        }
        if (kb < steps) {
          at = columns(odd, even, kb, at);
          products_wait<0>();
          add(odd, sum[0], sw, at);
        } else {
          products_wait<0>();
          add(even, sum[0], sw, at);
        }
        release(at);
      }
      // Transposed through shared memory: [token][rows of weights].
#pragma unroll
      for (int pass = 0; pass < NT / Sizes::PASS; ++pass) {
        named_barrier(1, 256);
#pragma unroll
        for (int sub = 0; sub < SUBS; ++sub) {
          const float(&of)[NT / 2] = sum[sub];
          const int r0 = (half * SUBS + sub) * 64 + warp * 16;
#pragma unroll
          for (int j = 0; j < Sizes::PASS / 8; j += 2) {
            const int i = 4 * (j + pass * Sizes::PASS / 8);
            const u8* to = staging + (8 * (j + lane / 16) + lane % 8) * Sizes::OUT_ROW + (r0 + (lane / 8 % 2) * 8) * 2;
            asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "r"(pack_bf16(of[i], of[i + 1])),
                         "r"(pack_bf16(of[i + 2], of[i + 3])), "r"(pack_bf16(of[i + 4], of[i + 5])), "r"(pack_bf16(of[i + 6], of[i + 7]))
                         : "memory");
          }
        }
        named_barrier(1, 256);
        constexpr int PARTS = 16 * SUBS;  // of 16 bytes
        const int left = min(here - pass * Sizes::PASS, Sizes::PASS);
        for (int i = thread - 128; i < left * PARTS; i += 256)
          *(uint4*)(out + (u64)(start[g] + token + pass * Sizes::PASS + i / PARTS) * n + block * Sizes::ROWS + i % PARTS * 8) =
              *(const uint4*)(staging + i / PARTS * Sizes::OUT_ROW + i % PARTS * 16);
      }
    }
  }
}

#define GROUPED(NAME, NT, SUBS, STAGES)                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(384, 1) NAME(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap tokens,         \
                                                            const float* weight_scales, const float* token_scales, u16* out, const int* start,           \
                                                            const int* rows, const int* slot, int n_groups, int n, int k, int row_stride) {              \
    grouped_product<NT, SUBS, STAGES>(&weights, &tokens, weight_scales, token_scales, out, start, rows, slot, n_groups, n, k, row_stride);               \
  }                                                                                                                                                      \
  extern "C" __device__ int NAME##_bytes = Grouped<NT, SUBS, STAGES>::BYTES;
GROUPED(grouped_128x16, 16, 1, 10)
GROUPED(grouped_128x32, 32, 1, 8)
GROUPED(grouped_128x64, 64, 1, 7)
GROUPED(grouped_128x128, 128, 1, 5)
GROUPED(grouped_256x128, 128, 2, 4)

// Rows of tokens into the order of their experts: [tokens][k] e4m3 with scales [tokens][k/128] -> [rows][k], scales [k/128][row_stride].
extern "C" __global__ void gather_rows(const u8* x, const float* x_scales, const int* source, u8* to, float* to_scales, int k, int row_stride) {
  const int row = blockIdx.x, token = source[row];
  if (token < 0) return;
  const uint4* from = (const uint4*)(x + (u64)token * k);
  uint4* into = (uint4*)(to + (u64)row * k);
  for (int i = threadIdx.x; i < k / 16; i += blockDim.x) into[i] = from[i];
  for (int i = threadIdx.x; i < k / 128; i += blockDim.x) to_scales[(u64)i * row_stride + row] = x_scales[(u64)token * (k / 128) + i];
}

// silu(gate) · up, quantised by 128 columns: [rows][2·inter] bf16 (gate first) -> [rows][inter] e4m3, scales [inter/128][row_stride].
// One warp for 128 columns of a row.
extern "C" __global__ void silu_quantise(const u16* gate_up, const int* source, u8* to, float* to_scales, int inter, int row_stride) {
  const int row = blockIdx.x, lane = threadIdx.x % 32;
  if (source[row] < 0) return;
  for (int block = threadIdx.x / 32; block < inter / 128; block += blockDim.x / 32) {
    const u64 at = (u64)row * 2 * inter + block * 128 + lane * 4;
    const uint2 gate = *(const uint2*)(gate_up + at), up = *(const uint2*)(gate_up + at + inter);
    const float g[4] = {bf16_low(gate.x), bf16_high(gate.x), bf16_low(gate.y), bf16_high(gate.y)};
    const float u[4] = {bf16_low(up.x), bf16_high(up.x), bf16_low(up.y), bf16_high(up.y)};
    float v[4], most = 0.f;
    for (int i = 0; i < 4; ++i) v[i] = g[i] / (1.f + __expf(-g[i])) * u[i], most = fmaxf(most, fabsf(v[i]));
    for (int d = 16; d; d /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, d));
    const float scale = fmaxf(most, 1e-10f) / 448.f, inverse = 1.f / scale;
    const u32 packed = (u32)pack_e4m3(v[0] * inverse, v[1] * inverse) | ((u32)pack_e4m3(v[2] * inverse, v[3] * inverse) << 16);
    *(u32*)(to + (u64)row * inter + block * 128 + lane * 4) = packed;
    if (lane == 0) to_scales[(u64)block * row_stride + row] = scale;
  }
}

// The weighted sum of a token's rows: rows_of [tokens][topk] (−1: another rank's), weights [tokens][topk], rows [..][n] bf16 -> [tokens][n] bf16.
extern "C" __global__ void combine_rows(const u16* rows, const int* rows_of, const float* weights, u16* to, int topk, int n) {
  const int token = blockIdx.x;
  for (int i = threadIdx.x; i < n / 8; i += blockDim.x) {
    float sum[8] = {};
    for (int j = 0; j < topk; ++j) {
      const int row = rows_of[token * topk + j];
      if (row < 0) continue;
      const float w = weights[token * topk + j];
      const uint4 v = *(const uint4*)(rows + (u64)row * n + i * 8);
      const u32 pairs[4] = {v.x, v.y, v.z, v.w};
      for (int p = 0; p < 4; ++p) sum[2 * p] += w * bf16_low(pairs[p]), sum[2 * p + 1] += w * bf16_high(pairs[p]);
    }
    *(uint4*)(to + (u64)token * n + i * 8) = make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7]));
  }
}
