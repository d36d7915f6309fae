//! A plan as a table for people: what runs where, whether it fits, how it is driven, and what to know before starting it.

use std::fmt::Write as _;

use tandem_plan::memory::Workspace;
use tandem_plan::{EngineKind, Phase, Plan, WeightDtype, WorkerPlan};

use crate::builtin::MODELS;
use crate::planner;
use crate::site::Cluster;

/// The table of `tandem plan`, several lines, without colours.
#[must_use]
pub fn plan_table(plan: &Plan) -> String {
    let mut out = heading(plan);
    out.push_str(&grid(&workers(plan)));
    out.push('\n');
    out.push_str("memory of one rank\n");
    out.push_str(&grid(&memory(plan)));
    let workspace = workspace(plan);
    if workspace.len() > 1 {
        out.push_str("workspace of one rank\n");
        out.push_str(&grid(&workspace));
    }
    out.push('\n');
    out.push_str(&load(plan));
    for note in notes(plan) {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

fn heading(plan: &Plan) -> String {
    let hw = &plan.hardware;
    let engine = plan.engine.name();
    let hash = plan.hash();
    format!(
        "plan {} of recipe {}: {} devices of {} on {} nodes ({} a node, {}), engine {engine}, model {}\n",
        &hash[..12],
        plan.recipe,
        plan.n_devices(),
        hw.gpu_type,
        plan.n_nodes,
        hw.devices_per_node,
        hw.device_memory,
        plan.model.served_name,
    )
}

fn workers(plan: &Plan) -> Vec<Vec<String>> {
    let columns =
        ["server", "ranks", "TP", "PP", "EP", "attention DP", "nodes", "devices", "port", "batch", "tokens", "max seq len", "MoE"];
    let port = |port: u16| if port == 0 { "chosen at launch".to_owned() } else { port.to_string() };
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    let blank = "-".to_owned();
    let mut frontend = vec!["frontend".to_owned()];
    frontend.extend(std::iter::repeat_n(blank.clone(), 5));
    frontend.extend([plan.frontend.node.to_string(), blank.clone(), port(plan.frontend.http.port)]);
    frontend.extend(std::iter::repeat_n(blank.clone(), 4));
    rows.push(frontend);
    for w in &plan.workers {
        let (nodes, devices) = places(w);
        rows.push(vec![
            w.name.clone(),
            w.ranks.len().to_string(),
            w.layout.tp.to_string(),
            w.layout.pp.to_string(),
            w.layout.ep.to_string(),
            if w.layout.attention_dp { "yes" } else { "no" }.to_owned(),
            nodes,
            devices,
            blank.clone(),
            w.limits.max_batch_size.to_string(),
            w.limits.max_num_tokens.to_string(),
            w.limits.max_seq_len.to_string(),
            w.moe_backend.clone(),
        ]);
    }
    rows
}

/// `0-1` and `0-7`: first and last node and device.
fn places(w: &WorkerPlan) -> (String, String) {
    let range = |values: Vec<u32>| {
        let (low, high) = (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
        if low == high { low.to_string() } else { format!("{low}-{high}") }
    };
    (range(w.ranks.iter().map(|r| r.node).collect()), range(w.ranks.iter().map(|r| r.device).collect()))
}

fn memory(plan: &Plan) -> Vec<Vec<String>> {
    let columns = [
        "phase",
        "device",
        "weights",
        "workspace",
        "KV cache",
        "left over",
        "fraction",
        "KV/token",
        "blocks",
        "sequences",
        "batch",
        "margin",
    ];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    for phase in [Phase::Prefill, Phase::Decode] {
        let Some(w) = plan.workers_of(phase).next() else { continue };
        let m = &w.memory;
        rows.push(vec![
            phase.to_string(),
            m.device.to_string(),
            m.weights.to_string(),
            m.workspace.to_string(),
            m.kv.to_string(),
            m.margin.to_string(),
            w.kv.memory_fraction.to_string(),
            format!("{} B", m.kv_bytes_per_token),
            format!("{} x {}", w.kv.n_blocks, w.kv.block_size),
            m.sequences.to_string(),
            w.limits.max_batch_size.to_string(),
            format!("{:+}", i64::from(m.sequences) - i64::from(w.limits.max_batch_size)),
        ]);
    }
    rows
}

/// Where the workspace of GPU ranks goes.
fn workspace(plan: &Plan) -> Vec<Vec<String>> {
    let names = Workspace::default().parts().map(|(name, _)| name.to_owned());
    let mut rows = vec![std::iter::once("phase".to_owned()).chain(names).collect::<Vec<_>>()];
    for phase in [Phase::Prefill, Phase::Decode].into_iter().filter(|_| plan.engine.is_on_gpu()) {
        let Some(answer) = plan.workers_of(phase).next().and_then(|w| planner::memory_answer(plan, w)) else { continue };
        rows.push(std::iter::once(phase.to_string()).chain(answer.workspace.parts().map(|(_, bytes)| bytes.to_string())).collect());
    }
    rows
}

fn load(plan: &Plan) -> String {
    let load = &plan.load;
    let stream = if load.streaming { "streaming" } else { "not streaming" };
    let mut out = format!("load: ISL {}, OSL {}, {stream}, seed {}\n", load.isl, load.osl, load.seed);
    let mut rows = vec![["point", "concurrency", "requests", "warm-up"].map(str::to_owned).to_vec()];
    for (i, p) in load.points.iter().enumerate() {
        rows.push(vec![(i + 1).to_string(), p.concurrency.to_string(), p.n_requests.to_string(), p.n_warmup.to_string()]);
    }
    out.push_str(&grid(&rows));
    out
}

/// What is allowed, but that a user will want to know.
#[must_use]
pub fn notes(plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    let slots: u64 =
        plan.workers_of(Phase::Decode).map(|w| u64::from(w.limits.max_batch_size) * u64::from(w.layout.attention_dp_size())).sum();
    for p in plan.load.points.iter().filter(|p| u64::from(p.concurrency) > slots) {
        notes
            .push(format!("concurrency {} is above the {slots} decode slots: the difference waits, and TTFT grows with it", p.concurrency));
    }
    if let Some(w) = plan.workers_of(Phase::Decode).next() {
        let needed = w.limits.max_batch_size.saturating_mul(1 + w.mtp_size);
        if w.limits.max_num_tokens < needed {
            let holds = w.limits.max_num_tokens / (1 + w.mtp_size);
            notes.push(format!(
                "GEN_MAX_NUM_TOKENS {} holds {holds} of GEN_MAX_BATCH_SIZE {} sequences a step; {needed} would hold all",
                w.limits.max_num_tokens, w.limits.max_batch_size
            ));
        }
    }
    notes.extend(weights_note(plan));
    for w in plan.workers.iter().filter(|w| w.index == 0) {
        notes.extend(memory_note(w));
        notes.extend(stage_note(plan, w));
    }
    if plan.engine == EngineKind::DynamoTrtllm && plan.n_devices() >= 48 && Cluster::of(plan).time_limit == "1:00:00" {
        notes.push("48 devices need about two hours: set SBATCH_TIMELIMIT=2:00:00".to_owned());
    }
    notes
}

/// Weights are counted as the recipe says, whatever a checkpoint of the user's own holds.
fn weights_note(plan: &Plan) -> Option<String> {
    let text = |name: &str| plan.knob(name).and_then(|value| value.as_str());
    let is_own = text("MODEL").is_some_and(|model| !MODELS.contains(&model));
    let (stated, stored) = (text("WEIGHT_DTYPE")?, WeightDtype::of_checkpoint(&plan.model.config));
    let differs = plan.engine.is_on_gpu() && is_own && stated != "auto" && stated != stored.name();
    differs.then(|| {
        format!(
            "weights are counted in {stated} (WEIGHT_DTYPE), but config.json says {stored}: --set WEIGHT_DTYPE=auto counts what it says"
        )
    })
}

fn memory_note(w: &WorkerPlan) -> Option<String> {
    (w.memory.sequences < w.limits.max_batch_size).then(|| {
        format!(
            "a {} rank holds a batch of this load, but only {} sequences of max_seq_len {}; longer requests will wait",
            w.phase, w.memory.sequences, w.limits.max_seq_len
        )
    })
}

/// Pipeline stages hold unlike layers, so the same memory holds unlike numbers of sequences.
fn stage_note(plan: &Plan, w: &WorkerPlan) -> Option<String> {
    let answer = planner::memory_answer(plan, w).filter(|_| w.layout.pp > 1)?;
    let stages: Vec<String> = answer.stages.iter().map(|s| (s.n_blocks / answer.blocks_per_sequence).to_string()).collect();
    let binding = answer.binding_stage + 1;
    Some(format!(
        "the {} pipeline stages of a {} server hold {} sequences: stage {binding} binds",
        w.layout.pp,
        w.phase,
        stages.join(" and ")
    ))
}

/// Left-aligned columns, two spaces apart.
fn grid(rows: &[Vec<String>]) -> String {
    let n = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n).map(|c| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
    out
}
