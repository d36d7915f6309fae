//! Layers: which one wins, what each value remembers, and how lists become cases.

use tandem_plan::{GpuType, ModelSource, Plan};
use tandem_recipe::{Cluster, Inputs, RecipeSource, TextFile, explain, load_recipe, plans};

use crate::common::{env, file_inputs, inputs, no_files, plan, plans_of, snapshot};

/// Every layer sets OSL; the ones above the recipe file are added one after the other.
fn layered() -> Inputs {
    Inputs {
        site: Some(TextFile { path: "site.yaml".into(), text: "SBATCH_ACCOUNT: me\nOSL: 2\nNGEN: 2\nISL: 20\n".into() }),
        env: env(&[("OSL", "4"), ("ISL", "40"), ("STREAMING", ""), ("PATH", "/bin"), ("MODEL", "not ours")]),
        sets: vec!["OSL=5".into()],
        ..file_inputs("# comment\nbase: nano\n\nOSL: 3\nISL: 30\nNCTX: 1\n")
    }
}

fn record(plan: &Plan, knob: &str) -> String {
    format!("{} from {}", plan.knobs[knob].value, plan.knobs[knob].layer)
}

#[test]
fn later_layers_win_and_each_value_remembers_its_layer() {
    let plan = plans_of(&layered()).remove(0);
    assert_eq!(record(&plan, "OSL"), "5 from command line --set OSL=5");
    assert_eq!(record(&plan, "ISL"), "40 from environment variable ISL");
    assert_eq!(record(&plan, "NCTX"), "1 from recipe file r.yaml:6");
    assert_eq!(record(&plan, "NGEN"), "2 from site file site.yaml:3");
    assert_eq!(record(&plan, "CONCURRENCY"), "8 from built-in recipe nano");
    // An empty variable is not set, and ours need their prefix.
    assert_eq!(record(&plan, "STREAMING"), "true from built-in recipe nano");
    assert_eq!(record(&plan, "MODEL"), "\"nano\" from built-in recipe nano");
    assert_eq!((plan.load.osl, plan.load.isl, plan.recipe.as_str()), (5, 40, "r"));
}

#[test]
fn explain_shows_value_layers_and_consequences() {
    let recipe = load_recipe(&layered()).unwrap();
    let plan = plans(&recipe, &no_files).unwrap().remove(0);
    let r1 = load_recipe(&inputs("deepseek-r1/h100", &["CONCURRENCY=64,1024"])).unwrap();
    let r1_plan = plans(&r1, &no_files).unwrap().remove(0);
    let mut text = explain(&recipe, Some(&plan), "OSL").unwrap();
    for name in ["GEN_WORLD_SIZE", "concurrency", "GEN_MAX_BATCH_SIZE", "LLMB_WORKLOAD", "RUN_CONF_IMAGE"] {
        text.push('\n');
        text.push_str(&explain(&r1, Some(&r1_plan), name).unwrap());
    }
    snapshot("explain", &text);
    assert!(explain(&recipe, None, "GEN_MTP").unwrap_err().hint().unwrap().contains("GEN_MTP_SIZE"));
    let all = explain(&recipe, None, "all").unwrap();
    assert_eq!(all.lines().count(), tandem_recipe::KNOBS.len());
}

#[test]
fn load_points_share_a_deployment_and_other_lists_make_cases() {
    let plans = plans_of(&inputs("nano", &["CONCURRENCY=1,8,16", "MULTI_ROUND=2,4", "NCTX=1,2"]));
    assert_eq!(plans.len(), 2);
    for (plan, n_ctx) in plans.iter().zip([1, 2]) {
        assert_eq!(plan.workers.len(), n_ctx + 1);
        let points: Vec<_> = plan.load.points.iter().map(|p| (p.concurrency, p.n_requests, p.n_warmup)).collect();
        assert_eq!(points, [(1, 2, 2), (8, 16, 16), (16, 32, 32), (1, 4, 2), (8, 32, 16), (16, 64, 32)]);
        assert_eq!(plan.knobs["CONCURRENCY"].value, serde_json::json!([1, 8, 16]));
        assert_eq!(plan.knobs["NCTX"].value, serde_json::json!(n_ctx));
    }
    assert_ne!(plans[0].deployment_hash(), plans[1].deployment_hash());
}

#[test]
fn lists_are_written_alike_in_every_layer() {
    let by_file = file_inputs("base: nano\nCONCURRENCY: [1, 2]\nSTREAMING:\n  - true\n  - false\n");
    let by_env = Inputs { env: env(&[("CONCURRENCY", "1 2"), ("STREAMING", "true false")]), ..Inputs::default() };
    let by_set = inputs("nano", &["CONCURRENCY=1,2", "STREAMING=true,false"]);
    for inputs in [by_file, by_env, by_set] {
        let plans = plans_of(&inputs);
        assert_eq!(plans.iter().map(|p| p.load.streaming).collect::<Vec<_>>(), [true, false]);
        assert!(plans.iter().all(|p| p.load.points.len() == 2));
        // They differ in the load alone.
        assert_eq!(plans[0].deployment_hash(), plans[1].deployment_hash());
    }
}

