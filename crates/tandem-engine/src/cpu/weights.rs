//! The model's weights by role, loaded from any tensor source and packed for the kernels.

use super::mtp::Mtp;
use super::packed::{Packed, Piece};
use super::shape::Shape;
use crate::checkpoint::{Tensor, TensorData, TensorSource};
use crate::engine::EngineError;
use tandem_plan::ModelConfig;

/// All weights of a model.
pub(crate) struct Weights {
    pub(crate) embedding: Tensor,
    /// Decoder blocks; the MTP layer's comes last when there is one.
    pub(crate) layers: Vec<Layer>,
    pub(crate) mtp: Option<Mtp>,
    pub(crate) norm: Vec<f32>,
    pub(crate) head: Packed,
}

/// One decoder block.
pub(crate) struct Layer {
    pub(crate) input_norm: Vec<f32>,
    pub(crate) attention: Attention,
    pub(crate) post_norm: Vec<f32>,
    pub(crate) mlp: Mlp,
}

/// Multi-head latent attention.
pub(crate) struct Attention {
    /// `q_a` and `kv_a`, or `q` and `kv_a` without a low-rank query; they share their input.
    pub(crate) input: Packed,
    /// Norm and second projection of a low-rank query.
    pub(crate) query: Option<(Vec<f32>, Packed)>,
    pub(crate) kv_norm: Vec<f32>,
    /// Latent to keys and values of all heads (expanded form).
    pub(crate) kv_b: Packed,
    /// For each head: unrotated query to latent (absorbed form).
    pub(crate) absorb_k: Vec<Packed>,
    /// For each head: latent to value (absorbed form).
    pub(crate) absorb_v: Vec<Packed>,
    pub(crate) output: Packed,
}

/// A SwiGLU feed-forward.
pub(crate) struct FeedForward {
    pub(crate) gate_up: Packed,
    pub(crate) down: Packed,
    pub(crate) width: usize,
}

/// The second half of a decoder block.
pub(crate) enum Mlp {
    Dense(FeedForward),
    Moe(Moe),
}

/// A mixture of experts.
pub(crate) struct Moe {
    pub(crate) router: Packed,
    /// Choice bias; zeros when the method has none.
    pub(crate) bias: Vec<f32>,
    pub(crate) experts: Vec<FeedForward>,
    pub(crate) shared: Option<FeedForward>,
}

/// Loads tensors of one source by role.
pub(crate) struct Loader<'a> {
    pub(crate) source: &'a dyn TensorSource,
    pub(crate) config: &'a ModelConfig,
    pub(crate) shape: &'a Shape,
}

