//! Measured operators take the place of the roofline's terms: exact where measured, held utilisation beyond, and named in predictions.

use std::fmt::Write as _;

use tandem_plan::{ParallelLayout, Phase};
use tandem_sim::cost::{Coefficients, Correction, DecodeCost, DecodeLoad, PrefillCost, PrefillLoad, Shape};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::rows::{self, Scenario};
use tandem_sim::tables::{Hit, OperatorTables, Table, TableError};

fn table(name: &str, version: &str, csv: &str) -> Table {
    let (n_rows, columns) = Table::from_csv(csv).expect("a table of the test");
    Table { name: name.to_owned(), gpu: "gb200".to_owned(), backend: "trtllm".to_owned(), version: version.to_owned(), n_rows, columns }
}

const TOKENS: [u32; 4] = [64, 256, 1024, 4096];

/// Experts of DEP8 that take `ms` at each of [`TOKENS`].
fn experts(ms: [f64; 4]) -> Table {
    let mut csv = "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency\n".to_owned();
    for (tokens, ms) in TOKENS.iter().zip(ms) {
        // A slower kernel for the same thing does not count, nor does another distribution.
        let _ = writeln!(csv, "nvfp4,{tokens},7168,2048,8,256,1,8,power_law_1.01,{ms}");
        let _ = writeln!(csv, "nvfp4,{tokens},7168,2048,8,256,1,8,power_law_1.01,{}", 2.0 * ms);
        let _ = writeln!(csv, "nvfp4,{tokens},7168,2048,8,256,1,8,power_law_1.2,{}", 0.1 * ms);
    }
    table("moe_perf", "1.0", &csv)
}

fn scenario() -> Scenario {
    let text = "id,kind,hardware,framework,precision,isl,osl,concurrency,n_ctx,ctx_world_size,ctx_tp,ctx_ep,ctx_attn_dp,ctx_max_batch_size,\
                ctx_max_num_tokens,n_gen,gen_world_size,gen_tp,gen_ep,gen_attn_dp,gen_max_batch_size,gen_max_num_tokens\n\
                x,disagg,gb200,dynamo-trt,fp4,8192,1024,1024,4,8,8,8,True,4,8192,1,8,8,8,True,256,256\n";
    Scenario::new(&rows::parse(text).expect("a table of the test").0[0])
}

fn model(tables: Vec<Table>) -> Model {
    Model::deepseek_r1(Constants::uncorrected()).with_tables(OperatorTables::new(tables).expect("tables of the test"))
}

fn shape(model: &Model) -> Shape {
    let s = scenario();
    model.shape(&s, &s.decode, 0)
}

/// A decode step of DEP8 with so many tokens of all ranks.
fn step(model: &Model, tokens: f64) -> f64 {
    let cost = DecodeCost::new(model.facts(), &shape(model), &Coefficients::START, Correction::default());
    cost.step(DecodeLoad { rank_sequences: tokens / 8.0, rank_context: tokens * 1000.0, sequences: tokens })
}

#[test]
fn at_measured_sizes_a_step_holds_just_the_measured_time() {
    let (a, b) = (model(vec![experts([0.1, 0.2, 0.3, 0.9])]), model(vec![experts([0.1, 0.5, 0.3, 0.9])]));
    // 58 layers have experts; everything else of the two is alike.
    assert!((step(&b, 256.0) - step(&a, 256.0) - 58.0 * 0.3e-3).abs() < 1e-12);
    assert_eq!(step(&a, 64.0), step(&b, 64.0));
    let between = step(&b, 500.0) - step(&a, 500.0);
    assert!(between > 0.0 && between < 58.0 * 0.3e-3, "{between}");
}

#[test]
fn beyond_the_measured_sizes_the_utilisation_is_held() {
    let (a, b) = (model(vec![experts([0.1, 0.2, 0.3, 2.0])]), model(vec![experts([0.1, 0.2, 0.3, 4.0])]));
    // At 65,536 tokens the operations bound: four times the tokens take four times as long.
    let difference = |tokens: f64| step(&b, tokens) - step(&a, tokens);
    assert!((difference(262_144.0) / difference(65_536.0) - 4.0).abs() < 1e-9);
}

