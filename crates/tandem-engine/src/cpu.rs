//! The DeepSeek-V2/V3 model on host cores.
//!
//! Reading order: `shape` (dimensions), `weights` (by role), `forward` (one step through the
//! layers), `attention`, `router`, `moe`, `cache`, `sampling`, `mtp` (the layer that
//! drafts), `speculate` (steps that draft and verify); then what makes it fast:
//! `packed` (weights in kernel order), `gemm`, `simd`, `pool`.
//!
//! All arithmetic is f32; weights stay in the checkpoint's format (FP8, BF16, F32) and are
//! widened in cache, so FP8 is computed as W8A32: activations are not quantised. How many rows a
//! kernel gets changes the order of its sums: batch and threads change logits by roundings (1e-6).
//! Not here: which requests run (`tandem-sched`), files (`checkpoint`).

mod attention;
mod batch;
mod cache;
mod forward;
mod gemm;
mod moe;
mod mtp;
mod packed;
mod pool;
mod profile;
mod rope;
mod router;
mod rows;
mod sampling;
mod shape;
mod simd;
mod speculate;
mod weights;

pub use attention::AttentionForm;
pub use forward::StepTrace;
pub use gemm::time_gemm;
pub use profile::{Op, OpCost, Profile};

use std::ops::Range;
use std::time::Instant;

use tandem_plan::{KvDtype, ModelConfig};

use crate::checkpoint::TensorSource;
use crate::comm::{Communicator, SingleRank};
use crate::engine::{Batch, Engine, EngineError, EngineInfo, KvRead, StepObserver, StepOutput};

use cache::Cache;
use forward::{Scratch, Want};
use pool::Pool;
use rope::Rope;
use shape::Shape;
use simd::Isa;
use speculate::Speculation;
use weights::{Loader, Weights};

/// Sizes of an engine that the model does not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuOptions {
    /// Tokens of one KV block.
    pub block_size: usize,
    /// KV blocks.
    pub n_blocks: usize,
    /// Number format of the KV cache.
    pub kv_dtype: KvDtype,
    /// Compute threads, the driving thread included.
    pub threads: usize,
    /// How prompt chunks are attended.
    pub form: AttentionForm,
    /// Tokens drafted by a decode step; 0 = none. Above 0 the model's first MTP layer is loaded and has a KV cache
    /// layer (the last); [`Engine::step`] then returns 1 to `1 + drafts` tokens for a decode.
    pub drafts: usize,
}

/// Computes steps of a DeepSeek-V2/V3 model.
pub struct CpuEngine {
    info: EngineInfo,
    shape: Shape,
    weights: Weights,
    rope: Rope,
    cache: Cache,
    pool: Pool,
    isa: Isa,
    comm: Box<dyn Communicator>,
    form: AttentionForm,
    drafts: usize,
    speculation: Speculation,
    scratch: Scratch,
    profile: Profile,
}

impl std::fmt::Debug for CpuEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuEngine").field("info", &self.info).field("isa", &self.isa.name()).finish_non_exhaustive()
    }
}

impl CpuEngine {
    /// Loads the weights of `config` from `source` and allocates the cache.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when a tensor does not fit, [`EngineError::Unsupported`] for a model variant
    /// or sizes that cannot be computed, [`EngineError::Io`] when threads cannot be started.
    pub fn new(config: &ModelConfig, source: &dyn TensorSource, options: CpuOptions) -> Result<Self, EngineError> {
        let unsupported = |reason: &str| EngineError::Unsupported { engine: "cpu", reason: reason.to_owned() };
        if options.block_size == 0 || options.n_blocks == 0 {
            return Err(unsupported("the KV cache needs at least one block of at least one token"));
        }
        if options.drafts > 0 && config.num_nextn_predict_layers == 0 {
            return Err(unsupported("the model has no MTP layer (num_nextn_predict_layers is 0)"));
        }
        let shape = Shape::new(config)?;
        let n_kv_layers = shape.n_layers + usize::from(options.drafts > 0);
        let isa = Isa::detect();
        let weights = Loader { source, config, shape: &shape }.model(options.drafts > 0)?;
        let pool = Pool::new(options.threads).map_err(|source| EngineError::Io { path: "compute threads".into(), source })?;
        let cache = Cache::new(options.kv_dtype, n_kv_layers, options.n_blocks, options.block_size, shape.kv_values(), isa);
        let info = EngineInfo {
            name: "cpu",
            n_kv_layers,
            kv_values_per_token: shape.kv_values(),
            kv_dtype: options.kv_dtype,
            block_size: options.block_size,
            n_blocks: options.n_blocks,
            vocab_size: shape.vocab,
        };
        let rope = Rope::new(config);
        let (comm, scratch, profile) = (Box::new(SingleRank), Scratch::default(), Profile::default());
        Ok(Self {
            info,
            shape,
            weights,
            rope,
            cache,
            pool,
            isa,
            comm,
            form: options.form,
            drafts: options.drafts,
            speculation: Speculation::default(),
            scratch,
            profile,
        })
    }

