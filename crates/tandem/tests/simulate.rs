//! `tandem simulate`: the run folder, its determinism, its refusals, and the same decisions as a real run.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{output, stderr};
use serde_json::Value;

/// Steps so long that nothing else on the machine changes what is decided.
const MODELED: [&str; 14] = [
    "--set",
    "ENGINE=modeled",
    "--set",
    "MODELED_STEP_US=20000",
    "--set",
    "ISL=300",
    "--set",
    "OSL=12",
    "--set",
    "NCTX=1",
    "--set",
    "CTX_MAX_NUM_TOKENS=128",
    "--set",
    "WARMUP_ROUNDS=0",
];

fn simulated(dir: &Path, name: &str, more: &[&str]) -> std::path::PathBuf {
    let out = dir.join(name);
    let mut args = vec!["simulate", "tiny", "--out", out.to_str().expect("a finished run")];
    args.extend(MODELED);
    args.extend(more);
    let done = output(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    out
}

fn result(run: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(run.join("result.json")).expect("a finished run")).expect("a finished run")
}

/// What each step of a phase held.
fn compositions(run: &Path, phase: &str) -> Vec<String> {
    let text = fs::read_to_string(run.join("logs").join(format!("{phase}.log"))).expect("a finished run");
    let states = |line: &str| Some(line.split_once("states = ")?.1.split_once('}')?.0.to_owned());
    text.lines().filter_map(states).collect()
}

#[test]
fn it_writes_a_run_folder_marked_simulated_and_the_same_twice() {
    let dir = tempfile::tempdir().unwrap();
    let runs = ["a", "b"].map(|name| simulated(dir.path(), name, &["--set", "CONCURRENCY=2,4"]));
    let result = result(&runs[0]);
    assert_eq!(result["kind"], "simulated");
    assert_eq!(result["validity"], "valid", "{}", result["validity_reasons"]);
    assert_eq!(result["points"].as_array().unwrap().len(), 2);
    assert!(result["summary"]["ttft"]["p50"].as_f64().unwrap() > 60.0, "three chunks of 20 ms each");
    for file in ["plan.json", "result.json", "perf_summary.txt", "logs/prefill.log", "logs/decode.log"] {
        assert_eq!(fs::read(runs[0].join(file)).unwrap(), fs::read(runs[1].join(file)).unwrap(), "{file}");
    }
    let report = output(&["report", runs[0].to_str().unwrap(), "--json"]);
    assert!(report.status.success(), "{}", stderr(&report));
}

#[test]
fn the_steps_are_those_of_a_real_run() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    // One request at a time: what a step holds then depends on no time at all.
    let load = ["--set", "CONCURRENCY=1", "--set", "MULTI_ROUND=4"];
    let mut args = vec!["run", "tiny", "--port", "0", "--out", real.to_str().unwrap()];
    args.extend(MODELED);
    args.extend(load);
    let done = output(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    let virtual_run = simulated(dir.path(), "virtual", &load);
    for phase in ["prefill", "decode"] {
        let (measured, simulated) = (compositions(&real, phase), compositions(&virtual_run, phase));
        // The canary request that tells readiness comes before the load.
        let n_canary = measured.len() - simulated.len();
        assert!(!simulated.is_empty());
        assert_eq!(measured[n_canary..], simulated, "{phase}");
    }
}

/// What each numbered step of a phase held.
fn numbered(run: &Path, phase: &str) -> std::collections::BTreeMap<String, String> {
    let text = fs::read_to_string(run.join("logs").join(format!("{phase}.log"))).expect("a finished run");
    let states = |line: &str| {
        let (iter, rest) = line.split_once("iter = ")?.1.split_once(',')?;
        Some((iter.to_owned(), rest.split_once("states = ")?.1.split_once('}')?.0.to_owned()))
    };
    text.lines().filter_map(states).collect()
}

