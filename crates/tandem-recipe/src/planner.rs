//! From a recipe to plans: derives what the recipe leaves open, checks it, places ranks on nodes.

use tandem_plan::facts::Loaded;
use tandem_plan::memory::{MemoryAnswer, MemoryQuestion, MoeBackend, memory};
use tandem_plan::plan::PLAN_SCHEMA_VERSION;
use tandem_plan::{
    Address, EngineLimits, FrontendPlan, GpuType, Hardware, KvPlan, LoadPlan, LoadPoint, ModelConfig, ModelPlan, ModelSource, ModeledCosts,
    ParallelLayout, Phase, Plan, WeightDtype, WorkerPlan,
};

use crate::builtin;
use crate::checks;
use crate::error::{PlanError, Problem};
use crate::knobs::{LoadFormat, Settings};
use crate::placement;
use crate::recipe::{Case, Recipe};
use crate::site;

/// Tokens that the longest sequence may have beyond ISL and OSL, as in the published recipe: the chat template and a reserve.
pub const SEQUENCE_RESERVE: u32 = 200;
/// The transceiver's buffer is a multiple of this, in tokens.
const TRANSCEIVER_UNIT: u32 = 256;

/// Reads a file of a model's directory: the caller's, since this crate opens none.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> std::io::Result<String>;

/// Makes one plan of each deployment; load points that share a deployment are in one plan.
///
/// `read` is called with `MODEL/config.json` when MODEL is a directory.
///
/// # Errors
/// [`PlanError`] of the first case that is impossible.
pub fn plans(recipe: &Recipe, read: ReadFile<'_>) -> Result<Vec<Plan>, PlanError> {
    plan_each(recipe, read).into_iter().collect()
}

/// As [`plans`], but keeps the cases that work when others do not: for exploring a space with infeasible corners.
#[must_use]
pub fn plan_each(recipe: &Recipe, read: ReadFile<'_>) -> Vec<Result<Plan, PlanError>> {
    recipe.cases().iter().map(|case| plan_case(case, read)).collect()
}

/// One phase of a case: its knobs under common names.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    pub(crate) phase: Phase,
    pub(crate) n_servers: u32,
    pub(crate) world: u32,
    pub(crate) layout: ParallelLayout,
    pub(crate) limits: EngineLimits,
    pub(crate) memory_fraction: f64,
    pub(crate) eplb_slots: u32,
}

impl Servers {
    /// The knob of this phase that ends in `suffix`.
    pub(crate) fn knob(&self, suffix: &str) -> String {
        match (self.phase, suffix) {
            (Phase::Prefill, "SERVERS") => "NCTX".to_owned(),
            (Phase::Decode, "SERVERS") => "NGEN".to_owned(),
            (Phase::Prefill, _) => format!("CTX_{suffix}"),
            (Phase::Decode, _) => format!("GEN_{suffix}"),
        }
    }
}

/// A case with everything derived from it.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) case: &'a Case,
    pub(crate) settings: Settings,
    pub(crate) config: ModelConfig,
    /// Number format of the weights in memory.
    pub(crate) weight_dtype: WeightDtype,
    /// Number format of the checkpoint.
    pub(crate) stored_dtype: WeightDtype,
    pub(crate) devices_per_node: u32,
    pub(crate) servers: [Servers; 2],
}

impl Draft<'_> {
    /// An error that blames `knob`.
    pub(crate) fn fail(&self, knob: &str, problem: Problem) -> PlanError {
        PlanError { blame: Box::new(self.case.blame(knob)), problem }
    }

    pub(crate) fn question(&self, servers: &Servers) -> MemoryQuestion<'_> {
        MemoryQuestion {
            config: &self.config,
            engine: self.settings.engine,
            layout: servers.layout,
            limits: servers.limits,
            device: self.settings.device_memory,
            weight_dtype: self.weight_dtype,
            loaded: Loaded { mtp: self.settings.gen_mtp_size > 0, expert_slots: servers.eplb_slots },
            kv_dtype: self.settings.kv_dtype,
            block_size: self.settings.kv_block_size,
            memory_fraction: servers.memory_fraction,
            phase: servers.phase,
            moe_backend: moe_backend(self.case.gpu, &servers.layout),
            transceiver_tokens: self.transceiver_tokens(),
        }
    }

    /// Tokens that the transceiver's buffer holds.
    fn transceiver_tokens(&self) -> u32 {
        self.servers[0].limits.max_seq_len.next_multiple_of(TRANSCEIVER_UNIT)
    }
}

