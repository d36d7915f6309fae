//! Drives a CPU engine over golden checkpoints: prompts in chunks, greedy decoding, comparison.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper of tests may panic")]

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;
use tandem_engine::checkpoint::{self, TensorSource};
use tandem_engine::cpu::AttentionForm;
use tandem_engine::{Batch, BatchEntry, CpuEngine, CpuOptions, Engine, NoObserver, Sampling};
use tandem_plan::{KvDtype, ModelConfig, ModelSource};

/// A file or directory of the repository.
pub(crate) fn repo(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What a golden file says about one prompt.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct GoldenPrompt {
    pub(crate) prompt: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
    #[serde(default)]
    pub(crate) mtp_draft: Vec<u32>,
}

/// A checkpoint directory with its golden outputs.
pub(crate) struct Golden {
    pub(crate) dir: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) source: Box<dyn TensorSource>,
    pub(crate) prompts: Vec<(String, GoldenPrompt)>,
    pub(crate) tensors: HashMap<String, Vec<f32>>,
}

impl Golden {
    /// Opens `dir`; prompts are under `key` of golden.json, or at its top level.
    pub(crate) fn open(dir: &str, key: Option<&str>) -> Self {
        let dir = repo(dir);
        let config = ModelConfig::from_json(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
        let source = checkpoint::open(&ModelSource::Checkpoint { path: dir.display().to_string() }, &config).unwrap();
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap();
        let of_prompts = key.map_or(&json, |k| &json[k]).as_object().unwrap();
        let prompts = of_prompts.iter().filter_map(|(name, v)| Some((name.clone(), serde_json::from_value(v.clone()).ok()?))).collect();
        let tensors = std::fs::read(dir.join("golden.safetensors")).map_or_else(|_| HashMap::new(), |bytes| read_f32(&bytes));
        Self { dir, config, source, prompts, tensors }
    }

    pub(crate) fn prompt(&self, name: &str) -> &GoldenPrompt {
        &self.prompts.iter().find(|(n, _)| n == name).unwrap().1
    }

    pub(crate) fn engine(&self, options: CpuOptions) -> CpuEngine {
        CpuEngine::new(&self.config, self.source.as_ref(), options).unwrap()
    }
}

fn read_f32(bytes: &[u8]) -> HashMap<String, Vec<f32>> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let word = |b: &[u8; 4], dtype| match dtype {
        safetensors::Dtype::I32 => i32::from_le_bytes(*b) as f32,
        _ => f32::from_le_bytes(*b),
    };
    file.iter().map(|(name, view)| (name.to_owned(), view.data().as_chunks().0.iter().map(|b| word(b, view.dtype())).collect())).collect()
}

/// One thread, F32 cache, blocks of 32 tokens, 64 of them.
pub(crate) fn options() -> CpuOptions {
    CpuOptions { block_size: 32, n_blocks: 64, kv_dtype: KvDtype::F32, threads: 1, form: AttentionForm::Auto, drafts: 0 }
}

/// A sequence with its block table.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) cached: usize,
    pub(crate) blocks: Vec<u32>,
}

impl Sequence {
    /// A sequence whose blocks are scattered over the cache, interleaved with those of `of` other sequences.
    pub(crate) fn new(prompt: &[u32], engine: &CpuEngine, index: usize, of: usize) -> Self {
        let n = u32::try_from(engine.info().n_blocks).unwrap();
        let blocks = (0..n).rev().filter(|b| *b as usize % of == index).collect();
        Self { tokens: prompt.to_vec(), cached: 0, blocks }
    }

    /// The entry that computes up to `n` of the tokens that are not cached; samples when these are the last.
    pub(crate) fn entry(&mut self, n: usize, decode: bool) -> BatchEntry {
        let end = (self.cached + n).min(self.tokens.len());
        let entry = BatchEntry {
            tokens: self.tokens[self.cached..end].to_vec(),
            start: u32::try_from(self.cached).unwrap(),
            blocks: self.blocks.clone(),
            sampling: (end == self.tokens.len()).then_some(Sampling::GREEDY),
            decode,
        };
        self.cached = end;
        entry
    }
}

/// Computes the prompt in chunks of `chunk`; returns the logits of its last token and appends the first output token.
pub(crate) fn prefill(engine: &mut CpuEngine, sequence: &mut Sequence, chunk: usize) -> Vec<f32> {
    loop {
        let batch = Batch { entries: vec![sequence.entry(chunk, false)] };
        let (output, mut logits) = engine.step_with_logits(&batch, &mut NoObserver).unwrap();
        if let Some(token) = output.tokens[0].first() {
            sequence.tokens.push(*token);
            return logits.remove(0);
        }
    }
}

/// Decodes until the sequence has `n` tokens after its prompt of `prompt`; returns the last logits.
pub(crate) fn decode(engine: &mut CpuEngine, sequence: &mut Sequence, prompt: usize, n: usize) -> Vec<f32> {
    let mut last = Vec::new();
    while sequence.tokens.len() < prompt + n {
        let batch = Batch { entries: vec![sequence.entry(1, true)] };
        let (output, mut logits) = engine.step_with_logits(&batch, &mut NoObserver).unwrap();
        sequence.tokens.push(output.tokens[0][0]);
        last = logits.remove(0);
    }
    last
}

/// Largest difference relative to the largest golden value.
pub(crate) fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |a, w| a.max(w.abs()));
    got.iter().zip(want).fold(0f32, |a, (g, w)| a.max((g - w).abs())) / largest
}

/// Cosine of the angle between two rows.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
