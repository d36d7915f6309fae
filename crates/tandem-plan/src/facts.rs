//! Exact arithmetic on a DeepSeek-V2/V3 architecture: parameters by part, bytes of a rank, KV bytes of a token.
//!
//! One table of matrices (`layer_matrices`, `end_matrices`) says which weights exist, how each is split over
//! ranks and in which precision a checkpoint stores it; counts and bytes are sums over that table, so they cannot
//! disagree. Split rules: attention data parallelism replicates everything but the routed experts; without it heads,
//! feed-forward columns and vocabulary are split by TP. Experts are split by EP, and each by TP / EP. Pipeline stages hold whole layers.
//!
//! Not here: activations and what else shares the memory (`memory`), time (`tandem-sim`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layout::ParallelLayout;
use crate::model::ModelConfig;
use crate::plan::KvDtype;
use crate::units::Bytes;

/// Number format in which the weights lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// e4m3 with one f32 scale per 128×128 block; embedding, head, router and norms in BF16.
    Fp8,
    /// 4-bit feed-forward weights with one FP8 scale per 16; attention, embedding, head, router and the MTP layer in BF16.
    Nvfp4,
    /// As `Nvfp4`, but with the attention's output projection in 4 bits too, as later checkpoints have it.
    #[serde(rename = "nvfp4-v2")]
    Nvfp4V2,
    /// 2 bytes a weight.
    Bf16,
    /// 4 bytes a weight.
    F32,
}

impl WeightDtype {
    /// Every value, in the order that help texts list them.
    pub const ALL: [WeightDtype; 5] = [WeightDtype::Fp8, WeightDtype::Nvfp4, WeightDtype::Nvfp4V2, WeightDtype::Bf16, WeightDtype::F32];

    /// The lower-case name used in files and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            WeightDtype::Fp8 => "fp8",
            WeightDtype::Nvfp4 => "nvfp4",
            WeightDtype::Nvfp4V2 => "nvfp4-v2",
            WeightDtype::Bf16 => "bf16",
            WeightDtype::F32 => "f32",
        }
    }

    /// The format of the checkpoint that `config` describes.
    #[must_use]
    pub fn of_checkpoint(config: &ModelConfig) -> Self {
        match &config.quantization_config {
            Some(q) if q.is_nvfp4() && q.leaves_output_projection() => WeightDtype::Nvfp4,
            Some(q) if q.is_nvfp4() => WeightDtype::Nvfp4V2,
            Some(_) => WeightDtype::Fp8,
            None => WeightDtype::Bf16,
        }
    }

    /// Whether feed-forward weights have 4 bits.
    #[must_use]
    pub const fn is_nvfp4(self) -> bool {
        matches!(self, WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2)
    }
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The parts that reports tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// Latent attention: the five projections.
    Attention,
    /// Feed-forward of the leading dense layers.
    DenseFfn,
    /// Routed experts.
    RoutedExperts,
    /// Shared experts.
    SharedExperts,
    /// Router weights and its correction bias.
    Router,
    /// RMS norms.
    Norms,
    /// Output projection.
    Head,
}

/// How one matrix is divided over the ranks of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    /// Whole on every rank.
    Whole,
    /// Rows by TP, unless attention is data parallel.
    Rows,
    /// Columns by TP, unless attention is data parallel.
    Cols,
    /// Whole experts by EP, rows of each by TP / EP.
    ExpertRows,
    /// Whole experts by EP, columns of each by TP / EP.
    ExpertCols,
}

/// In which precision checkpoints store a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// Quantised in FP8 checkpoints, BF16 in NVFP4 ones.
    Attention,
    /// As `Attention`, but quantised in the second kind of NVFP4 checkpoints too.
    AttentionOutput,
    /// Quantised in FP8 and NVFP4 checkpoints.
    FeedForward,
    /// BF16 in every quantised checkpoint.
    Plain,
    /// F32 in every checkpoint.
    Single,
}

/// `copies` matrices of `rows` × `cols` weights.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    part: Part,
    copies: u64,
    rows: u64,
    cols: u64,
    split: Split,
    storage: Storage,
}

impl Matrix {
    const fn new(part: Part, rows: u64, cols: u64, split: Split, storage: Storage) -> Self {
        Matrix { part, copies: 1, rows, cols, split, storage }
    }

    const fn n_weights(&self) -> u64 {
        self.copies * self.rows * self.cols
    }

