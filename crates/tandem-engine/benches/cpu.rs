//! Speed of the CPU engine, beside the machine's own GEMM rate. Prints tables; results are kept under `docs/results`.
//!
//! `cargo bench -p tandem-engine [-- FILTER…]`: `gemm`, `nano`, `mid`, and `prefill` or `decode` alone. Rates are the best of
//! several runs, because other processes can only make a run slower; figures for one thread count the time on
//! a core, those for two threads wall time.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark prints and may panic; its numbers are small"
)]

use std::time::{Duration, Instant};

use gemm::{Parallelism, gemm};
use rustix::time::{ClockId, clock_gettime};
use tandem_engine::checkpoint::{self, builtin_model};
use tandem_engine::cpu::{AttentionForm, Op, Profile, time_gemm};
use tandem_engine::{Batch, BatchEntry, CpuEngine, CpuOptions, Engine, NoObserver, Sampling};
use tandem_plan::{KvDtype, ModelConfig, ModelSource};

/// Tokens of one KV block.
const BLOCK: usize = 32;
/// Tokens of one prefill step (`max_num_tokens`).
const CHUNK: usize = 2048;

/// The 80.6 M parameter shape that other engines were measured with, FP8 weights.
const MID: &str = r#"{
 "model_type": "deepseek_v3", "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536, "moe_intermediate_size": 192,
 "num_hidden_layers": 8, "num_attention_heads": 8, "n_shared_experts": 1, "n_routed_experts": 32, "num_experts_per_tok": 4,
 "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": true, "scoring_func": "sigmoid",
 "topk_method": "noaux_tc", "first_k_dense_replace": 1, "q_lora_rank": 192, "kv_lora_rank": 128, "qk_nope_head_dim": 64,
 "qk_rope_head_dim": 32, "v_head_dim": 64, "rms_norm_eps": 1e-6,
 "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}
}"#;

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| f == name);
    let only = |phase: &str| !filters.iter().any(|f| f == "prefill" || f == "decode") || wanted(phase);
    let phases = [only("prefill"), only("decode")];
    machine();
    let mut peak = [0.0; 2];
    if wanted("gemm") || phases[0] {
        peak = gemm_table();
    }
    if wanted("nano") {
        let config = ModelConfig::from_json(builtin_model("nano").unwrap().config_json).unwrap();
        model("nano (14.3 M parameters, FP8)", &config, &ModelSource::Builtin { name: "nano".into() }, peak, phases);
    }
    if wanted("mid") {
        let config = ModelConfig::from_json(MID).unwrap();
        model("mid (80.6 M parameters, 20.7 M active, FP8 dummy weights)", &config, &ModelSource::Dummy { seed: 1 }, peak, phases);
    }
}

fn machine() {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field =
        |name: &str| cpu.lines().find(|l| l.starts_with(name)).and_then(|l| l.split(':').nth(1)).map_or("unknown", str::trim).to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "cpu: {} (family {}, model {}), {cores} cores, {} MHz, cache {}",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        field("cpu MHz"),
        field("cache size")
    );
    println!("load average at the start: {}", load.trim());
}

/// A stopwatch: on one thread the time that the thread was on a core, so that other processes hardly count; else wall time.
struct Watch {
    wall: Instant,
    on_core: Option<Duration>,
}

fn on_core() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

impl Watch {
    fn start(threads: usize) -> Self {
        Self { wall: Instant::now(), on_core: (threads == 1).then(on_core) }
    }

    fn elapsed(&self) -> Duration {
        self.on_core.map_or_else(|| self.wall.elapsed(), |start| on_core() - start)
    }
}

fn gflops(flops: f64, time: Duration) -> f64 {
    flops / time.as_secs_f64() * 1e-9
}

