//! `tandem plan --facts`: what a model is in numbers, to check anything else against by hand.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tandem_plan::facts::{active_parameters, parameters, part_bytes};
use tandem_plan::work::{expert_targets, handoff_bytes, layer_traffic, pair_flops, prompt_attention_flops, token_flops};
use tandem_plan::{KvDtype, Phase, Plan, WeightDtype};
use tandem_recipe::planner::memory_answer;

/// Formats of a checkpoint that are told beside each other.
const FORMATS: [WeightDtype; 4] = [WeightDtype::Fp8, WeightDtype::Nvfp4, WeightDtype::Nvfp4V2, WeightDtype::Bf16];

/// As text.
pub(super) fn text(plan: &Plan) -> String {
    let config = &plan.model.config;
    let (n, bytes) = (parameters(config), FORMATS.map(|format| part_bytes(config, format)));
    let mut out = format!("facts of {}, as config.json describes it\n\n", plan.model.served_name);
    let _ = write!(out, "{:<20}{:>18}", "part", "parameters");
    for format in FORMATS {
        let _ = write!(out, "{:>14}", format!("{format} GB"));
    }
    out.push('\n');
    let mut row = |name: &str, n: u64, bytes: [u64; 4]| {
        let _ = write!(out, "{name:<20}{n:>18}");
        for b in bytes {
            let _ = write!(out, "{:>14.3}", giga(b));
        }
        out.push('\n');
    };
    for (i, (name, amount)) in n.parts().into_iter().enumerate() {
        row(name, amount, bytes.map(|b| b.parts()[i].1));
    }
    row("main model", n.main(), bytes.map(|b| b.main()));
    row("MTP layers", n.mtp, bytes.map(|b| b.mtp));
    let _ = writeln!(out, "{:<20}{:>18}   a token, head included\n", "active", active_parameters(config));

    let flops = token_flops(config);
    let _ = writeln!(out, "operations of a token (GFLOP): {:.3} in the layers, {:.3} in the head", giga(flops.layers()), giga(flops.head));
    let parts = [
        ("attention", flops.attention),
        ("routed experts", flops.routed_experts),
        ("shared experts", flops.shared_experts),
        ("dense", flops.dense_ffn),
        ("routers", flops.router),
    ];
    let parts: Vec<String> = parts.iter().map(|(name, n)| format!("{name} {:.3}", giga(*n))).collect();
    let _ = writeln!(out, "  {}", parts.join(", "));
    let (isl, osl) = (plan.load.isl, plan.load.osl);
    let layers = u64::from(config.num_hidden_layers);
    let context = u64::from(isl) + u64::from(osl) / 2;
    let (prefill, decode) = (layers * pair_flops(config, Phase::Prefill), layers * pair_flops(config, Phase::Decode));
    let _ = writeln!(
        out,
        "attended pairs (MFLOP, all layers): prefill {:.3}, decode {:.3}\n\
         a prompt of {isl} tokens: {:.4} PFLOP, of which {:.4} attend; a decoded token at {context} tokens of context: {:.1} GFLOP",
        giga(prefill) * 1e3,
        giga(decode) * 1e3,
        giga(u64::from(isl) * flops.layers() + prompt_attention_flops(config, isl)) / 1e6,
        giga(prompt_attention_flops(config, isl)) / 1e6,
        giga(flops.layers() + flops.head + decode * context),
    );
    let kv = [("fp8", KvDtype::Fp8), ("bf16", KvDtype::Bf16)]
        .map(|(name, dtype)| (name, handoff_bytes(config, dtype, 1), handoff_bytes(config, dtype, isl)));
    for (name, token, prompt) in kv {
        let _ = writeln!(out, "KV cache in {name}: {token} B a token; a prompt of {isl} tokens hands over {:.1} MB", giga(prompt) * 1e3);
    }
    out.push('\n');
    for w in plan.workers.iter().filter(|w| w.index == 0) {
        let l = w.layout;
        let traffic = layer_traffic(config, &l, weights(plan));
        let _ = writeln!(
            out,
            "a {} token sends, per layer, between {} ranks: all-reduce {:.0} B; to experts {:.0} B and back {:.0} B ({:.2} ranks a token)",
            w.phase,
            l.tp,
            traffic.all_reduce,
            traffic.dispatch,
            traffic.combine,
            if l.attention_dp { expert_targets(config, l.tp) } else { f64::from(l.tp) },
        );
        for (i, stage) in memory_answer(plan, w).iter().flat_map(|answer| &answer.stages).enumerate() {
            let _ = writeln!(
                out,
                "  stage {} of a {} rank: weights {} B, KV {} B a token",
                i + 1,
                w.phase,
                stage.weights.0,
                stage.kv_bytes_per_token
            );
        }
    }
    out
}

/// The same for programs; bytes and operations as whole numbers.
pub(super) fn json(plan: &Plan) -> Value {
    let config = &plan.model.config;
    let bytes: serde_json::Map<String, Value> =
        FORMATS.iter().map(|format| (format.name().to_owned(), json!(part_bytes(config, *format)))).collect();
    let servers: Vec<Value> = plan
        .workers
        .iter()
        .filter(|w| w.index == 0)
        .map(|w| {
            json!({
                "phase": w.phase,
                "layout": w.layout,
                "bytes_per_token_and_layer": layer_traffic(config, &w.layout, weights(plan)),
                "memory": memory_answer(plan, w),
            })
        })
        .collect();
    json!({
        "model": plan.model.served_name,
        "parameters": parameters(config),
        "active_parameters": active_parameters(config),
        "bytes": bytes,
        "flops_per_token": token_flops(config),
        "flops_per_pair_and_layer": {"prefill": pair_flops(config, Phase::Prefill), "decode": pair_flops(config, Phase::Decode)},
        "kv_bytes_per_token": {"fp8": handoff_bytes(config, KvDtype::Fp8, 1), "bf16": handoff_bytes(config, KvDtype::Bf16, 1)},
        "servers": servers,
    })
}

/// Number format of the weights in memory.
fn weights(plan: &Plan) -> WeightDtype {
    let stated = plan.knob("WEIGHT_DTYPE").and_then(Value::as_str);
    let named = WeightDtype::ALL.into_iter().find(|d| stated == Some(d.name()));
    named.unwrap_or_else(|| WeightDtype::of_checkpoint(&plan.model.config))
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn giga(n: u64) -> f64 {
    n as f64 / 1e9
}