    /// The largest share of one rank.
    fn share(mut self, layout: &ParallelLayout, expert_slots: u64) -> Self {
        let tp = u64::from(if layout.attention_dp { 1 } else { layout.tp });
        let expert_tp = u64::from(layout.tp / layout.ep.max(1)).max(1);
        match self.split {
            Split::Whole => {}
            Split::Rows => self.rows = self.rows.div_ceil(tp),
            Split::Cols => self.cols = self.cols.div_ceil(tp),
            Split::ExpertRows | Split::ExpertCols => {
                self.copies = expert_slots.div_ceil(u64::from(layout.ep));
                if self.split == Split::ExpertRows {
                    self.rows = self.rows.div_ceil(expert_tp);
                } else {
                    self.cols = self.cols.div_ceil(expert_tp);
                }
            }
        }
        self
    }

    fn bytes(&self, dtype: WeightDtype) -> u64 {
        let n = self.rows * self.cols;
        let each = match (dtype, self.storage) {
            (WeightDtype::F32, _) | (_, Storage::Single) => 4 * n,
            (WeightDtype::Fp8, Storage::Attention | Storage::AttentionOutput | Storage::FeedForward) => {
                n + 4 * self.rows.div_ceil(128) * self.cols.div_ceil(128)
            }
            (WeightDtype::Nvfp4V2, Storage::AttentionOutput) | (WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2, Storage::FeedForward) => {
                n.div_ceil(2) + n.div_ceil(16)
            }
            _ => 2 * n,
        };
        self.copies * each
    }
}

/// Weights by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Token embedding.
    pub embedding: u64,
    /// Attention projections of all decoder layers.
    pub attention: u64,
    /// Dense feed-forward layers.
    pub dense_ffn: u64,
    /// Routed experts of all decoder layers.
    pub routed_experts: u64,
    /// Shared experts of all decoder layers.
    pub shared_experts: u64,
    /// Routers.
    pub router: u64,
    /// Norms.
    pub norms: u64,
    /// Output projection; 0 when it is the embedding.
    pub head: u64,
    /// The MTP layers' own weights (they share embedding and head).
    pub mtp: u64,
}

impl Parameters {
    /// The main model, without MTP layers.
    #[must_use]
    pub const fn main(&self) -> u64 {
        self.embedding + self.attention + self.dense_ffn + self.routed_experts + self.shared_experts + self.router + self.norms + self.head
    }

    fn add(&mut self, m: &Matrix) {
        self.add_amount(m.part, m.n_weights());
    }

    fn add_amount(&mut self, part: Part, amount: u64) {
        let slot = match part {
            Part::Embedding => &mut self.embedding,
            Part::Attention => &mut self.attention,
            Part::DenseFfn => &mut self.dense_ffn,
            Part::RoutedExperts => &mut self.routed_experts,
            Part::SharedExperts => &mut self.shared_experts,
            Part::Router => &mut self.router,
            Part::Norms => &mut self.norms,
            Part::Head => &mut self.head,
        };
        *slot += amount;
    }

    /// Names and amounts of the parts of the main model.
    #[must_use]
    pub const fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("dense feed-forward", self.dense_ffn),
            ("routed experts", self.routed_experts),
            ("shared experts", self.shared_experts),
            ("routers", self.router),
            ("norms", self.norms),
            ("head", self.head),
        ]
    }
}

/// Weights of the whole model by part.
#[must_use]
pub fn parameters(config: &ModelConfig) -> Parameters {
    let mut parameters = Parameters::default();
    for layer in 0..config.num_hidden_layers {
        layer_matrices(config, layer).iter().for_each(|m| parameters.add(m));
    }
    for matrix in end_matrices(config) {
        parameters.add(&matrix);
    }
    for mtp in 0..config.num_nextn_predict_layers {
        parameters.mtp += mtp_matrices(config, config.num_hidden_layers + mtp).iter().map(Matrix::n_weights).sum::<u64>();
    }
    parameters
}

/// Bytes of each part of a whole model in memory, the MTP layers under `mtp`.
#[must_use]
pub fn part_bytes(config: &ModelConfig, dtype: WeightDtype) -> Parameters {
    let mut bytes = Parameters::default();
    let mut add = |m: &Matrix| bytes.add_amount(m.part, m.bytes(dtype));
    for layer in 0..config.num_hidden_layers {
        layer_matrices(config, layer).iter().for_each(&mut add);
    }
    end_matrices(config).iter().for_each(&mut add);
    // NVFP4 checkpoints exclude the MTP layer from quantisation.
    let mtp_dtype = if dtype.is_nvfp4() { WeightDtype::Bf16 } else { dtype };
    for mtp in 0..config.num_nextn_predict_layers {
        bytes.mtp += mtp_matrices(config, config.num_hidden_layers + mtp).iter().map(|m| m.bytes(mtp_dtype)).sum::<u64>();
    }
    bytes
}

