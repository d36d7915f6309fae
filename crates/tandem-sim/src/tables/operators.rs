//! The operators of one worker that tables cover.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tandem_plan::{ModelConfig, Phase, WeightDtype};

use super::curve::{Curve, Hit, Surface};
use super::store::{Exchange, Experts, Format, OperatorTables, Part, Series, Set};
use crate::cost::{ModelFacts, Shape};

/// How far a matrix product's widths may be from measured ones, in doublings, to count as between them.
const NEAR: f64 = 2.0;
/// Measured widths that an unmeasured product is taken from.
const NEIGHBOURS: usize = 4;

/// One operator of all layers of a worker: its bound at full rates, and the measured factor on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Operator<C> {
    factor: C,
    /// Seconds that the bytes of weights take, or those of one cached token.
    memory: f64,
    /// Seconds that the operations or bytes of one token (or pair of tokens) take.
    each: f64,
    /// How well its shape, apart from the size, was measured.
    shape: Hit,
    source: String,
}

impl Operator<Curve> {
    /// Seconds for `x` tokens.
    pub(crate) fn seconds(&self, x: f64) -> f64 {
        self.bounded(x, self.memory.max(self.each * x))
    }

    /// Seconds of experts for `x` tokens that reach the share `touched` of them.
    pub(crate) fn seconds_of_experts(&self, x: f64, touched: f64) -> f64 {
        self.bounded(x, (self.memory * touched).max(self.each * x))
    }

    fn bounded(&self, x: f64, bound: f64) -> f64 {
        if x > 0.0 { bound * self.factor.ln_at(x.ln()).0.exp() } else { bound }
    }

    fn hit(&self, x: f64) -> Hit {
        self.factor.ln_at(x.max(f64::MIN_POSITIVE).ln()).1.max(self.shape)
    }
}

impl Operator<Surface> {
    /// Seconds of attention for `batch` sequences of `length` tokens: `read` cached tokens, `pairs` of a query and a token.
    pub(crate) fn seconds(&self, batch: f64, length: f64, read: f64, pairs: f64) -> f64 {
        (self.memory * read).max(self.each * pairs) * self.factor.ln_at(batch, length).0.exp()
    }

    fn hit(&self, batch: f64, length: f64) -> Hit {
        self.factor.ln_at(batch, length).1.max(self.shape)
    }
}

/// What tables know of one worker.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Operators {
    pub(crate) decode_dense: Option<Operator<Curve>>,
    pub(crate) prefill_dense: Option<Operator<Curve>>,
    pub(crate) decode_attention: Option<Operator<Surface>>,
    pub(crate) prefill_attention: Option<Operator<Surface>>,
    pub(crate) experts: Option<Operator<Curve>>,
    pub(crate) comm: Option<Operator<Curve>>,
}

/// One operator of a prediction and where its time came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The phase.
    pub phase: Phase,
    /// `matrix products`, `attention`, `experts` or `communication`.
    pub operator: &'static str,
    /// Table, software and version; none where the roofline priced it.
    pub source: Option<String>,
    /// How its size at the predicted load lies to the measured ones.
    pub hit: Option<Hit>,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.phase, self.operator)?;
        match (&self.source, self.hit) {
            (Some(source), Some(hit)) => write!(f, "{source}, {hit}"),
            _ => f.write_str("not in the tables, roofline"),
        }
    }
}

impl Operators {
    /// Where each operator of `phase` comes from, at `tokens` of a rank and `all` tokens of a worker, in `batch` sequences of `length`.
    pub(crate) fn uses(&self, phase: Phase, tokens: f64, all: f64, batch: f64, length: f64) -> [Use; 4] {
        let (dense, attention) = match phase {
            Phase::Prefill => (&self.prefill_dense, &self.prefill_attention),
            _ => (&self.decode_dense, &self.decode_attention),
        };
        let of = |operator, found: Option<(&String, Hit)>| Use {
            phase,
            operator,
            source: found.map(|(source, _)| source.clone()),
            hit: found.map(|(_, hit)| hit),
        };
        let curve = |o: &'_ Option<Operator<Curve>>, x: f64| o.as_ref().map(|o| (o.source.clone(), o.hit(x)));
        let (dense, experts, comm) = (curve(dense, tokens), curve(&self.experts, all), curve(&self.comm, tokens));
        [
            of("matrix products", dense.as_ref().map(|(s, h)| (s, *h))),
            of("attention", attention.as_ref().map(|o| (&o.source, o.hit(batch, length)))),
            of("experts", experts.as_ref().map(|(s, h)| (s, *h))),
            of("communication", comm.as_ref().map(|(s, h)| (s, *h))),
        ]
    }
}

