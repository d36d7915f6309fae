//! Measured points, by GPU, software, operator and shape.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::table::{Table, TableError};

/// Tables that [`Set::add`] knows.
const KNOWN: [&str; 10] = [
    "gemm_perf",
    "moe_perf",
    "mla_bmm_perf",
    "context_mla_perf",
    "generation_mla_perf",
    "trtllm_alltoall_perf",
    "moe_a2a_perf",
    "wideep_deepep_ll_perf",
    "custom_allreduce_perf",
    "nccl_perf",
];

/// Number format of an operator's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    Bf16,
    Fp8,
    /// FP8 with a scale for each block of 128 × 128.
    Fp8Block,
    Nvfp4,
}

impl Format {
    fn of(text: &str) -> Option<Self> {
        match text {
            "bfloat16" | "float16" | "half" => Some(Format::Bf16),
            "fp8" => Some(Format::Fp8),
            "fp8_block" => Some(Format::Fp8Block),
            "nvfp4" | "fp4" => Some(Format::Nvfp4),
            _ => None,
        }
    }
}

/// Seconds by size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) seconds: BTreeMap<u32, f64>,
    /// Table, software and version.
    pub(super) source: Arc<str>,
}

/// A grouped matrix product of routed experts; its size is the tokens of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Experts {
    pub(super) format: Format,
    /// Width, intermediate size, experts per token, experts.
    pub(super) model: [u32; 4],
    pub(super) tp: u32,
    /// Whether tokens were skewed over experts (power law 1.01) or even.
    pub(super) skewed: bool,
    pub(super) ep: u32,
}

/// A part of the all-to-all; its size is the tokens of a rank.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Exchange {
    pub(super) kernel: Arc<str>,
    pub(super) part: Part,
    pub(super) format: Format,
    /// Width, experts per token, experts.
    pub(super) model: [u32; 3],
    pub(super) ep: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Prepare,
    Dispatch,
    Combine,
}

/// What one software's tables say of one GPU.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Set {
    /// By format, output and input width; size: rows.
    pub(super) gemm: BTreeMap<(Format, u32, u32), Series>,
    pub(super) experts: BTreeMap<Experts, Series>,
    /// Both products of absorbed attention, by format and heads; size: rows.
    pub(super) absorbed: BTreeMap<(Format, u32), Series>,
    /// By whether the cache is FP8, heads and sequences; size: tokens of a prompt.
    pub(super) context: BTreeMap<(bool, u32, u32), Series>,
    /// The same; size: cached tokens of a sequence.
    pub(super) generation: BTreeMap<(bool, u32, u32), Series>,
    pub(super) exchange: BTreeMap<Exchange, Series>,
    /// By ranks; size: BF16 values.
    pub(super) all_reduce: BTreeMap<u32, Series>,
}

/// Measured operators of any number of GPUs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OperatorTables {
    sets: BTreeMap<(String, String), Set>,
    /// What was taken: table, software, version, GPU.
    pub sources: Vec<String>,
}

impl OperatorTables {
    /// The software of measurements of one's own, which count before those of the engine.
    pub const OWN: &'static str = "own";

    /// Software with tables of its own, in the order in which it stands in for software without.
    pub const BACKENDS: [&'static str; 4] = ["trtllm", "sglang", "vllm", "nccl"];

    /// Whether a table of that name is of an operator that the model has.
    #[must_use]
    pub fn knows(table: &str) -> bool {
        KNOWN.contains(&table)
    }

    /// Takes the tables whose operators the model has and leaves the rest; of two versions of a software the newer one's point counts,
    /// of several kernels for the same thing the fastest.
    ///
    /// # Errors
    /// [`TableError`] when a known table lacks a column, or no table is of a known operator.
    pub fn new(mut tables: Vec<Table>) -> Result<Self, TableError> {
        tables.sort_by_cached_key(|t| (t.gpu.clone(), t.backend.clone(), t.name.clone(), natural(&t.version)));
        let mut all = OperatorTables::default();
        for table in &tables {
            let set = all.sets.entry((table.gpu.clone(), table.backend.clone())).or_default();
            if set.add(table)? {
                let source = [table.name.as_str(), &table.backend, &table.version, "on", &table.gpu];
                all.sources.push(source.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "));
            }
        }
        if all.sources.is_empty() { Err(TableError::NoOperator) } else { Ok(all) }
    }

    /// The sets for a GPU, those of the software's own kernels first.
    pub(super) fn of<'a>(&'a self, gpu: &'a str, stack: &'a str) -> impl Iterator<Item = &'a Set> {
        let own = if stack == "trt" { "trtllm" } else { stack };
        let others = Self::BACKENDS.into_iter().filter(move |b| *b != own);
        [Self::OWN, own].into_iter().chain(others).filter_map(move |b| self.sets.get(&(gpu.to_owned(), b.to_owned())))
    }
}

