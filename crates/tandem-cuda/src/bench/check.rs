//! Reference arithmetic in FP64, and the distance to it.

/// The value of an e4m3 byte (OCP FP8: sign, four bits of exponent with bias 7, three of mantissa; no infinities).
pub(super) fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2_f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// ‖result − reference‖ / ‖reference‖ of pairs (result, reference).
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Distance {
    squares: f64,
    reference: f64,
}

impl Distance {
    pub(super) fn add(&mut self, result: f64, reference: f64) {
        self.squares += (result - reference).powi(2);
        self.reference += reference.powi(2);
    }

    /// Not a number where a result is not one.
    pub(super) fn relative(&self) -> f64 {
        (self.squares / self.reference).sqrt()
    }
}

/// Σ a · b.
pub(super) fn dot(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `n` places spread over 0..len, first and last among them.
pub(super) fn places(len: usize, n: usize) -> impl Iterator<Item = usize> {
    let n = n.min(len).max(1);
    // A prime step, so that places in a matrix do not fall on few columns of a tile.
    (0..n).map(move |i| if i == 0 { len - 1 } else { (i - 1) * (len / n).max(1) + (i * 7919) % (len / n).max(1) })
}

/// Attention of one query over `length` keys and values: softmax(scale · q · k) · v.
pub(super) fn attention(
    q: &[f64],
    key: impl Fn(usize, usize) -> f64,
    value: impl Fn(usize, usize) -> f64,
    length: usize,
    width: usize,
    scale: f64,
) -> Vec<f64> {
    let scores: Vec<f64> = (0..length).map(|t| scale * q.iter().enumerate().map(|(d, q)| q * key(t, d)).sum::<f64>()).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..width).map(|d| weights.iter().enumerate().map(|(t, w)| w * value(t, d)).sum::<f64>() / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_the_format() {
        assert_eq!([0x00, 0x01, 0x08, 0x38, 0x7e, 0xb8].map(e4m3), [0.0, 2_f64.powi(-9), 2_f64.powi(-6), 1.0, 448.0, -1.0]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn a_distance_is_relative_and_sees_what_is_no_number() {
        let mut d = Distance::default();
        d.add(1.1, 1.0);
        assert!((d.relative() - 0.1).abs() < 1e-12);
        d.add(f64::NAN, 1.0);
        assert!(d.relative().is_nan());
    }

    #[test]
    fn places_lie_within_and_reach_the_end() {
        for (len, n) in [(1, 4), (5, 4), (1000, 16)] {
            let all: Vec<usize> = places(len, n).collect();
            assert!(all.iter().all(|p| *p < len) && all.contains(&(len - 1)), "{len}: {all:?}");
        }
    }

    #[test]
    fn attention_averages_values_by_softmax() {
        let keys = [0.0, 2_f64.ln()];
        let out = attention(&[1.0], |t, _| keys[t], |t, _| if t == 0 { 0.0 } else { 3.0 }, 2, 1, 1.0);
        assert!((out[0] - 2.0).abs() < 1e-12);
    }
}