impl Loader<'_> {
    /// Loads the whole model, with its first MTP layer if wanted.
    pub(crate) fn model(&self, with_mtp: bool) -> Result<Weights, EngineError> {
        let (vocab, hidden) = (self.shape.vocab, self.shape.hidden);
        let embedding = self.source.tensor("model.embed_tokens.weight", &[vocab, hidden])?;
        let head = if self.config.tie_word_embeddings {
            Packed::new(&[Piece::whole(&embedding)])
        } else {
            self.matrix("lm_head.weight", vocab, hidden)?
        };
        let n_layers = self.config.num_hidden_layers + u32::from(with_mtp);
        let layers = (0..n_layers).map(|i| self.layer(i)).collect::<Result<_, _>>()?;
        let mtp = if with_mtp { Some(Mtp::load(self)?) } else { None };
        Ok(Weights { embedding, layers, mtp, norm: self.vector("model.norm.weight", hidden)?, head })
    }

    /// Loads decoder block `index`.
    pub(crate) fn layer(&self, index: u32) -> Result<Layer, EngineError> {
        let prefix = format!("model.layers.{index}.");
        let mlp = format!("{prefix}mlp.");
        Ok(Layer {
            input_norm: self.vector(&format!("{prefix}input_layernorm.weight"), self.shape.hidden)?,
            attention: self.attention(&format!("{prefix}self_attn."))?,
            post_norm: self.vector(&format!("{prefix}post_attention_layernorm.weight"), self.shape.hidden)?,
            mlp: if self.config.is_moe_layer(index) {
                Mlp::Moe(self.moe(&mlp)?)
            } else {
                Mlp::Dense(self.feed_forward(&mlp, self.shape.dense_width)?)
            },
        })
    }

    fn attention(&self, prefix: &str) -> Result<Attention, EngineError> {
        let s = self.shape;
        let tensor = |name: &str, rows, cols| self.source.tensor(&format!("{prefix}{name}.weight"), &[rows, cols]);
        let (heads, per_head) = (s.heads, s.nope + s.v);
        let kv_a = tensor("kv_a_proj_with_mqa", s.kv_values(), s.hidden)?;
        let kv_b = tensor("kv_b_proj", heads * per_head, s.latent)?;
        let (first, query) = match s.q_lora {
            None => (tensor("q_proj", heads * s.head(), s.hidden)?, None),
            Some(rank) => {
                let norm = self.vector(&format!("{prefix}q_a_layernorm.weight"), rank)?;
                let q_b = tensor("q_b_proj", heads * s.head(), rank)?;
                (tensor("q_a_proj", rank, s.hidden)?, Some((norm, Packed::new(&[Piece::whole(&q_b)]))))
            }
        };
        Ok(Attention {
            input: Packed::new(&[Piece::whole(&first), Piece::whole(&kv_a)]),
            query,
            kv_norm: self.vector(&format!("{prefix}kv_a_layernorm.weight"), s.latent)?,
            absorb_k: (0..heads).map(|h| Packed::new(&[Piece::transposed_rows(&kv_b, h * per_head, s.nope)])).collect(),
            absorb_v: (0..heads).map(|h| Packed::new(&[Piece::rows(&kv_b, h * per_head + s.nope, s.v)])).collect(),
            kv_b: Packed::new(&[Piece::whole(&kv_b)]),
            output: Packed::new(&[Piece::whole(&tensor("o_proj", s.hidden, heads * s.v)?)]),
        })
    }

    fn feed_forward(&self, prefix: &str, width: usize) -> Result<FeedForward, EngineError> {
        let tensor = |name: &str, rows, cols| self.source.tensor(&format!("{prefix}{name}.weight"), &[rows, cols]);
        let (gate, up) = (tensor("gate_proj", width, self.shape.hidden)?, tensor("up_proj", width, self.shape.hidden)?);
        let down = tensor("down_proj", self.shape.hidden, width)?;
        Ok(FeedForward {
            gate_up: Packed::new(&[Piece::whole(&gate), Piece::whole(&up)]),
            down: Packed::new(&[Piece::whole(&down)]),
            width,
        })
    }

    fn moe(&self, prefix: &str) -> Result<Moe, EngineError> {
        let router = self.shape.router.ok_or_else(|| EngineError::Unsupported {
            engine: "cpu",
            reason: "a mixture-of-experts layer without n_routed_experts".into(),
        })?;
        let gate = self.source.tensor(&format!("{prefix}gate.weight"), &[router.n_experts, self.shape.hidden])?;
        // Routing decides discretely: its weights are widened once so that every path rounds alike.
        let gate = Tensor { data: TensorData::F32(gate.to_f32()), ..gate };
        let bias = match router.has_bias {
            true => self.vector(&format!("{prefix}gate.e_score_correction_bias"), router.n_experts)?,
            false => vec![0.0; router.n_experts],
        };
        let experts = (0..router.n_experts).map(|e| self.feed_forward(&format!("{prefix}experts.{e}."), self.shape.expert_width));
        let shared = match self.shape.shared_width {
            0 => None,
            width => Some(self.feed_forward(&format!("{prefix}shared_experts."), width)?),
        };
        Ok(Moe { router: Packed::new(&[Piece::whole(&gate)]), bias, experts: experts.collect::<Result<_, _>>()?, shared })
    }

    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Packed, EngineError> {
        Ok(Packed::new(&[Piece::whole(&self.source.tensor(name, &[rows, cols])?)]))
    }

    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        Ok(self.source.tensor(name, &[len])?.to_f32())
    }
}

impl FeedForward {
    fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }
}

impl Layer {
    fn bytes(&self) -> usize {
        let a = &self.attention;
        let absorbed: usize = a.absorb_k.iter().chain(&a.absorb_v).map(Packed::bytes).sum();
        let attention = a.input.bytes() + a.query.as_ref().map_or(0, |q| q.1.bytes()) + a.kv_b.bytes() + absorbed + a.output.bytes();
        attention
            + match &self.mlp {
                Mlp::Dense(ff) => ff.bytes(),
                Mlp::Moe(moe) => moe.router.bytes() + moe.experts.iter().chain(&moe.shared).map(FeedForward::bytes).sum::<usize>(),
            }
    }
}

impl Weights {
    /// Bytes that the matrices take in memory.
    pub(crate) fn bytes(&self) -> usize {
        let embedding = match &self.embedding.data {
            TensorData::F32(v) => v.len() * 4,
            TensorData::Bf16(v) => v.len() * 2,
            TensorData::Fp8 { q, .. } => q.len(),
        };
        embedding + self.head.bytes() + self.mtp.as_ref().map_or(0, Mtp::bytes) + self.layers.iter().map(Layer::bytes).sum::<usize>()
    }

    /// Writes the embedding of `token` to `out`.
    pub(crate) fn embed(&self, token: u32, out: &mut [f32]) {
        let (cols, row) = (self.embedding.cols, token as usize);
        let range = row * cols..(row + 1) * cols;
        match &self.embedding.data {
            TensorData::F32(v) => out.copy_from_slice(&v[range]),
            TensorData::Bf16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, b)| *o = f32::from_bits(u32::from(*b) << 16)),
            TensorData::Fp8 { q, .. } => {
                for (col, (o, code)) in out.iter_mut().zip(&q[range]).enumerate() {
                    *o = crate::checkpoint::e4m3_to_f32(*code) * self.embedding.scale(row, col);
                }
            }
        }
    }
}