/// Weights that one token uses: the main model with `num_experts_per_tok` of the routed experts and without the embedding's other rows.
#[must_use]
pub fn active_parameters(config: &ModelConfig) -> u64 {
    let p = parameters(config);
    let experts = u64::from(config.n_routed_experts.unwrap_or(1));
    p.main() - p.embedding - p.routed_experts + p.routed_experts / experts * u64::from(config.num_experts_per_tok)
}

/// What of the model a worker loads besides the decoder layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Whether the MTP layers are loaded (on the last stage).
    pub mtp: bool,
    /// Expert slots of a layer: the experts themselves, or more of them under load balancing; 0 = as many as experts.
    pub expert_slots: u32,
}

/// Bytes of weights on the fullest rank of pipeline stage `stage`.
#[must_use]
pub fn rank_weights(config: &ModelConfig, dtype: WeightDtype, layout: &ParallelLayout, stage: u32, loaded: Loaded) -> Bytes {
    let slots = u64::from(if loaded.expert_slots == 0 { config.n_routed_experts.unwrap_or(0) } else { loaded.expert_slots });
    let bytes = |m: Matrix, dtype: WeightDtype| m.share(layout, slots).bytes(dtype);
    let mut total = 0;
    for (layer, n) in layer_kinds(config, layout, stage) {
        total += n * layer_matrices(config, layer).into_iter().map(|m| bytes(m, dtype)).sum::<u64>();
    }
    let last = stage + 1 == layout.pp;
    let mtp = loaded.mtp && last;
    for matrix in end_matrices(config) {
        let here = match matrix.part {
            // A tied head, and the MTP layers, read the embedding on the last stage too.
            Part::Embedding => stage == 0 || (last && (mtp || config.tie_word_embeddings)),
            _ => last,
        };
        total += if here { bytes(matrix, dtype) } else { 0 };
    }
    if mtp {
        // NVFP4 checkpoints exclude the MTP layer from quantisation.
        let dtype = if dtype.is_nvfp4() { WeightDtype::Bf16 } else { dtype };
        for layer in 0..config.num_nextn_predict_layers {
            total += mtp_matrices(config, config.num_hidden_layers + layer).into_iter().map(|m| bytes(m, dtype)).sum::<u64>();
        }
    }
    Bytes(total)
}

/// Bytes of a checkpoint's tensors: every weight once, and for each MTP layer its own copy of embedding and head, as published checkpoints have.
#[must_use]
pub fn checkpoint_bytes(config: &ModelConfig, dtype: WeightDtype) -> Bytes {
    let mut single = rank_weights(config, dtype, &ParallelLayout::SINGLE, 0, Loaded { mtp: true, expert_slots: 0 }).0;
    let copies: u64 = end_matrices(config).iter().filter(|m| m.part != Part::Norms).map(|m| m.bytes(dtype)).sum();
    single += copies * u64::from(config.num_nextn_predict_layers);
    Bytes(single)
}

/// Bytes that one token takes in the KV cache of one rank of pipeline stage `stage`, all its layers.
///
/// The latent is replicated under TP, divided only by layer (PP) and by request (attention DP). MTP layers are cached on the last stage.
#[must_use]
pub fn kv_bytes_per_token(config: &ModelConfig, dtype: KvDtype, layout: &ParallelLayout, stage: u32, mtp: bool) -> u64 {
    let layers = layout.stage_layers(config.num_hidden_layers, stage).len() as u64;
    let mtp_layers = if mtp && stage + 1 == layout.pp { u64::from(config.num_nextn_predict_layers) } else { 0 };
    (layers + mtp_layers) * u64::from(config.kv_values_per_token_layer()) * dtype.bytes()
}

/// Bytes that the embedded engine keeps besides the checkpoint's own: `kv_b` a second time, transposed by head for the absorbed
/// form, and the router widened to F32 so that every path chooses alike.
#[must_use]
pub fn host_copies(config: &ModelConfig, dtype: WeightDtype, layout: &ParallelLayout, stage: u32) -> Bytes {
    let total = layer_kinds(config, layout, stage).map(|(layer, n)| {
        let kv_b = kv_b_matrix(config).share(layout, 0).bytes(dtype);
        let routers = layer_matrices(config, layer).into_iter().filter(|m| m.part == Part::Router);
        n * (kv_b + routers.map(|m| m.bytes(WeightDtype::F32) - m.bytes(dtype)).sum::<u64>())
    });
    Bytes(total.sum())
}

/// A layer of each kind in a stage, dense and MoE, and how many there are: layers of a kind are alike, and searches ask often.
fn layer_kinds(config: &ModelConfig, layout: &ParallelLayout, stage: u32) -> impl Iterator<Item = (u32, u64)> {
    let layers = layout.stage_layers(config.num_hidden_layers, stage);
    [false, true].into_iter().filter_map(move |is_moe| {
        let mut of_kind = layers.clone().filter(|&layer| config.is_moe_layer(layer) == is_moe);
        let first = of_kind.next()?;
        Some((first, 1 + of_kind.count() as u64))
    })
}