/// Of which worker operators are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) facts: &'a ModelFacts,
    pub(crate) shape: &'a Shape,
    pub(crate) stack: &'a str,
}

/// The operators of a worker; none for a GPU without tables.
pub(crate) fn compile(tables: &OperatorTables, w: &Wanted<'_>) -> Option<Operators> {
    let sets: Vec<&Set> = tables.of(&w.shape.gpu.name, w.stack).collect();
    let first = |find: &dyn Fn(&Set) -> Option<Operator<Curve>>| sets.iter().find_map(|set| find(set));
    let all = Operators {
        decode_dense: first(&|set| dense(set, w, Phase::Decode)),
        prefill_dense: first(&|set| dense(set, w, Phase::Prefill)),
        decode_attention: sets.iter().find_map(|set| attention(&set.generation, w, Phase::Decode)),
        prefill_attention: sets.iter().find_map(|set| attention(&set.context, w, Phase::Prefill)),
        experts: first(&|set| experts(set, w)),
        comm: first(&|set| if w.shape.layout.attention_dp { exchange(set, w) } else { all_reduce(set, w) }),
    };
    (all != Operators::default()).then_some(all)
}

/// Formats in which tables may hold such weights, best first.
const fn formats(weights: WeightDtype) -> &'static [Format] {
    match weights {
        WeightDtype::Fp8 => &[Format::Fp8Block, Format::Fp8],
        WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2 => &[Format::Nvfp4],
        WeightDtype::Bf16 => &[Format::Bf16],
        WeightDtype::F32 => &[],
    }
}

/// Matrix products with `n` × `k` weights, `count` of them in the model.
struct Product {
    count: f64,
    format: &'static [Format],
    n: f64,
    k: f64,
    /// Whether decode computes two others in its place.
    absorbed: bool,
}

fn products(w: &Wanted<'_>, phase: Phase) -> Vec<Product> {
    let (c, f, split) = (w.config, w.facts, w.shape.head_split());
    let x = f64::from;
    let attention = formats(if w.shape.weights == WeightDtype::Fp8 { WeightDtype::Fp8 } else { WeightDtype::Bf16 });
    let ffn = formats(w.shape.weights);
    let (hidden, heads, latent) = (x(c.hidden_size), x(c.num_attention_heads) / split, x(c.kv_lora_rank));
    let (nope, rope, v) = (x(c.qk_nope_head_dim), x(c.qk_rope_head_dim), x(c.v_head_dim));
    let of = |count: f64, format, n: f64, k: f64| Product { count, format, n, k, absorbed: false };
    let shared = x(c.moe_intermediate_size) * x(c.n_shared_experts.unwrap_or(0)) / split;
    let inter = x(c.intermediate_size) / split;
    let mut all = match c.q_lora_rank.map(x) {
        Some(rank) => {
            vec![of(f.layers, attention, rank + latent + rope, hidden), of(f.layers, attention, heads * (nope + rope), rank)]
        }
        None => vec![of(f.layers, attention, latent + rope, hidden), of(f.layers, attention, heads * (nope + rope), hidden)],
    };
    all.extend([
        of(f.layers, attention, hidden, heads * v),
        of(f.moe_layers, ffn, 2.0 * shared, hidden),
        of(f.moe_layers, ffn, hidden, shared),
        of(f.dense_layers, ffn, 2.0 * inter, hidden),
        of(f.dense_layers, ffn, hidden, inter),
        Product { absorbed: true, ..of(f.layers, attention, heads * (nope + v), latent) },
    ]);
    if phase == Phase::Decode {
        all.push(of(1.0, &[Format::Bf16], x(c.vocab_size) / split, hidden));
    }
    all.retain(|p| p.count > 0.0 && p.n > 0.0 && p.k > 0.0);
    all
}

/// Rates of one format on the worker's GPU: bytes a weight, FLOP/s.
fn rate(w: &Wanted<'_>, format: Format) -> (f64, f64) {
    let gpu = &w.shape.gpu;
    match format {
        Format::Bf16 => (2.0, gpu.bf16),
        Format::Fp8 | Format::Fp8Block => (1.0, gpu.fp8),
        Format::Nvfp4 => (0.5625, gpu.fp4),
    }
}