/// Rates of the `gemm` crate and of the engine's own kernels; returns the crate's best rate for 1 and 2 threads.
fn gemm_table() -> [f64; 2] {
    println!("\nGEMM, f32, GFLOP/s      gemm crate          own packed kernels");
    println!("      M     N     K    1 thread 2 threads   1 thread 2 threads");
    let mut peak = [0.0f64; 2];
    for (m, n, k) in [
        (512, 576, 576),
        (512, 1536, 576),
        (1024, 1024, 1024),
        (2048, 2048, 2048),
        (64, 1536, 576),
        (16, 1536, 576),
        (4, 1536, 576),
        (1, 1536, 576),
    ] {
        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        let repeats = ((4e9 / flops) as usize).clamp(5, 400);
        let crate_rates = [1, 2].map(|threads| gflops(flops, time_crate(m, n, k, threads, repeats)));
        let own_rates = [1, 2].map(|threads| gflops(flops, time_gemm(m, n, k, threads, repeats).unwrap()));
        for i in 0..2 {
            peak[i] = peak[i].max(crate_rates[i]);
        }
        println!("{m:7} {n:5} {k:5}  {:9.1} {:9.1}  {:9.1} {:9.1}", crate_rates[0], crate_rates[1], own_rates[0], own_rates[1]);
    }
    println!("best rate of the gemm crate: {:.1} / {:.1} GFLOP/s on 1 / 2 threads", peak[0], peak[1]);
    peak
}

fn time_crate(m: usize, n: usize, k: usize, threads: usize, repeats: usize) -> Duration {
    let (a, b, mut c) = (vec![0.5f32; m * k], vec![0.25f32; n * k], vec![0.0f32; m * n]);
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    let stride = |x: usize| isize::try_from(x).unwrap();
    let mut best = Duration::MAX;
    for _ in 0..repeats {
        let since = Instant::now();
        // SAFETY: row-major a[m][k], b[n][k] read as its transpose, row-major c[m][n].
        #[expect(unsafe_code, reason = "the crate's interface takes raw pointers")]
        unsafe {
            gemm(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                stride(n),
                false,
                a.as_ptr(),
                1,
                stride(k),
                b.as_ptr(),
                stride(k),
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
        best = best.min(since.elapsed());
    }
    best
}

fn engine(config: &ModelConfig, source: &ModelSource, threads: usize, n_tokens: usize, kv_dtype: KvDtype) -> CpuEngine {
    let options =
        CpuOptions { block_size: BLOCK, n_blocks: n_tokens.div_ceil(BLOCK), kv_dtype, threads, form: AttentionForm::Auto, drafts: 0 };
    CpuEngine::new(config, checkpoint::open(source, config).unwrap().as_ref(), options).unwrap()
}

fn model(title: &str, config: &ModelConfig, source: &ModelSource, peak: [f64; 2], [prefill, decode]: [bool; 2]) {
    println!("\n=== {title} ===");
    let since = Instant::now();
    let loaded = engine(config, source, 1, BLOCK, KvDtype::F32);
    println!(
        "loaded in {:.2} s, weights {:.1} MB, kernels {}",
        since.elapsed().as_secs_f64(),
        loaded.weight_bytes() as f64 * 1e-6,
        loaded.instruction_set()
    );
    drop(loaded);
    if prefill {
        prefill_table(config, source, peak);
    }
    if decode {
        decode_table(config, source);
    }
}

fn prefill_table(config: &ModelConfig, source: &ModelSource, peak: [f64; 2]) {
    println!("\nprefill (steps of {CHUNK} tokens)   tokens/s   GFLOP/s   of gemm crate");
    for threads in [1, 2] {
        let mut engine = engine(config, source, threads, 8192, KvDtype::F32);
        for isl in [128, 512, 2048, 8192] {
            let (time, profile) = best_prefill(&mut engine, threads, isl, config.vocab_size, (8192 / isl).clamp(2, 12));
            let rate = gflops(profile.total().flops as f64, time);
            println!(
                "  {threads} threads, ISL {isl:5}        {:10.0} {rate:9.1} {:12.2}",
                isl as f64 / time.as_secs_f64(),
                rate / peak[threads - 1]
            );
            if isl == 512 || isl == 8192 {
                breakdown(&profile);
            }
        }
    }
}

fn decode_table(config: &ModelConfig, source: &ModelSource) {
    println!("\ndecode (context 128 to 192)   tokens/s   ms/step");
    for (threads, kv_dtype) in [(1, KvDtype::F32), (2, KvDtype::F32), (2, KvDtype::Bf16), (2, KvDtype::Fp8)] {
        for batch in [1, 4, 16, 32] {
            if kv_dtype != KvDtype::F32 && batch != 32 {
                continue;
            }
            let mut engine = engine(config, source, threads, batch * 192, kv_dtype);
            let (step, profile) = best_decode(&mut engine, threads, batch, config.vocab_size);
            println!(
                "  {threads} threads, B {batch:3}, KV {kv_dtype:?} {:10.0} {:9.3}",
                batch as f64 / step.as_secs_f64(),
                step.as_secs_f64() * 1e3
            );
            if kv_dtype == KvDtype::F32 && (batch == 1 || batch == 32) {
                breakdown(&profile);
            }
        }
    }
}

fn entry(index: usize, n_blocks: usize, tokens: Vec<u32>, start: usize, sampling: bool, decode: bool) -> BatchEntry {
    let blocks = (index * n_blocks..(index + 1) * n_blocks).map(|b| u32::try_from(b).unwrap()).collect();
    BatchEntry { tokens, start: u32::try_from(start).unwrap(), blocks, sampling: sampling.then_some(Sampling::GREEDY), decode }
}

fn prompt(n: usize, vocab: u32, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % vocab as usize) as u32).collect()
}

