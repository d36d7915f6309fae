//! What a case must satisfy before it becomes a plan, each failure with the knob to blame and what would help.

use tandem_plan::memory::{MemoryAnswer, Verdict, memory};
use tandem_plan::{Bytes, EngineKind, GpuType, KvDtype, Phase};

use crate::builtin;
use crate::error::{PlanError, Problem};
use crate::planner::{Draft, Servers, layout};

type Check = Result<(), PlanError>;

/// Everything but memory.
pub(crate) fn check(draft: &Draft<'_>) -> Check {
    check_size(draft)?;
    check_engine(draft)?;
    check_ports(draft)?;
    for servers in &draft.servers {
        check_layout(draft, servers)?;
        check_model_split(draft, servers)?;
        check_nodes(draft, servers)?;
        check_steps(draft, servers)?;
    }
    check_eplb(draft)?;
    let (mtp, layers) = (draft.settings.gen_mtp_size, draft.config.num_nextn_predict_layers);
    if mtp > 0 && layers == 0 {
        return Err(draft.fail("GEN_MTP_SIZE", Problem::NoMtpLayer { size: mtp }));
    }
    Ok(())
}

/// A plan lists every rank: a mistyped zero must not make millions of them.
fn check_size(draft: &Draft<'_>) -> Check {
    const MAX_DEVICES: u64 = 65_536;
    let devices = |servers: &Servers| u64::from(servers.n_servers) * u64::from(servers.world);
    match draft.servers.iter().find(|servers| devices(servers) > MAX_DEVICES) {
        Some(servers) => Err(draft.fail(&servers.knob("SERVERS"), Problem::TooMany { what: "devices", value: devices(servers) })),
        None => Ok(()),
    }
}

fn check_engine(draft: &Draft<'_>) -> Check {
    match draft.settings.engine {
        EngineKind::Cpu => check_cpu(draft),
        engine if engine.is_on_gpu() => check_on_gpu(draft),
        EngineKind::DynamoMocker => check_mocker(draft),
        _ => Ok(()),
    }
}

/// The mocker computes nothing, and yet its frontend needs a tokenizer with a chat template.
fn check_mocker(draft: &Draft<'_>) -> Check {
    if builtin::MODELS.contains(&draft.settings.model.as_str()) && matches!(draft.settings.tokenizer.as_str(), "auto" | "bytes" | "") {
        let what = format!("model {} without a Hugging Face directory", draft.settings.model);
        let advice = "set MODEL or TOKENIZER to a directory with config.json, tokenizer.json and tokenizer_config.json (`tests/dynamo/install.sh DIR` makes one)";
        return Err(draft.fail("MODEL", Problem::EngineLacks { engine: "dynamo-mocker", what, advice }));
    }
    Ok(())
}

fn check_on_gpu(draft: &Draft<'_>) -> Check {
    let engine = draft.settings.engine.name();
    if draft.case.gpu == GpuType::Cpu {
        let advice = "use ENGINE=cpu or ENGINE=modeled here, or the recipe deepseek-r1 on a cluster";
        return Err(draft.fail("ENGINE", Problem::EngineOnGpu { engine, gpu: draft.case.gpu.to_string(), advice }));
    }
    if draft.settings.kv_dtype == KvDtype::F32 {
        let problem = Problem::EngineLacks { engine, what: "KV cache in f32".to_owned(), advice: "use KV_DTYPE=fp8 or bf16" };
        return Err(draft.fail("KV_DTYPE", problem));
    }
    Ok(())
}

/// What the embedded engine does not compute; a modeled one stands in for it in a mock deployment.
fn check_cpu(draft: &Draft<'_>) -> Check {
    let s = &draft.settings;
    let lacks = |knob: &str, what: String, advice| Err(draft.fail(knob, Problem::EngineLacks { engine: "cpu", what, advice }));
    for servers in &draft.servers {
        if servers.world > 1 {
            let what = format!("servers of {} ranks", servers.world);
            return lacks(&servers.knob("WORLD_SIZE"), what, "use one device a server and more servers, or ENGINE=modeled");
        }
    }
    if s.gen_eplb_num_slots > 0 {
        return lacks("GEN_EPLB_NUM_SLOTS", "expert load balancing".to_owned(), "use GEN_EPLB_NUM_SLOTS=0, or ENGINE=modeled");
    }
    if draft.weight_dtype != draft.stored_dtype {
        let what = format!("weights in {} of a checkpoint in {}", draft.weight_dtype, draft.stored_dtype);
        return lacks("WEIGHT_DTYPE", what, "use WEIGHT_DTYPE=auto");
    }
    Ok(())
}

