//! `tandem bench operators`: what the operators of a model take on this machine's GPU, as tables for `--tables`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use tandem_cuda::bench::table::{self, Origin};
use tandem_cuda::bench::{Bench, BenchError, Kind, Measurement, Operator, operators_of};
use tandem_cuda::{CudaError, Gpu};
use tandem_plan::ModelConfig;
use tandem_recipe::builtin::model_config;
use tandem_sim::hardware::GpuSpec;

use super::evaluate::print;
use super::operator_tables::gpu_of_device;
use super::run_folder::write_whole;
use crate::bench_args::{BenchArgs, BenchCommand, OperatorsArgs};
use crate::exit::{Exit, Failure, OrExit};

/// How to get what is missing.
const NEEDS: &str = "this needs an H100 or H200 with its driver, cuBLASLt 12.9 or later and NVRTC: install the CUDA toolkit, or let \
                     LD_LIBRARY_PATH name the folder of PyTorch's nvidia packages that holds libcublasLt.so and libnvrtc.so";

pub(crate) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let BenchCommand::Operators(args) = &args.what;
    operators(args)
}

fn operators(args: &OperatorsArgs) -> Result<(), Failure> {
    let config = model(&args.model)?;
    let missing = |error: CudaError| Failure::new(Exit::CheckFailed, error).with_hint(NEEDS);
    let gpu = Gpu::open(i32::from(args.gpu)).map_err(missing)?;
    let mut bench = Bench::new(&gpu, usize::from(args.repeats)).map_err(missing)?;
    let kinds: Vec<Kind> = if args.only.is_empty() { Kind::ALL.to_vec() } else { args.only.iter().map(|k| Kind::from(*k)).collect() };
    let spec = gpu_of_device(&gpu.facts().name);
    let origin = Origin {
        gpu: spec.as_ref().map_or_else(|| folder_name(&gpu.facts().name), |spec| spec.name.clone()),
        device: gpu.facts().name.clone(),
        version: format!("tandem {}", env!("CARGO_PKG_VERSION")),
    };
    let (mut all, mut notes, mut wrong) = (Vec::new(), Vec::new(), 0_usize);
    let begun = Instant::now();
    for kind in Kind::ALL.into_iter().filter(|kind| kinds.contains(kind)) {
        let wanted = operators_of(&config, &[kind], args.quick);
        let _ = writeln!(std::io::stderr(), "{}: {} sizes", kind.name(), wanted.len());
        if wanted.is_empty() {
            notes.push(format!("{}: no kernel here for the model's heads, or the model has none", kind.name()));
        }
        for operator in &wanted {
            match bench.measure(operator) {
                Ok(measured) => all.push(measured),
                // What a kernel or library is not made for is left out; after a failed kernel nothing more can be measured.
                Err(error @ BenchError::Cuda(CudaError::Call { .. })) => {
                    write(args, &origin, &all, &run_facts(&gpu, &bench, args, begun, &all, &notes))?;
                    return Err(error).with_context(|| format!("{operator} failed")).or_exit(Exit::Bug);
                }
                Err(error) => {
                    wrong += usize::from(matches!(error, BenchError::Wrong { .. }));
                    let _ = writeln!(std::io::stderr(), "left out: {error}");
                    notes.push(error.to_string());
                }
            }
        }
        write(args, &origin, &all, &run_facts(&gpu, &bench, args, begun, &all, &notes))?;
    }
    print(&summary(&all, spec.as_ref(), args.all || args.quick))?;
    if wrong > 0 {
        return Err(Failure::message(Exit::CheckFailed, format!("{wrong} results are not those of FP64 arithmetic and were left out")));
    }
    Ok(())
}

fn model(name: &str) -> Result<ModelConfig, Failure> {
    let text = match model_config(name) {
        Some(text) => text.to_owned(),
        None => {
            let path = Path::new(name);
            let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?
        }
    };
    ModelConfig::from_json(&text).with_context(|| format!("cannot use {name}")).or_exit(Exit::Artifact)
}

/// A GPU that the hardware table does not have, as the name of a folder.
fn folder_name(device: &str) -> String {
    device.to_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
}

fn write(args: &OperatorsArgs, origin: &Origin, all: &[Measurement], facts: &Value) -> Result<(), Failure> {
    for (path, text) in table::files(origin, all) {
        write_whole(&args.out.join(path), text.as_bytes())?;
    }
    let text = serde_json::to_string_pretty(facts).or_exit(Exit::Bug)? + "\n";
    write_whole(&args.out.join(&origin.gpu).join("bench.json"), text.as_bytes())
}