fn best_prefill(engine: &mut CpuEngine, threads: usize, isl: usize, vocab: u32, repeats: usize) -> (Duration, Profile) {
    let mut best = (Duration::MAX, Profile::default());
    for repeat in 0..repeats {
        let tokens = prompt(isl, vocab, repeat);
        engine.reset_profile();
        let since = Watch::start(threads);
        for start in (0..isl).step_by(CHUNK) {
            let end = (start + CHUNK).min(isl);
            let entries = vec![entry(0, isl.div_ceil(BLOCK), tokens[start..end].to_vec(), start, end == isl, false)];
            engine.step(&Batch { entries }, &mut NoObserver).unwrap();
        }
        let time = since.elapsed();
        if time < best.0 {
            best = (time, engine.profile().clone());
        }
    }
    best
}

/// Best step time over windows of eight steps.
fn best_decode(engine: &mut CpuEngine, threads: usize, n: usize, vocab: u32) -> (Duration, Profile) {
    let blocks = 192 / BLOCK;
    let entries = (0..n).map(|i| entry(i, blocks, prompt(128, vocab, i), 0, true, false)).collect();
    let mut tokens = engine.step(&Batch { entries }, &mut NoObserver).unwrap().tokens;
    let mut best = (Duration::MAX, Profile::default());
    for window in 0..8 {
        engine.reset_profile();
        let since = Watch::start(threads);
        for step in 0..8 {
            let start = 128 + window * 8 + step;
            let entries = (0..n).map(|i| entry(i, blocks, tokens[i].clone(), start, true, true)).collect();
            tokens = engine.step(&Batch { entries }, &mut NoObserver).unwrap().tokens;
        }
        let time = since.elapsed() / 8;
        if time < best.0 {
            best = (time, engine.profile().clone());
        }
    }
    best
}

fn breakdown(profile: &Profile) {
    let total = profile.total().time.as_secs_f64();
    for op in Op::ALL {
        let cost = profile.cost(op);
        let seconds = cost.time.as_secs_f64();
        if seconds / total >= 0.005 {
            println!("      {:22} {:5.1} %  {:8.1} GFLOP/s", op.name(), 100.0 * seconds / total, cost.flops as f64 / seconds * 1e-9);
        }
    }
}
