//! The one table of knobs: name, type, range, unit, scope, default and doc.
//!
//! Everything else about a knob follows from its row: the field of [`Settings`], parsing and range checks, the name of its
//! environment variable, `--explain` and the generated reference. A row is
//! `field: type = "NAME", scope, unit, default, kind, doc;`. The default is that of recipes that do not say otherwise (`builtin`).
//!
//! This file is long because it is that table.

use tandem_plan::{Bytes, EngineKind, GpuType, KvDtype, Routing, WeightDtype};

use crate::value::{Kind, Value};

/// What a knob decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What is deployed: another value needs another deployment.
    Deployment,
    /// How the deployment is driven, the same for all its load points.
    Load,
    /// One load point: several values are measured one after another on one deployment.
    Point,
    /// Facts of the cluster that only the launcher reads.
    Cluster,
}

impl Scope {
    /// The word in the reference.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Scope::Deployment => "deployment",
            Scope::Load => "load",
            Scope::Point => "load point",
            Scope::Cluster => "cluster",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Knob {
    /// Its name in files, flags and reports.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// What a number counts; empty for others.
    pub unit: &'static str,
    /// What it decides.
    pub scope: Scope,
    /// The value in recipes that do not say otherwise.
    pub default: &'static str,
    /// What it means, in a sentence or two.
    pub doc: &'static str,
}

/// Variables that the published recipe reads under these very names, besides its `CTX_` and `GEN_` families.
const PUBLISHED: &[&str] = &[
    "ISL",
    "OSL",
    "NCTX",
    "NGEN",
    "CONCURRENCY",
    "MULTI_ROUND",
    "STREAMING",
    "GPU_TYPE",
    "DYNAMO_FRONTEND_PORT",
    "ETCD_SERVER_PORT",
    "NATS_SERVER_PORT",
    "RUN_CONF_IMAGE",
    "LLMB_INSTALL",
    "LLMB_WORKLOAD",
    "SBATCH_PARTITION",
    "SBATCH_ACCOUNT",
    "SBATCH_TIMELIMIT",
    "SBATCH_GPUS_PER_NODE",
];

impl Knob {
    /// The row called `name`.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Knob> {
        KNOBS.iter().find(|k| k.name == name)
    }

    /// Its environment variable: the published recipe's own name, or ours with `TANDEM_` before it, because words such as
    /// `MODEL` or `SEED` may be set in a shell for another purpose.
    #[must_use]
    pub fn env_name(&self) -> String {
        let own = PUBLISHED.contains(&self.name) || self.name.starts_with("CTX_") || self.name.starts_with("GEN_");
        if own { self.name.to_owned() } else { format!("TANDEM_{}", self.name) }
    }
}

/// A field of [`Settings`] made from a checked [`Value`].
trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_int {
    ($($t:ty),*) => {$(
        impl FromValue for $t {
            fn from_value(value: &Value) -> Option<Self> {
                match value { Value::Int(n) => <$t>::try_from(*n).ok(), _ => None }
            }
        }
    )*};
}
from_int!(u16, u32, u64);

impl FromValue for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Float(x) = value { Some(*x) } else { None }
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bool(b) = value { Some(*b) } else { None }
    }
}

impl FromValue for Bytes {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Size(b) = value { Some(*b) } else { None }
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(s) = value { Some(s.clone()) } else { None }
    }
}

impl FromValue for GpuType {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(s) = value { s.parse().ok() } else { None }
    }
}

/// A word of a `Choice` as the enum value that stands beside it.
macro_rules! from_word {
    ($t:ty: $($word:literal => $value:expr),* $(,)?) => {
        impl FromValue for $t {
            fn from_value(value: &Value) -> Option<Self> {
                let Value::Text(s) = value else { return None };
                match s.as_str() { $($word => Some($value),)* _ => None }
            }
        }
    };
}
from_word!(EngineKind: "cpu" => EngineKind::Cpu, "modeled" => EngineKind::Modeled, "dynamo-trtllm" => EngineKind::DynamoTrtllm,
    "dynamo-mocker" => EngineKind::DynamoMocker, "dynamo-vllm" => EngineKind::DynamoVllm, "dynamo-sglang" => EngineKind::DynamoSglang,
    "trtllm-serve" => EngineKind::TrtllmServe, "external" => EngineKind::External);