/// What the figures were measured with.
fn run_facts(gpu: &Gpu, bench: &Bench, args: &OperatorsArgs, begun: Instant, all: &[Measurement], notes: &[String]) -> Value {
    let (facts, versions) = (gpu.facts(), bench.versions());
    // `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build …`
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver = driver.as_deref().and_then(|text| text.split_whitespace().find(is_version));
    let mut clocks: Vec<f64> = all.iter().map(|m| m.clock / 1e6).collect();
    clocks.sort_by(f64::total_cmp);
    let clock = |share: usize| clocks.get(clocks.len().saturating_sub(1) * share / 4).map(|mhz| mhz.round());
    let cuda = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
    json!({
        "tandem": env!("CARGO_PKG_VERSION"),
        "gpu": facts.name, "compute_capability": format!("{}.{}", facts.capability.0, facts.capability.1),
        "multiprocessors": facts.multiprocessors, "l2_bytes": facts.l2_bytes,
        "driver": driver, "driver_cuda": cuda(versions.driver_cuda),
        "cublaslt": versions.cublaslt, "nvrtc": format!("{}.{}", versions.nvrtc.0, versions.nvrtc.1),
        "model": args.model, "quick": args.quick, "repeats": args.repeats, "seconds": begun.elapsed().as_secs(),
        "measured": all.len(),
        "sm_mhz": {"min": clock(0), "lower_quartile": clock(1), "median": clock(2), "upper_quartile": clock(3), "max": clock(4)},
        "left_out": notes,
    })
}

/// What of an operator stays the same while its size changes.
fn series(operator: &Operator) -> String {
    match operator {
        Operator::Gemm { format, n, k, .. } => format!("gemm {} n {n} k {k}", format.name()),
        Operator::Absorbed { before, format, heads, .. } => {
            format!("mla_bmm {} {}, {heads} heads", if *before { "pre" } else { "post" }, format.name())
        }
        Operator::Experts(s) => format!("moe TP {} EP {} {}", s.tp, s.ep, s.spread.name()),
        Operator::Generation { heads, batch, .. } => format!("generation_mla {heads} heads, batch {batch}"),
        Operator::Context { heads, batch, .. } => format!("context_mla {heads} heads, batch {batch}"),
    }
}

const fn size(operator: &Operator) -> usize {
    match operator {
        Operator::Gemm { m, .. } => *m,
        Operator::Absorbed { tokens, .. } => *tokens,
        Operator::Experts(s) => s.tokens,
        Operator::Generation { length, .. } | Operator::Context { length, .. } => *length,
    }
}

/// First, middle and last size of each series; all of them on request.
fn summary(all: &[Measurement], spec: Option<&GpuSpec>, every: bool) -> String {
    let mut out = format!("{:<44} {:>8} {:>12} {:>8} {:>9} {:>9}\n", "operator", "size", "time us", "GB/s", "TFLOP/s", "of bound");
    for group in all.chunk_by(|a, b| series(&a.operator) == series(&b.operator)) {
        let last = group.len() - 1;
        for (i, m) in group.iter().enumerate().filter(|(i, _)| every || [0, last / 2, last].contains(i)) {
            let name = if i == 0 { series(&m.operator) } else { String::new() };
            let share = spec.map_or_else(|| "-".to_owned(), |g| format!("{:.0} %", 100.0 * m.bound(g.hbm, g.bf16, g.fp8) / m.seconds));
            let (gb, tflop) = (m.bytes / m.seconds / 1e9, m.flops / m.seconds / 1e12);
            let _ = writeln!(out, "{name:<44} {:>8} {:>12.1} {gb:>8.0} {tflop:>9.1} {share:>9}", size(&m.operator), m.seconds * 1e6);
        }
    }
    let _ = writeln!(
        out,
        "{} sizes; bound: the larger of bytes over peak bandwidth and operations over peak rate of the hardware table",
        all.len()
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_cuda::bench::{ExpertsShape, Format, Spread};

    fn measured(operator: Operator, seconds: f64) -> Measurement {
        let kernel = "own, made \"up\"".to_owned();
        Measurement { operator, kernel, seconds, spread: 0.01, launches: 4, error: 1e-3, bytes: 1e6, flops: 1e9, clock: 1.98e9 }
    }

    #[test]
    fn a_summary_has_three_sizes_of_a_series_and_their_share_of_the_bound() {
        let spec = gpu_of_device("NVIDIA H100 80GB HBM3").unwrap();
        let gemm = |m| measured(Operator::Gemm { format: Format::Bf16, m, n: 128, k: 128 }, 1e-6);
        let text = summary(&[1, 2, 4, 8, 16].map(gemm), Some(&spec), false);
        assert_eq!(text.lines().count(), 5, "{text}");
        // 1e9 operations take 1.01 us at 0.989 PFLOP/s.
        assert!(text.lines().nth(1).unwrap().ends_with("101 %"), "{text}");
        let shape = ExpertsShape { tokens: 8, hidden: 128, inter: 128, topk: 2, experts: 8, tp: 1, ep: 2, spread: Spread::Balanced };
        assert!(summary(&[measured(Operator::Experts(shape), 1e-3)], None, true).contains("moe TP 1 EP 2 balanced"));
    }

    #[test]
    fn an_unknown_gpu_still_has_a_folder() {
        assert_eq!(folder_name("NVIDIA H100 NVL (x)"), "nvidia_h100_nvl_x");
    }

    #[test]
    fn a_model_is_a_name_or_a_file() {
        assert_eq!(model("deepseek-r1").unwrap().hidden_size, 7168);
        assert_eq!(model("no-such-model").unwrap_err().exit, Exit::Artifact);
    }
}
