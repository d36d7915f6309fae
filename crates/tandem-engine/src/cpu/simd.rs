//! Which vector instructions this machine has, and the innermost kernels written with them.
//!
//! One kernel does nearly all arithmetic: [`Isa::panel`] multiplies a few rows by a panel of
//! [`NR`] columns. Its operand layouts (`[k][NR]`) are what `packed` stores. Every kernel has
//! a portable twin; tests hold them equal up to rounding.
#![expect(unsafe_code, reason = "vector intrinsics work on raw pointers")]

mod elementwise;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Columns of a panel: two AVX-512 or four AVX2 registers.
pub(crate) const NR: usize = 32;

/// Instruction set of the kernels. A value other than `Portable` exists only on a machine that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Operands of one panel product: `c[m][NR] (+)= x[m][k] * b[k][NR]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelArgs {
    /// Rows, `m` of them, `ldx` apart.
    pub(crate) x: *const f32,
    pub(crate) ldx: usize,
    pub(crate) m: usize,
    pub(crate) k: usize,
    /// `k` rows of `NR` columns, `ldb` apart.
    pub(crate) b: *const f32,
    pub(crate) ldb: usize,
    /// Output rows, `ldc` apart.
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    /// Add to `c` instead of overwriting it.
    pub(crate) accumulate: bool,
}

/// Dot products of all pairs of rows: `out[i * ldo + j] = x[i] . y[j]` over `k` values, a multiple of 16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DotArgs {
    pub(crate) x: *const f32,
    pub(crate) ldx: usize,
    pub(crate) n_x: usize,
    pub(crate) y: *const f32,
    pub(crate) ldy: usize,
    pub(crate) n_y: usize,
    pub(crate) k: usize,
    pub(crate) out: *mut f32,
    pub(crate) ldo: usize,
}

impl Isa {
    /// The best this machine has.
    pub(crate) fn detect() -> Self {
        *Self::available().last().expect("the portable kernels are always there")
    }

    /// Everything this machine has, slowest first.
    pub(crate) fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "extended on x86 only"))]
        let mut all = vec![Isa(Kind::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Isa(Kind::Avx2));
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                    all.push(Isa(Kind::Avx512));
                }
            }
        }
        all
    }

    /// Name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2+fma",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// Multiplies rows by one panel.
    ///
    /// # Safety
    /// All rows that `args` describes must be readable (`x`, `b`) or exclusively writable (`c`).
    #[inline]
    pub(crate) unsafe fn panel(self, args: PanelArgs) {
        // SAFETY: the caller vouches for the pointers; the variant exists only where the instructions do.
        unsafe {
            match self.0 {
                Kind::Portable => portable::panel(args),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => x86::panel_avx2(args),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => x86::panel_avx512(args),
            }
        }
    }

    /// Rows up to which [`Isa::few_rows_fp8`] beats widening first.
    pub(crate) const FEW_ROWS: usize = 8;

    /// [`Isa::panel`] for at most [`Isa::FEW_ROWS`] rows by e4m3 codes `[k][NR]` that share `scale`, without
    /// storing widened weights; `false` when this instruction set has no such kernel (nothing is done then).
    ///
    /// # Safety
    /// As [`Isa::panel`], with `codes` in place of `args.b`.
    #[inline]
    pub(crate) unsafe fn few_rows_fp8(self, args: PanelArgs, codes: &[u8], scale: f32) -> bool {
        debug_assert!(codes.len() == args.k * NR && args.m <= Self::FEW_ROWS);
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => {
                // SAFETY: as in `panel`.
                unsafe { x86::few_rows_fp8_avx512(args, codes.as_ptr(), scale) };
                true
            }
            _ => false,
        }
    }

    /// Computes all pairs of dot products.
    ///
    /// # Safety
    /// As [`Isa::panel`]; `k` must be a multiple of 16.
    #[inline]
    pub(crate) unsafe fn dots(self, args: DotArgs) {
        debug_assert_eq!(args.k % 16, 0);
        // SAFETY: as in `panel`.
        unsafe {
            match self.0 {
                Kind::Portable => portable::dots(args),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => x86::dots_avx2(args),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => x86::dots_avx512(args),
            }
        }
    }

    /// Widens e4m3 codes and multiplies by `scale`. Lengths are equal and a multiple of 16. Codes are not NaN.
    #[inline]
    pub(crate) fn widen_fp8(self, src: &[u8], scale: f32, dst: &mut [f32]) {
        assert!(src.len() == dst.len() && src.len().is_multiple_of(16), "lengths differ or are odd");
        match self.0 {
            Kind::Portable => portable::widen_fp8(src, scale, dst),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: lengths were checked; the variant exists only where the instructions do.
            Kind::Avx2 => unsafe { x86::widen_fp8_avx2(src, scale, dst) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { x86::widen_fp8_avx512(src, scale, dst) },
        }
    }
}

mod portable {
    use super::{DotArgs, NR, PanelArgs};