/// The servers beside each other on the frontend's node.
fn check_ports(draft: &Draft<'_>) -> Check {
    let s = &draft.settings;
    let frontend = ("DYNAMO_FRONTEND_PORT", s.dynamo_frontend_port);
    let ports = match s.engine {
        EngineKind::External => Vec::new(),
        engine if !engine.is_embedded() => {
            vec![frontend, ("ETCD_SERVER_PORT", s.etcd_server_port), ("NATS_SERVER_PORT", s.nats_server_port)]
        }
        _ => vec![frontend, ("CONTROL_PORT", s.control_port)],
    };
    for (i, &(knob, port)) in ports.iter().enumerate() {
        if let Some(&(other, _)) = ports[..i].iter().find(|(_, p)| *p == port && port != 0) {
            return Err(draft.fail(knob, Problem::PortTwice { port, other }));
        }
    }
    Ok(())
}

fn check_layout(draft: &Draft<'_>, servers: &Servers) -> Check {
    let (phase, world, layout) = (servers.phase, servers.world, servers.layout);
    if !world.is_multiple_of(layout.tp) {
        let set = match phase {
            Phase::Prefill => draft.settings.ctx_tensor_parallel_size,
            Phase::Decode => draft.settings.gen_tensor_parallel_size,
        };
        let knob = servers.knob(if set > 0 { "TENSOR_PARALLEL_SIZE" } else { "WORLD_SIZE" });
        return Err(draft.fail(&knob, Problem::WorldNotDivisible { phase, world, tp: layout.tp }));
    }
    if !layout.tp.is_multiple_of(layout.ep) {
        let problem = Problem::EpNotDivisible { phase, tp: layout.tp, ep: layout.ep };
        return Err(draft.fail(&servers.knob("EXPERT_PARALLEL_SIZE"), problem));
    }
    let layers = draft.config.num_hidden_layers;
    if layout.pp > layers {
        return Err(draft.fail(&servers.knob("WORLD_SIZE"), Problem::TooManyStages { phase, pp: layout.pp, layers }));
    }
    Ok(())
}

fn check_model_split(draft: &Draft<'_>, servers: &Servers) -> Check {
    let layout = servers.layout;
    let heads = draft.config.num_attention_heads;
    if !layout.attention_dp && !heads.is_multiple_of(layout.tp) {
        return Err(draft.fail(&servers.knob("WORLD_SIZE"), Problem::HeadsNotDivisible { heads, tp: layout.tp }));
    }
    let experts = draft.config.n_routed_experts.unwrap_or(0);
    // Expert slots replace the experts' own places.
    if servers.eplb_slots == 0 && !experts.is_multiple_of(layout.ep) {
        return Err(draft.fail(&servers.knob("WORLD_SIZE"), Problem::ExpertsNotDivisible { experts, ep: layout.ep }));
    }
    Ok(())
}

fn check_nodes(draft: &Draft<'_>, servers: &Servers) -> Check {
    let (phase, world, devices_per_node) = (servers.phase, servers.world, draft.devices_per_node);
    if world > devices_per_node && !world.is_multiple_of(devices_per_node) {
        return Err(draft.fail(&servers.knob("WORLD_SIZE"), Problem::SpansNodes { phase, world, devices_per_node }));
    }
    let (ep, gpu) = (servers.layout.ep, draft.case.gpu);
    if matches!(gpu.kin(), GpuType::H100 | GpuType::B200) && ep > devices_per_node {
        let problem = Problem::EpSpansNodes { phase, ep, devices_per_node, gpu: gpu.to_string() };
        return Err(draft.fail(&servers.knob("WORLD_SIZE"), problem));
    }
    Ok(())
}

