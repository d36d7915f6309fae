//! `tandem bench operators`: what it writes is what `--tables` reads, and what it says without a GPU.

mod common;

use std::fs;

use common::{output, stderr, stdout};
use tandem_cuda::Gpu;
use tandem_cuda::bench::table::{Origin, files};
use tandem_cuda::bench::{Kind, Measurement, Operator, operators_of};
use tandem_plan::ModelConfig;
use tandem_recipe::builtin::model_config;

/// A time for every size, as a GPU would give, but made up.
#[expect(clippy::cast_precision_loss, reason = "sizes are small")]
fn made_up(operator: &Operator) -> Measurement {
    let x = |n: usize| n as f64;
    let seconds = match *operator {
        Operator::Gemm { m, n, k, .. } => x(n * k) * 6e-13 + x(m * n * k) * 2e-15,
        Operator::Absorbed { tokens, heads, .. } => 1e-6 + x(tokens * heads) * 1e-10,
        Operator::Experts(s) => 1e-5 + x(s.tokens) * 1e-7 / x(s.ep),
        Operator::Generation { batch, length, .. } => 5e-6 + x(batch * length) * 7e-10,
        Operator::Context { heads, batch, length } => 5e-6 + x(batch * heads) * x(length).powi(2) * 6e-13,
    };
    let kernel = "made, \"up\"".to_owned();
    Measurement { operator: *operator, kernel, seconds, spread: 0.01, launches: 4, error: 1e-3, bytes: 1e6, flops: 1e9, clock: 1.98e9 }
}

#[test]
fn what_is_written_is_read_by_a_plan_at_once() {
    let config = ModelConfig::from_json(model_config("deepseek-r1").unwrap()).unwrap();
    let all: Vec<Measurement> = operators_of(&config, &Kind::ALL, false).iter().map(made_up).collect();
    let origin = Origin { gpu: "h100".into(), device: "NVIDIA H100 80GB HBM3".into(), version: "tandem 0".into() };
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files(&origin, &all) {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let plan = |more: &[&str]| stdout(&output(&[&["plan", "deepseek-r1", "--gpu-type", "h100"], more].concat()));
    let text = plan(&["--tables", folder.path().to_str().unwrap()]);
    for phase in ["prefill", "decode"] {
        for (operator, table) in [("matrix products", "gemm_perf"), ("attention", "mla_perf"), ("experts", "moe_perf")] {
            let line = text.lines().find(|l| l.contains(&format!("{phase} {operator}: "))).unwrap_or_else(|| panic!("{operator}: {text}"));
            assert!(line.contains(table) && line.contains("own tandem 0"), "{line}");
            // The recipe's cache is FP8, the measured one BF16, which stands in for it and says so.
            let extrapolated = phase == "decode" && operator == "attention";
            assert_eq!(line.contains("(BF16 cache), extrapolated"), extrapolated, "{line}");
            assert!(extrapolated || line.contains("exact") || line.contains("interpolated"), "{line}");
        }
    }
    let predicted = |text: &str| text.lines().find(|l| l.starts_with("predicted")).unwrap().to_owned();
    assert_ne!(predicted(&text), predicted(&plan(&[])), "the tables change the prediction");
}

#[test]
fn without_a_hopper_gpu_it_says_what_is_missing_and_writes_nothing() {
    if Gpu::open(0).is_ok_and(|gpu| gpu.require_hopper().is_ok()) {
        return tandem_testkit::not_run("tandem bench operators without a GPU", "this machine has a Hopper GPU");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tables");
    let run = output(&["bench", "operators", "--out", out.to_str().unwrap()]);
    assert_eq!(run.status.code(), Some(8), "{}", stderr(&run));
    assert!(run.stdout.is_empty() && !out.exists());
    assert!(stderr(&run).contains("hint: this needs an H100 or H200"), "{}", stderr(&run));
}

#[test]
fn a_quick_run_on_a_gpu_measures_and_its_tables_are_read() {
    if !Gpu::open(0).is_ok_and(|gpu| gpu.require_hopper().is_ok()) {
        return tandem_testkit::not_run("tandem bench operators --quick", "no Hopper GPU on this machine");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let run = output(&["bench", "operators", "--out", out, "--quick", "--only", "mla_bmm,generation_mla", "--repeats", "3"]);
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(stdout(&run).contains("generation_mla 128 heads"));
    let plan = output(&["plan", "deepseek-r1", "--gpu-type", "h100", "--tables", out]);
    assert!(stdout(&plan).contains("generation_mla_perf own tandem"), "{}", stdout(&plan));
}