    /// Values of all e4m3 codes.
    fn e4m3_table() -> &'static [f32; 256] {
        static TABLE: std::sync::OnceLock<[f32; 256]> = std::sync::OnceLock::new();
        TABLE.get_or_init(|| std::array::from_fn(|b| crate::checkpoint::e4m3_to_f32(u8::try_from(b).expect("256 codes"))))
    }

    pub(super) fn widen_fp8(src: &[u8], scale: f32, dst: &mut [f32]) {
        let table = e4m3_table();
        for (d, s) in dst.iter_mut().zip(src) {
            *d = table[*s as usize] * scale;
        }
    }

    pub(super) unsafe fn panel(a: PanelArgs) {
        for i in 0..a.m {
            // SAFETY: the caller of `Isa::panel` vouches for every row of x, b and c.
            unsafe {
                let c = std::slice::from_raw_parts_mut(a.c.add(i * a.ldc), NR);
                let mut sum = [0.0f32; NR];
                if a.accumulate {
                    sum.copy_from_slice(c);
                }
                for p in 0..a.k {
                    let x = *a.x.add(i * a.ldx + p);
                    let b = std::slice::from_raw_parts(a.b.add(p * a.ldb), NR);
                    for j in 0..NR {
                        sum[j] += x * b[j];
                    }
                }
                c.copy_from_slice(&sum);
            }
        }
    }

    pub(super) unsafe fn dots(a: DotArgs) {
        for i in 0..a.n_x {
            for j in 0..a.n_y {
                // SAFETY: the caller of `Isa::dots` vouches for every row of x, y and out.
                unsafe {
                    let x = std::slice::from_raw_parts(a.x.add(i * a.ldx), a.k);
                    let y = std::slice::from_raw_parts(a.y.add(j * a.ldy), a.k);
                    *a.out.add(i * a.ldo + j) = super::Isa(super::Kind::Portable).dot(x, y);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
        assert_eq!(a.len(), b.len());
        for (i, (x, y)) in a.iter().zip(b).enumerate() {
            assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "at {i}: {x} against {y}");
        }
    }

    #[test]
    fn panel_kernels_agree_for_every_row_count() {
        for k in [1, 7, 32, 130] {
            for m in (1..30).chain([61]) {
                for accumulate in [false, true] {
                    let (ldx, ldb, ldc) = (k + 3, NR + 5, NR + 2);
                    let (x, b, c0) = (numbers(m * ldx, 1), numbers(k * ldb, 2), numbers(m * ldc, 3));
                    let results: Vec<Vec<f32>> = Isa::available()
                        .into_iter()
                        .map(|isa| {
                            let mut c = c0.clone();
                            let args = PanelArgs { x: x.as_ptr(), ldx, m, k, b: b.as_ptr(), ldb, c: c.as_mut_ptr(), ldc, accumulate };
                            // SAFETY: the vectors hold exactly the rows described.
                            unsafe { isa.panel(args) };
                            c
                        })
                        .collect();
                    results.iter().for_each(|r| assert_close(r, &results[0], 1e-5));
                }
            }
        }
    }

    #[test]
    fn dot_kernels_agree_for_every_tile_edge() {
        for k in [16, 80, 160] {
            for n_x in 1..10 {
                for n_y in 1..10 {
                    let (x, y) = (numbers(n_x * k, 1), numbers(n_y * k, 2));
                    let results: Vec<Vec<f32>> = Isa::available()
                        .into_iter()
                        .map(|isa| {
                            let mut out = vec![0.0; n_x * 11];
                            let args =
                                DotArgs { x: x.as_ptr(), ldx: k, n_x, y: y.as_ptr(), ldy: k, n_y, k, out: out.as_mut_ptr(), ldo: 11 };
                            // SAFETY: the vectors hold exactly the rows described.
                            unsafe { isa.dots(args) };
                            out
                        })
                        .collect();
                    results.iter().for_each(|r| assert_close(r, &results[0], 1e-5));
                }
            }
        }
    }

    #[test]
    fn widening_is_exact_for_every_code() {
        let codes: Vec<u8> = (0..=255u8).filter(|b| b & 0x7f != 0x7f).cycle().take(256).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; 256];
            isa.widen_fp8(&codes, 0.5, &mut out);
            for (code, value) in codes.iter().zip(&out) {
                assert_eq!(*value, crate::checkpoint::e4m3_to_f32(*code) * 0.5);
            }
        }
        let bits: Vec<u16> = (0..512u16).map(|i| 0x3e00 + i * 3).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; 512];
            isa.widen_bf16(&bits, &mut out);
            assert!(bits.iter().zip(&out).all(|(b, v)| half::bf16::from_bits(*b).to_f32() == *v));
        }
    }

    #[test]
    fn elementwise_kernels_agree_with_plain_arithmetic() {
        let (x, w) = (numbers(333, 5), numbers(333, 6));
        for isa in Isa::available() {
            let mut out = vec![0.0; 333];
            isa.rms_norm(&x, &w, 1e-6, &mut out);
            let inverse = 1.0 / (x.iter().map(|v| v * v).sum::<f32>() / 333.0 + 1e-6).sqrt();
            assert_close(&out, &x.iter().zip(&w).map(|(v, w)| v * inverse * w).collect::<Vec<_>>(), 1e-5);

            let mut gate: Vec<f32> = x.iter().map(|v| v * 20.0).collect();
            let expected: Vec<f32> = gate.iter().zip(&w).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            isa.silu_mul(&mut gate, &w);
            assert_close(&gate, &expected, 1e-6);

            let mut row: Vec<f32> = x.iter().map(|v| v * 30.0).collect();
            let max = isa.max(&row);
            assert_eq!(max, row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            row[7] = f32::NEG_INFINITY;
            let expected: Vec<f32> = row.iter().map(|v| (v - max).exp()).collect();
            let sum = isa.exp_sum(&mut row, max);
            assert_close(&row, &expected, 1e-6);
            assert!((sum - expected.iter().sum::<f32>()).abs() < 1e-4 * sum);
            assert_eq!(row[7], 0.0);
        }
    }
}