/// A product's factors, from the measured widths that are nearest.
struct Site {
    count: f64,
    memory: f64,
    each: f64,
    curves: Vec<(f64, Curve)>,
    hit: Hit,
}

impl Site {
    fn seconds(&self, m: f64) -> f64 {
        let total: f64 = self.curves.iter().map(|(weight, _)| weight).sum();
        let ln: f64 = self.curves.iter().map(|(weight, curve)| weight * curve.ln_at(m.ln()).0).sum::<f64>() / total;
        self.count * self.memory.max(self.each * m) * ln.exp()
    }
}

fn site(set: &Set, w: &Wanted<'_>, product: &Product) -> Option<(Site, BTreeSet<u32>, String)> {
    let measured = |format: Format| set.gemm.range((format, 0, 0)..=(format, u32::MAX, u32::MAX));
    let format = *product.format.iter().find(|f| measured(**f).next().is_some())?;
    let (bytes, flops) = rate(w, format);
    let bound = |n: f64, k: f64| (n * k * bytes / w.shape.gpu.hbm, 2.0 * n * k / flops);
    let distance = |(n, k): (u32, u32)| (f64::from(n) / product.n).log2().hypot((f64::from(k) / product.k).log2());
    let mut near: Vec<(f64, (u32, u32), &Series)> = measured(format).map(|((_, n, k), s)| (distance((*n, *k)), (*n, *k), s)).collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0));
    let hit = match near.first()?.0 {
        d if d < 1e-9 => Hit::Exact,
        d if d <= NEAR => Hit::Interpolated,
        _ => Hit::Extrapolated,
    };
    near.truncate(if hit == Hit::Interpolated { NEIGHBOURS } else { 1 });
    let limit = if hit == Hit::Interpolated { NEAR } else { f64::INFINITY };
    let mut sizes = BTreeSet::new();
    let source = near[0].2.source.to_string();
    let curve = |(d, (n, k), s): (f64, (u32, u32), &Series)| {
        sizes.extend(s.seconds.keys());
        let (memory, each) = bound(f64::from(n), f64::from(k));
        let points = s.seconds.iter().map(|(m, seconds)| (f64::from(*m), *seconds, memory.max(each * f64::from(*m))));
        Some((1.0 / d.max(1e-9).powi(2), Curve::new(points)?))
    };
    let curves: Vec<(f64, Curve)> = near.into_iter().filter(|(d, ..)| *d <= limit).filter_map(curve).collect();
    let (memory, each) = bound(product.n, product.k);
    (!curves.is_empty()).then_some((Site { count: product.count, memory, each, curves, hit }, sizes, source))
}

/// All matrix products but those of routed experts.
fn dense(set: &Set, w: &Wanted<'_>, phase: Phase) -> Option<Operator<Curve>> {
    let heads = count(f64::from(w.config.num_attention_heads) / w.shape.head_split());
    let attention = if w.shape.weights == WeightDtype::Fp8 { Format::Fp8 } else { Format::Bf16 };
    let absorbed = set.absorbed.get(&(attention, heads)).filter(|_| phase == Phase::Decode);
    let mut products = products(w, phase);
    if absorbed.is_some() {
        products.retain(|p| !p.absorbed);
    }
    let (mut sites, mut sizes, mut source) = (Vec::new(), BTreeSet::new(), String::new());
    for product in &products {
        let (site, own, name) = site(set, w, product)?;
        sites.push(site);
        sizes.extend(own);
        source = name;
    }
    let absorbed = absorbed.and_then(|s| Curve::new(s.seconds.iter().map(|(m, seconds)| (f64::from(*m), *seconds, f64::from(*m)))));
    let (f, s, split) = (w.facts, w.shape, w.shape.head_split());
    let weights = f.layers * (f.attention_whole + f.attention_split / split);
    let ffn = (f.moe_layers * f.shared + f.dense_layers * f.dense) / split;
    let head = if phase == Phase::Decode { f.head / split } else { 0.0 };
    let memory = (s.attention_bytes() * weights + s.ffn_bytes() * ffn + 2.0 * head) / s.gpu.hbm;
    let each = 2.0 * (weights / s.attention_rate() + ffn / s.ffn_rate() + head / s.gpu.bf16);
    let seconds = |m: f64| {
        let own = absorbed.as_ref().map_or(0.0, |curve| f.layers * m * curve.ln_at(m.ln()).0.exp());
        sites.iter().map(|site| site.seconds(m)).sum::<f64>() + own
    };
    let points = sizes.iter().map(|m| f64::from(*m)).map(|m| (m, seconds(m), memory.max(each * m)));
    let shape = sites.iter().map(|site| site.hit).max()?;
    Some(Operator { factor: Curve::new(points)?, memory, each, shape, source })
}