fn plan_case(case: &Case, read: ReadFile<'_>) -> Result<Plan, PlanError> {
    let settings = case.settings();
    let model = model_config(case, &settings, read)?;
    draft(case, settings, model).plan()
}

/// A case with everything derived, nothing checked.
pub(crate) fn draft(case: &Case, settings: Settings, (config, stored_dtype): (ModelConfig, WeightDtype)) -> Draft<'_> {
    Draft {
        weight_dtype: settings.weight_dtype.unwrap_or(stored_dtype),
        stored_dtype,
        devices_per_node: devices_per_node(case.gpu, &settings),
        servers: [servers(Phase::Prefill, &settings), servers(Phase::Decode, &settings)],
        case,
        settings,
        config,
    }
}

impl Draft<'_> {
    /// Checks everything, memory included, and says what each phase's ranks hold.
    pub(crate) fn check(&self) -> Result<[MemoryAnswer; 2], PlanError> {
        checks::check(self)?;
        let answers = [memory(&self.question(&self.servers[0])), memory(&self.question(&self.servers[1]))];
        for (servers, answer) in self.servers.iter().zip(&answers) {
            checks::check_memory(self, servers, answer)?;
        }
        Ok(answers)
    }

    pub(crate) fn plan(&self) -> Result<Plan, PlanError> {
        let answers = self.check()?;
        let load = load_plan(self)?;
        let (workers, n_nodes) = workers(self, &answers)?;
        let (case, s) = (self.case, &self.settings);
        Ok(Plan {
            schema_version: PLAN_SCHEMA_VERSION,
            recipe: case.recipe.clone(),
            knobs: case.records(),
            hardware: Hardware { gpu_type: case.gpu, devices_per_node: self.devices_per_node, device_memory: s.device_memory },
            engine: s.engine,
            model: model_plan(self),
            frontend: FrontendPlan {
                node: u32::from(s.client_dedicated_node),
                http: Address { host: s.frontend_host.clone(), port: s.dynamo_frontend_port },
                control: Address { host: s.frontend_host.clone(), port: s.control_port },
                routing: s.routing,
                max_inflight: s.max_inflight,
                max_body_bytes: s.max_body_size.0,
                request_timeout_ms: u64::from(s.request_timeout_s) * 1000,
            },
            workers,
            load,
            n_nodes,
        })
    }
}

/// The memory of every pipeline stage of a planned worker; none when the plan does not say enough to work it out again.
#[must_use]
pub fn memory_answer(plan: &Plan, worker: &WorkerPlan) -> Option<MemoryAnswer> {
    let stated =
        plan.knob("WEIGHT_DTYPE").and_then(|v| v.as_str()).and_then(|name| WeightDtype::ALL.into_iter().find(|d| d.name() == name));
    let answer = memory(&MemoryQuestion {
        config: &plan.model.config,
        engine: plan.engine,
        layout: worker.layout,
        limits: worker.limits,
        device: plan.hardware.device_memory,
        weight_dtype: stated.unwrap_or_else(|| WeightDtype::of_checkpoint(&plan.model.config)),
        loaded: Loaded { mtp: worker.mtp_size > 0, expert_slots: worker.eplb_slots },
        kv_dtype: worker.kv.dtype,
        block_size: worker.kv.block_size,
        memory_fraction: worker.kv.memory_fraction,
        phase: worker.phase,
        moe_backend: MoeBackend::find(&worker.moe_backend)?,
        transceiver_tokens: worker.transceiver_tokens,
    });
    (answer.budget == worker.memory).then_some(answer)
}

/// The architecture and the number format of its checkpoint.
pub(crate) fn model_config(case: &Case, s: &Settings, read: ReadFile<'_>) -> Result<(ModelConfig, WeightDtype), PlanError> {
    let path = format!("{}/config.json", s.model.trim_end_matches('/'));
    let fail = |problem| PlanError { blame: Box::new(case.blame("MODEL")), problem };
    let text = match builtin::model_config(&s.model) {
        Some(text) => text.to_owned(),
        None => read(&path).map_err(|source| fail(Problem::Unreadable { path: path.clone(), source }))?,
    };
    let mut config = ModelConfig::from_json(&text).map_err(|source| fail(Problem::Model { path, source }))?;
    if s.dummy_layers > 0 {
        if !is_dummy(s) {
            return Err(PlanError { blame: Box::new(case.blame("DUMMY_LAYERS")), problem: Problem::NotDummy });
        }
        config.num_hidden_layers = config.num_hidden_layers.min(s.dummy_layers);
    }
    let dtype = if config.quantization_config.is_none() && !is_dummy(s) && is_single(&text) {
        WeightDtype::F32
    } else {
        WeightDtype::of_checkpoint(&config)
    };
    Ok((config, dtype))
}