#[test]
fn prefill_takes_its_operators_from_the_tables_too() {
    let s = scenario();
    let iteration = |model: &Model| {
        let shape = model.shape(&s, &s.prefill, 0);
        let load = PrefillLoad { rank_tokens: 512.0, rank_pairs: 131_072.0, tokens: 4096.0 };
        PrefillCost::new(model.facts(), &shape, &Coefficients::START, 1.5).iteration(load)
    };
    let (a, b) = (model(vec![experts([0.1, 0.2, 0.3, 2.0])]), model(vec![experts([0.1, 0.2, 0.3, 3.0])]));
    assert!((iteration(&b) - iteration(&a) - 1.5 * 58.0 * 1e-3).abs() < 1e-12);
}

#[test]
fn matrix_products_are_the_sum_over_layers_and_near_widths_stand_in() {
    // Every product of the model lies within two doublings of one of these, the nearest ones are exact.
    let mut csv = "gemm_dtype,m,n,k,latency\n".to_owned();
    for (n, k) in [(2112, 7168), (24_576, 1536), (7168, 16_384), (32_768, 512), (4096, 7168), (7168, 2048), (36_864, 7168), (7168, 18_432)]
    {
        for format in ["bfloat16", "nvfp4"] {
            let _ = writeln!(csv, "{format},1,{n},{k},0.01\n{format},1024,{n},{k},0.02");
        }
    }
    let tables = |slower: bool| {
        let gemm = table("gemm_perf", "1.0", &csv);
        let newer = table("gemm_perf", "1.10", "gemm_dtype,m,n,k,latency\nbfloat16,1,2112,7168,0.11\nbfloat16,1024,2112,7168,0.12\n");
        if slower { vec![newer, gemm] } else { vec![gemm] }
    };
    let (plain, slower) = (model(tables(false)), model(tables(true)));
    // The newer version's product, 61 of them, replaces the older one's whatever the order of files.
    assert!((step(&slower, 8192.0) - step(&plain, 8192.0) - 61.0 * 0.1e-3).abs() < 1e-10);
    let uses = plain.operators(&scenario());
    let dense = uses.iter().find(|u| u.phase == Phase::Decode && u.operator == "matrix products").unwrap();
    assert_eq!(dense.hit, Some(Hit::Interpolated), "the output projection was not measured");
    assert_eq!(dense.source.as_deref(), Some("gemm_perf trtllm 1.0"));
}

#[test]
fn attention_comes_by_batch_and_length_and_the_all_reduce_by_values() {
    let mut csv = "kv_cache_dtype,num_heads,batch_size,isl,step,latency\n".to_owned();
    for batch in [16, 128] {
        for length in [1000, 8000] {
            let _ = writeln!(csv, "fp8,128,{batch},1,{},{}", length - 1, f64::from(batch * length) * 1e-6);
        }
    }
    let attention = |factor: f64| {
        let text = csv.lines().enumerate().map(|(i, line)| match (i, line.rsplit_once(',')) {
            (0, _) | (_, None) => line.to_owned(),
            (_, Some((rest, ms))) => format!("{rest},{}", factor * ms.parse::<f64>().unwrap()),
        });
        table("generation_mla_perf", "1.0", &text.collect::<Vec<_>>().join("\n"))
    };
    let timed = |model: &Model| {
        let cost = DecodeCost::new(model.facts(), &shape(model), &Coefficients::START, Correction::default());
        cost.step(DecodeLoad { rank_sequences: 16.0, rank_context: 128_000.0, sequences: 128.0 })
    };
    let difference = timed(&model(vec![attention(2.0)])) - timed(&model(vec![attention(1.0)]));
    assert!((difference - 61.0 * 16.0 * 8000.0 * 1e-9).abs() < 1e-10, "{difference}");

    let mut s = scenario();
    s.decode.layout = ParallelLayout { tp: 8, pp: 1, ep: 1, attention_dp: false };
    let timed = |us: f64| {
        let csv = format!("allreduce_dtype,num_gpus,message_size,op_name,latency\nbfloat16,8,7168,all_reduce,{}\n", us * 1e-3);
        let model = model(vec![table("custom_allreduce_perf", "1.0", &csv)]);
        let cost = DecodeCost::new(model.facts(), &model.shape(&s, &s.decode, 0), &Coefficients::START, Correction::default());
        cost.step(DecodeLoad { rank_sequences: 1.0, rank_context: 1000.0, sequences: 1.0 })
    };
    // One token is as many values as the model is wide; two all-reduces in each of 61 layers.
    assert!((timed(15.0) - timed(5.0) - 122.0 * 10e-6).abs() < 1e-10);
}

