//! A cluster that differs from the published rows, and what three of its runs tell of a fourth.

mod scenarios;

use scenarios::gb200;
use tandem_sim::des::simulate;
use tandem_sim::fit::{Constants, OwnRun, refit};
use tandem_sim::model::{Factors, Model};
use tandem_sim::rows::{Measured, Scenario};

/// What a cluster would measure whose decode steps take 1.2 and whose prefill 0.85 of what the shipped constants say.
fn measure(model: &Model, s: Scenario) -> OwnRun {
    let usual = model.factors(&s);
    let kv_tokens = model.kv_tokens(&s);
    let factors = Factors { decode: usual.decode.shifted(1.2_f64.ln()), prefill: 0.85 * usual.prefill };
    let warmup = 2 * s.load.concurrency;
    let outcome = simulate(&model.deployment_holding(&s, factors, kv_tokens), &s.load).after(warmup as usize);
    let measured = Measured {
        tokens_per_gpu: Some(outcome.output_rate / s.gpus),
        tpot: Some(outcome.tpot.median),
        ttft_median: Some(outcome.ttft.median),
        ttft_mean: Some(outcome.ttft.mean),
        ttft_p99: Some(outcome.ttft.p99),
    };
    OwnRun { scenario: s, measured, warmup, kv_tokens }
}

#[test]
fn three_runs_of_a_cluster_predict_its_fourth() {
    let model = Model::deepseek_r1(Constants::shipped());
    let runs = [(64, 2, 64), (512, 3, 64), (1024, 4, 128)].map(|(c, n, b)| measure(&model, gb200(n, b, c)));
    let fourth = measure(&model, gb200(3, 64, 256));
    let refitted = refit(&model, &runs);
    assert!(refitted.before.iter().all(|e| e[0].unwrap() < -0.1), "{:?}", refitted.before);
    assert!(refitted.left_out.iter().all(|e| e[0].unwrap().abs() < 0.05), "{:?}", refitted.left_out);
    let mut own = model.clone();
    own.constants = refitted.constants;
    let s = &fourth.scenario;
    let outcome = simulate(&own.deployment_holding(s, own.factors(s), fourth.kv_tokens), &s.load).after(fourth.warmup as usize);
    let off = |value: f64, measured: Option<f64>| (value / measured.unwrap() - 1.0).abs();
    assert!(off(outcome.tpot.median, fourth.measured.tpot) < 0.03, "{outcome:?}", outcome = outcome.tpot);
    assert!(off(outcome.output_rate / s.gpus, fourth.measured.tokens_per_gpu) < 0.03);
    assert!(off(outcome.ttft.median, fourth.measured.ttft_median) < 0.15);
    let spread = |c: &Constants| c.provenance.spread["tpot gb200 trt"];
    assert!(spread(&own.constants) < 0.6 * spread(&model.constants), "three runs that predict each other narrow the interval");
    // The file keeps it.
    let read = Constants::from_json(&own.constants.to_json()).unwrap();
    assert_eq!(read.to_json(), own.constants.to_json());
}

#[test]
fn a_single_run_moves_predictions_but_narrows_no_interval() {
    let model = Model::deepseek_r1(Constants::shipped());
    let refitted = refit(&model, &[measure(&model, gb200(3, 64, 256))]);
    assert!(refitted.left_out.is_empty());
    assert_eq!(refitted.constants.provenance.spread, model.constants.provenance.spread);
    assert!(refitted.constants.decode[0] > model.constants.decode[0] + 0.1);
}
