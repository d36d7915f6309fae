//! Answers, resources, image files and models of an installation.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use tandem_llmb::install::{Answers, Model, OWN_METADATA, gpu_type_of, gpus_of_gres, image_file, models, partitions};
use tandem_llmb::{Cluster, Workload};

const PLAY: &str = "
install_path: /llmb
venv_type: uv
gpu_type: H100
node_architecture: x86_64
install_method: slurm
selected_workloads: [inference_deepseek-r1-dynamo]
slurm: {account: acct, gpu_partition: batch, cpu_partition: cpu, gpu_partition_gres: 8, cpu_partition_gres: null}
environment_vars: {HF_HOME: /hf}
image_folder: null
workload_selection_mode: custom
";

#[test]
fn a_play_file_becomes_a_cluster_file_that_the_tools_read() {
    let mut answers = Answers::parse("p", PLAY).unwrap();
    answers.llmb_repo = Some("/repo".into());
    let text = answers.cluster_config(Some("lab"), &["pretrain_llama".to_owned()]);
    assert_eq!(
        text,
        "schema_version: 2\nllmb_repo: /repo\nllmb_install: /llmb\ngpu_type: h100\ncluster_name: lab\n\
         install:\n  venv_type: uv\n  method: slurm\n  node_architecture: x86_64\nenvironment:\n  HF_HOME: /hf\n\
         slurm:\n  account: acct\n  gpu:\n    partition: batch\n    gres: 8\n  cpu:\n    partition: cpu\n    gres: null\n\
         workloads:\n  installed:\n  - inference_deepseek-r1-dynamo\n  - pretrain_llama\n"
    );
    let cluster = Cluster::parse("c", &text).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(cluster.slurm_gpu, [pair("SBATCH_ACCOUNT", "acct"), pair("SBATCH_PARTITION", "batch"), pair("SBATCH_GPUS_PER_NODE", "8")]);
    assert_eq!(cluster.slurm_cpu, [pair("SBATCH_ACCOUNT", "acct"), pair("SBATCH_PARTITION", "cpu")]);
    assert_eq!(Answers::parse("again", &answers.play_file()).unwrap(), answers);
}

#[test]
fn answers_that_are_wrong_or_missing_are_named() {
    for (text, expected) in [
        ("speed: 9", "unknown key 'speed'"),
        ("install_method: cloud", "install_method is 'cloud' (local, slurm)"),
        ("slurm: {gpu_partition_gres: 9}", "slurm.gpu_partition_gres must be 1 to 8"),
        ("models: [{dir: x}]", "has no repo_id"),
    ] {
        assert!(Answers::parse("p", text).unwrap_err().to_string().contains(expected), "{text}");
    }
    let missing = Answers::parse("p", "install_path: /x").unwrap().missing();
    assert_eq!(missing, ["gpu_type", "node_architecture", "selected_workloads", "slurm.gpu_partition"]);
}

#[test]
fn resources_and_types_are_read_as_slurm_prints_them() {
    let kind = |text: &str| Some(text.to_owned());
    for (gres, expected) in [
        ("gpu:8", Some((None, 8))),
        ("gpu:a100:8(S:0-1)", Some((kind("a100"), 8))),
        ("craynetwork:4,gpu:H100:4", Some((kind("h100"), 4))),
        ("gpu:0", None),
        ("gpu:16", None),
        ("(null)", None),
    ] {
        assert_eq!(gpus_of_gres(gres), expected, "{gres}");
    }
    let read = partitions("batch*|4|gpu:h100:8(S:0-1)\nbatch*|12|gpu:h100:4\ncpu|9|(null)\nbatch*|99|(null)\n");
    assert_eq!(read.len(), 2);
    assert_eq!((read[0].is_default, read[0].gpus.clone()), (true, Some((kind("h100"), 4))));
    assert_eq!((read[1].name.as_str(), read[1].gpus.clone()), ("cpu", None));
    assert_eq!((gpu_type_of("NVIDIA GB200"), gpu_type_of("NVIDIA H100 80GB HBM3"), gpu_type_of("T4")), (Some("gb200"), Some("h100"), None));
}

#[test]
fn images_are_files_with_the_tools_names() {
    for (image, file) in [
        ("nvcr.io#nvidia/ai-dynamo/tensorrtllm-runtime:0.6.1", "ai-dynamo+tensorrtllm-runtime+0.6.1.sqsh"),
        ("nvcr.io#nvidia/nemo@sha256:0123456789abcdef", "nvidia+nemo+sha256-0123456789ab.sqsh"),
        ("ubuntu:24.04", "ubuntu+24.04.sqsh"),
        ("mine", "mine.sqsh"),
        ("a/b", "a+b+latest.sqsh"),
    ] {
        assert_eq!(image_file(image), file, "{image}");
    }
}

#[test]
fn models_come_from_the_metadata_or_are_those_of_the_recipes_script() {
    let own = Workload::parse("m", OWN_METADATA).unwrap().unwrap();
    let fp8 = models(&own, "h100").remove(0);
    assert_eq!(
        (fp8.repo_id.as_str(), fp8.dir.as_str()),
        ("deepseek-ai/DeepSeek-R1", "workloads/inference_deepseek-r1-dynamo/DeepSeek-R1-FP8")
    );
    assert!(models(&own, "gb200")[0].dir.ends_with("DeepSeek-R1-FP4"));
    let text = "
general: {workload: x, workload_type: inference}
downloads:
  huggingface:
    cache: [{repo_id: a/b, assets: [config], revision: main}]
    repos:
      - {repo_id: c/d, target: workload, include: ['*.safetensors'], exclude: ['x*'], when: {gpu: [h100]}}
      - {repo_id: e/f, repo_type: dataset, target: shared, name: data, when: {gpu: [gb200]}}
";
    let workload = Workload::parse("m", text).unwrap().unwrap();
    let dirs = |gpu: &str| models(&workload, gpu).iter().map(|m| m.dir.clone()).collect::<Vec<_>>();
    assert_eq!(dirs("h100"), ["", "workloads/inference_x/d"]);
    assert_eq!(dirs("gb200"), ["", "datasets/data"]);
    let weights = Model {
        repo_id: "c/d".into(),
        repo_type: "model".into(),
        include: vec!["*.safetensors".into()],
        exclude: vec!["x*".into()],
        dir: "workloads/inference_x/d".into(),
        ..Model::default()
    };
    assert_eq!(models(&workload, "h100")[1], weights);
}