    /// [`Engine::step`] that also returns, for each entry that samples, the logits that its token was chosen from
    /// (before banning), and an empty row for the others.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_with_logits(&mut self, batch: &Batch, observer: &mut dyn StepObserver) -> Result<(StepOutput, Vec<Vec<f32>>), EngineError> {
        batch::check(&self.info, batch)?;
        let rows = self.forward(batch, observer, Want::Sampled);
        let output = self.sample(batch, &rows);
        let ld = self.weights.head.n_padded();
        let logits =
            rows.into_iter().map(|rows| rows.flat_map(|r| self.scratch.logits[r * ld..r * ld + self.shape.vocab].to_vec()).collect());
        Ok((output, logits.collect()))
    }

    /// Computes a step and returns what every layer produced for every row; slow, for tests and debugging.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_traced(&mut self, batch: &Batch) -> Result<StepTrace, EngineError> {
        batch::check(&self.info, batch)?;
        let mut trace = StepTrace::default();
        self.forward(batch, &mut crate::engine::NoObserver, Want::Trace(&mut trace));
        Ok(trace)
    }

    /// Where the time of steps went since the last [`CpuEngine::reset_profile`].
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Starts the profile anew.
    pub fn reset_profile(&mut self) {
        self.profile = Profile::default();
    }

    /// Bytes of the weights in memory.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Name of the instruction set that the kernels use.
    #[must_use]
    pub fn instruction_set(&self) -> &'static str {
        self.isa.name()
    }

    /// Chooses tokens from the logits that the last forward pass left; `rows` says where each entry's are. A decode
    /// that carries drafts goes on as long as the chosen token is the draft that the next row was computed from.
    fn sample(&mut self, batch: &Batch, rows: &[Range<usize>]) -> StepOutput {
        let since = Instant::now();
        let ld = self.weights.head.n_padded();
        let tokens = batch.entries.iter().zip(rows).map(|(entry, rows)| {
            let mut chosen = Vec::new();
            let Some(sampling) = &entry.sampling else { return chosen };
            for (i, row) in rows.clone().enumerate() {
                let logits = &self.scratch.logits[row * ld..row * ld + self.shape.vocab];
                let index = u32::try_from(i).expect("few drafts");
                let token = sampling::choose(logits, sampling, sampling.output_index + index);
                chosen.push(token);
                if entry.tokens.get(i + 1) != Some(&token) {
                    break;
                }
            }
            chosen
        });
        let output = StepOutput { tokens: tokens.collect() };
        self.profile.add(Op::Sample, since, 0);
        output
    }
}

impl KvRead for CpuEngine {
    fn kv_read(&self, layer: usize, blocks: &[u32], tokens: Range<usize>, out: &mut Vec<u8>) {
        self.cache.kv_read(layer, blocks, tokens, out);
    }
}

impl Engine for CpuEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, observer: &mut dyn StepObserver) -> Result<StepOutput, EngineError> {
        batch::check(&self.info, batch)?;
        if self.drafts > 0 {
            return Ok(self.step_with_drafts(batch, observer));
        }
        let rows = self.forward(batch, observer, Want::Sampled);
        Ok(self.sample(batch, &rows))
    }

    fn kv_write(&mut self, layer: usize, blocks: &[u32], tokens: Range<usize>, bytes: &[u8]) -> Result<(), EngineError> {
        batch::check_blocks(&self.info, blocks, tokens.end)?;
        let expected = tokens.len() * self.info.kv_bytes_per_token_layer();
        if layer >= self.info.n_kv_layers || bytes.len() != expected {
            return Err(EngineError::Batch(format!(
                "KV of layer {layer}, tokens {}..{}: {} bytes, expected {expected} and a layer below {}",
                tokens.start,
                tokens.end,
                bytes.len(),
                self.info.n_kv_layers
            )));
        }
        self.cache.write_bytes(layer, blocks, tokens, bytes);
        Ok(())
    }
}
