//! `tandem calibrate --from-run`: what measured runs say. Of the embedded engine, what its steps cost, so that `tandem simulate` can predict
//! other runs of it; of a cluster, constants of the performance model for that cluster.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tandem_plan::{EngineKind, Phase, Plan};
use tandem_sched::iteration::IterationLine;
use tandem_sim::evaluate::Metric;
use tandem_sim::fit::{Constants, OwnRun, refit};
use tandem_sim::model::Model;
use tandem_sim::predict::scenario;
use tandem_sim::rows::Measured;
use tandem_sim::virtual_time::{BENDS, Calibration, Late, LinearCosts, Observed, Overheads, TableCosts, drive, fit_steps, setup, simulate};

use super::evaluate::print;
use super::recipe::read_plan;
use super::replay::{Seen, requests};
use super::run_folder::write_whole;
use crate::exit::{Exit, Failure, OrExit};

/// Seconds between frontend and worker on one machine; what is left of TTFT goes to the request's own time.
const HOP_S: f64 = 0.1e-3;

/// Seconds that it takes to commit a KV cache on one machine, where no run says it.
const COMMIT_S: f64 = 0.1e-3;

/// Requests that are sent within this are sent at once, seconds.
const AT_ONCE_S: f64 = 0.3e-3;
/// Seconds between requests that are sent at once, where no run says it.
const DISPATCH_S: f64 = 0.03e-3;

/// One measured run.
struct Run {
    plan: Plan,
    observed: Observed,
    requests: Vec<Seen>,
    /// Median TTFT of each load point, seconds.
    ttft: Vec<Option<f64>>,
}

pub(crate) fn from_runs(paths: &[std::path::PathBuf], constants: Option<&Path>, out: &Path) -> Result<(), Failure> {
    let plans = paths.iter().map(|path| read_plan(&path.join("plan.json"))).collect::<Result<Vec<_>, _>>()?;
    let n_clusters = plans.iter().filter(|plan| plan.engine == EngineKind::DynamoTrtllm).count();
    if n_clusters == plans.len() {
        return of_cluster(paths, &plans, constants, out);
    }
    if n_clusters > 0 {
        return Err(Failure::message(
            Exit::Usage,
            "runs of a cluster and of the embedded engine tell different things: one kind at a time",
        ));
    }
    let runs = paths.iter().map(|path| read_run(path)).collect::<Result<Vec<_>, _>>()?;
    let mut all = Observed::default();
    runs.iter().for_each(|run| all.extend(run.observed.clone()));
    let (prefill, prefill_error) = fit_steps(Phase::Prefill, &all.prefill).or_exit(Exit::Artifact)?;
    let (decode, decode_error) = fit_steps(Phase::Decode, &all.decode).or_exit(Exit::Artifact)?;
    let mut calibration = Calibration {
        source: format!("{} prefill and {} decode steps of {} runs", all.prefill.len(), all.decode.len(), runs.len()),
        prefill,
        decode,
        overheads: Overheads {
            request_s: 0.0,
            hop_s: HOP_S,
            late: Late::default(),
            dispatch_s: dispatch_s(&runs),
            commit_s: 0.0,
            prefill_gap: all.gap(Phase::Prefill),
            decode_gap: all.gap(Phase::Decode),
        },
        acceptance: acceptance(&runs),
        step_error: [prefill_error, decode_error],
    };
    calibration.overheads.commit_s = commit_s(&runs);
    calibration.overheads.late = late(&runs, calibration.overheads.commit_s);
    calibration.overheads.request_s = request_s(&runs, &calibration)?;
    write_whole(out, calibration.to_json().as_bytes())?;
    let line = |name: &str, table: &TableCosts, error: f64| {
        let c = &table.linear;
        format!(
            "{name}: {:.1} us a step + {:.3} us a prompt token + {:.2} us a sequence + {:.5} us an attended pair{}, \
             {:.0} % slower beside each busy worker, corrected by {} measured compositions, {:.3} ms longer after a rest; a step is {:.1} % off in the median\n",
            c.step_us,
            c.prefill_token_us,
            c.decode_seq_us,
            c.attended_us,
            bends(c),
            c.contention * 100.0,
            table.cells.len(),
            table.cold_s * 1e3,
            error * 100.0
        )
    };
    let o = &calibration.overheads;
    let text = format!(
        "{}\n{}{}around them: {:.3} ms a request, {:.3} ms between requests sent at once, {:.3} ms to commit its KV cache; behind a busy prefill worker {:.3} ms later at the client, {:.3} at decode; between steps {:.3} + {:.4} ms a request in prefill, \
         {:.3} + {:.4} in decode; drafts accepted: {:.2}\nwrote {}\n",
        calibration.source,
        line("prefill", &calibration.prefill, prefill_error),
        line("decode", &calibration.decode, decode_error),
        o.request_s * 1e3,
        o.dispatch_s * 1e3,
        o.commit_s * 1e3,
        o.late.token_s * 1e3,
        o.late.commit_s * 1e3,
        o.prefill_gap.step_s * 1e3,
        o.prefill_gap.request_s * 1e3,
        o.decode_gap.step_s * 1e3,
        o.decode_gap.request_s * 1e3,
        calibration.acceptance.0,
        out.display()
    );
    print(&text)
}

