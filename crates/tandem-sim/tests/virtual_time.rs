//! The deployment in virtual time: laws that hold whatever the costs are, agreement with the fast simulation, faults, arrivals.

use tandem_metrics::record::LoadPhase;
use tandem_metrics::{FailureKind, RequestRecord};
use tandem_plan::{LoadPoint, ModeledCosts, Phase, Plan, Routing};
use tandem_recipe::{Inputs, RecipeSource, load_recipe, plans};
use tandem_sched::SchedConfig;
use tandem_sched::pacing::Arrivals;
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::predict::predict;
use tandem_sim::virtual_time::{
    Acceptance, Drive, Fault, Flow, Gap, Late, LinearCosts, Link, Overheads, ReplayedStep, Setup, Simulated, StepCosts, TableCosts,
    WorkerSetup, drive, setup, simulate,
};

const GAP: Gap = Gap { step_s: 5e-5, request_s: 0.0 };
const MODELED: ModeledCosts = ModeledCosts { step_us: 5000.0, prefill_token_us: 50.0, decode_seq_us: 100.0 };

fn worker(phase: Phase, index: u32) -> WorkerSetup {
    let sched = SchedConfig {
        max_batch_size: 8,
        max_num_tokens: if phase == Phase::Prefill { 512 } else { 32 },
        max_seq_len: 1024,
        chunked_prefill: true,
        block_size: 32,
        n_blocks: 256,
        n_drafts: 0,
    };
    let costs = StepCosts::Linear(LinearCosts::from(MODELED));
    WorkerSetup { name: format!("{phase}-{index}"), phase, index, sched, n_ranks: 1, stream_interval: 1, costs }
}

fn deployed(n_prefill: u32, n_decode: u32) -> Setup {
    let prefill = (0..n_prefill).map(|i| worker(Phase::Prefill, i));
    Setup {
        workers: prefill.chain((0..n_decode).map(|i| worker(Phase::Decode, i))).collect(),
        routing: Routing::LeastLoaded,
        max_inflight: 1000,
        flow: Flow::ReserveFirst,
        overheads: Overheads {
            request_s: 1e-3,
            hop_s: 1e-4,
            late: Late::default(),
            dispatch_s: 1e-5,
            prefill_gap: GAP,
            decode_gap: GAP,
            commit_s: 1e-4,
        },
        link: Link { bytes_per_token: 1000.0, bandwidth: 1e9, latency_s: 1e-4, overlap: 0.5 },
        acceptance: Acceptance(0.0),
        faults: Vec::new(),
    }
}

fn driven(concurrency: u32, n_requests: u32) -> Drive {
    Drive {
        isl: 256,
        osl: 40,
        point: LoadPoint { concurrency, n_requests, n_warmup: concurrency },
        streaming: true,
        arrivals: Arrivals::ClosedLoop,
        seed: 1,
        request_timeout_s: 600.0,
    }
}