/// Runs of digits as numbers, so that `rc9` comes before `rc10`.
fn natural(version: &str) -> Vec<(u64, String)> {
    let mut parts = vec![(0_u64, String::new())];
    for c in version.chars() {
        let last = parts.last_mut().expect("there is always a part");
        match c.to_digit(10) {
            Some(digit) if last.1.is_empty() => last.0 = last.0.saturating_mul(10).saturating_add(u64::from(digit)),
            Some(digit) => parts.push((u64::from(digit), String::new())),
            None => last.1.push(c),
        }
    }
    parts
}

fn whole(x: f64) -> Option<u32> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
    (x >= 1.0 && x < f64::from(u32::MAX)).then(|| x.round() as u32)
}

/// The fastest time of each key and size.
fn fastest<K: Ord>(rows: impl Iterator<Item = Option<(K, f64, f64)>>) -> BTreeMap<K, BTreeMap<u32, f64>> {
    let mut all: BTreeMap<K, BTreeMap<u32, f64>> = BTreeMap::new();
    for (key, size, seconds) in rows.flatten() {
        if let Some(size) = whole(size).filter(|_| seconds > 0.0) {
            let best = all.entry(key).or_default().entry(size).or_insert(f64::INFINITY);
            *best = best.min(seconds);
        }
    }
    all
}

/// Milliseconds and microseconds, in seconds.
const MS: f64 = 1e-3;
const US: f64 = 1e-6;

