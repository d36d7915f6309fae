//! The published recipes and their measured neighbour.

use tandem_recipe::{Inputs, RecipeSource, load_recipe, plans};
use tandem_sim::evaluate::predict_scenario;
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::predict::{Prediction, predict};
use tandem_sim::rows::{Row, Scenario, parse};

fn predictions(gpu: &str) -> Vec<Prediction> {
    predictions_with(gpu, &[])
}

fn predictions_with(gpu: &str, set: &[&str]) -> Vec<Prediction> {
    let inputs = Inputs {
        recipe: Some(RecipeSource::Builtin("deepseek-r1".to_owned())),
        gpu_type: Some(gpu.to_owned()),
        sets: set.iter().map(|s| (*s).to_owned()).collect(),
        ..Inputs::default()
    };
    let read = |path: &str| Err(std::io::Error::other(format!("{path}: no file is needed")));
    let plans = plans(&load_recipe(&inputs).expect("a built-in recipe"), &read).expect("the published configuration fits");
    predict(&Model::deepseek_r1(Constants::shipped()), &plans[0])
}

#[test]
fn every_published_recipe_fits_and_has_a_prediction_with_an_interval() {
    for (gpu, concurrency) in [("gb200", 2048), ("b200", 2048), ("h100", 1024)] {
        let predictions = predictions(gpu);
        assert_eq!(predictions.len(), 1);
        let p = &predictions[0];
        assert_eq!(p.concurrency, concurrency);
        for interval in [p.tokens_per_gpu, p.tpot, p.ttft_median, p.ttft_p99] {
            assert!(0.0 < interval.low && interval.low < interval.value && interval.value < interval.high, "{gpu}: {p:?}");
        }
        // Below the roofline of the same configuration, above a tenth of it.
        let bound = if gpu == "h100" { 604.0 } else { 3300.0 };
        assert!(p.tokens_per_gpu.value < bound && p.tokens_per_gpu.value > bound / 10.0, "{gpu}: {p:?}");
    }
}

#[test]
fn pipelines_without_measurements_are_called_an_extrapolation() {
    let p = &predictions("h100")[0];
    assert!(p.extrapolates.iter().any(|r| r.contains("pipeline")), "{:?}", p.extrapolates);
}

/// Measured on seven days: 1,272 output tokens/s a GPU, TPOT 52.2 ms, TTFT 2.61 s in the median and 47.9 s at p99.
#[test]
fn the_measured_neighbour_of_the_gb200_recipe_is_met() {
    let table = "id,kind,hardware,framework,precision,isl,osl,length_dist,concurrency,date,n_ctx,ctx_world_size,ctx_tp,ctx_pp,ctx_ep,\
        ctx_attn_dp,ctx_max_batch_size,ctx_max_num_tokens,n_gen,gen_world_size,gen_tp,gen_pp,gen_ep,gen_attn_dp,gen_max_batch_size,\
        gen_max_num_tokens,gen_gpu_memory_fraction,gen_mtp_size\n\
        neighbour,disagg,gb200,dynamo-trt,fp4,8192,1024,\"uniform[0.8,1.0]\",2150,2025-12-15,5,4,4,1,4,True,1,8448,1,8,8,1,8,True,256,256,\
        0.8,0\n";
    let row = parse(table).unwrap().0.remove(0);
    let p = predict_scenario(&Model::deepseek_r1(Constants::shipped()), &Scenario::new(&row));
    let off = |value: f64, measured: f64| (value / measured - 1.0).abs();
    assert!(off(p.tokens_per_gpu, 1272.4) < 0.05, "{p:?}");
    assert!(off(p.tpot, 0.052_16) < 0.05, "{p:?}");
    assert!(off(p.ttft_median, 2.610) < 0.15 && off(p.ttft_p99, 47.88) < 0.15, "{p:?}");
}

/// The recipe with the knobs of that neighbour: lengths are fixed and the first burst is warm-up there, so p99 of TTFT is another thing.
#[test]
fn the_recipe_with_its_neighbours_knobs_is_predicted_as_measured() {
    let p = &predictions_with("gb200", &["NCTX=5", "NGEN=1", "CONCURRENCY=2150", "CTX_MAX_NUM_TOKENS=8448"])[0];
    let off = |value: f64, measured: f64| (value / measured - 1.0).abs();
    assert!(off(p.tokens_per_gpu.value, 1272.4) < 0.05 && off(p.tpot.value, 0.052_16) < 0.05, "{p:?}");
    assert!(off(p.ttft_median.value, 2.610) < 0.15, "{p:?}");
}

#[test]
fn an_interval_is_wider_where_nothing_alike_was_fitted() {
    let model = Model::deepseek_r1(Constants::shipped());
    let table = "id,kind,hardware,framework,precision,isl,osl,concurrency,date,n_ctx,ctx_world_size,ctx_tp,ctx_ep,ctx_attn_dp,\
        ctx_max_batch_size,ctx_max_num_tokens,n_gen,gen_world_size,gen_tp,gen_ep,gen_attn_dp,gen_max_batch_size,gen_mtp_size\n\
        fitted,disagg,gb200,dynamo-trt,fp4,8192,1024,2150,2025-12-15,5,4,4,4,True,1,8448,1,8,8,8,True,256,0\n\
        strange,disagg,h100,dynamo-trt,fp8,65536,128,64,2025-12-15,5,1,1,1,False,1,66000,1,64,64,64,True,4,5\n\
        unknown,disagg,z900,dynamo-trt,fp4,8192,1024,2150,2025-12-15,5,4,4,4,True,1,8448,1,8,8,8,True,256,0\n";
    let unknown = |row: &Row| model.unknown(&Scenario::new(row));
    let rows = parse(table).unwrap().0;
    let fitted = unknown(&rows[0]);
    assert!(fitted[0] < 0.1 && fitted[1] < 0.25, "{fitted:?}");
    for far in [unknown(&rows[1]), unknown(&rows[2])] {
        assert!(far[0] > 0.25 && far[1] > 0.35, "{far:?}");
    }
}