/// The weights of decoder layer `layer`.
fn layer_matrices(config: &ModelConfig, layer: u32) -> Vec<Matrix> {
    let hidden = u64::from(config.hidden_size);
    let mut all = attention_matrices(config);
    // input_layernorm and post_attention_layernorm.
    all.push(Matrix::new(Part::Norms, 2, hidden, Split::Whole, Storage::Plain));
    if !config.is_moe_layer(layer) {
        all.extend(ffn_matrices(Part::DenseFfn, 1, hidden, u64::from(config.intermediate_size), Split::Rows, Split::Cols));
        return all;
    }
    let experts = u64::from(config.n_routed_experts.unwrap_or(0));
    let inner = u64::from(config.moe_intermediate_size);
    all.push(Matrix::new(Part::Router, experts, hidden, Split::Whole, Storage::Plain));
    if config.topk_method == "noaux_tc" {
        all.push(Matrix::new(Part::Router, 1, experts, Split::Whole, Storage::Single));
    }
    all.extend(ffn_matrices(Part::RoutedExperts, experts, hidden, inner, Split::ExpertRows, Split::ExpertCols));
    let shared = u64::from(config.n_shared_experts.unwrap_or(0)) * inner;
    if shared > 0 {
        all.extend(ffn_matrices(Part::SharedExperts, 1, hidden, shared, Split::Rows, Split::Cols));
    }
    all
}

fn attention_matrices(config: &ModelConfig) -> Vec<Matrix> {
    let hidden = u64::from(config.hidden_size);
    let heads = u64::from(config.num_attention_heads);
    let kv_rank = u64::from(config.kv_lora_rank);
    let (nope, rope, v) = (u64::from(config.qk_nope_head_dim), u64::from(config.qk_rope_head_dim), u64::from(config.v_head_dim));
    let matrix = |rows, cols, split| Matrix::new(Part::Attention, rows, cols, split, Storage::Attention);
    let norm = |width| Matrix::new(Part::Norms, 1, width, Split::Whole, Storage::Plain);
    let mut all = match config.q_lora_rank.map(u64::from) {
        Some(rank) => vec![matrix(rank, hidden, Split::Whole), norm(rank), matrix(heads * (nope + rope), rank, Split::Rows)],
        None => vec![matrix(heads * (nope + rope), hidden, Split::Rows)],
    };
    let output = Matrix { storage: Storage::AttentionOutput, ..matrix(hidden, heads * v, Split::Cols) };
    all.extend([matrix(kv_rank + rope, hidden, Split::Whole), norm(kv_rank), kv_b_matrix(config), output]);
    all
}

/// Latent to keys and values of all heads.
fn kv_b_matrix(config: &ModelConfig) -> Matrix {
    let rows = u64::from(config.num_attention_heads) * u64::from(config.qk_nope_head_dim + config.v_head_dim);
    Matrix::new(Part::Attention, rows, u64::from(config.kv_lora_rank), Split::Rows, Storage::Attention)
}

/// Gate, up and down projections of `copies` feed-forward blocks.
fn ffn_matrices(part: Part, copies: u64, hidden: u64, inner: u64, rows: Split, cols: Split) -> [Matrix; 3] {
    let up = Matrix { copies, ..Matrix::new(part, inner, hidden, rows, Storage::FeedForward) };
    let down = Matrix { copies, ..Matrix::new(part, hidden, inner, cols, Storage::FeedForward) };
    [up, up, down]
}

/// Embedding, final norm and head.
fn end_matrices(config: &ModelConfig) -> Vec<Matrix> {
    let (vocab, hidden) = (u64::from(config.vocab_size), u64::from(config.hidden_size));
    let mut all = vec![
        Matrix::new(Part::Embedding, vocab, hidden, Split::Rows, Storage::Plain),
        Matrix::new(Part::Norms, 1, hidden, Split::Whole, Storage::Plain),
    ];
    if !config.tie_word_embeddings {
        all.push(Matrix::new(Part::Head, vocab, hidden, Split::Rows, Storage::Plain));
    }
    all
}

/// A MTP layer: a decoder layer, the projection of two hidden states to one, and three norms.
fn mtp_matrices(config: &ModelConfig, layer: u32) -> Vec<Matrix> {
    let hidden = u64::from(config.hidden_size);
    let mut all = layer_matrices(config, layer);
    all.push(Matrix::new(Part::Attention, hidden, 2 * hidden, Split::Whole, Storage::Plain));
    all.push(Matrix::new(Part::Norms, 3, hidden, Split::Whole, Storage::Plain));
    all
}
