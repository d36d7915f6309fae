//! The [`Plan`]: every decision of one deployment and its load, as plain immutable data.
//!
//! Whatever starts a process, renders a file or predicts a number reads the Plan and
//! decides nothing itself. Addresses with port 0 are bound once, at launch.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hardware::Hardware;
use crate::layout::ParallelLayout;
use crate::model::ModelConfig;
use crate::units::Bytes;

/// Version of the document; readers refuse another.
pub const PLAN_SCHEMA_VERSION: u32 = 1;

/// One deployment and the load points that it is measured with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Name of the recipe it came from, e.g. `nano`.
    pub recipe: String,
    /// Every knob with its final value and the layer that set it.
    pub knobs: BTreeMap<String, KnobRecord>,
    /// What the ranks run on.
    pub hardware: Hardware,
    /// What computes a step.
    pub engine: EngineKind,
    /// What is served.
    pub model: ModelPlan,
    /// The OpenAI-compatible server.
    pub frontend: FrontendPlan,
    /// Workers, prefill first, in node-list order.
    pub workers: Vec<WorkerPlan>,
    /// How it is driven.
    pub load: LoadPlan,
    /// Nodes of the deployment.
    pub n_nodes: u32,
}

/// The value of one knob and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnobRecord {
    /// The value in this plan (a list knob holds this plan's own element or elements).
    pub value: serde_json::Value,
    /// `built-in recipe nano`, `recipe file r.yaml:14`, `environment`, `command line` …
    pub layer: String,
}

/// What computes the steps of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// The embedded engine on host cores.
    Cpu,
    /// No computation: sleeps for what [`ModeledCosts`] says, answers deterministic tokens.
    Modeled,
    /// NVIDIA Dynamo with TensorRT-LLM workers, on a cluster.
    DynamoTrtllm,
    /// NVIDIA Dynamo with its mocker: everything but the computation.
    DynamoMocker,
    /// NVIDIA Dynamo with vLLM workers.
    DynamoVllm,
    /// NVIDIA Dynamo with SGLang workers.
    DynamoSglang,
    /// TensorRT-LLM's own disaggregated server.
    TrtllmServe,
    /// A deployment that is there already.
    External,
}

impl EngineKind {
    /// The name used in files and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EngineKind::Cpu => "cpu",
            EngineKind::Modeled => "modeled",
            EngineKind::DynamoTrtllm => "dynamo-trtllm",
            EngineKind::DynamoMocker => "dynamo-mocker",
            EngineKind::DynamoVllm => "dynamo-vllm",
            EngineKind::DynamoSglang => "dynamo-sglang",
            EngineKind::TrtllmServe => "trtllm-serve",
            EngineKind::External => "external",
        }
    }

    /// Whether its ranks hold weights on GPUs.
    #[must_use]
    pub const fn is_on_gpu(self) -> bool {
        matches!(self, EngineKind::DynamoTrtllm | EngineKind::DynamoVllm | EngineKind::DynamoSglang | EngineKind::TrtllmServe)
    }

    /// Whether it is this program's own.
    #[must_use]
    pub const fn is_embedded(self) -> bool {
        matches!(self, EngineKind::Cpu | EngineKind::Modeled)
    }
}

/// What is served, and from where its weights come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPlan {
    /// Name that clients use, e.g. `deepseek-r1-dynamo`.
    pub served_name: String,
    /// Where weights come from.
    pub source: ModelSource,
    /// Directory with `tokenizer.json`; none means the byte-level tokenizer.
    pub tokenizer_dir: Option<String>,
    /// Architecture.
    pub config: ModelConfig,
    /// Costs of the modeled engine; ignored by the others.
    pub modeled: ModeledCosts,
}

/// Where weights come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "format")]
pub enum ModelSource {
    /// A Hugging Face directory: config.json and safetensors.
    Checkpoint {
        /// The directory.
        path: String,
    },
    /// The small trained checkpoint that is compiled into the binary.
    Builtin {
        /// Its name, e.g. `nano`.
        name: String,
    },
    /// Deterministic random weights of the right shapes.
    Dummy {
        /// Seed of the weights.
        seed: u64,
    },
}

/// Step time of the modeled engine: `fixed + per_prefill_token * tokens + per_decode_seq * sequences`, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeledCosts {
    /// Microseconds of every step.
    pub step_us: f64,
    /// Microseconds a prefill token adds.
    pub prefill_token_us: f64,
    /// Microseconds a decoding sequence adds.
    pub decode_seq_us: f64,
}

/// The two phases of inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Computes the KV cache of a prompt and its first token.
    Prefill,
    /// Computes the tokens after the first.
    Decode,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        })
    }
}

/// A host and a port; port 0 is bound at launch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How the frontend picks a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// In turn.
    RoundRobin,
    /// Fewest outstanding tokens (prefill) or sequences (decode).
    LeastLoaded,
}

/// The OpenAI-compatible server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontendPlan {
    /// Node index that it runs on.
    pub node: u32,
    /// Where clients connect.
    pub http: Address,
    /// Where workers register.
    pub control: Address,
    /// Worker choice.
    pub routing: Routing,
    /// Requests that may be in the system; one more is answered 429.
    pub max_inflight: u32,
    /// Largest request body in bytes; a larger one is answered 413.
    pub max_body_bytes: u64,
    /// A request that is not finished by then fails, milliseconds.
    pub request_timeout_ms: u64,
}