/// Of a real run and its replay, the larger share of steps, of both phases, that hold something else.
fn apart_when_replayed(dir: &Path) -> f64 {
    let [real, replayed] = ["real", "replayed"].map(|name| dir.join(name).display().to_string());
    let mut args = vec!["run", "tiny", "--port", "0", "--out", &real];
    args.extend(MODELED);
    args.extend(["--set", "CONCURRENCY=5", "--set", "MULTI_ROUND=4"]);
    let done = output(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    let done = output(&["simulate", "--replay", &real, "--out", &replayed]);
    assert!(done.status.success(), "{}", stderr(&done));
    let share = |phase| {
        let (measured, simulated) = (numbered(Path::new(&real), phase), numbered(Path::new(&replayed), phase));
        assert!(simulated.len() > 20, "{phase}: {} steps", simulated.len());
        simulated.iter().filter(|(iter, held)| measured.get(*iter) != Some(held)).count() as f64 / simulated.len() as f64
    };
    share("prefill").max(share("decode"))
}

#[test]
fn a_replayed_run_holds_in_its_steps_what_the_real_one_held() {
    let dir = tempfile::tempdir().unwrap();
    // Messages may cross the begin of a step, and on a machine with other work many do: then the run says nothing.
    let mut shares = (0..5).map(|i| apart_when_replayed(&dir.path().join(i.to_string())));
    assert!(shares.any(|share| share <= 0.1), "in each of five runs more than a tenth of the steps differ");
    let missing = output(&["simulate", "--replay", dir.path().to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(9), "{}", stderr(&missing));
}

#[test]
fn faults_are_injected_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let base = simulated(dir.path(), "base", &["--set", "CONCURRENCY=4"]);
    let slow = simulated(dir.path(), "slow", &["--set", "CONCURRENCY=4", "--inject", "slow-rank:decode-0x2"]);
    let rate = |run: &Path| result(run)["summary"]["output_throughput"]["avg"].as_f64().unwrap();
    assert!(rate(&slow) < 0.8 * rate(&base));
    assert_eq!(result(&slow)["validity_reasons"][0]["code"], "injected_fault");
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let run = |more: &[&str]| {
        let mut args = vec!["simulate", "tiny", "--out", out.to_str().unwrap()];
        args.extend(more);
        output(&args)
    };
    let no_costs = run(&[]);
    assert_eq!(no_costs.status.code(), Some(2));
    assert!(stderr(&no_costs).contains("--from-run"), "{}", stderr(&no_costs));
    let no_fault = run(&["--set", "ENGINE=modeled", "--inject", "flood:x2"]);
    assert_eq!(no_fault.status.code(), Some(2), "{}", stderr(&no_fault));
    let no_file = run(&["--calibration", "/nowhere.json"]);
    assert_eq!(no_file.status.code(), Some(9), "{}", stderr(&no_file));
}

/// A simulated run of a cluster, made to look measured there, with everything `slower` times as slow.
fn measured_on_a_cluster(dir: &Path, name: &str, concurrency: u32, slower: f64) -> PathBuf {
    let run = dir.join(name);
    let done = output(&[
        "simulate",
        "deepseek-r1",
        "--gpu-type",
        "gb200",
        "--set",
        &format!("CONCURRENCY={concurrency}"),
        "--set",
        "MULTI_ROUND=3",
        "--out",
        run.to_str().expect("a finished run"),
    ]);
    assert!(done.status.success(), "{}", stderr(&done));
    let mut result = result(&run);
    result["kind"] = "measured".into();
    let scale = |summary: &mut Value| {
        for (metric, stats, factor) in
            [("tpot", ["p50", "avg"], slower), ("ttft", ["p50", "p99"], slower), ("output_throughput", ["avg", "avg"], 1.0 / slower)]
        {
            let before = summary[metric].clone();
            for stat in stats {
                summary[metric][stat] = (before[stat].as_f64().expect("a finished run") * factor).into();
            }
        }
    };
    result["points"].as_array_mut().expect("a finished run").iter_mut().for_each(|point| scale(&mut point["summary"]));
    fs::write(run.join("result.json"), result.to_string()).expect("a finished run");
    run
}

#[test]
fn runs_of_a_cluster_refit_the_model_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [(16, "a"), (64, "b"), (128, "c")].map(|(concurrency, name)| measured_on_a_cluster(dir.path(), name, concurrency, 1.3));
    let constants = dir.path().join("ours.json");
    let mut args = vec!["calibrate", "--out", constants.to_str().unwrap(), "--from-run"];
    args.extend(runs.iter().map(|run| run.to_str().unwrap()));
    let done = output(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(text.matches("refitted to the other runs:").count(), 3, "{text}");

    let tpot = |more: &[&str]| -> f64 {
        let mut args = vec!["plan", "deepseek-r1", "--gpu-type", "gb200", "--set", "CONCURRENCY=32"];
        args.extend(more);
        let shown = output(&args);
        assert!(shown.status.success(), "{}", stderr(&shown));
        let text = String::from_utf8(shown.stdout).unwrap();
        text.split_once("TPOT ").unwrap().1.split(' ').next().unwrap().parse().unwrap()
    };
    let ratio = tpot(&["--constants", constants.to_str().unwrap()]) / tpot(&[]);
    assert!((ratio / 1.3 - 1.0).abs() < 0.06, "{ratio}");
}
