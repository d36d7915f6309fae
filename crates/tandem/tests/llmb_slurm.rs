//! Workloads of an llmb installation on a real Slurm: a script's job, and Tandem's recipe in place of the script.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::slurm_lab::Lab;
use common::{stderr, stdout};

const METADATA: &str = "
general: {workload: deepseek-r1-dynamo, workload_type: inference, framework: dynamo}
run:
  launcher_type: sbatch
  gpu_configs:
    h100: {model_configs: [{model_size: '671b', dtypes: fp8, scales: [48], exact_scales: true}]}
";

/// Says what it sees of the job, as the recipe's own script needs it.
const SCRIPT: &str = "#!/bin/bash
#SBATCH --time=5
echo \"sees $MODEL_SIZE $DTYPE $GPU_TYPE nodes=$SLURM_JOB_NUM_NODES tasks=$SLURM_NTASKS part=$SLURM_JOB_PARTITION gpus=$SLURM_GPUS_PER_NODE isl=$ISL in $(basename \"$PWD\")\"
srun hostname | wc -l
";

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_script_and_a_recipe_run_on_the_nodes_that_the_scale_gives() {
    let Some(lab) = Lab::start("llmb: a script and a recipe on a real Slurm", 6) else { return };
    let (repo, install) = (lab.path("repo"), lab.path("install"));
    write(&repo.join("r1/metadata.yaml"), METADATA);
    write(&repo.join("r1/launch.sh"), SCRIPT);
    fs::set_permissions(repo.join("r1/launch.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "schema_version: 2\nllmb_repo: {}\nllmb_install: {}\ngpu_type: h100\nslurm: {{gpu: {{partition: batch, gres: 8}}}}\n",
        repo.display(),
        install.display()
    );
    write(&install.join("cluster_config.yaml"), &config);
    let run = |more: &[&str]| {
        let mut command =
            lab.tandem(&["submit", "-w", "inference_deepseek-r1-dynamo", "-s", "671b", "-d", "fp8", "--scale", "48", "--wait"]);
        command.args(more).env("LLMB_INSTALL", &install).output().unwrap()
    };
    let output = run(&["--launcher", "script", "--env", "ISL=9 9"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let id = stdout(&output).split("jobid=").nth(1).unwrap().trim().to_owned();
    let base = install.join("workloads/inference_deepseek-r1-dynamo");
    let log = fs::read_to_string(base.join(format!("slurm-{id}.out"))).unwrap();
    assert_eq!(log.trim(), "sees 671b fp8 h100 nodes=6 tasks=48 part=batch gpus=8 isl=9 9 in r1\n48");
    let written = fs::read_to_string(base.join(format!("llmb-config_{id}.yaml"))).unwrap();
    assert!(written.contains("  cluster_name: lab\n"), "{written}");
    // The same task by Tandem's recipe, with engines that compute nothing: a whole run with its verdict.
    let tokenizer = concat!("TOKENIZER=", env!("CARGO_MANIFEST_DIR"), "/../../models/nano");
    let small =
        ["ENGINE=modeled", "LOAD_FORMAT=dummy", tokenizer, "ISL=64", "OSL=8", "CONCURRENCY=4", "MULTI_ROUND=2", "MODELED_STEP_US=500"];
    let mut more: Vec<&str> = small.iter().flat_map(|knob| ["--set", *knob]).collect();
    more.extend(["--time", "5", "--compat", "dgxc-26.02"]);
    let output = run(&more);
    assert!(output.status.success(), "{}", stderr(&output));
    let folder = stdout(&output).split("workdir=").nth(1).unwrap().trim().to_owned();
    let result: serde_json::Value = serde_json::from_slice(&fs::read(Path::new(&folder).join("result.json")).unwrap()).unwrap();
    // Ten requests for each unit of concurrency, as the old script sends them.
    assert_eq!(result["outcomes"]["ok"], 40, "{result:#}");
    let jobs = lab.tandem(&["jobs"]).env("LLMB_INSTALL", &install).output().unwrap();
    assert_eq!(stdout(&jobs).matches("COMPLETED").count(), 2, "{}{}", stdout(&jobs), stderr(&jobs));
}
