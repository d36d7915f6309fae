//! Why a knob has its value: `tandem plan --explain NAME`.

use std::fmt::Write as _;

use tandem_plan::{EngineKind, Phase, Plan};

use crate::error::RecipeError;
use crate::knobs::{KNOBS, Knob};
use crate::layers::{Origin, find_knob};
use crate::recipe::Recipe;
use crate::site::Cluster;
use crate::value::Value;

/// The value of knob `name` (case does not matter; `all` for every knob on a line), the layer that set it, what it
/// overrides, what it means, and what follows from it in `plan`.
///
/// # Errors
/// [`RecipeError::UnknownKnob`] with the nearest name.
pub fn explain(recipe: &Recipe, plan: Option<&Plan>, name: &str) -> Result<String, RecipeError> {
    if name.eq_ignore_ascii_case("all") {
        return Ok(all(recipe));
    }
    let knob = find_knob(&name.to_ascii_uppercase(), &Origin::CommandLine { flag: format!("--explain {name}") })?;
    let mut out = String::new();
    for &gpu in recipe.gpu_types() {
        let mut history = recipe.history(knob, gpu);
        let holds = history.pop().expect("the built-in layer always has a value");
        let on = if recipe.gpu_types().len() > 1 { format!(" on {gpu}") } else { String::new() };
        let _ = writeln!(out, "{} = {}{}{on}", knob.name, list(&holds.values), unit(knob));
        let _ = writeln!(out, "  set by      {}", holds.origin);
        for overridden in history.iter().rev() {
            let _ = writeln!(out, "  overrides   {} ({})", list(&overridden.values), overridden.origin);
        }
    }
    let _ = writeln!(out, "  meaning     {}", knob.doc);
    let _ = writeln!(out, "  values      {}", knob.kind.describe());
    let _ = writeln!(out, "  concerns    {}", knob.scope.name());
    let _ = writeln!(out, "  environment {}", knob.env_name());
    for consequence in plan.map(|p| consequences(knob.name, p)).unwrap_or_default() {
        let _ = writeln!(out, "  so          {consequence}");
    }
    Ok(out)
}

