//! Rotary position embedding, plain or YaRN, and the softmax scale that goes with it.
//!
//! Checkpoints hold rotated dimensions as interleaved pairs. The result is written as two
//! halves (all first members, then all second), for queries and keys alike: dot products do
//! not change. The cached rotated key is therefore in *half order*.

use tandem_plan::{ModelConfig, RopeScaling};

/// Frequencies of one model.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    inverse_frequencies: Vec<f32>,
    /// YaRN's attention factor of the rotated part.
    factor: f32,
}

/// YaRN's attention temperature term for scale `mscale`.
fn yarn_mscale(scaling: &RopeScaling, mscale: f64) -> f64 {
    if scaling.factor <= 1.0 { 1.0 } else { 0.1 * mscale * scaling.factor.ln() + 1.0 }
}

impl Rope {
    /// The frequencies of `config`.
    #[expect(clippy::cast_possible_truncation, reason = "frequencies are kept in f32, as the model was trained")]
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let dim = f64::from(config.qk_rope_head_dim);
        let plain: Vec<f64> = (0..config.qk_rope_head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * f64::from(i) / dim)).collect();
        let Some(scaling) = &config.rope_scaling else {
            return Self { inverse_frequencies: plain.iter().map(|f| *f as f32).collect(), factor: 1.0 };
        };
        let dimension_of = |rotations: f64| {
            let original = f64::from(scaling.original_max_position_embeddings);
            dim * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * config.rope_theta.ln())
        };
        let low = dimension_of(scaling.beta_fast).floor().max(0.0);
        let high = dimension_of(scaling.beta_slow).ceil().min(dim - 1.0);
        let blend = |(i, frequency): (usize, &f64)| {
            let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            (frequency * (1.0 - ramp) + frequency / scaling.factor * ramp) as f32
        };
        let factor = yarn_mscale(scaling, scaling.mscale) / yarn_mscale(scaling, scaling.mscale_all_dim);
        Self { inverse_frequencies: plain.iter().enumerate().map(blend).collect(), factor: factor as f32 }
    }

    /// Appends cosine and sine of every rotated pair at `position`.
    pub(crate) fn angles(&self, position: usize, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for frequency in &self.inverse_frequencies {
            let (s, c) = (position as f32 * frequency).sin_cos();
            cos.push(c * self.factor);
            sin.push(s * self.factor);
        }
    }

    /// Rotated pairs of a head.
    pub(crate) fn pairs(&self) -> usize {
        self.inverse_frequencies.len()
    }
}

/// Rotates interleaved pairs of `x` into two halves, in place, and multiplies by `scale`.
pub(crate) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32, scratch: &mut [f32]) {
    let half = cos.len();
    for i in 0..half {
        let (even, odd) = (x[2 * i], x[2 * i + 1]);
        scratch[i] = (even * cos[i] - odd * sin[i]) * scale;
        scratch[half + i] = (odd * cos[i] + even * sin[i]) * scale;
    }
    x.copy_from_slice(&scratch[..2 * half]);
}

/// Factor of the attention scores: `1/sqrt(head) * m^2`.
#[expect(clippy::cast_possible_truncation, reason = "the scale is applied in f32")]
pub(crate) fn softmax_scale(config: &ModelConfig) -> f32 {
    let head = f64::from(config.qk_nope_head_dim + config.qk_rope_head_dim);
    let m = config.rope_scaling.as_ref().map_or(1.0, |s| yarn_mscale(s, s.mscale_all_dim));
    (m * m / head.sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_softmax_scale_of_r1_is_the_published_one() {
        let mut config = ModelConfig::from_json(crate::checkpoint::builtin_model("nano").unwrap().config_json).unwrap();
        (config.qk_nope_head_dim, config.qk_rope_head_dim) = (128, 64);
        assert!((softmax_scale(&config) - 0.1352).abs() < 1e-4);
        config.rope_scaling = None;
        assert!((softmax_scale(&config) - 192f32.powf(-0.5)).abs() < 1e-6);
    }

    #[test]
    fn rotation_keeps_lengths_and_depends_on_distance_only() {
        let config = ModelConfig::from_json(crate::checkpoint::builtin_model("nano").unwrap().config_json).unwrap();
        let rope = Rope::new(&config);
        let vector: Vec<f32> = (0..16).map(|i| i as f32 * 0.1 - 0.7).collect();
        let at = |position| {
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            rope.angles(position, &mut cos, &mut sin);
            let mut x = vector.clone();
            rotate(&mut x, &cos, &sin, 1.0, &mut [0.0; 16]);
            x
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        assert!((dot(&at(9), &at(9)) - dot(&vector, &vector)).abs() < 1e-5);
        assert!((dot(&at(3), &at(10)) - dot(&at(103), &at(110))).abs() < 1e-4);
    }
}