from_word!(KvDtype: "fp8" => KvDtype::Fp8, "bf16" => KvDtype::Bf16, "f32" => KvDtype::F32);
from_word!(Routing: "round-robin" => Routing::RoundRobin, "least-loaded" => Routing::LeastLoaded);
from_word!(Option<WeightDtype>: "auto" => None, "fp8" => Some(WeightDtype::Fp8), "nvfp4" => Some(WeightDtype::Nvfp4),
    "nvfp4-v2" => Some(WeightDtype::Nvfp4V2),
    "bf16" => Some(WeightDtype::Bf16), "f32" => Some(WeightDtype::F32));
from_word!(LoadFormat: "auto" => LoadFormat::Auto, "dummy" => LoadFormat::Dummy);

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFormat {
    /// The checkpoint of `MODEL`.
    Auto,
    /// Deterministic random weights of the model's shapes.
    Dummy,
}

/// What every recipe has, from the table below.
macro_rules! knobs {
    ($($field:ident: $type:ty = $name:literal, $scope:ident, $unit:literal, $default:literal, $kind:expr, $doc:literal;)*) => {
        /// Every knob, in the order of files and references.
        pub const KNOBS: &[Knob] = &[$(Knob { name: $name, kind: $kind, unit: $unit, scope: Scope::$scope, default: $default, doc: $doc }),*];

        /// The value of every knob in one case.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Settings {
            $(#[doc = $doc] pub $field: $type,)*
        }

        impl Settings {
            /// Takes each knob's value from `value_of`, which must give one that its row's kind has parsed.
            pub(crate) fn from_values(value_of: impl Fn(&'static str) -> Value) -> Settings {
                Settings {
                    $($field: <$type as FromValue>::from_value(&value_of($name)).expect("the row's kind parsed the value within the field's range"),)*
                }
            }
        }
    };
}

const fn int(min: u64, max: u64) -> Kind {
    Kind::Int { min, max }
}

const MILLION: u64 = 1_000_000;
const PORT: Kind = int(0, 65_535);
const FRACTION: Kind = Kind::Float { min: 0.01, max: 0.99 };
const MICROS: Kind = Kind::Float { min: 0.0, max: 1e9 };

knobs! {
    isl: u32 = "ISL", Deployment, "tokens", "256", int(1, MILLION), "Input sequence length: tokens of each prompt.";
    osl: u32 = "OSL", Deployment, "tokens", "64", int(1, MILLION), "Output sequence length: tokens of each response.";
    nctx: u32 = "NCTX", Deployment, "servers", "1", int(1, 4096), "Prefill servers.";
    ctx_world_size: u32 = "CTX_WORLD_SIZE", Deployment, "devices", "1", int(1, 4096), "Devices of one prefill server; all prefill servers take NCTX times as many.";
    ctx_max_batch_size: u32 = "CTX_MAX_BATCH_SIZE", Deployment, "sequences", "1", int(1, 65_536), "Sequences in one prefill iteration, per attention-DP rank.";
    ctx_max_num_tokens: u32 = "CTX_MAX_NUM_TOKENS", Deployment, "tokens", "256", int(1, MILLION), "Tokens in one prefill iteration, per attention-DP rank. Less than ISL means chunked prefill. Lower it when prefill runs out of memory.";
    ctx_gpu_memory_fraction: f64 = "CTX_GPU_MEMORY_FRACTION", Deployment, "", "0.75", FRACTION, "Fraction of the device memory that is free after loading weights given to the KV cache, prefill.";
    ctx_attention_dp: bool = "CTX_ATTENTION_DP", Deployment, "", "false", Kind::Bool, "Attention data parallelism in prefill servers: each rank serves its own requests' attention, experts are shared by all.";
    ctx_chunked_prefill: bool = "CTX_CHUNKED_PREFILL", Deployment, "", "true", Kind::Bool, "Whether a prompt may be computed in several prefill iterations. Without it CTX_MAX_NUM_TOKENS must hold a whole prompt.";
    ctx_tensor_parallel_size: u32 = "CTX_TENSOR_PARALLEL_SIZE", Deployment, "ranks", "0", int(0, 4096), "Tensor parallelism of a prefill server; 0 = by GPU type (up to 8 on h100, h200, b200 and b300, the whole server on gb200, gb300 and cpu). The rest of CTX_WORLD_SIZE is pipeline parallelism.";
    ctx_expert_parallel_size: u32 = "CTX_EXPERT_PARALLEL_SIZE", Deployment, "ranks", "0", int(0, 4096), "Expert parallelism of a prefill server; 0 = its tensor parallelism.";
    ngen: u32 = "NGEN", Deployment, "servers", "1", int(1, 4096), "Decode servers.";
    gen_world_size: u32 = "GEN_WORLD_SIZE", Deployment, "devices", "1", int(1, 4096), "Devices of one decode server.";
    gen_max_batch_size: u32 = "GEN_MAX_BATCH_SIZE", Deployment, "sequences", "8", int(1, 65_536), "Sequences in one decode iteration, per attention-DP rank. Lower it (and GEN_MAX_NUM_TOKENS) when decode runs out of memory.";
    gen_max_num_tokens: u32 = "GEN_MAX_NUM_TOKENS", Deployment, "tokens", "8", int(1, MILLION), "Tokens in one decode iteration, per attention-DP rank; usually GEN_MAX_BATCH_SIZE, times 1 + GEN_MTP_SIZE with MTP.";
    gen_gpu_memory_fraction: f64 = "GEN_GPU_MEMORY_FRACTION", Deployment, "", "0.8", FRACTION, "Fraction of the device memory that is free after loading weights given to the KV cache, decode.";
    gen_attention_dp: bool = "GEN_ATTENTION_DP", Deployment, "", "false", Kind::Bool, "Attention data parallelism in decode servers.";
    gen_tensor_parallel_size: u32 = "GEN_TENSOR_PARALLEL_SIZE", Deployment, "ranks", "0", int(0, 4096), "Tensor parallelism of a decode server; 0 = by GPU type, as CTX_TENSOR_PARALLEL_SIZE.";
    gen_expert_parallel_size: u32 = "GEN_EXPERT_PARALLEL_SIZE", Deployment, "ranks", "0", int(0, 4096), "Expert parallelism of a decode server; 0 = its tensor parallelism.";
    gen_eplb_num_slots: u32 = "GEN_EPLB_NUM_SLOTS", Deployment, "slots", "0", int(0, 65_536), "Expert slots for expert-parallel load balancing in decode servers; 0 = off.";
    gen_mtp_size: u32 = "GEN_MTP_SIZE", Deployment, "tokens", "0", int(0, 16), "Tokens drafted per decode iteration (multi-token prediction); 0 = off.";
    concurrency: u32 = "CONCURRENCY", Point, "sequences", "8", int(1, MILLION), "Sequences decoded in parallel per decode server; NGEN times as many in all. Several values run one after another.";
    multi_round: u32 = "MULTI_ROUND", Point, "", "8", int(1, MILLION), "Requests = MULTI_ROUND x CONCURRENCY x NGEN.";
    warmup_rounds: u32 = "WARMUP_ROUNDS", Point, "", "2", int(0, MILLION), "Requests before the measured ones = WARMUP_ROUNDS x CONCURRENCY x NGEN; they do not count.";
    streaming: bool = "STREAMING", Load, "", "true", Kind::Bool, "Stream tokens, or send the whole response at once (then TTFT and TPOT do not apply).";
    seed: u64 = "SEED", Load, "", "100", int(0, u64::MAX), "Seed of the prompts.";
    request_timeout_s: u32 = "REQUEST_TIMEOUT_S", Deployment, "seconds", "120", int(1, 604_800), "A request that is not finished by then fails, at the frontend and at the load generator.";
    gpu_type: GpuType = "GPU_TYPE", Deployment, "", "cpu", Kind::Gpu, "Type of the devices; selects the defaults of the recipe. NAME:LIKE is a GPU of your own whose figures a hardware table has (--hardware), with the defaults and engine rules of LIKE.";
    model: String = "MODEL", Deployment, "", "nano", Kind::Text, "What is served: nano, tiny, deepseek-r1, or a Hugging Face directory with config.json.";
    served_model_name: String = "SERVED_MODEL_NAME", Deployment, "", "", Kind::Text, "Name that clients use; empty = the model's own.";
    tokenizer: String = "TOKENIZER", Deployment, "", "auto", Kind::Text, "Directory with tokenizer.json, `bytes` for the byte-level tokenizer, or auto: the checkpoint's directory, byte-level for built-in and dummy models.";
    load_format: LoadFormat = "LOAD_FORMAT", Deployment, "", "auto", Kind::Choice(&["auto", "dummy"]), "Weights: auto = the checkpoint of MODEL, dummy = random weights of its shapes from WEIGHT_SEED.";
    dummy_layers: u32 = "DUMMY_LAYERS", Deployment, "layers", "0", int(0, 10_000), "Decoder layers of a dummy model; 0 = all that its config.json states.";
    weight_seed: u64 = "WEIGHT_SEED", Deployment, "", "0", int(0, u64::MAX), "Seed of dummy weights.";
    weight_dtype: Option<WeightDtype> = "WEIGHT_DTYPE", Deployment, "", "auto", Kind::Choice(&["auto", "fp8", "nvfp4", "nvfp4-v2", "bf16", "f32"]), "Number format of the weights in memory; auto = what the engine keeps of the checkpoint. nvfp4 keeps attention in bf16, nvfp4-v2 has its output projection in 4 bits too.";
    device_memory: Bytes = "DEVICE_MEMORY", Deployment, "", "256MiB", Kind::Size, "Memory of one device. On cpu it is what a rank may use, so that its limits are real.";
    kv_dtype: KvDtype = "KV_DTYPE", Deployment, "", "f32", Kind::Choice(&["fp8", "bf16", "f32"]), "Number format of the KV cache.";
    kv_block_size: u32 = "KV_BLOCK_SIZE", Deployment, "tokens", "32", int(1, 4096), "Tokens of one KV block.";
    engine: EngineKind = "ENGINE", Deployment, "", "cpu", Kind::Choice(&["cpu", "modeled", "dynamo-trtllm", "dynamo-mocker", "dynamo-vllm", "dynamo-sglang", "trtllm-serve", "external"]), "What computes a step: the embedded engine, one that only takes the modeled time, Dynamo with TensorRT-LLM, its mocker, vLLM or SGLang, TensorRT-LLM's own server, or a deployment that is there already (ENGINE_URL).";
    engine_python: String = "ENGINE_PYTHON", Deployment, "", "python3", Kind::Text, "Python interpreter with Dynamo, e.g. that of a virtual environment.";
    engine_dialect: String = "ENGINE_DIALECT", Deployment, "", "auto", Kind::Choice(&["auto", "0.6", "1"]), "Generation of Dynamo's command line: 0.6 (needs etcd and NATS) or 1 (1.0 and later); auto = 0.6 for dynamo-trtllm, whose published image that is, 1 for the others.";
    engine_discovery: String = "ENGINE_DISCOVERY", Deployment, "", "auto", Kind::Choice(&["auto", "file", "etcd"]), "How Dynamo's servers find each other: by a folder of this machine (dialect 1 only) or by etcd; auto = a folder on one node, etcd on several.";
    engine_request_plane: String = "ENGINE_REQUEST_PLANE", Deployment, "", "auto", Kind::Choice(&["auto", "tcp", "nats"]), "What carries requests and events between Dynamo's servers in dialect 1: tcp (auto), or NATS, which is then started too. Dialect 0.6 always takes NATS.";
    engine_url: String = "ENGINE_URL", Deployment, "", "", Kind::Text, "ENGINE=external: the OpenAI-compatible URL that is measured.";
    engine_speedup: f64 = "ENGINE_SPEEDUP", Deployment, "", "1", Kind::Float { min: 0.001, max: 1e6 }, "ENGINE=dynamo-mocker: how many times faster than its modeled GPU the mocker runs.";
    threads: u32 = "THREADS", Deployment, "threads", "1", int(1, 1024), "Compute threads of one rank of the embedded engine.";
    modeled_step_us: f64 = "MODELED_STEP_US", Deployment, "microseconds", "2000", MICROS, "Modeled engine: time of every step.";
    modeled_prefill_token_us: f64 = "MODELED_PREFILL_TOKEN_US", Deployment, "microseconds", "20", MICROS, "Modeled engine: time that a prefill token adds to a step.";
    modeled_decode_seq_us: f64 = "MODELED_DECODE_SEQ_US", Deployment, "microseconds", "50", MICROS, "Modeled engine: time that a decoding sequence adds to a step.";
    stream_interval: u32 = "STREAM_INTERVAL", Deployment, "tokens", "1", int(1, 10_000), "Tokens between two token events of a request; the first token is sent at once.";
    routing: Routing = "ROUTING", Deployment, "", "least-loaded", Kind::Choice(&["round-robin", "least-loaded"]), "How the frontend picks a worker: in turn, or the one with the fewest outstanding tokens (prefill) or sequences (decode).";
    max_inflight: u32 = "MAX_INFLIGHT", Deployment, "requests", "16384", int(1, MILLION), "Requests that may be in the system; one more is answered 429.";
    max_body_size: Bytes = "MAX_BODY_SIZE", Deployment, "", "32MiB", Kind::Size, "Largest request body; a larger one is answered 413.";
    frontend_host: String = "FRONTEND_HOST", Deployment, "", "127.0.0.1", Kind::Text, "Address that the frontend binds to.";
    frontend_dedicated_node: bool = "FRONTEND_DEDICATED_NODE", Deployment, "", "false", Kind::Bool, "On a cluster: a node without GPU servers for the frontend and its services (etcd, NATS).";
    client_dedicated_node: bool = "CLIENT_DEDICATED_NODE", Deployment, "", "false", Kind::Bool, "On a cluster: the first node of the job for the load generator alone; the frontend is on the next one.";
    dynamo_frontend_port: u16 = "DYNAMO_FRONTEND_PORT", Deployment, "", "0", PORT, "Port where clients connect; 0 = a free one, chosen at launch. Inside a Slurm job the built-in default counts as 0, because jobs share nodes.";
    control_port: u16 = "CONTROL_PORT", Deployment, "", "0", PORT, "Port where workers register with the embedded frontend; 0 = a free one, chosen at launch.";
    etcd_server_port: u16 = "ETCD_SERVER_PORT", Cluster, "", "2379", PORT, "Port of etcd beside the Dynamo frontend, once it is set; by default a free one is chosen at launch.";
    nats_server_port: u16 = "NATS_SERVER_PORT", Cluster, "", "4222", PORT, "Port of NATS beside the Dynamo frontend, once it is set; by default a free one is chosen at launch.";
    run_conf_image: String = "RUN_CONF_IMAGE", Cluster, "", "", Kind::Text, "Container image; empty = LLMB_INSTALL/images/ai-dynamo+tensorrtllm-runtime+0.6.1.sqsh.";
    llmb_install: String = "LLMB_INSTALL", Cluster, "", "", Kind::Text, "Top folder of the installation.";
    llmb_workload: String = "LLMB_WORKLOAD", Cluster, "", "", Kind::Text, "Folder of this workload: models and experiments/; empty = LLMB_INSTALL/workloads/inference_deepseek-r1-dynamo.";
    sbatch_partition: String = "SBATCH_PARTITION", Cluster, "", "", Kind::Text, "Slurm partition; empty = the cluster's default.";
    sbatch_account: String = "SBATCH_ACCOUNT", Cluster, "", "", Kind::Text, "Slurm account; empty = the user's default.";
    sbatch_timelimit: String = "SBATCH_TIMELIMIT", Cluster, "", "1:00:00", Kind::TimeLimit, "Slurm time limit. 32 GPUs need one hour for the published configurations, 48 two.";
    sbatch_gpus_per_node: u32 = "SBATCH_GPUS_PER_NODE", Deployment, "devices", "0", int(0, 64), "Devices of one node; 0 = by GPU type (4 on gb200 and gb300, 8 on the others).";
}