fn all(recipe: &Recipe) -> String {
    let width = KNOBS.iter().map(|k| k.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for &gpu in recipe.gpu_types() {
        for knob in KNOBS {
            let holds = recipe.history(knob, gpu).pop().expect("the built-in layer always has a value");
            let _ = writeln!(out, "{:width$} = {}  ({})", knob.name, list(&holds.values), holds.origin);
        }
    }
    out
}

fn list(values: &[Value]) -> String {
    let texts: Vec<String> = values.iter().map(|v| if v.to_string().is_empty() { "(empty)".to_owned() } else { v.to_string() }).collect();
    texts.join(", ")
}

fn unit(knob: &Knob) -> String {
    if knob.unit.is_empty() { String::new() } else { format!(" {}", knob.unit) }
}

/// What follows from a knob in this plan, in numbers.
#[must_use]
pub fn consequences(name: &str, plan: &Plan) -> Vec<String> {
    match name {
        "ISL" | "OSL" => sequence_lengths(plan),
        "CONCURRENCY" | "MULTI_ROUND" | "WARMUP_ROUNDS" => points(plan),
        "NGEN" => [servers(plan, Phase::Decode), points(plan)].concat(),
        "NCTX" => servers(plan, Phase::Prefill),
        "GPU_TYPE" => [layouts(plan, Phase::Prefill), layouts(plan, Phase::Decode)].concat(),
        "STREAMING" if !plan.load.streaming => vec!["TTFT and TPOT do not apply".to_owned()],
        "STREAM_INTERVAL" => {
            vec![format!("{} of {} tokens of a response come in one event", plan.workers[0].stream_interval, plan.load.osl)]
        }
        "GEN_MTP_SIZE" => mtp(plan),
        "GEN_EPLB_NUM_SLOTS" => eplb(plan),
        "DEVICE_MEMORY" | "KV_DTYPE" | "KV_BLOCK_SIZE" | "WEIGHT_DTYPE" => {
            [memory(plan, Phase::Prefill), memory(plan, Phase::Decode)].concat()
        }
        "RUN_CONF_IMAGE" | "LLMB_INSTALL" | "LLMB_WORKLOAD" => cluster(plan),
        _ if name.ends_with("MEMORY_FRACTION") || name.ends_with("MAX_BATCH_SIZE") || name.ends_with("MAX_NUM_TOKENS") => {
            memory(plan, phase_of(name))
        }
        _ if name.starts_with("CTX_") || name.starts_with("GEN_") => [layouts(plan, phase_of(name)), memory(plan, phase_of(name))].concat(),
        _ => Vec::new(),
    }
}

fn phase_of(name: &str) -> Phase {
    if name.starts_with("CTX_") { Phase::Prefill } else { Phase::Decode }
}

fn sequence_lengths(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = [Phase::Prefill, Phase::Decode]
        .into_iter()
        .filter_map(|phase| plan.workers_of(phase).next())
        .map(|w| format!("{} max_seq_len {}, of which a rank's KV cache holds {}", w.phase, w.limits.max_seq_len, w.memory.sequences))
        .collect();
    lines.extend(plan.workers.first().map(|w| format!("the transceiver's buffer holds {} tokens", w.transceiver_tokens)));
    if let Some(w) = plan.workers_of(Phase::Prefill).next() {
        let steps = plan.load.isl.div_ceil(w.limits.max_num_tokens);
        lines.push(format!("a prompt takes {steps} prefill steps of at most {} tokens", w.limits.max_num_tokens));
    }
    lines
}

fn points(plan: &Plan) -> Vec<String> {
    let point = |p: &tandem_plan::LoadPoint| {
        format!("{} requests in flight, {} measured after {} for warm-up", p.concurrency, p.n_requests, p.n_warmup)
    };
    plan.load.points.iter().map(point).collect()
}

fn servers(plan: &Plan, phase: Phase) -> Vec<String> {
    let n = plan.workers_of(phase).count();
    let devices: u32 = plan.workers_of(phase).map(|w| w.layout.world_size()).sum();
    vec![format!("{n} {phase} servers take {devices} of {} devices; {} nodes in all", plan.n_devices(), plan.n_nodes)]
}

fn layouts(plan: &Plan, phase: Phase) -> Vec<String> {
    let Some(w) = plan.workers_of(phase).next() else { return Vec::new() };
    let l = w.layout;
    let mut line = format!(
        "{phase}: TP {}, PP {}, EP {}, {} attention-DP ranks, MoE backend {}",
        l.tp,
        l.pp,
        l.ep,
        l.attention_dp_size(),
        w.moe_backend
    );
    if phase == Phase::Decode && plan.engine == EngineKind::DynamoTrtllm {
        line.push_str(if l.attention_dp { ", TRTLLM_ENABLE_PDL off" } else { ", TRTLLM_ENABLE_PDL=1" });
    }
    vec![line]
}

fn memory(plan: &Plan, phase: Phase) -> Vec<String> {
    let Some(w) = plan.workers_of(phase).next() else { return Vec::new() };
    let m = &w.memory;
    vec![format!(
        "{phase}: of {} a rank's weights take {}, workspace {}, KV cache {} ({} blocks of {} tokens, {} sequences of {} for a batch of {}), {} stay free",
        m.device,
        m.weights,
        m.workspace,
        m.kv,
        w.kv.n_blocks,
        w.kv.block_size,
        m.sequences,
        w.limits.max_seq_len,
        w.limits.max_batch_size,
        m.margin
    )]
}

fn mtp(plan: &Plan) -> Vec<String> {
    let Some(w) = plan.workers_of(Phase::Decode).next().filter(|w| w.mtp_size > 0) else { return Vec::new() };
    let holds = w.limits.max_num_tokens / (1 + w.mtp_size);
    let mut lines = vec![format!(
        "a decode step computes {} tokens of each sequence, {holds} sequences in {} tokens",
        1 + w.mtp_size,
        w.limits.max_num_tokens
    )];
    lines.extend(memory(plan, Phase::Decode));
    lines
}

fn eplb(plan: &Plan) -> Vec<String> {
    let Some(w) = plan.workers_of(Phase::Decode).next().filter(|w| w.eplb_slots > 0) else { return Vec::new() };
    let experts = plan.model.config.n_routed_experts.unwrap_or(0);
    let spare = w.eplb_slots.saturating_sub(experts);
    let mut lines = vec![format!("{} slots a rank, {spare} of them for copies of busy experts", w.eplb_slots / w.layout.ep)];
    lines.extend(memory(plan, Phase::Decode));
    lines
}

fn cluster(plan: &Plan) -> Vec<String> {
    let c = Cluster::of(plan);
    vec![format!("image {}", c.image), format!("workload folder {}", c.workload_dir)]
}
