//! Results as tables: CSV in the layout of `docs/reference/operator-tables.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::operator::{Kind, Measurement, Operator};

/// What every table says of its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The GPU's name in the hardware table, which is its folder.
    pub gpu: String,
    /// The GPU's own name.
    pub device: String,
    /// Version of what measured, in the column `version`.
    pub version: String,
}

/// Columns of every table after its own.
const COMMON: &str = "latency,spread,launches,relative_error,gb_per_s,tflop_per_s,sm_mhz,kernel_source,device,version";

const fn columns(kind: Kind) -> &'static str {
    match kind {
        Kind::Gemm => "gemm_dtype,m,n,k",
        Kind::MlaBmm => "op_name,bmm_dtype,num_tokens,num_heads",
        Kind::Moe => "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution",
        Kind::GenerationMla | Kind::ContextMla => "mla_dtype,kv_cache_dtype,num_heads,batch_size,isl,step",
    }
}

fn cells(operator: &Operator) -> String {
    match operator {
        Operator::Gemm { format, m, n, k } => format!("{},{m},{n},{k}", format.name()),
        Operator::Absorbed { before, format, tokens, heads, .. } => {
            format!("mla_gen_{},{},{tokens},{heads}", if *before { "pre" } else { "post" }, format.name())
        }
        Operator::Experts(s) => {
            format!("fp8_block,{},{},{},{},{},{},{},{}", s.tokens, s.hidden, s.inter, s.topk, s.experts, s.tp, s.ep, s.spread.name())
        }
        // The token that is generated attends to the others and itself.
        Operator::Generation { heads, batch, length } => format!("bfloat16,bfloat16,{heads},{batch},1,{}", length - 1),
        Operator::Context { heads, batch, length } => format!("bfloat16,bfloat16,{heads},{batch},{length},0"),
    }
}

/// Files by their path below the folder of tables.
#[must_use]
pub fn files(origin: &Origin, measured: &[Measurement]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for m in measured {
        let kind = m.operator.kind();
        let path = format!("{}/{}/{}_perf.csv", origin.gpu, kind.name(), kind.name());
        let text: &mut String = all.entry(path).or_insert_with(|| format!("{},{COMMON}\n", columns(kind)));
        let _ = writeln!(
            text,
            "{},{:.6},{:.4},{},{:.2e},{:.1},{:.2},{:.0},{},{},{}",
            cells(&m.operator),
            m.seconds * 1e3,
            m.spread,
            m.launches,
            m.error,
            m.bytes / m.seconds / 1e9,
            m.flops / m.seconds / 1e12,
            m.clock / 1e6,
            quoted(&m.kernel),
            quoted(&origin.device),
            quoted(&origin.version),
        );
    }
    all
}

/// Words as one field.
fn quoted(words: &str) -> String {
    if words.contains([',', '"', '\n']) { format!("\"{}\"", words.replace('"', "\"\"")) } else { words.to_owned() }
}
