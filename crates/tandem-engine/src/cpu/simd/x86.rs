//! AVX2 and AVX-512 versions of the panel, dot and widening kernels.
//!
//! The tiles keep all sums in registers: 12 rows x 32 columns (AVX-512) or 6 x 16 (AVX2).
//! A single row would wait for the latency of each fused multiply-add, so few rows split the
//! inner dimension over several independent sums.
#![expect(clippy::needless_range_loop, reason = "constant bounds over registers read best as indices")]

use std::arch::x86_64::*;

use super::{DotArgs, NR, PanelArgs};

/// Calls `$tile::<rows, unroll>` for a row count known only at run time.
macro_rules! by_rows {
    ($rows:expr, $tile:ident, $args:expr; $($n:literal => $u:literal),*) => {
        match $rows {
            $($n => $tile::<$n, $u>($args),)*
            _ => unreachable!("a tile has at most as many rows as there are arms"),
        }
    };
}

/// Cuts the rows of `a` into equal tiles of at most `max` rows.
#[inline(always)]
fn for_tiles(a: PanelArgs, max: usize, mut tile: impl FnMut(PanelArgs)) {
    if a.m == 0 {
        return;
    }
    let n_tiles = a.m.div_ceil(max);
    let (base, longer) = (a.m / n_tiles, a.m % n_tiles);
    let mut start = 0;
    for i in 0..n_tiles {
        let m = base + usize::from(i < longer);
        tile(PanelArgs { x: a.x.wrapping_add(start * a.ldx), c: a.c.wrapping_add(start * a.ldc), m, ..a });
        start += m;
    }
}

/// # Safety
/// As [`super::Isa::panel`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn panel_avx512(a: PanelArgs) {
    for_tiles(a, 12, |t| {
        // SAFETY: each tile is a part of the rows that the caller vouches for; the feature is enabled here.
        unsafe {
            by_rows!(t.m, tile_avx512, t; 1 => 8, 2 => 4, 3 => 4, 4 => 2, 5 => 2, 6 => 2, 7 => 1, 8 => 1, 9 => 1, 10 => 1, 11 => 1, 12 => 1)
        }
    });
}

#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const M: usize, const U: usize>(a: PanelArgs) {
    // SAFETY: reads x[M][k], b[k][32] and reads and writes c[M][32], which the caller vouches for.
    unsafe {
        let mut sums = [[[_mm512_setzero_ps(); 2]; M]; U];
        if a.accumulate {
            for i in 0..M {
                sums[0][i] = [_mm512_loadu_ps(a.c.add(i * a.ldc)), _mm512_loadu_ps(a.c.add(i * a.ldc + 16))];
            }
        }
        let mut p = 0;
        while p + U <= a.k {
            for u in 0..U {
                let b = a.b.add((p + u) * a.ldb);
                let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
                for i in 0..M {
                    let x = _mm512_set1_ps(*a.x.add(i * a.ldx + p + u));
                    sums[u][i][0] = _mm512_fmadd_ps(x, b0, sums[u][i][0]);
                    sums[u][i][1] = _mm512_fmadd_ps(x, b1, sums[u][i][1]);
                }
            }
            p += U;
        }
        while p < a.k {
            let b = a.b.add(p * a.ldb);
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for i in 0..M {
                let x = _mm512_set1_ps(*a.x.add(i * a.ldx + p));
                sums[0][i][0] = _mm512_fmadd_ps(x, b0, sums[0][i][0]);
                sums[0][i][1] = _mm512_fmadd_ps(x, b1, sums[0][i][1]);
            }
            p += 1;
        }
        for i in 0..M {
            let mut sum = sums[0][i];
            for s in &sums[1..] {
                sum = [_mm512_add_ps(sum[0], s[i][0]), _mm512_add_ps(sum[1], s[i][1])];
            }
            _mm512_storeu_ps(a.c.add(i * a.ldc), sum[0]);
            _mm512_storeu_ps(a.c.add(i * a.ldc + 16), sum[1]);
        }
    }
}

