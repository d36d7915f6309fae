//! From a scenario and constants to a deployment that can be simulated.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tandem_plan::facts::Loaded;
use tandem_plan::memory::{MemoryQuestion, MoeBackend, memory};
use tandem_plan::{Bytes, EngineKind, EngineLimits, KvDtype, ModelConfig, ParallelLayout, Phase};

use crate::cost::{CORRECTION_BATCHES, Correction, DecodeCost, ModelFacts, PrefillCost, Shape};
use crate::des::{DecodePool, Deployment, PrefillPool, RankSpread, Transfer};
use crate::fit::{
    Constants, DECODE_PRIOR, PREFILL_PRIOR, decode_coordinates, decode_features, decode_table, dot, prefill_coordinates, prefill_features,
    prefill_value, typical_iteration,
};
use crate::hardware::{self, GpuSpec};
use crate::rows::{Pool, Scenario};
use crate::tables::{OperatorTables, Operators, Use, Wanted, compile};

/// Share of the network that KV transfers reach.
const TRANSFER_EFFICIENCY: f64 = 0.5;
/// Seconds to agree on a transfer and to notice its end.
const TRANSFER_LATENCY_S: f64 = 5e-3;
/// Tokens of one KV block.
const KV_BLOCK: u32 = 32;

/// What multiplies the analytic times of one configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Decode steps.
    pub decode: Correction,
    /// Prefill iterations.
    pub prefill: f64,
}

/// The model: architecture, hardware table and constants.
#[derive(Debug, Clone)]
pub struct Model {
    config: ModelConfig,
    facts: ModelFacts,
    gpus: Vec<GpuSpec>,
    /// The fitted constants.
    pub constants: Constants,
    tables: Option<Arc<Tables>>,
}

/// Measured operators, and those of the workers that were asked about.
#[derive(Debug, Default)]
struct Tables {
    tables: OperatorTables,
    compiled: Mutex<HashMap<Worker, Option<Arc<Operators>>>>,
}

