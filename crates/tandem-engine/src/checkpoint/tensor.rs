//! One tensor in its stored number format, and the formats' exact meaning.

use half::bf16;

/// Largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;

/// Numbers of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// 4 bytes a value (F16 is widened to this when read).
    F32(Vec<f32>),
    /// bfloat16 bit patterns.
    Bf16(Vec<u16>),
    /// e4m3 bit patterns with one scale per block: `w[i][j] = q[i][j] * scales[i / block[0]][j / block[1]]`.
    Fp8 {
        /// Bit patterns.
        q: Vec<u8>,
        /// `[ceil(rows / block[0]), ceil(cols / block[1])]`, row-major.
        scales: Vec<f32>,
        /// Rows and columns that share a scale.
        block: [usize; 2],
    },
}

/// A tensor of one or two dimensions (`rows` is 1 for a vector).
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Numbers.
    pub data: TensorData,
}

impl Tensor {
    /// Every value as f32, row-major, exactly what the stored numbers mean.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            TensorData::F32(v) => v.clone(),
            TensorData::Bf16(v) => v.iter().map(|&b| bf16::from_bits(b).to_f32()).collect(),
            TensorData::Fp8 { q, .. } => {
                let cols = self.cols.max(1);
                q.iter().enumerate().map(|(i, &b)| e4m3_to_f32(b) * self.scale(i / cols, i % cols)).collect()
            }
        }
    }

    /// The block scale that applies at (`row`, `col`); 1 for formats without scales.
    #[must_use]
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        match &self.data {
            TensorData::Fp8 { scales, block, .. } => scales[row / block[0] * self.cols.div_ceil(block[1]) + col / block[1]],
            _ => 1.0,
        }
    }
}

/// The value of an e4m3fn bit pattern (no infinities; 0x7f and 0xff are NaN).
#[must_use]
pub fn e4m3_to_f32(bits: u8) -> f32 {
    let exponent = (bits >> 3) & 15;
    let mantissa = f32::from(bits & 7);
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The nearest e4m3 bit pattern, ties to even, saturating at ±448; NaN stays NaN.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the mantissa and exponent are masked to their bits first")]
pub fn f32_to_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    let magnitude = f32::from_bits(bits & 0x7fff_ffff);
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= 464.0 {
        return sign | 0x7e;
    }
    if magnitude < 0.015_625 {
        // Subnormal: multiples of 2^-9. Adding 2^23 * 2^-9 rounds to that grid, ties to even.
        let steps = (magnitude + 16384.0).to_bits() - 16384.0f32.to_bits();
        return sign | steps as u8;
    }
    // Round the 23-bit mantissa to 3 bits, ties to even; a carry moves into the exponent as it should.
    let magnitude_bits = magnitude.to_bits();
    let rounded = magnitude_bits + 0x7_ffff + ((magnitude_bits >> 20) & 1);
    let code = (rounded >> 20) - ((127 - 7) << 3);
    sign | (code.min(0x7e) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_value_round_trips() {
        for bits in 0..=255u8 {
            let value = e4m3_to_f32(bits);
            if value.is_nan() {
                assert!(bits & 0x7f == 0x7f);
                assert_eq!(f32_to_e4m3(value) & 0x7f, 0x7f);
            } else {
                assert_eq!(f32_to_e4m3(value), bits, "{value}");
            }
        }
    }

    #[test]
    fn rounding_to_e4m3_picks_the_nearest_value_and_even_on_ties() {
        let values: Vec<(u8, f32)> = (0..0x7fu8).map(|b| (b, e4m3_to_f32(b))).collect();
        for pair in values.windows(2) {
            let ((low_bits, low), (high_bits, high)) = (pair[0], pair[1]);
            let middle = (low + high) / 2.0;
            let even = if low_bits % 2 == 0 { low_bits } else { high_bits };
            assert_eq!(f32_to_e4m3(middle), even, "between {low} and {high}");
            assert_eq!(f32_to_e4m3(middle * 0.999), low_bits);
            assert_eq!(f32_to_e4m3(middle * 1.001), high_bits);
            assert_eq!(f32_to_e4m3(-middle * 1.001), high_bits | 0x80);
        }
    }

    #[test]
    fn large_values_saturate() {
        assert_eq!(e4m3_to_f32(f32_to_e4m3(1e9)), E4M3_MAX);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(f32::NEG_INFINITY)), -E4M3_MAX);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(460.0)), E4M3_MAX);
    }

    #[test]
    fn block_scales_apply_to_partial_blocks() {
        let one = f32_to_e4m3(1.0);
        let data = TensorData::Fp8 { q: vec![one; 15], scales: vec![1.0, 2.0, 3.0, 4.0], block: [2, 3] };
        let tensor = Tensor { rows: 3, cols: 5, data };
        assert_eq!(tensor.to_f32(), [1., 1., 1., 2., 2., 1., 1., 1., 2., 2., 3., 3., 3., 4., 4.]);
    }
}