/// # Safety
/// As [`super::Isa::panel`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn panel_avx2(a: PanelArgs) {
    for_tiles(a, 6, |t| {
        for half in 0..NR / 16 {
            let t = PanelArgs { b: t.b.wrapping_add(half * 16), c: t.c.wrapping_add(half * 16), ..t };
            // SAFETY: as in `panel_avx512`; each half covers 16 of the 32 columns.
            unsafe { by_rows!(t.m, tile_avx2, t; 1 => 4, 2 => 2, 3 => 2, 4 => 1, 5 => 1, 6 => 1) }
        }
    });
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const M: usize, const U: usize>(a: PanelArgs) {
    // SAFETY: reads x[M][k], b[k][16] and reads and writes c[M][16], which the caller vouches for.
    unsafe {
        let mut sums = [[[_mm256_setzero_ps(); 2]; M]; U];
        if a.accumulate {
            for i in 0..M {
                sums[0][i] = [_mm256_loadu_ps(a.c.add(i * a.ldc)), _mm256_loadu_ps(a.c.add(i * a.ldc + 8))];
            }
        }
        let mut p = 0;
        while p < a.k {
            for u in 0..U.min(a.k - p) {
                let b = a.b.add((p + u) * a.ldb);
                let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for i in 0..M {
                    let x = _mm256_set1_ps(*a.x.add(i * a.ldx + p + u));
                    sums[u][i][0] = _mm256_fmadd_ps(x, b0, sums[u][i][0]);
                    sums[u][i][1] = _mm256_fmadd_ps(x, b1, sums[u][i][1]);
                }
            }
            p += U;
        }
        for i in 0..M {
            let mut sum = sums[0][i];
            for s in &sums[1..] {
                sum = [_mm256_add_ps(sum[0], s[i][0]), _mm256_add_ps(sum[1], s[i][1])];
            }
            _mm256_storeu_ps(a.c.add(i * a.ldc), sum[0]);
            _mm256_storeu_ps(a.c.add(i * a.ldc + 8), sum[1]);
        }
    }
}

/// Cuts the pairs of `a` into tiles of at most `nx` x `ny` and calls `tile`.
#[inline(always)]
fn for_pairs(a: DotArgs, nx: usize, ny: usize, mut tile: impl FnMut(DotArgs)) {
    for j in (0..a.n_y).step_by(ny) {
        for i in (0..a.n_x).step_by(nx) {
            tile(DotArgs {
                x: a.x.wrapping_add(i * a.ldx),
                n_x: nx.min(a.n_x - i),
                y: a.y.wrapping_add(j * a.ldy),
                n_y: ny.min(a.n_y - j),
                out: a.out.wrapping_add(i * a.ldo + j),
                ..a
            });
        }
    }
}

/// # Safety
/// As [`super::Isa::dots`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dots_avx512(a: DotArgs) {
    for_pairs(a, 4, 4, |t| {
        // SAFETY: each tile is a part of the rows that the caller vouches for; the feature is enabled here.
        unsafe {
            match (t.n_x, t.n_y) {
                (4, 4) => dot_tile_avx512::<4, 4>(t),
                _ => {
                    for_pairs(t, 1, 1, |one| dot_tile_avx512::<1, 1>(one));
                }
            }
        }
    });
}

#[target_feature(enable = "avx512f")]
unsafe fn dot_tile_avx512<const X: usize, const Y: usize>(a: DotArgs) {
    // SAFETY: reads X rows of x and Y rows of y over k values, writes X x Y results, which the caller vouches for.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); Y]; X];
        for p in (0..a.k).step_by(16) {
            let mut y = [_mm512_setzero_ps(); Y];
            for (j, y) in y.iter_mut().enumerate() {
                *y = _mm512_loadu_ps(a.y.add(j * a.ldy + p));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let x = _mm512_loadu_ps(a.x.add(i * a.ldx + p));
                for (sum, y) in row.iter_mut().zip(&y) {
                    *sum = _mm512_fmadd_ps(x, *y, *sum);
                }
            }
        }
        if X == 4 && Y == 4 {
            let totals = lane_totals(std::array::from_fn(|i| sums[i / Y][i % Y]));
            _mm_storeu_ps(a.out, _mm512_extractf32x4_ps(totals, 0));
            _mm_storeu_ps(a.out.add(a.ldo), _mm512_extractf32x4_ps(totals, 1));
            _mm_storeu_ps(a.out.add(2 * a.ldo), _mm512_extractf32x4_ps(totals, 2));
            _mm_storeu_ps(a.out.add(3 * a.ldo), _mm512_extractf32x4_ps(totals, 3));
            return;
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                *a.out.add(i * a.ldo + j) = _mm512_reduce_add_ps(*sum);
            }
        }
    }
}

/// The sum of the lanes of each of sixteen registers: lane `i` of the result belongs to register `i`.
#[target_feature(enable = "avx512f")]
#[inline]
fn lane_totals(v: [__m512; 16]) -> __m512 {
    // Each step halves the number of registers by adding two interleavings of a pair.
    let pairs: [__m512; 8] = std::array::from_fn(|i| {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
    });
    let fours: [__m512; 4] = std::array::from_fn(|i| {
        let (a, b) = (_mm512_castps_pd(pairs[2 * i]), _mm512_castps_pd(pairs[2 * i + 1]));
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    });
    let halves = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    halves(halves(fours[0], fours[1]), halves(fours[2], fours[3]))
}

/// # Safety
/// As [`super::Isa::dots`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots_avx2(a: DotArgs) {
    for_pairs(a, 4, 2, |t| {
        // SAFETY: as in `dots_avx512`.
        unsafe {
            match (t.n_x, t.n_y) {
                (4, 2) => dot_tile_avx2::<4, 2>(t),
                _ => for_pairs(t, 1, 1, |one| dot_tile_avx2::<1, 1>(one)),
            }
        }
    });
}