/// Tokens per second from the first request to the last end.
fn rate(simulated: &Simulated) -> f64 {
    let tokens: u32 = simulated.records.iter().filter_map(|r| r.osl.server).sum();
    let end = simulated.records.iter().map(|r| r.end_ns).max().expect("a finished run");
    f64::from(tokens) / (end as f64 * 1e-9)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn profiled(simulated: &Simulated) -> impl Iterator<Item = &RequestRecord> {
    simulated.records.iter().filter(|r| r.phase == LoadPhase::Profiling)
}

fn tpot(r: &RequestRecord) -> f64 {
    (r.end_ns - r.ack_ns.expect("a finished run")) as f64 * 1e-9 / f64::from(r.osl.server.expect("a finished run") - 1)
}

#[test]
fn every_request_becomes_one_record_with_all_its_tokens() {
    let simulated = simulate(&deployed(1, 1), &driven(12, 60)).unwrap();
    assert_eq!(simulated.records.len(), 72);
    for r in &simulated.records {
        assert!(r.outcome.is_ok(), "{r:?}");
        let n: u32 = r.chunks.iter().filter_map(|c| c.n_tokens).sum();
        assert_eq!((n, r.chunks.len()), (40, 40));
        assert!(r.start_ns < r.ack_ns.unwrap() && r.ack_ns.unwrap() < r.end_ns);
    }
    assert_eq!(simulated, simulate(&deployed(1, 1), &driven(12, 60)).unwrap(), "it is deterministic");
}

#[test]
fn first_tokens_are_late_behind_a_busy_worker_only() {
    let mut what = deployed(1, 1);
    let at = |what: &Setup, concurrency| simulate(what, &driven(concurrency, 20)).unwrap();
    let (lone, crowded) = (at(&what, 1), at(&what, 8));
    // As long as 12 decode steps: the tokens after the first wait for it.
    what.overheads.late = Late { token_s: 12.0 * MODELED.step_us * 1e-6, commit_s: 0.0 };
    assert_eq!(lone, at(&what, 1), "one request at a time leaves nobody behind");
    let late = at(&what, 8);
    let mean = |s: &Simulated, of: fn(&RequestRecord) -> f64| profiled(s).map(of).sum::<f64>() / profiled(s).count() as f64;
    assert!(mean(&late, tpot) < 0.9 * mean(&crowded, tpot), "{} after {}", mean(&late, tpot), mean(&crowded, tpot));
    assert_eq!(mean(&late, |r| r.end_ns as f64), mean(&crowded, |r| r.end_ns as f64), "their ends are the same");
    for r in profiled(&late) {
        assert!(r.chunks.iter().map(|c| c.at_ns).is_sorted(), "{r:?}");
    }
    // Decode rests between short outputs, and begins later with each.
    let short = |commit_s| {
        let mut what = deployed(1, 1);
        what.overheads.late = Late { token_s: 0.0, commit_s };
        mean(&simulate(&what, &Drive { osl: 3, ..driven(8, 20) }).unwrap(), tpot)
    };
    let longer = (short(2e-3) - short(0.0)) * 2.0;
    assert!((1e-3..2.1e-3).contains(&longer), "two tokens take {longer} s longer");
}

#[test]
fn littles_law_holds() {
    for (concurrency, n_prefill, n_decode) in [(1, 1, 1), (7, 2, 1), (30, 1, 2)] {
        let simulated = simulate(&deployed(n_prefill, n_decode), &driven(concurrency, 400)).unwrap();
        let latency: f64 = simulated.records.iter().map(|r| (r.end_ns - r.start_ns) as f64).sum();
        let end = simulated.records.iter().map(|r| r.end_ns).max().unwrap() as f64;
        let in_flight = latency / end;
        // Short of the concurrency only by the time in which the last ones end.
        assert!(
            in_flight <= f64::from(concurrency) * (1.0 + 1e-9) && in_flight > 0.9 * f64::from(concurrency),
            "{in_flight} of {concurrency}"
        );
    }
}

#[test]
fn twice_of_everything_has_twice_the_throughput() {
    let (one, two) = (simulate(&deployed(1, 1), &driven(10, 400)).unwrap(), simulate(&deployed(2, 2), &driven(20, 800)).unwrap());
    let ratio = rate(&two) / rate(&one);
    assert!((ratio - 2.0).abs() < 0.04, "{ratio}");
}

#[test]
fn more_memory_never_lowers_throughput() {
    let mut before = 0.0;
    for n_blocks in [20, 40, 80, 160] {
        let mut what = deployed(2, 1);
        what.workers.iter_mut().for_each(|w| w.sched.n_blocks = n_blocks);
        let now = rate(&simulate(&what, &driven(16, 200)).unwrap());
        assert!(now > 0.995 * before, "{n_blocks} blocks: {now} after {before}");
        before = now;
    }
}

#[test]
fn drafts_that_are_never_accepted_are_never_faster_and_accepted_ones_are() {
    let with = |n_drafts, p| {
        let mut what = deployed(2, 1);
        what.workers[2].sched.n_drafts = n_drafts;
        what.acceptance = Acceptance(p);
        rate(&simulate(&what, &driven(8, 100)).unwrap())
    };
    assert!(with(2, 0.0) <= with(0, 0.0));
    assert!(with(2, 0.8) > 1.3 * with(0, 0.0));
}

#[test]
fn the_stream_interval_changes_events_and_not_tokens() {
    let mut what = deployed(1, 1);
    what.workers[1].stream_interval = 20;
    let simulated = simulate(&what, &driven(4, 20)).unwrap();
    // The first at once, one event of 20 tokens, the rest with the last token.
    let sizes = |r: &RequestRecord| r.chunks.iter().filter_map(|c| c.n_tokens).collect::<Vec<_>>();
    assert!(simulated.records.iter().all(|r| sizes(r) == [1, 20, 19]));
}

#[test]
fn faults_do_what_they_say() {
    let base = simulate(&deployed(1, 2), &driven(8, 100)).unwrap();
    let with = |fault: &str| {
        let mut what = deployed(1, 2);
        what.faults.push(fault.parse::<Fault>().unwrap());
        simulate(&what, &driven(8, 100))
    };
    let slow = with("slow-rank:prefill-0x3").unwrap();
    assert!(rate(&slow) < 0.8 * rate(&base));
    let ttft = |s: &Simulated| median(profiled(s).map(|r| (r.ack_ns.unwrap() - r.start_ns) as f64).collect());
    assert!(ttft(&slow) > 2.0 * ttft(&base));
    assert!(rate(&with("slow-link:x1000").unwrap()) < rate(&base));
    let lost = with("worker-lost:decode-1@0.5s").unwrap();
    assert_eq!(lost.records.len(), base.records.len(), "no request is dropped");
    let failed = lost.records.iter().filter(|r| r.outcome.failure() == Some(FailureKind::SseError)).count();
    assert!(failed > 0 && failed <= 8, "{failed} requests had sent tokens when it died");
    let after = lost.logs[2].lines.iter().filter(|l| l.begin.as_secs_f64() > 0.5).count();
    assert_eq!(after, 0, "the dead compute nothing");
    assert!(with("worker-lost:decode-7@1s").is_err());
    let alone = with("worker-lost:prefill-0@0.5s").unwrap();
    assert!(alone.records.iter().any(|r| r.outcome.failure() == Some(FailureKind::HttpStatus)), "nobody is left to compute prompts");
}

#[test]
fn arrivals_come_when_the_load_says() {
    let mut open = driven(1, 400);
    open.arrivals = Arrivals::Gamma { rate: 10.0, shape: 1.0 };
    let simulated = simulate(&deployed(2, 2), &open).unwrap();
    let last = simulated.records.iter().map(|r| r.start_ns).max().unwrap() as f64 * 1e-9;
    assert!((simulated.records.len() as f64 / last - 10.0).abs() < 1.5, "{last}");
    open.arrivals = Arrivals::Trace([0, 5, 5, 900].map(tandem_plan::Nanos::from_millis).to_vec());
    let traced = simulate(&deployed(1, 1), &open).unwrap();
    assert_eq!(traced.records.iter().map(|r| r.start_ns / 1_000_000).collect::<Vec<_>>(), [0, 5, 5, 900]);
    assert!(traced.records.iter().all(|r| r.outcome.is_ok()));
}

#[test]
fn deadlines_and_full_frontends_fail_requests() {
    let mut late = driven(8, 40);
    late.request_timeout_s = 0.2;
    let simulated = simulate(&deployed(1, 1), &late).unwrap();
    assert!(simulated.records.iter().all(|r| r.outcome.failure() == Some(FailureKind::Timeout)));
    let mut full = deployed(1, 1);
    full.max_inflight = 3;
    let refused = simulate(&full, &driven(8, 40)).unwrap();
    assert!(refused.records.iter().any(|r| r.http_status == Some(429)) && refused.records.iter().any(|r| r.outcome.is_ok()));
}

#[test]
fn batches_are_those_of_the_scheduler() {
    // One request at a time: its prompt in chunks of the step's tokens, then one step a token.
    let mut one = driven(1, 1);
    one.point.n_warmup = 0;
    one.isl = 700;
    let simulated = simulate(&deployed(1, 1), &one).unwrap();
    let chunks: Vec<u64> = simulated.logs[0].lines.iter().map(|l| l.n_ctx_tokens).collect();
    assert_eq!(chunks, [512, 188]);
    assert!(simulated.logs[1].lines.iter().all(|l| l.n_gen_tokens == 1) && simulated.logs[1].lines.len() == 39);
    // A full batch is never over its limit, and a decode worker never sees a prompt.
    let many = simulate(&deployed(2, 1), &driven(20, 60)).unwrap();
    assert_eq!(many.logs[2].lines.iter().map(|l| l.n_gen_tokens).max(), Some(8));
    assert!(many.logs[2].lines.iter().all(|l| l.n_ctx_tokens == 0));
}

fn cluster(gpu: &str) -> Plan {
    let inputs = Inputs {
        recipe: Some(RecipeSource::Builtin("deepseek-r1".into())),
        sets: vec!["MULTI_ROUND=3".into()],
        gpu_type: Some(gpu.into()),
        ..Inputs::default()
    };
    plans(&load_recipe(&inputs).expect("a finished run"), &|path| std::fs::read_to_string(path)).expect("a finished run").remove(0)
}

#[test]
fn it_agrees_with_the_fast_simulation_on_the_published_recipes() {
    let model = Model::deepseek_r1(Constants::shipped());
    for gpu in ["gb200", "b200", "h100"] {
        let plan = cluster(gpu);
        let point = plan.load.points[0];
        let fast = &predict(&model, &plan)[0];
        let simulated = simulate(&setup(&plan, point, &model, None).unwrap(), &drive(&plan, point, 0)).unwrap();
        let begin = profiled(&simulated).map(|r| r.start_ns).min().unwrap();
        let end = simulated.records.iter().map(|r| r.end_ns).max().unwrap();
        let tokens: u32 = profiled(&simulated).filter_map(|r| r.osl.server).sum();
        let per_second = f64::from(tokens) / ((end - begin) as f64 * 1e-9);
        let tpot = median(profiled(&simulated).map(tpot).collect());
        let (throughput_off, tpot_off) = (per_second / fast.tokens_per_second - 1.0, tpot / fast.tpot.value - 1.0);
        assert!(throughput_off.abs() < 0.03 && tpot_off.abs() < 0.03, "{gpu}: {throughput_off:+.3} {tpot_off:+.3}");
    }
}

/// A run whose prefill and decode worker slow each other.
fn shared(contention: f64) -> Simulated {
    let mut deployed = deployed(1, 1);
    for w in &mut deployed.workers {
        w.costs = StepCosts::Linear(LinearCosts { contention, ..LinearCosts::from(MODELED) });
    }
    simulate(&deployed, &driven(8, 200)).expect("a finished run")
}

#[test]
fn workers_that_share_cores_slow_each_other_only_while_both_compute() {
    let (alone, beside) = (shared(0.0), shared(1.0));
    assert!(rate(&beside) < 0.95 * rate(&alone));
    // All steps take between once and twice their time alone, and some of each phase are slowed in part.
    let mut all = Vec::new();
    for (a, b) in alone.logs.iter().zip(&beside.logs) {
        let cost = |l: &tandem_sched::iteration::IterationLine| LinearCosts::from(MODELED).seconds(l.n_ctx_tokens, l.n_gen_tokens, 0);
        for line in &a.lines {
            assert!((line.took.as_secs_f64() - cost(line)).abs() < 1e-6);
        }
        let factors: Vec<f64> = b.lines.iter().map(|l| l.took.as_secs_f64() / cost(l)).collect();
        assert!(factors.iter().all(|f| (0.999..=2.001).contains(f)), "{factors:?}");
        all.extend(factors);
    }
    assert!(all.iter().any(|f| (1.05..1.95).contains(f)), "{all:?}");
}

#[test]
fn a_pipeline_creates_no_throughput() {
    let model = Model::deepseek_r1(Constants::shipped());
    let inputs = Inputs { recipe: Some(RecipeSource::Builtin("deepseek-r1".into())), gpu_type: Some("h100".into()), ..Inputs::default() };
    let no_file = |_: &str| -> std::io::Result<String> { unreachable!("the model ships") };
    let plan = plans(&load_recipe(&inputs).unwrap(), &no_file).unwrap().remove(0);
    let point = LoadPoint { concurrency: 256, n_requests: 512, n_warmup: 0 };
    let s = tandem_sim::predict::scenario(&plan, &point).unwrap();
    let run = |pp: u32| {
        let mut s = s.clone();
        (s.prefill.layout.pp, s.decode.layout.pp) = (pp, pp);
        let mut setup = setup(&plan, point, &model, None).unwrap();
        for w in &mut setup.workers {
            w.costs = match w.phase {
                Phase::Prefill => StepCosts::Prefill { cost: model.prefill_cost(&s, 1.0), burst: 1.0 },
                Phase::Decode => StepCosts::Decode(model.decode_cost(&s, tandem_sim::cost::Correction::constant(1.0))),
            };
        }
        simulate(&setup, &drive(&plan, point, 0)).unwrap()
    };
    let (one, two) = (run(1), run(2));
    assert!(rate(&two) <= 2.0 * rate(&one), "twice the GPUs");
    for simulated in [&one, &two] {
        let latency: f64 = simulated.records.iter().map(|r| (r.end_ns - r.start_ns) as f64).sum();
        let end = simulated.records.iter().map(|r| r.end_ns).max().unwrap() as f64;
        assert!(latency / end <= 256.0 * (1.0 + 1e-9), "Little's law: {}", latency / end);
    }
}

#[test]
fn a_run_replayed_with_its_own_times_decides_the_same() {
    for (what, load) in [(deployed(1, 1), driven(12, 60)), (deployed(2, 1), driven(5, 40)), (deployed(1, 2), driven(20, 60))] {
        let first = simulate(&what, &load).unwrap();
        let mut again = what.clone();
        for (worker, log) in again.workers.iter_mut().zip(&first.logs) {
            let nanos = |d: std::time::Duration| tandem_plan::Nanos::from(d);
            let step =
                |l: &tandem_sched::iteration::IterationLine| ReplayedStep { iter: l.iter, begin: nanos(l.begin), end: nanos(l.end()) };
            worker.costs = StepCosts::Replayed(log.lines.iter().map(step).collect());
        }
        let sent = first.records.iter().map(|r| tandem_plan::Nanos(r.start_ns)).collect();
        let again = simulate(&again, &Drive { arrivals: Arrivals::Trace(sent), ..load }).unwrap();
        assert_eq!(again.logs, first.logs);
    }
}

#[test]
fn a_replayed_worker_keeps_the_times_of_its_log_and_not_its_costs() {
    let mut what = deployed(1, 1);
    let at = |ms: u64| tandem_plan::Nanos(ms * 1_000_000);
    // Prefill computes from 100 to 300 ms, whatever it costs.
    what.workers[0].costs = StepCosts::Replayed(vec![ReplayedStep { iter: 7, begin: at(100), end: at(300) }]);
    let mut load = driven(1, 1);
    load.point.n_warmup = 0;
    let simulated = simulate(&what, &load).unwrap();
    let line = &simulated.logs[0].lines[0];
    assert_eq!((line.iter, line.begin.as_millis(), line.took.as_millis()), (7, 100, 200));
    let ttft_ms = (simulated.records[0].ack_ns.unwrap() - simulated.records[0].start_ns) / 1_000_000;
    assert_eq!(ttft_ms, 300);
}

#[test]
fn a_worker_that_has_rested_takes_longer_once() {
    let with = |cold_s| {
        let mut what = deployed(1, 1);
        what.workers[1].costs = StepCosts::Measured(TableCosts { cold_s, ..TableCosts::from(LinearCosts::from(MODELED)) });
        simulate(&what, &driven(1, 10)).unwrap()
    };
    let (warm, cold) = (with(0.0), with(2e-3));
    let decode = |s: &Simulated| s.logs[1].lines.iter().map(|l| l.took.as_micros()).collect::<Vec<_>>();
    let longer: Vec<u128> = decode(&cold).iter().zip(decode(&warm)).map(|(cold, warm)| cold - warm).collect();
    // One request at a time, of 39 decode steps: the first after each prompt.
    assert!(longer.iter().enumerate().all(|(i, longer)| *longer == if i % 39 == 0 { 2000 } else { 0 }), "{longer:?}");
}

#[test]
fn requests_that_come_at_once_are_handed_out_one_by_one() {
    let first_step = |dispatch_s| {
        let mut what = deployed(1, 1);
        what.overheads.dispatch_s = dispatch_s;
        simulate(&what, &driven(2, 8)).unwrap().logs[0].lines[0].n_ctx_requests
    };
    // The first finds its worker idle and runs alone.
    assert_eq!((first_step(0.0), first_step(2e-5)), (2, 1));
}