/// What the operators of a worker depend on: GPU, stack, layout, weights, whether experts are balanced.
type Worker = (String, String, ParallelLayout, &'static str, bool);

impl Model {
    /// Whether the constants were fitted to measurements of its architecture: those of DeepSeek-R1 and V3.
    #[must_use]
    pub fn is_fitted(&self) -> bool {
        self.facts == Model::deepseek_r1(Constants::uncorrected()).facts
    }

    /// The architecture that it knows.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A model of the architecture `config` on the GPUs of `gpus`.
    #[must_use]
    pub fn new(config: ModelConfig, gpus: Vec<GpuSpec>, constants: Constants) -> Self {
        Model { facts: ModelFacts::new(&config), config, gpus, constants, tables: None }
    }

    /// The same with measured operators in place of the roofline's terms.
    #[must_use]
    pub fn with_tables(self, tables: OperatorTables) -> Self {
        Model { tables: Some(Arc::new(Tables { tables, ..Tables::default() })), ..self }
    }

    /// The measured tables that are used: table, software, version, GPU.
    #[must_use]
    pub fn table_sources(&self) -> &[String] {
        self.tables.as_ref().map_or(&[], |t| &t.tables.sources)
    }

    /// Whether measured operators are used.
    #[must_use]
    pub const fn has_tables(&self) -> bool {
        self.tables.is_some()
    }

    /// DeepSeek-R1 on the shipped GPUs.
    ///
    /// # Panics
    /// Never: a test reads the shipped configuration.
    #[must_use]
    pub fn deepseek_r1(constants: Constants) -> Self {
        let text = tandem_recipe::builtin::model_config("deepseek-r1").expect("the model ships");
        Model::new(ModelConfig::from_json(text).expect("the shipped configuration is valid"), hardware::shipped(), constants)
    }

    /// Bytes and operations of the architecture.
    #[must_use]
    pub const fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// Whether the hardware table has the GPU.
    #[must_use]
    pub fn knows(&self, gpu: &str) -> bool {
        hardware::find(&self.gpus, gpu).is_some()
    }

    /// Whether a GPU that ships has other figures in the hardware table at hand.
    #[must_use]
    pub fn is_changed(&self, gpu: &str) -> bool {
        hardware::find(&hardware::shipped(), gpu).is_some_and(|shipped| hardware::find(&self.gpus, gpu) != Some(shipped))
    }

    /// The hardware table.
    #[must_use]
    pub fn gpus(&self) -> &[GpuSpec] {
        &self.gpus
    }

    /// The GPU of that name; an unknown one is treated as the table's first of Blackwell, so that no row is refused.
    fn gpu(&self, name: &str) -> &GpuSpec {
        hardware::find(&self.gpus, name).or_else(|| hardware::find(&self.gpus, "b200")).unwrap_or(&self.gpus[0])
    }

    /// One server of `pool` as the cost model sees it.
    #[must_use]
    pub fn shape(&self, s: &Scenario, pool: &Pool, eplb_slots: u32) -> Shape {
        let mut shape = Shape {
            gpu: self.gpu(&s.hardware).clone(),
            layout: pool.layout,
            weights: s.weights,
            kv_value_bytes: 1.0,
            mtp: s.mtp,
            eplb_slots,
            measured: None,
        };
        shape.measured = self.tables.as_deref().and_then(|tables| self.measured(tables, &shape, &s.stack));
        shape
    }

    /// Measured operators of a worker, remembered: fits and sweeps ask for the same few over and over.
    fn measured(&self, tables: &Tables, shape: &Shape, stack: &str) -> Option<Arc<Operators>> {
        let key = (shape.gpu.name.clone(), stack.to_owned(), shape.layout, shape.weights.name(), shape.eplb_slots > 0);
        let mut compiled = tables.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = Wanted { config: &self.config, facts: &self.facts, shape, stack };
        compiled.entry(key).or_insert_with(|| compile(&tables.tables, &wanted).map(Arc::new)).clone()
    }

    /// Where the time of each operator comes from, at the batch and the prefill iteration that the scenario brings; empty without tables.
    #[must_use]
    pub fn operators(&self, s: &Scenario) -> Vec<Use> {
        if !self.has_tables() {
            return Vec::new();
        }
        let of = |pool: &Pool, slots: u32| self.shape(s, pool, slots).measured.unwrap_or_default();
        let batch = s.expected_batch();
        let context = s.load.isl.mean() + s.load.osl.mean() / 2.0;
        let tokens = batch * f64::from(1 + s.mtp);
        let all = tokens * f64::from(s.decode.layout.attention_dp_size());
        let decode = of(&s.decode, s.eplb_slots).uses(Phase::Decode, tokens, all, batch, context);
        let iteration = typical_iteration(s);
        let prompt = 2.0 * iteration.rank_pairs / iteration.rank_tokens;
        let (tokens, prompts) = (iteration.rank_tokens, iteration.rank_tokens / prompt);
        let prefill = of(&s.prefill, 0).uses(Phase::Prefill, tokens, iteration.tokens, prompts, prompt);
        prefill.into_iter().chain(decode).collect()
    }

    /// The corrections for a scenario.
    #[must_use]
    pub fn factors(&self, s: &Scenario) -> Factors {
        let prefill = dot(&self.constants.prefill, &prefill_features(s)) + prefill_value(&self.constants.prefill_field, s);
        Factors { decode: self.decode_correction(s), prefill: prefill.clamp(-2.0, 2.0).exp() }
    }

    /// How little fitted configurations say of decode and of prefill: standard deviations of logarithms, 0 at a fitted one.
    #[must_use]
    pub fn unknown(&self, s: &Scenario) -> [f64; 2] {
        if !self.knows(&s.hardware) || !self.is_fitted() {
            return [DECODE_PRIOR.amplitude, PREFILL_PRIOR.amplitude];
        }
        let c = &self.constants;
        let left = |amplitude: f64, nearness: f64| amplitude * (1.0 - nearness * nearness).max(0.0).sqrt();
        [
            left(DECODE_PRIOR.amplitude, c.decode_field.nearness(&decode_coordinates(s, s.expected_batch()))),
            left(PREFILL_PRIOR.amplitude, c.prefill_field.nearness(&prefill_coordinates(s))),
        ]
    }

    /// The correction of decode steps. The features are a parabola in the logarithm of the batch: three points give it.
    fn decode_correction(&self, s: &Scenario) -> Correction {
        let at = |x: f64| dot(&self.constants.decode, &decode_features(s, 16.0 * x.exp()));
        let (below, level, above) = (at(-1.0), at(0.0), at(1.0));
        let (slope, curve) = ((above - below) / 2.0, f64::midpoint(above, below) - level);
        let field = decode_table(&self.constants.decode_field, s);
        let mut ln = [0.0; CORRECTION_BATCHES];
        let mut x = -(16.0_f64.ln());
        for (ln, field) in ln.iter_mut().zip(field) {
            *ln = level + x * (slope + x * curve) + field;
            x += std::f64::consts::LN_2;
        }
        Correction(ln)
    }

    /// Decode step times of the scenario.
    #[must_use]
    pub fn decode_cost(&self, s: &Scenario, factor: Correction) -> DecodeCost {
        DecodeCost::new(&self.facts, &self.shape(s, &s.decode, s.eplb_slots), &self.constants.coefficients, factor)
    }

    /// Prefill iteration times of the scenario.
    #[must_use]
    pub fn prefill_cost(&self, s: &Scenario, factor: f64) -> PrefillCost {
        PrefillCost::new(&self.facts, &self.shape(s, &s.prefill, 0), &self.constants.coefficients, factor)
    }

    /// Tokens that the KV cache of a decode rank holds.
    #[must_use]
    pub fn kv_tokens(&self, s: &Scenario) -> u64 {
        let max_seq_len = s.load.isl.max() + s.load.osl.max() + 200;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a device")]
        let device = Bytes(self.gpu(&s.hardware).memory as u64);
        let answer = memory(&MemoryQuestion {
            config: &self.config,
            engine: EngineKind::DynamoTrtllm,
            layout: s.decode.layout,
            limits: EngineLimits { max_batch_size: 1, max_num_tokens: s.decode.max_tokens, max_seq_len, chunked_prefill: true },
            device,
            weight_dtype: s.weights,
            loaded: Loaded { mtp: s.mtp > 0, expert_slots: s.eplb_slots },
            kv_dtype: KvDtype::Fp8,
            block_size: KV_BLOCK,
            memory_fraction: s.decode.memory_fraction,
            phase: Phase::Decode,
            moe_backend: MoeBackend::Cutlass,
            transceiver_tokens: s.load.isl.max(),
        });
        u64::from(answer.n_blocks) * u64::from(KV_BLOCK)
    }

    /// Seconds of TTFT that are neither queueing nor computation.
    #[must_use]
    pub fn request_s(&self, s: &Scenario) -> f64 {
        let c = &self.constants.coefficients;
        if s.stack == "trt" { c.request_s } else { c.request_other_s }
    }

    /// The deployment of a scenario with given corrections.
    #[must_use]
    pub fn deployment(&self, s: &Scenario, factors: Factors) -> Deployment {
        self.deployment_holding(s, factors, self.kv_tokens(s))
    }

    /// The same where it is known how many tokens the KV cache of a decode rank holds.
    #[must_use]
    pub fn deployment_holding(&self, s: &Scenario, factors: Factors, kv_tokens: u64) -> Deployment {
        let gpu = self.gpu(&s.hardware);
        Deployment {
            prefill: PrefillPool {
                workers: s.prefill.workers,
                ranks: s.prefill.layout.attention_dp_size(),
                max_batch: s.prefill.max_batch,
                max_tokens: s.prefill.max_tokens,
                chunked: s.stack == "sglang",
                spread: if s.stack == "sglang" { RankSpread::Random } else { RankSpread::Balanced },
                burst: if s.prefill.layout.attention_dp { self.constants.coefficients.burst } else { 1.0 },
                cost: self.prefill_cost(s, factors.prefill),
            },
            decode: DecodePool {
                workers: s.decode.workers,
                ranks: s.decode.layout.attention_dp_size(),
                max_batch: s.decode.max_batch,
                kv_tokens,
                graph_batches: Vec::new(),
                routing: self.constants.routing_of(s),
                cost: self.decode_cost(s, factors.decode),
            },
            transfer: Transfer {
                bytes_per_token: self.facts.layers * self.facts.kv_values,
                bandwidth: f64::from(s.prefill.layout.world_size()) * gpu.scale_out * TRANSFER_EFFICIENCY,
                latency_s: TRANSFER_LATENCY_S,
            },
            request_s: self.request_s(s),
            gpus: s.gpus,
        }
    }
}