fn read_run(path: &Path) -> Result<Run, Failure> {
    let plan = read_plan(&path.join("plan.json"))?;
    let mut workers = Vec::new();
    for worker in &plan.workers {
        let log = path.join("logs").join(format!("output_{}_{}.log", worker.phase, worker.index + 1));
        let bytes = std::fs::read(&log).with_context(|| format!("cannot read {}", log.display())).or_exit(Exit::Artifact)?;
        workers.push((worker.phase, String::from_utf8_lossy(&bytes).lines().filter_map(IterationLine::parse).collect()));
    }
    let result = read_result(path)?;
    let ttft = |p: &Value| p["summary"]["ttft"]["p50"].as_f64().map(|ms| ms / 1e3);
    let ttft = result["points"].as_array().map(|points| points.iter().map(ttft).collect()).unwrap_or_default();
    Ok(Run { observed: Observed::new(&workers), plan, requests: requests(path).or_exit(Exit::Artifact)?, ttft })
}

fn read_result(path: &Path) -> Result<Value, Failure> {
    let file = path.join("result.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display())).or_exit(Exit::Artifact)?;
    let result: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display())).or_exit(Exit::Artifact)?;
    if result["kind"] != "measured" {
        return Err(Failure::message(Exit::Artifact, format!("{} was not measured", path.display())));
    }
    Ok(result)
}

/// Where a row costs more or less, for people.
fn bends(c: &LinearCosts) -> String {
    let words = BENDS.iter().zip(c.bends_us).filter(|(_, us)| us.abs() >= 0.005);
    let words: Vec<String> = words.map(|(bend, us)| format!("{us:+.2} beyond {bend}")).collect();
    if words.is_empty() { String::new() } else { format!(" (us a row: {})", words.join(", ")) }
}

/// Refits the performance model to runs of one's own cluster; results are enough, no logs are read.
fn of_cluster(paths: &[std::path::PathBuf], plans: &[Plan], constants: Option<&Path>, out: &Path) -> Result<(), Failure> {
    let model = super::prediction::model_of(plans[0].model.config.clone(), constants)?;
    let (mut runs, mut names) = (Vec::new(), Vec::new());
    for (path, plan) in paths.iter().zip(plans) {
        let result = read_result(path)?;
        let points = result["points"].as_array().cloned().unwrap_or_default();
        for (point, measured) in plan.load.points.iter().zip(&points) {
            let Some(scenario) = scenario(plan, point) else { continue };
            let Some(decode) = plan.workers_of(Phase::Decode).next() else { continue };
            let value = |name: &str, stat: &str| measured["summary"][name][stat].as_f64().filter(|v| *v > 0.0);
            let seconds = |name: &str, stat: &str| value(name, stat).map(|ms| ms / 1e3);
            names.push(format!("{} at concurrency {}", path.display(), point.concurrency));
            runs.push(OwnRun {
                measured: Measured {
                    tokens_per_gpu: value("output_throughput", "avg").map(|rate| rate / scenario.gpus),
                    tpot: seconds("tpot", "p50"),
                    ttft_median: seconds("ttft", "p50"),
                    ttft_mean: seconds("ttft", "avg"),
                    ttft_p99: seconds("ttft", "p99"),
                },
                scenario,
                warmup: point.n_warmup,
                kv_tokens: u64::from(decode.kv.n_blocks) * u64::from(decode.kv.block_size),
            });
        }
    }
    if runs.is_empty() {
        return Err(Failure::message(Exit::Artifact, "no load point of these runs was measured"));
    }
    let refitted = refit(&model, &runs);
    let mut text = format!("{:<44}{}\n", "predicted over measured, percent off", Metric::ALL.map(|m| format!("{:>17}", m.name())).concat());
    let cells =
        |errors: &[Option<f64>; 4]| errors.map(|e| e.map_or_else(|| format!("{:>17}", "-"), |e| format!("{:>+17.1}", e * 100.0))).concat();
    for (title, errors) in [("before", &refitted.before), ("refitted to the other runs", &refitted.left_out)] {
        for (name, errors) in names.iter().zip(errors) {
            text += &format!("{title}: {name}\n{:<44}{}\n", "", cells(errors));
        }
    }
    if runs.len() < 3 {
        text += "fewer than three load points: intervals stay as they were\n";
    }
    write_whole(out, refitted.constants.to_json().as_bytes())?;
    print(&format!("{text}wrote {}\n", out.display()))
}

