//! What must hold of every prediction, whatever the constants are.

mod scenarios;

use scenarios::{gb200, pool};
use tandem_plan::{ParallelLayout, WeightDtype};
use tandem_sim::cost::{Coefficients, Correction, DecodeCost, DecodeLoad, ModelFacts, Shape};
use tandem_sim::des::{Deployment, Lengths, Outcome, WorkerChoice, simulate};
use tandem_sim::fit::Constants;
use tandem_sim::hardware::{find, shipped};
use tandem_sim::model::Model;
use tandem_sim::rows::Scenario;

fn model() -> Model {
    Model::deepseek_r1(Constants::shipped())
}

fn scenario(concurrency: u32) -> Scenario {
    let mut s = gb200(2, 64, concurrency);
    (s.months, s.load.seed) = (0.0, 7);
    (s.load.isl, s.load.osl) = (Lengths::Uniform(3000, 4000), Lengths::Uniform(400, 500));
    s
}

fn deployment(s: &Scenario) -> Deployment {
    let model = model();
    model.deployment(s, model.factors(s))
}

fn run(s: &Scenario) -> Outcome {
    simulate(&deployment(s), &s.load)
}

#[test]
fn equal_inputs_give_equal_outputs_to_the_last_bit() {
    let s = scenario(300);
    assert_eq!(run(&s), run(&s));
}

#[test]
fn every_request_is_served_and_has_its_tokens_in_order() {
    let outcome = run(&scenario(300));
    assert_eq!(outcome.requests.len(), 1800);
    for r in &outcome.requests {
        assert!(r.sent < r.first && r.first <= r.end && r.tpot() >= 0.0, "{r:?}");
    }
}

#[test]
fn littles_law_holds() {
    for concurrency in [1, 16, 300, 700] {
        let outcome = run(&scenario(concurrency));
        let latency: f64 = outcome.requests.iter().map(|r| r.end - r.sent).sum::<f64>() / outcome.requests.len() as f64;
        assert!((outcome.request_rate * latency / outcome.in_flight - 1.0).abs() < 1e-9);
        // A closed loop is full but for its end.
        assert!(outcome.in_flight <= f64::from(concurrency) * (1.0 + 1e-9));
        assert!(outcome.in_flight >= f64::from(concurrency) * 0.7, "{concurrency}: {}", outcome.in_flight);
    }
}

#[test]
fn never_more_sequences_in_decode_than_slots() {
    let s = scenario(900);
    let outcome = run(&s);
    let mut changes: Vec<(f64, i32)> = outcome.requests.iter().flat_map(|r| [(r.first, 1), (r.end, -1)]).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut running = 0;
    for (_, change) in changes {
        running += change;
        assert!(running <= 8 * 64, "{running}");
    }
}

#[test]
fn twice_the_servers_and_twice_the_load_give_twice_the_throughput() {
    let one = scenario(400);
    let mut two = one.clone();
    two.prefill.workers *= 2;
    two.decode.workers *= 2;
    two.load.concurrency *= 2;
    two.load.requests *= 2;
    let ratio = run(&two).output_rate / run(&one).output_rate;
    assert!((ratio - 2.0).abs() < 0.06, "{ratio}");
}

#[test]
fn more_memory_never_holds_fewer_tokens() {
    let model = model();
    let mut before = 0;
    for fraction in [0.1, 0.3, 0.5, 0.7, 0.9] {
        let mut s = scenario(10);
        s.decode.memory_fraction = fraction;
        let tokens = model.kv_tokens(&s);
        assert!(tokens >= before);
        before = tokens;
    }
    let mut s = scenario(10);
    s.hardware = "gb300".to_owned();
    let larger = model.kv_tokens(&s);
    s.hardware = "gb200".to_owned();
    assert!(larger > model.kv_tokens(&s));
}

#[test]
fn a_larger_cache_never_lowers_throughput() {
    let s = scenario(500);
    let mut small = deployment(&s);
    small.decode.kv_tokens = 100_000;
    let mut large = small.clone();
    large.decode.kv_tokens = 1_000_000;
    assert!(simulate(&large, &s.load).output_rate >= simulate(&small, &s.load).output_rate);
}

fn cost(layout: ParallelLayout, mtp: u32, acceptance: f64, eplb_slots: u32) -> DecodeCost {
    let gpus = shipped();
    let shape = Shape {
        gpu: find(&gpus, "h100").expect("the table has it").clone(),
        layout,
        weights: WeightDtype::Fp8,
        kv_value_bytes: 1.0,
        mtp,
        eplb_slots,
        measured: None,
    };
    let coefficients = Coefficients { acceptance, ..Coefficients::START };
    DecodeCost::new(model().facts(), &shape, &coefficients, Correction::default())
}

const DEP8: ParallelLayout = ParallelLayout { tp: 8, pp: 1, ep: 8, attention_dp: true };