/// One serving copy of the model in one phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerPlan {
    /// `prefill-0`, `decode-0` …
    pub name: String,
    /// Which phase it serves.
    pub phase: Phase,
    /// Index within the phase.
    pub index: u32,
    /// Parallel degrees.
    pub layout: ParallelLayout,
    /// One entry a rank.
    pub ranks: Vec<RankPlan>,
    /// Limits of one step, per attention-DP rank.
    pub limits: EngineLimits,
    /// The KV cache of one rank.
    pub kv: KvPlan,
    /// Where the memory of one rank goes.
    pub memory: MemoryBudget,
    /// Tokens between two token events of a request (the first is sent at once).
    pub stream_interval: u32,
    /// MoE backend name of the engine, e.g. `CUTLASS`.
    pub moe_backend: String,
    /// Tokens drafted per decode step; 0 = off.
    pub mtp_size: u32,
    /// Expert slots of the load balancer; 0 = off.
    pub eplb_slots: u32,
    /// Tokens that the KV transceiver can buffer.
    pub transceiver_tokens: u32,
    /// Compute threads of one rank (embedded CPU engine).
    pub threads: u32,
}

/// One process of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankPlan {
    /// Rank within the worker.
    pub rank: u32,
    /// Node index within the deployment.
    pub node: u32,
    /// Device index on the node.
    pub device: u32,
}

/// What one engine step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineLimits {
    /// Sequences.
    pub max_batch_size: u32,
    /// Tokens.
    pub max_num_tokens: u32,
    /// Longest sequence, prompt and output together.
    pub max_seq_len: u32,
    /// Whether a prompt may be computed in several steps.
    pub chunked_prefill: bool,
}

/// Number format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value.
    Bf16,
    /// 1 byte a value (e4m3).
    Fp8,
}

impl KvDtype {
    /// Bytes of one value.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            KvDtype::F32 => 4,
            KvDtype::Bf16 => 2,
            KvDtype::Fp8 => 1,
        }
    }
}

/// The paged KV cache of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvPlan {
    /// Tokens of one block.
    pub block_size: u32,
    /// Blocks of the rank.
    pub n_blocks: u32,
    /// Stored number format.
    pub dtype: KvDtype,
    /// Fraction of the memory that is free after loading weights.
    pub memory_fraction: f64,
}

/// Where the memory of one rank goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBudget {
    /// The device.
    pub device: Bytes,
    /// Weights.
    pub weights: Bytes,
    /// Activations, graphs, communication buffers.
    pub workspace: Bytes,
    /// KV cache.
    pub kv: Bytes,
    /// What is left over.
    pub margin: Bytes,
    /// KV bytes of one token on this rank, all layers.
    pub kv_bytes_per_token: u64,
    /// Sequences of `max_seq_len` tokens that the KV cache of one rank holds.
    pub sequences: u32,
}

/// How the deployment is driven.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadPlan {
    /// Input tokens of each request.
    pub isl: u32,
    /// Output tokens of each request.
    pub osl: u32,
    /// Whether responses stream.
    pub streaming: bool,
    /// Seed of prompts.
    pub seed: u64,
    /// A request fails after this, milliseconds.
    pub request_timeout_ms: u64,
    /// Run one after another on the same deployment.
    pub points: Vec<LoadPoint>,
}

/// One fixed concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadPoint {
    /// Requests in flight (over all decode workers).
    pub concurrency: u32,
    /// Measured requests.
    pub n_requests: u32,
    /// Requests before them that do not count.
    pub n_warmup: u32,
}

impl Plan {
    /// SHA-256 of the canonical JSON, in hex: names the plan in every artifact.
    #[must_use]
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).expect("a plan holds only serialisable data");
        Sha256::digest(&json).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// SHA-256 of what is deployed, without the load and the knobs' provenance: plans that agree in it can share one deployment.
    #[must_use]
    pub fn deployment_hash(&self) -> String {
        let mut deployment = self.clone();
        // How an engine is started is recorded in its knobs only.
        deployment.knobs.retain(|name, _| name.starts_with("ENGINE_"));
        deployment.knobs.values_mut().for_each(|record| record.layer.clear());
        deployment.load = LoadPlan { isl: 0, osl: 0, streaming: false, seed: 0, request_timeout_ms: 0, points: Vec::new() };
        deployment.hash()
    }

    /// SHA-256 of what load point `index` measures: the deployment and that point alone, whatever set the values and whatever else the
    /// plan measures. Two points with one hash are the same measurement.
    #[must_use]
    pub fn point_hash(&self, index: usize) -> String {
        let mut point = self.clone();
        point.recipe.clear();
        point.knobs.retain(|name, _| name.starts_with("ENGINE_"));
        point.knobs.values_mut().for_each(|record| record.layer.clear());
        point.frontend.http.port = 0;
        point.load.points = self.load.points.get(index).copied().into_iter().collect();
        point.hash()
    }

    /// The final value of knob `name`.
    #[must_use]
    pub fn knob(&self, name: &str) -> Option<&serde_json::Value> {
        self.knobs.get(name).map(|record| &record.value)
    }

    /// Devices of all workers.
    #[must_use]
    pub fn n_devices(&self) -> u32 {
        self.workers.iter().map(|w| w.layout.world_size()).sum()
    }

    /// The worker called `name`.
    #[must_use]
    pub fn worker(&self, name: &str) -> Option<&WorkerPlan> {
        self.workers.iter().find(|w| w.name == name)
    }

    /// The workers of one phase.
    pub fn workers_of(&self, phase: Phase) -> impl Iterator<Item = &WorkerPlan> {
        self.workers.iter().filter(move |w| w.phase == phase)
    }
}
