//! Kernels over rows, written once in plain Rust and compiled once per instruction set.
//!
//! Sums run over 16 lanes so that the compiler may vectorise them; the order is the same on
//! every machine, which keeps results equal between instruction sets up to fused roundings.

use super::{Isa, Kind};

const LANES: usize = 16;

/// `a * b + c`, fused where the instruction set can (elsewhere a fused operation is a slow library call).
#[inline(always)]
fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` to about 2 ulp; 0 below -87.3 (so that `-inf` gives exactly 0).
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = madd::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FMA>(n, 2.121_944_4e-4, madd::<FMA>(n, -0.693_359_4, clamped));
    let p = 1.987_569_1e-4;
    let p = madd::<FMA>(p, r, 1.398_199_9e-3);
    let p = madd::<FMA>(p, r, 8.333_452e-3);
    let p = madd::<FMA>(p, r, 4.166_579_6e-2);
    let p = madd::<FMA>(p, r, 1.666_666_5e-1);
    let p = madd::<FMA>(p, r, 0.5);
    let y = madd::<FMA>(p * r, r, r) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127).wrapping_shl(23));
    if x < -87.3 { 0.0 } else { y * power }
}

/// Defines a method of [`Isa`] whose body is compiled for each instruction set; `FMA` says whether it has fused
/// multiply-add.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty $body:block) => {
        impl Isa {
            $(#[$doc])*
            #[inline]
            pub(crate) fn $name(self, $($arg: $ty),*) -> $ret {
                #[inline(always)]
                fn body<const FMA: bool>($($arg: $ty),*) -> $ret $body
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) -> $ret {
                    body::<true>($($arg),*)
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) -> $ret {
                    body::<true>($($arg),*)
                }
                match self.0 {
                    Kind::Portable => body::<false>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: the variant exists only on machines with these instructions.
                    Kind::Avx2 => unsafe { avx2($($arg),*) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Kind::Avx512 => unsafe { avx512($($arg),*) },
                }
            }
        }
    };
}

#[inline(always)]
fn lane_sum(lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = lanes;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

for_each_isa! {
    /// Dot product of two equally long rows.
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (xs, x_rest) = x.as_chunks::<LANES>();
        let (ys, y_rest) = y.as_chunks::<LANES>();
        for (a, b) in xs.iter().zip(ys) {
            for i in 0..LANES {
                lanes[i] = madd::<FMA>(a[i], b[i], lanes[i]);
            }
        }
        lane_sum(lanes) + x_rest.iter().zip(y_rest).map(|(a, b)| a * b).sum::<f32>()
    }
}

for_each_isa! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight`.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> () {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for c in chunks {
            for i in 0..LANES {
                lanes[i] = madd::<FMA>(c[i], c[i], lanes[i]);
            }
        }
        let sum = lane_sum(lanes) + rest.iter().map(|v| v * v).sum::<f32>();
        let inverse = 1.0 / (sum / x.len() as f32 + eps).sqrt();
        for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
            *o = v * inverse * w;
        }
    }
}

for_each_isa! {
    /// `gate = silu(gate) * up`.
    fn silu_mul(gate: &mut [f32], up: &[f32]) -> () {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp::<FMA>(-*g)) * u;
        }
    }
}

for_each_isa! {
    /// `y += x`.
    fn add(y: &mut [f32], x: &[f32]) -> () {
        for (a, b) in y.iter_mut().zip(x) {
            *a += b;
        }
    }
}

for_each_isa! {
    /// `y += a * x`.
    fn axpy(y: &mut [f32], a: f32, x: &[f32]) -> () {
        for (y, x) in y.iter_mut().zip(x) {
            *y = madd::<FMA>(a, *x, *y);
        }
    }
}

for_each_isa! {
    /// `y *= a`.
    fn scale(y: &mut [f32], a: f32) -> () {
        for y in y {
            *y *= a;
        }
    }
}

for_each_isa! {
    /// The largest value; `-inf` for an empty row.
    fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for c in chunks {
            for i in 0..LANES {
                lanes[i] = if c[i] > lanes[i] { c[i] } else { lanes[i] };
            }
        }
        lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

for_each_isa! {
    /// `x = exp(x - max)`; returns the sum.
    fn exp_sum(x: &mut [f32], max: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = x.as_chunks_mut::<LANES>();
        for c in chunks {
            for i in 0..LANES {
                let e = exp::<FMA>(c[i] - max);
                c[i] = e;
                lanes[i] += e;
            }
        }
        let mut sum = lane_sum(lanes);
        for v in rest {
            *v = exp::<FMA>(*v - max);
            sum += *v;
        }
        sum
    }
}

for_each_isa! {
    /// Widens bfloat16 bit patterns.
    fn widen_bf16(src: &[u16], dst: &mut [f32]) -> () {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = f32::from_bits(u32::from(*s) << 16);
        }
    }
}

for_each_isa! {
    /// `out[c * ldo + r] = rows[r * ldr + c]` for `n_rows` rows of `n_cols` columns.
    fn transpose(rows: &[f32], ldr: usize, n_rows: usize, n_cols: usize, out: &mut [f32], ldo: usize) -> () {
        for r in 0..n_rows {
            let row = &rows[r * ldr..r * ldr + n_cols];
            for (c, v) in row.iter().enumerate() {
                out[c * ldo + r] = *v;
            }
        }
    }
}