fn load(per_rank: f64) -> DecodeLoad {
    DecodeLoad { rank_sequences: per_rank, rank_context: per_rank * 8000.0, sequences: per_rank * 8.0 }
}

#[test]
fn drafts_that_are_never_accepted_are_never_faster() {
    for batch in [1.0, 8.0, 64.0, 256.0] {
        let (plain, drafting) = (cost(DEP8, 0, 0.0, 0), cost(DEP8, 3, 0.0, 0));
        assert_eq!(drafting.tokens_per_step(), 1.0);
        assert!(drafting.step(load(batch)) >= plain.step(load(batch)));
    }
}

#[test]
fn accepted_drafts_are_tokens() {
    assert!((cost(DEP8, 2, 0.5, 0).tokens_per_step() - 1.75).abs() < 1e-12);
}

#[test]
fn a_pipeline_creates_no_throughput() {
    for batch in [2.0, 16.0, 128.0] {
        let two_stages = cost(ParallelLayout { pp: 2, ..DEP8 }, 0, 0.7, 0).step(load(batch));
        let (whole, half) = (cost(DEP8, 0, 0.7, 0).step(load(batch)), cost(DEP8, 0, 0.7, 0).step(load(batch / 2.0)));
        // A sequence passes all layers with half of the batch: no faster than that batch alone on one stage, and with twice the
        // GPUs at most twice the sequences per second.
        assert!((two_stages / half - 1.0).abs() < 1e-12);
        assert!(batch / two_stages <= 2.0 * batch / whole);
    }
}

#[test]
fn steps_of_larger_batches_take_longer() {
    let cost = cost(DEP8, 0, 0.7, 0);
    let times: Vec<f64> = [1.0, 4.0, 32.0, 128.0, 512.0].map(|b| cost.step(load(b))).to_vec();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn spare_expert_slots_never_slow_a_step() {
    assert!(cost(DEP8, 0, 0.7, 288).step(load(256.0)) <= cost(DEP8, 0, 0.7, 0).step(load(256.0)));
}

#[test]
fn ranks_outside_the_nvlink_domain_cost_more() {
    let inside = cost(DEP8, 0, 0.7, 0).step(load(128.0));
    let across = cost(ParallelLayout { tp: 16, ep: 16, ..DEP8 }, 0, 0.7, 0);
    let load = DecodeLoad { sequences: 128.0 * 16.0, ..load(128.0) };
    assert!(across.step(load) > inside * 0.8, "the network card is slower than NVLink");
}

/// Published figures of the architecture: 187.1 M attention weights a layer, 44.04 M an expert, 16.99 MF per context token over all
/// layers in decode, 4.997 MF per pair in prefill, 35,136 B of FP8 cache per token.
#[test]
fn facts_are_those_of_the_architecture() {
    let f: ModelFacts = *model().facts();
    assert_eq!(f.attention_split + f.attention_whole, 187_105_280.0);
    assert_eq!(f.expert, 44_040_192.0);
    assert_eq!((f.layers, f.moe_layers, f.dense_layers), (61.0, 58.0, 3.0));
    assert_eq!(f.layers * f.kv_values, 35_136.0);
    assert!((f.layers * f.decode_pair_flops / 16.99e6 - 1.0).abs() < 1e-3);
    assert!((f.layers * f.prefill_pair_flops / 4.997e6 - 1.0).abs() < 1e-3);
}

#[test]
fn records_look_like_those_of_a_load_generator() {
    let outcome = run(&scenario(16));
    let record = outcome.requests[3].to_record(3, 20);
    assert!(record.is_kept());
    assert_eq!(record.osl_tokens(), Some(outcome.requests[3].osl));
    let tokens: u32 = (0..record.chunks.len()).filter_map(|i| record.chunks.iter().nth(i)?.n_tokens).sum();
    assert_eq!(tokens, outcome.requests[3].osl);
}

/// Three requests on three workers that take one at a time: drawn at random, they are a closed network of three equal stations, of which
/// 3 / (3 + 3 - 1) are busy with exponential services (Lavenberg 1983, on product forms), and more with nearly equal ones.
#[test]
fn workers_drawn_at_random_are_used_as_a_closed_network_is() {
    let mut s = scenario(3);
    s.decode = pool(3, 8, 1, 64);
    s.decode.layout.attention_dp = false;
    s.load.requests = 3000;
    let rate = |routing: WorkerChoice| {
        let mut deployment = deployment(&s);
        deployment.decode.routing = routing;
        simulate(&deployment, &s.load).output_rate
    };
    let least = rate(WorkerChoice::LeastLoaded);
    let used = rate(WorkerChoice::Random) / least;
    assert!(used > 0.55 && used < 0.8, "{used}");
    let in_turn = rate(WorkerChoice::RoundRobin) / least;
    assert!(in_turn > used && in_turn <= 1.01, "{in_turn}");
}