#[test]
fn gpu_types_can_be_swept_with_their_own_defaults() {
    let plans = plans_of(&inputs("deepseek-r1", &["GPU_TYPE=gb200,H100", "NGEN=2"]));
    let facts: Vec<_> = plans.iter().map(|p| (p.hardware.gpu_type, p.n_devices(), p.load.points[0].concurrency)).collect();
    assert_eq!(facts, [(GpuType::Gb200, 40, 4096), (GpuType::H100, 64, 2048)]);
}

#[test]
fn a_range_is_every_whole_number_of_it() {
    let points = |set| plan("nano", &[set]).load.points.iter().map(|p| p.concurrency).collect::<Vec<_>>();
    assert_eq!(points("CONCURRENCY=1..3,8"), [1, 2, 3, 8]);
    assert!(load_recipe(&inputs("nano", &["CONCURRENCY=3..1"])).is_err());
    assert!(load_recipe(&inputs("nano", &["CONCURRENCY=0..2"])).is_err());
    assert!(load_recipe(&inputs("nano", &["CONCURRENCY=1..999999999"])).is_err());
}

#[test]
fn a_later_set_replaces_an_earlier_one() {
    assert_eq!(plan("nano", &["OSL=7", "OSL=9"]).load.osl, 9);
}

#[test]
fn yaml_scalars_need_no_quotes_and_may_have_them() {
    let text = "base: nano\nISL: \"128\"\nSTREAMING: 'false'\nGEN_GPU_MEMORY_FRACTION: 0.5\nDEVICE_MEMORY: 128MiB\nSBATCH_TIMELIMIT: 2:00:00\nSERVED_MODEL_NAME: 7\n";
    let plan = plans_of(&file_inputs(text)).remove(0);
    assert_eq!((plan.load.isl, plan.load.streaming), (128, false));
    assert_eq!(plan.hardware.device_memory, tandem_plan::Bytes::mib(128));
    assert_eq!(Cluster::of(&plan).time_limit, "2:00:00");
    assert_eq!(plan.model.served_name, "7");
}

#[test]
fn a_cluster_config_is_a_site_file() {
    let v2 = "schema_version: 2\nllmb_repo: /r\nllmb_install: /i\ngpu_type: h100\ncluster_name: lab\ninstall: {venv_type: uv}\n\
              environment: {HTTP_PROXY: x, MULTI_ROUND: 4}\nslurm:\n  account: acct\n  qos: q\n  gpu: {partition: batch, gres: 8}\n  cpu: {partition: cpu, gres: null}\n\
              workloads: {installed: [a]}\n";
    let v1 = "launcher: {gpu_type: h100, llmb_install: /i, llmb_repo: /r}\nenvironment: {MULTI_ROUND: 4}\n\
              slurm: {account: acct, gpu_partition: batch, gpu_gres: 8, cpu_partition: cpu}\n";
    for text in [v2, v1] {
        let site = Some(TextFile { path: "cluster_config.yaml".into(), text: text.into() });
        let plan = plans_of(&Inputs { site: site.clone(), recipe: Some(RecipeSource::Builtin("deepseek-r1".into())), ..Inputs::default() })
            .remove(0);
        assert_eq!((plan.hardware.gpu_type, plan.load.points[0].n_requests), (GpuType::H100, 4096));
        let cluster = Cluster::of(&plan);
        assert_eq!((cluster.partition.as_deref(), cluster.account.as_deref()), (Some("batch"), Some("acct")));
        assert_eq!(cluster.image, "/i/images/ai-dynamo+tensorrtllm-runtime+0.6.1.sqsh");
        let path = "/i/workloads/inference_deepseek-r1-dynamo/DeepSeek-R1-FP8".to_owned();
        assert_eq!(plan.model.source, ModelSource::Checkpoint { path });
        // The default recipe needs no GPU and runs on that cluster's login node all the same.
        assert_eq!(plans_of(&Inputs { site, ..Inputs::default() })[0].hardware.gpu_type, GpuType::Cpu);
    }
}

#[test]
fn a_model_directory_gives_architecture_and_number_format() {
    let config = |rest: &str| {
        format!(
            r#"{{"model_type":"deepseek_v3","vocab_size":384,"hidden_size":256,"intermediate_size":384,"moe_intermediate_size":32,
            "num_hidden_layers":2,"num_attention_heads":8,"kv_lora_rank":64,"qk_nope_head_dim":32,"qk_rope_head_dim":16,"v_head_dim":32{rest}}}"#
        )
    };
    let weights = |rest: &str| {
        let recipe = load_recipe(&inputs("nano", &["MODEL=/models/small/"])).unwrap();
        let read = |path: &str| (path == "/models/small/config.json").then(|| config(rest)).ok_or(std::io::ErrorKind::NotFound.into());
        let plan = plans(&recipe, &read).unwrap().remove(0);
        assert_eq!((plan.model.served_name.as_str(), plan.model.tokenizer_dir.as_deref()), ("small", Some("/models/small/")));
        plan.workers[0].memory.weights.0
    };
    assert_eq!(weights(r#","torch_dtype":"float32""#), 2 * weights(""));
}