/// Whether a `config.json` says that its weights are in F32.
fn is_single(config_json: &str) -> bool {
    let json: serde_json::Value = serde_json::from_str(config_json).unwrap_or_default();
    let dtype = json.get("torch_dtype").or_else(|| json.get("dtype")).and_then(serde_json::Value::as_str);
    dtype == Some("float32")
}

/// `tiny` ships without weights.
fn is_dummy(s: &Settings) -> bool {
    s.load_format == LoadFormat::Dummy || s.model == "tiny"
}

fn devices_per_node(gpu: GpuType, s: &Settings) -> u32 {
    match gpu.hardware() {
        Some(hardware) if s.sbatch_gpus_per_node == 0 => hardware.devices_per_node,
        Some(_) => s.sbatch_gpus_per_node,
        // One host: as many devices as it has ranks.
        None => s.nctx.saturating_mul(s.ctx_world_size).saturating_add(s.ngen.saturating_mul(s.gen_world_size)),
    }
}

fn servers(phase: Phase, s: &Settings) -> Servers {
    let prompt = s.isl.saturating_add(SEQUENCE_RESERVE);
    let (n_servers, world, tp, ep, attention_dp) = match phase {
        Phase::Prefill => (s.nctx, s.ctx_world_size, s.ctx_tensor_parallel_size, s.ctx_expert_parallel_size, s.ctx_attention_dp),
        Phase::Decode => (s.ngen, s.gen_world_size, s.gen_tensor_parallel_size, s.gen_expert_parallel_size, s.gen_attention_dp),
    };
    let (max_batch_size, max_num_tokens, max_seq_len, memory_fraction, eplb_slots) = match phase {
        Phase::Prefill => (s.ctx_max_batch_size, s.ctx_max_num_tokens, prompt, s.ctx_gpu_memory_fraction, 0),
        Phase::Decode => {
            (s.gen_max_batch_size, s.gen_max_num_tokens, prompt.saturating_add(s.osl), s.gen_gpu_memory_fraction, s.gen_eplb_num_slots)
        }
    };
    Servers {
        phase,
        n_servers,
        world,
        layout: layout(s.gpu_type, world, tp, ep, attention_dp),
        limits: EngineLimits { max_batch_size, max_num_tokens, max_seq_len, chunked_prefill: s.ctx_chunked_prefill },
        memory_fraction,
        eplb_slots,
    }
}

/// TP by GPU type unless it is set, PP the rest of the world, EP = TP unless it is set.
pub(crate) fn layout(gpu: GpuType, world: u32, tp: u32, ep: u32, attention_dp: bool) -> ParallelLayout {
    let tp = match (tp, gpu.kin()) {
        (0, GpuType::H100 | GpuType::B200) => world.min(8),
        (0, _) => world,
        (set, _) => set,
    };
    ParallelLayout { tp, pp: (world / tp).max(1), ep: if ep == 0 { tp } else { ep }, attention_dp }
}

/// Name of the engine's MoE implementation.
fn moe_backend(gpu: GpuType, layout: &ParallelLayout) -> MoeBackend {
    match (gpu.kin(), layout.attention_dp) {
        (GpuType::Cpu, _) => MoeBackend::Cpu,
        (GpuType::Gb200, true) if layout.tp >= 16 => MoeBackend::WideEp,
        (GpuType::H100, _) | (_, true) => MoeBackend::Cutlass,
        (_, false) => MoeBackend::TrtLlm,
    }
}