impl Set {
    /// Takes a table; false where it is of no known operator.
    fn add(&mut self, t: &Table) -> Result<bool, TableError> {
        let source: Arc<str> = Arc::from(format!("{} {} {}", t.name, t.backend, t.version).trim_end());
        let series = |seconds| Series { seconds, source: Arc::clone(&source) };
        let rows = 0..t.n_rows;
        match t.name.as_str() {
            "gemm_perf" => {
                let [m, n, k, ms] = [t.numbers("m")?, t.numbers("n")?, t.numbers("k")?, t.numbers("latency")?];
                let format = t.texts("gemm_dtype")?;
                let row = |i: usize| Some(((Format::of(&format[i])?, whole(n[i])?, whole(k[i])?), m[i], ms[i] * MS));
                self.gemm.extend(fastest(rows.map(row)).into_iter().map(|(k, s)| (k, series(s))));
            }
            "moe_perf" => {
                let [tokens, hidden, inter, topk] =
                    [t.numbers("num_tokens")?, t.numbers("hidden_size")?, t.numbers("inter_size")?, t.numbers("topk")?];
                let [experts, tp, ep, ms] =
                    [t.numbers("num_experts")?, t.numbers("moe_tp_size")?, t.numbers("moe_ep_size")?, t.numbers("latency")?];
                let (format, spread) = (t.texts("moe_dtype")?, t.texts("distribution")?);
                let row = |i: usize| {
                    let skewed = match &*spread[i] {
                        "balanced" | "uniform" => false,
                        "power_law_1.01" => true,
                        _ => return None,
                    };
                    let model = [whole(hidden[i])?, whole(inter[i])?, whole(topk[i])?, whole(experts[i])?];
                    let key = Experts { format: Format::of(&format[i])?, model, tp: whole(tp[i])?, skewed, ep: whole(ep[i])? };
                    Some((key, tokens[i], ms[i] * MS))
                };
                self.experts.extend(fastest(rows.map(row)).into_iter().map(|(k, s)| (k, series(s))));
            }
            "mla_bmm_perf" => {
                let [tokens, heads, ms] = [t.numbers("num_tokens")?, t.numbers("num_heads")?, t.numbers("latency")?];
                let (format, op) = (t.texts("bmm_dtype")?, t.texts("op_name")?);
                let row = |after: bool| {
                    move |i: usize| {
                        let key = (Format::of(&format[i])?, whole(heads[i])?);
                        (op[i].ends_with("_post") == after).then_some((key, tokens[i], ms[i] * MS))
                    }
                };
                let second = fastest(rows.clone().map(row(true)));
                for (key, mut first) in fastest(rows.map(row(false))) {
                    let after = |size: &u32| second.get(&key).and_then(|s| s.get(size));
                    first.retain(|size, _| after(size).is_some());
                    first.iter_mut().for_each(|(size, s)| *s += after(size).copied().unwrap_or(0.0));
                    self.absorbed.insert(key, series(first));
                }
            }
            "context_mla_perf" => {
                let found = attention(t, |isl, step| (step == 0.0).then_some(isl))?;
                self.context.extend(found.into_iter().map(|(k, s)| (k, series(s))));
            }
            "generation_mla_perf" => {
                let found = attention(t, |isl, step| Some(isl + step))?;
                self.generation.extend(found.into_iter().map(|(k, s)| (k, series(s))));
            }
            "trtllm_alltoall_perf" | "moe_a2a_perf" | "wideep_deepep_ll_perf" => {
                self.exchange.extend(exchange(t)?.into_iter().map(|(k, s)| (k, series(s))));
            }
            "custom_allreduce_perf" | "nccl_perf" => {
                let [ranks, size, ms] = [t.numbers("num_gpus")?, t.numbers("message_size")?, t.numbers("latency")?];
                let op = t.texts("op_name")?;
                let format = t.texts(if t.name == "nccl_perf" { "nccl_dtype" } else { "allreduce_dtype" })?;
                let row = |i: usize| {
                    let known = &*op[i] == "all_reduce" && Format::of(&format[i]) == Some(Format::Bf16);
                    known.then_some((whole(ranks[i])?, size[i], ms[i] * MS))
                };
                self.all_reduce.extend(fastest(rows.map(row)).into_iter().map(|(k, s)| (k, series(s))));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

type Attention = BTreeMap<(bool, u32, u32), BTreeMap<u32, f64>>;

/// Attention of one layer; `length` of a row's `isl` and `step`.
fn attention(t: &Table, length: impl Fn(f64, f64) -> Option<f64>) -> Result<Attention, TableError> {
    let [heads, batch, isl] = [t.numbers("num_heads")?, t.numbers("batch_size")?, t.numbers("isl")?];
    let [step, ms] = [t.numbers("step")?, t.numbers("latency")?];
    let cache = t.texts("kv_cache_dtype")?;
    let row = |i: usize| Some(((&*cache[i] == "fp8", whole(heads[i])?, whole(batch[i])?), length(isl[i], step[i])?, ms[i] * MS));
    Ok(fastest((0..t.n_rows).map(row)))
}

/// Parts of the all-to-all, whose three tables differ in columns and units.
fn exchange(t: &Table) -> Result<BTreeMap<Exchange, BTreeMap<u32, f64>>, TableError> {
    let rows = 0..t.n_rows;
    let (hidden, experts) = (t.numbers("hidden_size")?, t.numbers("num_experts")?);
    let kernel = t.texts("kernel_source")?;
    if t.name == "wideep_deepep_ll_perf" {
        // FP8 is dispatched, BF16 combined; nodes of eight GPUs.
        let [tokens, topk, nodes] = [t.numbers("num_token")?, t.numbers("num_topk")?, t.numbers("node_num")?];
        let [dispatch, combine] = [t.numbers("dispatch_avg_t_us")?, t.numbers("combine_avg_t_us")?];
        let row = |part: Part, format: Format, us: &'_ [f64], i: usize| {
            let model = [whole(hidden[i])?, whole(topk[i])?, whole(experts[i])?];
            Some((Exchange { kernel: Arc::clone(&kernel[i]), part, format, model, ep: whole(nodes[i] * 8.0)? }, tokens[i], us[i] * US))
        };
        let both = rows.flat_map(|i| [row(Part::Dispatch, Format::Fp8, dispatch, i), row(Part::Combine, Format::Bf16, combine, i)]);
        return Ok(fastest(both));
    }
    let (tokens, topk, latency) = (t.numbers("num_tokens")?, t.numbers("topk")?, t.numbers("latency")?);
    let deepep = t.name == "moe_a2a_perf";
    let (part, ep, unit) = if deepep { ("phase", "ep_size", US) } else { ("op_name", "moe_ep_size", MS) };
    let (parts, eps) = (t.texts(part)?, t.numbers(ep)?);
    let formats = t.texts(if deepep { "comm_dtype" } else { "moe_dtype" })?;
    let kernel = if deepep { t.texts("comm_backend")? } else { kernel };
    let row = |i: usize| {
        let part = match &*parts[i] {
            "alltoall_prepare" => Part::Prepare,
            "alltoall_dispatch" | "dispatch" => Part::Dispatch,
            "alltoall_combine" | "combine" => Part::Combine,
            _ => return None,
        };
        let model = [whole(hidden[i])?, whole(topk[i])?, whole(experts[i])?];
        let key = Exchange { kernel: Arc::clone(&kernel[i]), part, format: Format::of(&formats[i])?, model, ep: whole(eps[i])? };
        Some((key, tokens[i], latency[i] * unit))
    };
    Ok(fastest(rows.map(row)))
}