#[test]
fn a_cache_in_the_other_format_stands_in_as_it_was_measured_and_says_so() {
    let attention = |cache: &str, ms: f64| {
        let rows = format!("{cache},128,16,1,7999,{ms}\n{cache},128,128,1,7999,{}\n", 8.0 * ms);
        table("generation_mla_perf", "1.0", &format!("kv_cache_dtype,num_heads,batch_size,isl,step,latency\n{rows}"))
    };
    let timed = |model: &Model| {
        let cost = DecodeCost::new(model.facts(), &shape(model), &Coefficients::START, Correction::default());
        cost.step(DecodeLoad { rank_sequences: 16.0, rank_context: 128_000.0, sequences: 128.0 })
    };
    let decode = |model: &Model| {
        let uses = model.operators(&scenario());
        let found = uses.into_iter().find(|u| u.phase == Phase::Decode && u.operator == "attention").unwrap();
        (found.source.unwrap(), found.hit.unwrap())
    };
    // The scenario's cache is FP8. A BF16 one takes in a prediction what it took when it was measured.
    let (a, b) = (model(vec![attention("bfloat16", 0.1)]), model(vec![attention("bfloat16", 0.3)]));
    assert!((timed(&b) - timed(&a) - 61.0 * 0.2e-3).abs() < 1e-10);
    assert_eq!(decode(&a), ("generation_mla_perf trtllm 1.0 (BF16 cache)".to_owned(), Hit::Extrapolated));
    let own = model(vec![attention("fp8", 0.1)]);
    assert!(!decode(&own).0.contains("cache"));
}

#[test]
fn the_all_to_all_is_the_sum_of_its_parts_by_the_faster_kernel() {
    let rows = |dispatch: f64| {
        let mut csv = "kernel_source,op_name,moe_dtype,num_tokens,hidden_size,topk,num_experts,moe_ep_size,latency\n".to_owned();
        for (kernel, factor) in [("NVLinkOneSided", 1.0), ("NVLinkTwoSided", 3.0)] {
            let _ = writeln!(csv, "{kernel},alltoall_dispatch,nvfp4,32,7168,8,256,8,{}", factor * dispatch);
            let _ = writeln!(csv, "{kernel},alltoall_combine,nvfp4,32,7168,8,256,8,{}", factor * 0.02);
        }
        table("trtllm_alltoall_perf", "1.0", &csv)
    };
    let difference = step(&model(vec![rows(0.05)]), 256.0) - step(&model(vec![rows(0.03)]), 256.0);
    assert!((difference - 58.0 * 0.02e-3).abs() < 1e-12, "{difference}");
}

#[test]
fn predictions_name_the_source_of_each_operator_and_other_gpus_keep_the_roofline() {
    let s = scenario();
    let with = model(vec![experts([0.1, 0.2, 0.3, 0.9])]);
    let uses = with.operators(&s);
    assert_eq!(uses.len(), 8);
    let words: Vec<String> = uses.iter().map(ToString::to_string).collect();
    assert!(words.contains(&"decode experts: moe_perf trtllm 1.0, exact".to_owned()), "{words:?}");
    assert!(words.contains(&"prefill experts: moe_perf trtllm 1.0, extrapolated".to_owned()), "{words:?}");
    assert!(words.contains(&"decode attention: not in the tables, roofline".to_owned()), "{words:?}");
    assert!(tandem_sim::predict::extrapolates(&with, &s).iter().any(|reason| reason.contains("fitted without them")));

    let elsewhere = Scenario { hardware: "h200".to_owned(), ..s.clone() };
    let without = Model::deepseek_r1(Constants::uncorrected());
    let cost = |model: &Model| model.decode_cost(&elsewhere, Correction::default());
    assert_eq!(cost(&with), cost(&without));
    assert_ne!(with.decode_cost(&s, Correction::default()), without.decode_cost(&s, Correction::default()));
}

#[test]
fn tables_that_mean_nothing_are_refused_by_name() {
    let error = OperatorTables::new(vec![table("gemm_perf", "1", "gemm_dtype,m,n,latency\nfp8,1,2,3\n")]).unwrap_err();
    assert_eq!(error.to_string(), "gemm_perf has no column `k` of numbers");
    assert_eq!(OperatorTables::new(vec![table("kda_perf", "1", "a\n1\n")]), Err(TableError::NoOperator));
    assert_eq!(Table::from_csv("a,b\n1\n"), Err(TableError::Ragged { line: 2, found: 1, wanted: 2 }));
}