fn attention(measured: &BTreeMap<(bool, u32, u32), Series>, w: &Wanted<'_>, phase: Phase) -> Option<Operator<Surface>> {
    let (f, s) = (w.facts, w.shape);
    let fp8 = s.kv_value_bytes < 1.5;
    let heads = count(f64::from(w.config.num_attention_heads) / s.head_split());
    let memory = f.kv_values * s.kv_value_bytes / s.gpu.hbm;
    let (memory, each) = match phase {
        Phase::Prefill => (0.0, f.prefill_pair_flops / s.head_split() / s.gpu.bf16),
        _ => (memory, f.decode_pair_flops / s.head_split() / s.attention_rate()),
    };
    let bound = |batch: f64, length: f64| match phase {
        Phase::Prefill => each * batch * length * length / 2.0,
        _ => memory.max(each) * batch * length,
    };
    let mut source = String::new();
    let rows = measured.range((fp8, heads, 0)..=(fp8, heads, u32::MAX)).filter_map(|((_, _, batch), series)| {
        source = series.source.to_string();
        let batch = f64::from(*batch);
        let points = series.seconds.iter().map(|(length, s)| (f64::from(*length), *s, bound(batch, f64::from(*length))));
        Some((batch, Curve::new(points)?))
    });
    let factor = Surface::new(rows)?;
    Some(Operator { factor, memory: f.layers * memory, each: f.layers * each, shape: Hit::Exact, source })
}

/// Routed experts: skewed over ranks as measured, even where a balancer has spare slots.
fn experts(set: &Set, w: &Wanted<'_>) -> Option<Operator<Curve>> {
    let (c, f, s) = (w.config, w.facts, w.shape);
    let model = [c.hidden_size, c.moe_intermediate_size, c.num_experts_per_tok, c.n_routed_experts?];
    let (tp, ep) = ((s.layout.tp / s.layout.ep.max(1)).max(1), s.layout.ep.max(1));
    let skewed = s.eplb_slots == 0 && ep > 1;
    let of = |format: Format, skewed: bool| {
        let key = |ep| Experts { format, model, tp, skewed, ep };
        let (first, last) = (key(0), key(u32::MAX));
        nearest(set.experts.range(first..=last).map(|(k, series)| (k.ep, series)), ep)
    };
    let found = formats(s.weights).iter().find_map(|format| of(*format, skewed).or_else(|| of(*format, !skewed)));
    let (measured_ep, series, shape) = found?;
    let bound = |ranks: f64| {
        let weights = f.expert * f.experts / ranks;
        (s.ffn_bytes() * weights / s.gpu.hbm, 2.0 * f.top_k * f.expert / ranks / s.ffn_rate())
    };
    let touched = |tokens: f64| 1.0 - (1.0 - f.top_k / f.experts).powf(tokens);
    let (memory, each) = bound(f64::from(tp) * f64::from(measured_ep));
    let points = series.seconds.iter().map(|(tokens, seconds)| {
        let x = f64::from(*tokens);
        (x, *seconds, (memory * touched(x)).max(each * x))
    });
    let factor = Curve::new(points)?;
    let (memory, each) = bound(f64::from(s.layout.tp));
    Some(Operator { factor, memory: f.moe_layers * memory, each: f.moe_layers * each, shape, source: series.source.to_string() })
}

/// The series whose number of ranks is nearest.
fn nearest<'a>(all: impl Iterator<Item = (u32, &'a Series)>, ranks: u32) -> Option<(u32, &'a Series, Hit)> {
    let distance = |n: u32| (f64::from(n) / f64::from(ranks)).ln().abs();
    let all: Vec<(u32, &Series)> = all.collect();
    let (n, series) = *all.iter().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)))?;
    let within = all.iter().any(|(n, _)| *n <= ranks) && all.iter().any(|(n, _)| *n >= ranks);
    let hit = if n == ranks {
        Hit::Exact
    } else if within {
        Hit::Interpolated
    } else {
        Hit::Extrapolated
    };
    Some((n, series, hit))
}