fn check_steps(draft: &Draft<'_>, servers: &Servers) -> Check {
    let s = &draft.settings;
    let tokens = servers.limits.max_num_tokens;
    let tokens_knob = servers.knob("MAX_NUM_TOKENS");
    match servers.phase {
        Phase::Prefill if !s.ctx_chunked_prefill && tokens < s.isl => {
            return Err(draft.fail(&tokens_knob, Problem::PromptAboveStep { isl: s.isl, tokens }));
        }
        Phase::Prefill if tokens < s.kv_block_size => {
            return Err(draft.fail(&tokens_knob, Problem::ChunkBelowBlock { phase: servers.phase, tokens, block_size: s.kv_block_size }));
        }
        Phase::Decode if tokens < 1 + s.gen_mtp_size => {
            return Err(draft.fail(&tokens_knob, Problem::StepBelowSequence { tokens, mtp: s.gen_mtp_size }));
        }
        _ => {}
    }
    let (max_seq_len, max_position) = (servers.limits.max_seq_len, draft.config.max_position_embeddings);
    if max_seq_len > max_position {
        let knob = if s.isl >= s.osl { "ISL" } else { "OSL" };
        return Err(draft.fail(knob, Problem::TooLong { max_seq_len, max_position }));
    }
    Ok(())
}

fn check_eplb(draft: &Draft<'_>) -> Check {
    let (slots, ep) = (draft.settings.gen_eplb_num_slots, draft.servers[1].layout.ep);
    let experts = draft.config.n_routed_experts.unwrap_or(0);
    if slots == 0 {
        return Ok(());
    }
    if slots < experts {
        return Err(draft.fail("GEN_EPLB_NUM_SLOTS", Problem::TooFewSlots { slots, experts }));
    }
    if !slots.is_multiple_of(ep) {
        return Err(draft.fail("GEN_EPLB_NUM_SLOTS", Problem::SlotsNotDivisible { slots, ep }));
    }
    Ok(())
}

/// Whether the ranks of one phase fit in their devices, with a whole batch of the sequences that this load makes.
///
/// A batch of the longest sequences that the engine accepts (`max_seq_len`, with its reserve) may be a little larger: that is a note, not an error.
pub(crate) fn check_memory(draft: &Draft<'_>, servers: &Servers, answer: &MemoryAnswer) -> Check {
    let (phase, budget, batch) = (servers.phase, answer.budget, servers.limits.max_batch_size);
    if let Verdict::OutOfMemory { missing } = answer.verdict {
        let tokens = fitting_tokens(draft, servers);
        let advice = out_of_memory_advice(draft, servers, tokens);
        let (weights, workspace, device) = (budget.weights, budget.workspace, budget.device);
        let knob = match (draft.case.gpu, tokens) {
            (GpuType::Cpu, _) => "DEVICE_MEMORY".to_owned(),
            (_, Some(_)) => servers.knob("MAX_NUM_TOKENS"),
            (_, None) => servers.knob("WORLD_SIZE"),
        };
        return Err(draft.fail(&knob, Problem::OutOfMemory { phase, weights, workspace, device, missing, advice }));
    }
    let tokens = sequence_tokens(draft, phase);
    let sequences = answer.n_blocks / tokens.div_ceil(draft.settings.kv_block_size).max(1);
    if sequences >= batch {
        return Ok(());
    }
    let advice = kv_starved_advice(draft, servers, answer, sequences);
    let problem = Problem::KvStarved { phase, kv: budget.kv, sequences, tokens, batch, advice };
    Err(draft.fail(&servers.knob("MAX_BATCH_SIZE"), problem))
}

/// Tokens that one sequence of this load has in the cache of a phase.
fn sequence_tokens(draft: &Draft<'_>, phase: Phase) -> u32 {
    let s = &draft.settings;
    match phase {
        Phase::Prefill => s.isl,
        Phase::Decode => s.isl + s.osl + s.gen_mtp_size,
    }
}

fn out_of_memory_advice(draft: &Draft<'_>, servers: &Servers, tokens: Option<u32>) -> String {
    let needed = device_for(draft);
    if draft.case.gpu == GpuType::Cpu {
        return format!("raise DEVICE_MEMORY to {needed}");
    }
    if let Some(tokens) = tokens {
        return format!("lower {} to {tokens}", servers.knob("MAX_NUM_TOKENS"));
    }
    match larger_world(draft, servers) {
        Some(world) => format!("{} = {world} fits", servers.knob("WORLD_SIZE")),
        None => format!("use devices of at least {needed}, or smaller weights (WEIGHT_DTYPE)"),
    }
}

