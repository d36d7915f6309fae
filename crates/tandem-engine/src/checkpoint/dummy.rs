//! Deterministic random weights of the right shapes (`--load-format dummy`).
//!
//! Each tensor's numbers depend on the seed and its name alone, so neither loading order nor
//! threads matter. Projections are scaled by `1 / sqrt(columns)` so that activations keep
//! their size. Stored as a real checkpoint would store them: FP8 with block scales when the
//! config says so, else BF16.

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::TensorSource;
use super::tensor::{Tensor, TensorData, f32_to_e4m3};
use crate::engine::EngineError;

/// Entries of the table of normal deviates; a power of two so that 16 random bits pick one.
const TABLE: usize = 1 << 16;

/// e4m3 code units of one standard deviation: four of them reach the largest value.
const FP8_SIGMA: f32 = 112.0;

/// Random weights from a seed.
#[derive(Debug)]
pub struct DummySource {
    seed: u64,
    block: Option<[usize; 2]>,
    normal: Vec<f32>,
}

/// Projections that an FP8 checkpoint quantises; everything else stays BF16 or F32.
const FP8_SUFFIXES: [&str; 9] = [
    "q_proj.weight",
    "q_a_proj.weight",
    "q_b_proj.weight",
    "kv_a_proj_with_mqa.weight",
    "kv_b_proj.weight",
    "o_proj.weight",
    "gate_proj.weight",
    "up_proj.weight",
    "down_proj.weight",
];

impl DummySource {
    /// Weights of `seed`; FP8 in blocks of `block` when given.
    #[must_use]
    pub fn new(seed: u64, block: Option<[u32; 2]>) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        // Irwin-Hall: the sum of twelve uniforms has variance 1 and no tail that FP8 would clip.
        let normal = (0..TABLE).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect();
        Self { seed, block: block.map(|b| b.map(|n| (n as usize).max(1))), normal }
    }

    /// `n` entries of `table`, chosen by a generator that depends on seed and name.
    fn draw<T: Copy>(&self, name: &str, n: usize, table: &[T]) -> Vec<T> {
        // FNV-1a: stable over versions and platforms, unlike the standard hasher.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ hash);
        let mut out = Vec::with_capacity(n);
        while out.len() < n {
            let left = n - out.len();
            out.extend(rng.random::<[u16; 4]>().into_iter().take(left).map(|i| table[usize::from(i)]));
        }
        out
    }

    fn table<T>(&self, f: impl Fn(f32) -> T) -> Vec<T> {
        self.normal.iter().map(|&z| f(z)).collect()
    }
}

impl TensorSource for DummySource {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let cols = shape.last().copied().unwrap_or(0);
        let rows = if shape.len() == 2 { shape[0] } else { 1 };
        let n = rows * cols;
        #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
        let sigma = 1.0 / (cols as f32).sqrt();
        let data = if name.ends_with("norm.weight") {
            TensorData::Bf16(self.draw(name, n, &self.table(|z| bf16::from_f32(1.0 + 0.1 * z).to_bits())))
        } else if name.ends_with("e_score_correction_bias") {
            TensorData::F32(self.draw(name, n, &self.table(|z| 0.1 * z)))
        } else if let Some(block) = self.block
            && FP8_SUFFIXES.iter().any(|s| name.ends_with(s))
        {
            let q = self.draw(name, n, &self.table(|z| f32_to_e4m3(z * FP8_SIGMA)));
            TensorData::Fp8 { q, scales: vec![sigma / FP8_SIGMA; rows.div_ceil(block[0]) * cols.div_ceil(block[1])], block }
        } else {
            let sigma = if name.ends_with("embed_tokens.weight") { 1.0 } else { sigma };
            TensorData::Bf16(self.draw(name, n, &self.table(|z| bf16::from_f32(sigma * z).to_bits())))
        };
        Ok(Tensor { rows, cols, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_depend_on_seed_and_name_only() {
        let (a, b) = (DummySource::new(7, None), DummySource::new(7, None));
        b.tensor("model.layers.0.other.weight", &[4, 8]).unwrap();
        let name = "model.layers.1.self_attn.o_proj.weight";
        assert_eq!(a.tensor(name, &[64, 32]).unwrap(), b.tensor(name, &[64, 32]).unwrap());
        assert_ne!(a.tensor(name, &[64, 32]).unwrap(), a.tensor("model.layers.2.self_attn.o_proj.weight", &[64, 32]).unwrap());
        assert_ne!(a.tensor(name, &[64, 32]).unwrap(), DummySource::new(8, None).tensor(name, &[64, 32]).unwrap());
    }

    #[test]
    fn projections_have_unit_gain_in_both_formats() {
        for block in [None, Some([128, 128])] {
            let weights = DummySource::new(1, block).tensor("model.layers.0.mlp.down_proj.weight", &[200, 300]).unwrap().to_f32();
            let variance = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
            assert!((variance * 300.0 - 1.0).abs() < 0.05, "{variance}");
        }
    }
}