/// The layers' all-to-all, dispatch and combine together; of several kernels the fastest at each size.
fn exchange(set: &Set, w: &Wanted<'_>) -> Option<Operator<Curve>> {
    let (c, f, s) = (w.config, w.facts, w.shape);
    let model = [c.hidden_size, c.num_experts_per_tok, c.n_routed_experts?];
    let sent: &[Format] = match s.weights {
        WeightDtype::Nvfp4 | WeightDtype::Nvfp4V2 => &[Format::Nvfp4, Format::Fp8, Format::Bf16],
        WeightDtype::Fp8 => &[Format::Fp8, Format::Fp8Block, Format::Bf16],
        _ => &[Format::Bf16],
    };
    let mut kernels: Vec<_> = set.exchange.keys().map(|k| &k.kernel).collect();
    kernels.dedup();
    let part = |kernel: &std::sync::Arc<str>, part: Part, formats: &[Format]| {
        let of = |format: Format| {
            let key = |ep| Exchange { kernel: std::sync::Arc::clone(kernel), part, format, model, ep };
            nearest(set.exchange.range(key(0)..=key(u32::MAX)).map(|(k, series)| (k.ep, series)), s.layout.tp)
        };
        formats.iter().find_map(|format| of(*format))
    };
    let mut best: BTreeMap<u32, f64> = BTreeMap::new();
    let mut found: Option<(u32, Hit)> = None;
    let mut sources = BTreeSet::new();
    for kernel in kernels {
        let Some((ep, dispatch, hit)) = part(kernel, Part::Dispatch, sent) else { continue };
        let combined: Vec<Format> = sent.iter().copied().chain([Format::Bf16]).collect();
        let Some((_, combine, _)) = part(kernel, Part::Combine, &combined) else { continue };
        // Kernels measured with another number of ranks would mix two bounds.
        if found.as_ref().is_some_and(|(other, _)| *other != ep) {
            continue;
        }
        let prepare = part(kernel, Part::Prepare, &combined).map(|(_, series, _)| &series.seconds);
        for (tokens, seconds) in &dispatch.seconds {
            if let Some(back) = combine.seconds.get(tokens) {
                let whole = seconds + back + prepare.and_then(|p| p.get(tokens)).copied().unwrap_or(0.0);
                let fastest = best.entry(*tokens).or_insert(f64::INFINITY);
                *fastest = fastest.min(whole);
            }
        }
        found = Some((ep, hit));
        sources.insert(&*dispatch.source);
    }
    let (ep, shape) = found?;
    let source = sources.into_iter().collect::<Vec<_>>().join(" and ");
    let bound = |ranks: u32| {
        let mut other = s.clone();
        (other.layout.tp, other.layout.ep) = (ranks, ranks);
        other.comm_bytes_per_token(f) * other.seconds_per_byte()
    };
    let factor = Curve::new(best.into_iter().map(|(tokens, seconds)| (f64::from(tokens), seconds, bound(ep) * f64::from(tokens))))?;
    Some(Operator { factor, memory: 0.0, each: f.moe_layers * bound(s.layout.tp), shape, source })
}

/// The layers' two all-reduces.
fn all_reduce(set: &Set, w: &Wanted<'_>) -> Option<Operator<Curve>> {
    let (f, s) = (w.facts, w.shape);
    if s.layout.tp < 2 {
        return None;
    }
    let (ranks, series, shape) = nearest(set.all_reduce.iter().map(|(n, series)| (*n, series)), s.layout.tp)?;
    let bound = |ranks: u32| {
        let mut other = s.clone();
        other.layout.tp = ranks;
        other.comm_bytes_per_token(f) * other.seconds_per_byte()
    };
    // Sizes are values, a token has as many as the model is wide; the bound is that of both.
    let points = series.seconds.iter().map(|(values, seconds)| {
        let tokens = f64::from(*values) / f.hidden;
        (tokens, 2.0 * seconds, bound(ranks) * tokens)
    });
    let factor = Curve::new(points)?;
    Some(Operator { factor, memory: 0.0, each: f.layers * bound(s.layout.tp), shape, source: series.source.to_string() })
}

fn count(x: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "heads of a rank")]
    let whole = x.round().max(1.0) as u32;
    whole
}