/// The largest step, below the one that was asked for, whose activations leave room for a batch of this load.
fn fitting_tokens(draft: &Draft<'_>, servers: &Servers) -> Option<u32> {
    let s = &draft.settings;
    if draft.case.gpu == GpuType::Cpu {
        return None;
    }
    let least = match servers.phase {
        Phase::Prefill if s.ctx_chunked_prefill => s.kv_block_size,
        Phase::Prefill => s.isl,
        Phase::Decode => servers.limits.max_batch_size.saturating_mul(1 + s.gen_mtp_size),
    };
    let blocks = sequence_tokens(draft, servers.phase).div_ceil(s.kv_block_size).max(1);
    let fits = |tokens: u32| {
        let mut smaller = servers.clone();
        smaller.limits.max_num_tokens = tokens;
        let answer = memory(&draft.question(&smaller));
        !matches!(answer.verdict, Verdict::OutOfMemory { .. }) && answer.n_blocks / blocks >= servers.limits.max_batch_size
    };
    let (mut low, mut high) = (least, servers.limits.max_num_tokens);
    if low >= high || !fits(low) {
        return None;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    // A round number, where one is near.
    let round = low / 256 * 256;
    Some(if round >= least && round > 0 { round } else { low })
}

/// The smallest device, in whole MiB, that holds weights, workspace and a batch of this load in both phases.
fn device_for(draft: &Draft<'_>) -> Bytes {
    let block_size = u64::from(draft.settings.kv_block_size);
    let needed = draft.servers.iter().map(|servers| {
        let budget = memory(&draft.question(servers)).budget;
        let blocks = u64::from(servers.limits.max_batch_size) * u64::from(sequence_tokens(draft, servers.phase)).div_ceil(block_size);
        let cache = (blocks * block_size * budget.kv_bytes_per_token) as f64 / servers.memory_fraction;
        #[expect(clippy::cast_possible_truncation, reason = "float to integer casts saturate, and sizes are not negative")]
        let cache = cache.ceil() as u64;
        // One MiB more than needed, for the rounding of the fraction.
        (budget.weights.0 + budget.workspace.0 + cache + (1 << 20)).next_multiple_of(1 << 20)
    });
    Bytes(needed.max().unwrap_or(0))
}

fn kv_starved_advice(draft: &Draft<'_>, servers: &Servers, answer: &MemoryAnswer, sequences: u32) -> String {
    let mut ways = Vec::new();
    if sequences > 0 {
        let also = match servers.phase {
            Phase::Prefill => String::new(),
            Phase::Decode => format!(" (and {})", servers.knob("MAX_NUM_TOKENS")),
        };
        ways.push(format!("lower {}{also} to {}", servers.knob("MAX_BATCH_SIZE"), sequences));
    }
    let tokens = sequence_tokens(draft, servers.phase);
    if let Some(fraction) = answer.fraction_for(&draft.question(servers), servers.limits.max_batch_size, tokens) {
        ways.push(format!("raise {} to {fraction}", servers.knob("GPU_MEMORY_FRACTION")));
    }
    if let Some(tokens) = fitting_tokens(draft, servers) {
        ways.push(format!("lower {} to {tokens}", servers.knob("MAX_NUM_TOKENS")));
    }
    if ways.is_empty() {
        ways.push(match (draft.case.gpu, larger_world(draft, servers)) {
            (GpuType::Cpu, _) => format!("raise DEVICE_MEMORY to {}, or lower ISL or OSL", device_for(draft)),
            (_, Some(world)) => format!("{} = {world} fits", servers.knob("WORLD_SIZE")),
            (_, None) => "lower ISL or OSL, or use larger devices".to_owned(),
        });
    }
    ways.join(", or ")
}

/// The nearest larger server that fits, if one of up to eight times the size does.
fn larger_world(draft: &Draft<'_>, servers: &Servers) -> Option<u32> {
    (2..=8).map(|factor| servers.world * factor).find(|&world| {
        let mut larger = servers.clone();
        larger.world = world;
        larger.layout = layout(draft.case.gpu, world, 0, 0, servers.layout.attention_dp);
        let splits =
            check_layout(draft, &larger).is_ok() && check_model_split(draft, &larger).is_ok() && check_nodes(draft, &larger).is_ok();
        splits && memory(&draft.question(&larger)).verdict == Verdict::Fits
    })
}
