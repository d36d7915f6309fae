// What all kernels share: barriers, bulk tensor copies, warpgroup matrix products (PTX ISA 8.0, sm_90a). No header is included, so that
// NVRTC needs no folder of headers.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(64) TensorMap { u64 words[16]; };

#define DEVICE __device__ __forceinline__
#define INFINITY_F __int_as_float(0x7f800000)

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE void barrier_init(u64* bar, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals)); }
DEVICE void barrier_expect(u64* bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory"); }
DEVICE void barrier_arrive(u64* bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory"); }
DEVICE void barrier_wait(u64* bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nL_try:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra L_done;\nbra L_try;\nL_done:\n}\n" ::"r"(shared_address(bar)), "r"(parity) : "memory");
}
// Barriers that were initialised become visible to the copy engine.
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Ordinary stores to shared memory become visible to the tensor cores.
DEVICE void stores_ready() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

DEVICE void copy_tile(void* dst, const TensorMap* map, u64* bar, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(dst)), "l"(map), "r"(shared_address(bar)), "r"(column), "r"(row) : "memory");
}
DEVICE void copy_bytes(void* dst, const void* src, u32 bytes, u64* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(dst)), "l"(src), "r"(bytes), "r"(shared_address(bar)) : "memory");
}

template <int N> DEVICE void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// Matrix descriptor of a tile whose rows are 128 bytes, swizzled over 128 bytes. `lbo` only counts for tiles that are read along their
// rows (MN-major): bytes from one 128-byte column of the tile to the next. Groups of eight rows are 1024 bytes apart.
DEVICE u64 descriptor(const void* p, u32 lbo = 16) {
  return (u64)((shared_address(p) & 0x3FFFF) >> 4) | ((u64)(lbo >> 4) << 16) | ((u64)(1024 >> 4) << 32) | (1ull << 62);
}
// A descriptor `bytes` further on.
DEVICE u64 moved(u64 d, u32 bytes) { return d + (bytes >> 4); }

template <int N> DEVICE void hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define L16 L8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define L32 L16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define L64 L32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define L128 L64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define R4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define R8(i) R4(i), R4((i) + 4)
#define R16(i) R8(i), R8((i) + 8)
#define R32(i) R16(i), R16((i) + 16)
#define R64(i) R32(i), R32((i) + 32)
#define R128(i) R64(i), R64((i) + 64)

// d[64 × N] (+)= a[64 × 32] · b[N × 32]ᵀ, e4m3.
template <int N> struct Fp8;
#define FP8_PRODUCT(N, REGS, A, B, P)                                                                                               \
  template <> struct Fp8<N> {                                                                                                       \
    static DEVICE void product(float (&d)[REGS], u64 a, u64 b, int accumulate) {                                                    \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" L##REGS \
                   "}, %" A ", %" B ", p, 1, 1;\n}\n"                                                                               \
                   : R##REGS(0)                                                                                                     \
                   : "l"(a), "l"(b), "r"(accumulate));                                                                              \
    }                                                                                                                               \
  };
FP8_PRODUCT(16, 8, "8", "9", "10")
FP8_PRODUCT(32, 16, "16", "17", "18")
FP8_PRODUCT(64, 32, "32", "33", "34")
FP8_PRODUCT(128, 64, "64", "65", "66")

// d[64 × N] (+)= a[64 × 16] · b, bf16, both from shared memory; b is [N × 16] (T = 0) or read along its rows, [16 × N] (T = 1).
#define BF16_PRODUCT(NAME, N, REGS, A, B, P, T)                                                                                        \
  DEVICE void NAME(float (&d)[REGS], u64 a, u64 b, int accumulate) {                                                                   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" L##REGS "}, %" A \
                 ", %" B ", p, 1, 1, 0, " T ";\n}\n"                                                                                   \
                 : R##REGS(0)                                                                                                          \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                                   \
  }
BF16_PRODUCT(bf16_n64, 64, 32, "32", "33", "34", "0")
BF16_PRODUCT(bf16_n128, 128, 64, "64", "65", "66", "0")
BF16_PRODUCT(bf16_n256_rows, 256, 128, "128", "129", "130", "1")

// d[64 × 128] += a[64 × 16] · b[16 × 128], a from registers, b read along its rows.
DEVICE void bf16_n128_rows_registers(float (&d)[64], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" L64 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"
               : R64(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Two floats as bf16, the first in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEVICE float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __uint_as_float(pair & 0xFFFF0000u); }
// Two floats as e4m3, the first in the lower byte; what is too large becomes 448.
DEVICE u16 pack_e4m3(float low, float high) {
  u16 r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
  return r;
}
DEVICE float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
// Over the four lanes that share a row of an accumulator.
DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