fn workers(draft: &Draft<'_>, answers: &[MemoryAnswer; 2]) -> Result<(Vec<WorkerPlan>, u32), PlanError> {
    let s = &draft.settings;
    let transceiver_tokens = draft.transceiver_tokens();
    let first = u32::from(s.client_dedicated_node) + u32::from(s.frontend_dedicated_node);
    let mut nodes = placement::Nodes::after(first, draft.devices_per_node);
    let mut workers = Vec::new();
    for (servers, answer) in draft.servers.iter().zip(answers) {
        for index in 0..servers.n_servers {
            let ranks = nodes.place(servers.world);
            workers.push(WorkerPlan {
                name: format!("{}-{index}", servers.phase),
                phase: servers.phase,
                index,
                layout: servers.layout,
                ranks,
                limits: servers.limits,
                kv: KvPlan {
                    block_size: s.kv_block_size,
                    n_blocks: answer.n_blocks,
                    dtype: s.kv_dtype,
                    memory_fraction: servers.memory_fraction,
                },
                memory: answer.budget,
                stream_interval: s.stream_interval,
                moe_backend: moe_backend(draft.case.gpu, &servers.layout).name().to_owned(),
                mtp_size: s.gen_mtp_size,
                eplb_slots: servers.eplb_slots,
                transceiver_tokens,
                threads: s.threads,
            });
        }
    }
    Ok((workers, nodes.used()))
}

fn model_plan(draft: &Draft<'_>) -> ModelPlan {
    let s = &draft.settings;
    let is_builtin = builtin::MODELS.contains(&s.model.as_str());
    let source = match s.model.as_str() {
        _ if is_dummy(s) => ModelSource::Dummy { seed: s.weight_seed },
        "deepseek-r1" => ModelSource::Checkpoint { path: r1_directory(s, draft.weight_dtype) },
        name if is_builtin => ModelSource::Builtin { name: name.to_owned() },
        path => ModelSource::Checkpoint { path: path.to_owned() },
    };
    let tokenizer_dir = match (s.tokenizer.as_str(), &source) {
        ("auto", ModelSource::Checkpoint { path }) => Some(path.clone()),
        ("auto" | "bytes" | "", _) => None,
        (dir, _) => Some(dir.to_owned()),
    };
    let own_name = match s.model.as_str() {
        "deepseek-r1" => "deepseek-r1-dynamo",
        other => other.trim_end_matches('/').rsplit('/').next().unwrap_or(other),
    };
    ModelPlan {
        served_name: if s.served_model_name.is_empty() { own_name.to_owned() } else { s.served_model_name.clone() },
        source,
        tokenizer_dir,
        config: draft.config.clone(),
        modeled: ModeledCosts {
            step_us: s.modeled_step_us,
            prefill_token_us: s.modeled_prefill_token_us,
            decode_seq_us: s.modeled_decode_seq_us,
        },
    }
}

/// Where the published recipe has its checkpoints.
fn r1_directory(s: &Settings, dtype: WeightDtype) -> String {
    let name = if dtype.is_nvfp4() { "DeepSeek-R1-FP4" } else { "DeepSeek-R1-FP8" };
    format!("{}/{name}", site::workload_dir(&s.llmb_workload, &s.llmb_install).trim_end_matches('/'))
}

fn load_plan(draft: &Draft<'_>) -> Result<LoadPlan, PlanError> {
    let s = &draft.settings;
    let points = draft.case.points().iter().map(|point| load_point(draft, point)).collect::<Result<_, _>>()?;
    Ok(LoadPlan {
        isl: s.isl,
        osl: s.osl,
        streaming: s.streaming,
        seed: s.seed,
        request_timeout_ms: u64::from(s.request_timeout_s) * 1000,
        points,
    })
}

pub(crate) fn load_point(draft: &Draft<'_>, point: &Settings) -> Result<LoadPoint, PlanError> {
    let fail = |knob, value, problem| PlanError { blame: Box::new(draft.case.blame_point(knob, value)), problem };
    let concurrency = u64::from(point.concurrency) * u64::from(point.ngen);
    if concurrency > u64::from(point.max_inflight) {
        let problem = Problem::TooMuchLoad { concurrency, max_inflight: point.max_inflight };
        return Err(fail("CONCURRENCY", point.concurrency, problem));
    }
    let count = |what, knob, rounds: u32| {
        let value = concurrency * u64::from(rounds);
        u32::try_from(value).map_err(|_| fail(knob, rounds, Problem::TooMany { what, value }))
    };
    Ok(LoadPoint {
        concurrency: count("concurrency", "CONCURRENCY", 1)?,
        n_requests: count("requests", "MULTI_ROUND", point.multi_round)?,
        n_warmup: count("warm-up requests", "WARMUP_ROUNDS", point.warmup_rounds)?,
    })
}