/// Of the runs that draft.
fn acceptance(runs: &[Run]) -> tandem_sim::virtual_time::Acceptance {
    let drafting = runs.iter().find_map(|run| {
        let mtp = run.plan.workers_of(Phase::Decode).next()?.mtp_size;
        let requests: u64 = run.plan.load.points.iter().map(|p| u64::from(p.n_requests + p.n_warmup)).sum();
        (mtp > 0).then(|| run.observed.acceptance(requests * u64::from(run.plan.load.osl.saturating_sub(1)), mtp))
    });
    drafting.unwrap_or_default()
}

/// Whether one request at a time is in flight all the time: then nothing queues, and what lies between the steps can be seen.
fn is_lone(run: &Run) -> bool {
    run.plan.load.points.iter().all(|p| p.concurrency == 1)
}

/// Of the runs with one request at a time; the median. The way of the bytes is priced apart and is short there.
fn commit_s(runs: &[Run]) -> f64 {
    median(runs.iter().filter(|r| is_lone(r)).filter_map(|run| run.observed.commit_s()).collect()).unwrap_or(COMMIT_S)
}

/// Median time between requests that were sent at once, in all runs: nobody waited for anything between them.
fn dispatch_s(runs: &[Run]) -> f64 {
    let mut gaps = Vec::new();
    for run in runs {
        let mut sent: Vec<u64> = run.requests.iter().map(|r| r.sent_ns).collect();
        sent.sort_unstable();
        gaps.extend(sent.windows(2).map(|pair| seconds(std::time::Duration::from_nanos(pair[1] - pair[0]))).filter(|gap| *gap < AT_ONCE_S));
    }
    median(gaps).unwrap_or(DISPATCH_S)
}

/// Of the runs with one worker of each phase, where it is known which steps a prompt went through.
fn late(runs: &[Run], commit_s: f64) -> Late {
    let pairs = runs.iter().filter(|run| run.plan.workers.len() == 2);
    let seen = |run: &Run| run.requests.iter().filter_map(|r| r.first_ns).map(std::time::Duration::from_nanos).collect();
    let pairs: Vec<(&Observed, Vec<std::time::Duration>)> = pairs.map(|run| (&run.observed, seen(run))).collect();
    Late::of(&pairs, HOP_S, commit_s)
}

/// What the simulated median TTFT lacks of the measured one: the median over the load points of the runs with one request at a time, or
/// of all where there are none. With one request at a time and prompts of one step, the time of the step is the measured median, not
/// what the costs say of it.
fn request_s(runs: &[Run], calibration: &Calibration) -> Result<f64, Failure> {
    let model = Model::deepseek_r1(Constants::shipped());
    let lone_only = runs.iter().any(is_lone);
    let mut missing = Vec::new();
    for run in runs.iter().filter(|run| !lone_only || is_lone(run)) {
        for ((index, point), measured) in (0_u64..).zip(&run.plan.load.points).zip(&run.ttft) {
            let (Some(measured), Some(what)) = (measured, setup(&run.plan, *point, &model, Some(calibration))) else { continue };
            let simulated = simulate(&what, &drive(&run.plan, *point, index)).or_exit(Exit::Artifact)?;
            let profiled = simulated.records.iter().filter(|r| r.phase == tandem_metrics::LoadPhase::Profiling);
            let ttft: Vec<f64> = profiled.filter_map(|r| Some(seconds(std::time::Duration::from_nanos(r.ack_ns? - r.start_ns)))).collect();
            let Some(ttft) = median(ttft) else { continue };
            let isl = u64::from(run.plan.load.isl);
            let whole = |lines: &mut dyn Iterator<Item = &IterationLine>| {
                median(lines.filter(|l| l.n_ctx_tokens == isl && l.n_requests == 1).map(|l| seconds(l.took)).collect())
            };
            let real = whole(&mut run.observed.prefill.iter().map(|s| &s.line));
            let virtual_ = whole(&mut simulated.logs.iter().filter(|l| l.phase == Phase::Prefill).flat_map(|l| &l.lines));
            let steps = if is_lone(run) { real.zip(virtual_).map_or(0.0, |(real, virtual_)| real - virtual_) } else { 0.0 };
            missing.push(measured - ttft - steps);
        }
    }
    Ok(median(missing).unwrap_or(0.0).max(0.0))
}

fn seconds(d: std::time::Duration) -> f64 {
    d.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