#[target_feature(enable = "avx2,fma")]
unsafe fn dot_tile_avx2<const X: usize, const Y: usize>(a: DotArgs) {
    // SAFETY: as in `dot_tile_avx512`.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); Y]; X];
        for p in (0..a.k).step_by(8) {
            let mut y = [_mm256_setzero_ps(); Y];
            for (j, y) in y.iter_mut().enumerate() {
                *y = _mm256_loadu_ps(a.y.add(j * a.ldy + p));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let x = _mm256_loadu_ps(a.x.add(i * a.ldx + p));
                for (sum, y) in row.iter_mut().zip(&y) {
                    *sum = _mm256_fmadd_ps(x, *y, *sum);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                let four = _mm_add_ps(_mm256_castps256_ps128(*sum), _mm256_extractf128_ps(*sum, 1));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                *a.out.add(i * a.ldo + j) = _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
            }
        }
    }
}

// A sign-extended e4m3 code, shifted left by 7 and with bit 14 cleared, is an f16 of the same value times 2^-8,
// subnormals included. The conversion to f32 is exact; the factor goes into the scale.
const F16_BITS: i16 = 0xbf80u16.cast_signed();

/// # Safety
/// Lengths are equal and a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn widen_fp8_avx512(src: &[u8], scale: f32, dst: &mut [f32]) {
    let (factor, mask) = (_mm512_set1_ps(scale * 256.0), _mm256_set1_epi16(F16_BITS));
    for i in (0..src.len()).step_by(16) {
        // SAFETY: i + 16 <= length of both slices.
        unsafe {
            let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(src.as_ptr().add(i).cast()));
            let halves = _mm256_and_si256(_mm256_slli_epi16(codes, 7), mask);
            _mm512_storeu_ps(dst.as_mut_ptr().add(i), _mm512_mul_ps(_mm512_cvtph_ps(halves), factor));
        }
    }
}

/// # Safety
/// Lengths are equal and a multiple of 16.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn widen_fp8_avx2(src: &[u8], scale: f32, dst: &mut [f32]) {
    let (factor, mask) = (_mm256_set1_ps(scale * 256.0), _mm256_set1_epi16(F16_BITS));
    for i in (0..src.len()).step_by(16) {
        // SAFETY: i + 16 <= length of both slices.
        unsafe {
            let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(src.as_ptr().add(i).cast()));
            let halves = _mm256_and_si256(_mm256_slli_epi16(codes, 7), mask);
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
            _mm256_storeu_ps(dst.as_mut_ptr().add(i), _mm256_mul_ps(low, factor));
            _mm256_storeu_ps(dst.as_mut_ptr().add(i + 8), _mm256_mul_ps(high, factor));
        }
    }
}

/// Bytes of codes that are asked for ahead of use: decoding reads each weight once, from far memory.
const PREFETCH: usize = 2048;

/// # Safety
/// `x` has `m` rows of `k` values (`m` is 1 to 8), `codes` has `k` rows of 32, `c` has `m` rows of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn few_rows_fp8_avx512(a: PanelArgs, codes: *const u8, scale: f32) {
    // SAFETY: as above; the features are enabled here.
    unsafe { by_rows!(a.m, tile_fp8_avx512, (a, codes, scale); 1 => 4, 2 => 2, 3 => 2, 4 => 1, 5 => 1, 6 => 1, 7 => 1, 8 => 1) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn tile_fp8_avx512<const M: usize, const U: usize>((a, codes, scale): (PanelArgs, *const u8, f32)) {
    let mask = _mm512_set1_epi16(F16_BITS);
    // SAFETY: reads x[M][k], codes[k][32] and reads and writes c[M][32], which the caller vouches for.
    unsafe {
        let mut sums = [[[_mm512_setzero_ps(); 2]; M]; U];
        let mut p = 0;
        while p < a.k {
            for u in 0..U.min(a.k - p) {
                let b = codes.add((p + u) * NR);
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(PREFETCH).cast());
                let wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(b.cast()));
                let halves = _mm512_and_si512(_mm512_slli_epi16(wide, 7), mask);
                let b0 = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
                let b1 = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
                for i in 0..M {
                    let x = _mm512_set1_ps(*a.x.add(i * a.ldx + p + u));
                    sums[u][i][0] = _mm512_fmadd_ps(x, b0, sums[u][i][0]);
                    sums[u][i][1] = _mm512_fmadd_ps(x, b1, sums[u][i][1]);
                }
            }
            p += U;
        }
        let factor = _mm512_set1_ps(scale * 256.0);
        for i in 0..M {
            for half in 0..2 {
                let sum = (1..U).fold(sums[0][i][half], |sum, u| _mm512_add_ps(sum, sums[u][i][half]));
                let c = a.c.add(i * a.ldc + half * 16);
                let old = if a.accumulate { _mm512_loadu_ps(c) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(c, _mm512_fmadd_ps(sum, factor, old));
            }
        }
    }
}
