//! Workloads of an llmb installation through the binary, under both names, with a `sbatch` that records what it is given.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{stderr, stdout};

const R1: &str = "inference_deepseek-r1-dynamo";

const R1_METADATA: &str = "
general: {workload: deepseek-r1-dynamo, workload_type: inference, framework: dynamo}
container: {images: ['nvcr.io#nvidia/ai-dynamo/tensorrtllm-runtime:0.6.1']}
run:
  launcher_type: sbatch
  gpu_configs:
    h100: {model_configs: [{model_size: '671b', dtypes: fp8, scales: [48], exact_scales: true}]}
    gb200: {model_configs: [{model_size: '671b', dtypes: nvfp4, scales: [32], exact_scales: true}]}
";

const LLAMA_METADATA: &str = "
general: {workload: llama, workload_type: pretrain, framework: jax}
container: {images: {by_gpu: {h100: ['a/b:24.1'], default: [{url: 'a/b:25', name: b}]}}}
run:
  launcher_type: configured_sbatch
  launch_script: run.sh
  gpu_configs:
    h100: {model_configs: [{model_size: 70b, dtypes: [fp8, bf16], scales: [8, 16]}]}
";

/// Records arguments, folder and environment of each call, and numbers the jobs.
const SBATCH: &str = r#"#!/bin/bash
FAKE="$(dirname "$0")/../fake"
n=$(ls "$FAKE" | grep -c '^argv') ; id=$((n + 100))
printf '%s\n' "$@" > "$FAKE/argv.$id"
pwd > "$FAKE/pwd.$id"
env > "$FAKE/env.$id"
case "$*" in *"-J pretrain_llama_70b_bf16"*) echo "sbatch: error: invalid partition specified: nope" >&2; exit 1;; esac
echo "$id;lab"
"#;

/// Jobs above 100 are running; the first has ended.
const SACCT: &str = r#"#!/bin/bash
echo "100|COMPLETED|00:10:00|2026-11-24T03:32:56|n[1-6]|0:0"
echo "101|RUNNING|00:01:00|2026-11-24T03:33:56|n[1-6]|0:0"
"#;

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// An installation of two workloads on a cluster of H100 nodes.
    fn new() -> Site {
        let site = Site { dir: tempfile::tempdir().unwrap() };
        let at = site.dir.path().display().to_string();
        site.write(
            "install/cluster_config.yaml",
            &format!(
                "schema_version: 2\nllmb_repo: {at}/repo\nllmb_install: {at}/install\ngpu_type: h100\ncluster_name: lab\n\
             environment: {{HF_HOME: /hf}}\nslurm: {{account: acct, gpu: {{partition: batch, gres: 8}}, cpu: {{partition: cpu}}}}\n\
             workloads: {{installed: [{R1}, pretrain_llama]}}\n"
            ),
        );
        site.write("repo/inference/r1/metadata.yaml", R1_METADATA);
        site.write("repo/inference/r1/launch.sh", "#!/bin/bash\n");
        site.write("repo/llama/metadata.yaml", LLAMA_METADATA);
        site.write("repo/deprecated/llama/metadata.yaml", LLAMA_METADATA);
        site.write("repo/release.yaml", "llmb_version: '26.02'\n");
        site.write(
            "repo/exemplar.yaml",
            "config: {scale: 16, repeats: 2, profile: true}\nworkloads: {h100: [{pretrain_llama_70b: {dtypes: [fp8]}}]}\n",
        );
        fs::create_dir(site.path("fake")).unwrap();
        for (name, text) in [("sbatch", SBATCH), ("sacct", SACCT), ("squeue", "#!/bin/sh\nexit 0\n"), ("scontrol", "#!/bin/sh\nexit 0\n")] {
            site.write(&format!("bin/{name}"), text);
            fs::set_permissions(site.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command.env_clear().env("PATH", path).env("HOME", self.dir.path()).current_dir(self.dir.path());
        command.env("LLMB_INSTALL", self.path("install")).env("MARK", "1").env("TZ", "UTC");
        command
    }

    fn tandem(&self, args: &str) -> Output {
        self.command(Path::new(env!("CARGO_BIN_EXE_tandem"))).args(args.split_whitespace()).output().unwrap()
    }

    /// The same program under its other name.
    fn llmb_run(&self) -> Command {
        let alias = self.path("bin/llmb-run");
        if !alias.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tandem"), &alias).unwrap();
        }
        self.command(&alias)
    }

    fn llmb(&self, args: &str) -> Output {
        self.llmb_run().args(args.split_whitespace()).output().unwrap()
    }

    /// What `sbatch` was given: arguments on one line, folder, environment.
    fn call(&self, id: u32) -> (String, String, String) {
        let read = |what: &str| fs::read_to_string(self.path(&format!("fake/{what}.{id}"))).unwrap();
        (read("argv").trim().replace('\n', " "), read("pwd").trim().to_owned(), read("env"))
    }

    fn n_calls(&self) -> usize {
        fs::read_dir(self.path("fake"))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("argv"))
            .count()
    }
}

/// Checks an exit code, and that standard output and error hold these texts.
#[track_caller]
fn check(output: &Output, code: i32, out: &[&str], err: &[&str]) {
    let (said, errors) = (stdout(output), stderr(output));
    assert_eq!(output.status.code(), Some(code), "{said}\n{errors}");
    out.iter().for_each(|text| assert!(said.contains(text), "{text}\nin {said}\n{errors}"));
    err.iter().for_each(|text| assert!(errors.contains(text), "{text}\nin {errors}\n{said}"));
}

#[test]
fn a_script_gets_the_tools_command_line_folder_and_environment() {
    let site = Site::new();
    let output = site
        .llmb_run()
        .args(["submit", "-w", R1, "-s", "671b", "-d", "fp8", "--scale", "48", "--launcher", "script", "-p", "--env", "ISL=9 9"])
        .args(["--nice", "5", "--nodelist", "n[1-6]", "--slurm-arg", "licenses=x"])
        .env("SBATCH_PARTITION", "cpu")
        .env("HF_TOKEN", "secret")
        .env("OSL", "5")
        .output()
        .unwrap();
    let line =
        "SUBMITTED: inference_deepseek-r1-dynamo_671b dtype=fp8    scale=48     profile=True    proxy=False  env={'ISL': '9 9'} jobid=100";
    check(&output, 0, &["Jobs (1):\n", line], &["note: SBATCH_PARTITION=cpu, not batch: the shell wins over cluster_config.yaml"]);
    let (argv, pwd, env) = site.call(100);
    let base = site.path(&format!("install/workloads/{R1}")).display().to_string();
    assert_eq!(
        argv,
        format!(
            "--parsable --output={base}/slurm-%j.out -J {R1}_671b_fp8 -N 6 --ntasks-per-node=8 --nodelist=n[1-6] --nice=5 --licenses=x launch.sh"
        )
    );
    assert_eq!(Path::new(&pwd), site.path("repo/inference/r1").canonicalize().unwrap());
    let has = |line: &str| env.lines().any(|l| l == line);
    for line in ["SBATCH_PARTITION=cpu", "SBATCH_ACCOUNT=acct", "SBATCH_GPUS_PER_NODE=8", "HF_HOME=/hf", "ISL=9 9", "OSL=5", "DTYPE=fp8"] {
        assert!(has(line), "{line} in {env}");
    }
    assert!(has("ENABLE_PROFILE=true") && has("LLMB_CONTAINER_ENV=ISL") && !env.contains("secret") && !env.contains("LC_ALL"), "{env}");

    let config = fs::read_to_string(format!("{base}/llmb-config_100.yaml")).unwrap();
    let time = config.lines().find_map(|line| line.strip_prefix("  launch_time: '")).unwrap().trim_end_matches('\'').to_owned();
    assert_eq!(time.len(), "2026-11-24T03:30:15.955573".len(), "{time}");
    let at = site.dir.path().display();
    assert_eq!(
        config,
        format!(
            "job_info:\n  job_id: '100'\n  launch_time: '{time}'\n  experiment_id: null\n\
             workload_info:\n  framework: dynamo\n  gsw_version: '26.02'\n  fw_version: 0.6.1\n  workload_type: inference\n  synthetic_dataset: true\n\
             model_info:\n  model_name: deepseek-r1-dynamo\n  model_size: 671b\n  dtype: fp8\n  scale: 48\n  gpu_type: h100\n\
             cluster_info:\n  cluster_name: lab\n  gpus_per_node: '8'\n  llmb_install: {at}/install\n  llmb_repo: {at}/repo\n  \
             slurm_account: acct\n  slurm_gpu_partition: batch\n  slurm_cpu_partition: cpu\n\
             container_info:\n  images:\n  - nvcr.io#nvidia/ai-dynamo/tensorrtllm-runtime:0.6.1\n\
             job_config:\n  profile_enabled: true\n  proxy: false\n  strong_scaling: false\n  env_overrides:\n    ISL: 9 9\n  model_overrides: {{}}\n"
        )
    );
}

#[test]
fn the_old_habits_are_there_on_request() {
    let site = Site::new();
    let mut command = site.llmb_run();
    command.args(["submit", "-w", R1, "-s", "671b", "-d", "fp8", "--scale", "48", "--launcher", "script", "--compat", "dgxc-26.02"]);
    let output = command.env("SBATCH_PARTITION", "cpu").env("HF_TOKEN", "secret").output().unwrap();
    check(&output, 0, &[], &["SBATCH_PARTITION=batch, not cpu: cluster_config.yaml wins over the shell"]);
    let (_, _, env) = site.call(100);
    assert!(env.contains("SBATCH_PARTITION=batch\n") && env.contains("HF_TOKEN=secret\n"), "{env}");
    // A secret that is passed on by name is in no file and no output.
    let mut command = site.llmb_run();
    command.args(["submit", "-w", "pretrain_llama_70b", "-d", "fp8", "--scale", "8", "--env", "HF_TOKEN=very-secret"]);
    let output = command.output().unwrap();
    check(&output, 0, &["env={'HF_TOKEN': '(not shown)'}"], &[]);
    assert!(site.call(101).2.contains("HF_TOKEN=very-secret\n"));
    let folder = stdout(&output).split("workdir=").nth(1).unwrap().trim().to_owned();
    assert!(fs::read_to_string(format!("{folder}/llmb-config_101.yaml")).unwrap().contains("    HF_TOKEN: (not shown)\n"));
    // Tandem's recipe counts requests as the old script does.
    let dry = format!("submit -w {R1} -s 671b --scale 48 --dry-run --again");
    check(&site.tandem(&format!("{dry} --compat dgxc-26.02")), 0, &["--set=MULTI_ROUND=10", "--nodes=6"], &[]);
    assert!(!stdout(&site.tandem(&dry)).contains("MULTI_ROUND"));
}

#[test]
fn tandems_own_recipe_runs_the_workload_as_a_job_folder() {
    let site = Site::new();
    let args = format!("submit -w {R1} -s 671b --dtype fp8 --scale 48 --env CONCURRENCY=512 --env NCCL_DEBUG=INFO --mount /data:/data");
    let output = site.tandem(&args);
    check(&output, 0, &["Jobs (1):", "jobid=100 workdir="], &["job 100: 6 nodes, 48 devices"]);
    let said = stdout(&output);
    let folder = PathBuf::from(said.split("workdir=").nth(1).unwrap().trim());
    assert!(folder.starts_with(site.path(&format!("install/workloads/{R1}/experiments")).canonicalize().unwrap()), "{}", folder.display());
    for file in ["plan.json", "job/job.sbatch", "job/receipt.json", "configs/prefill.yaml", "llmb-config_100.yaml"] {
        assert!(folder.join(file).exists(), "{file}");
    }
    let script = fs::read_to_string(folder.join("job/job.sbatch")).unwrap();
    for line in ["--partition=batch", "--account=acct", "--nodes=6", "--gpus-per-node=8"] {
        assert!(script.contains(line), "{line} in {script}");
    }
    let job: serde_json::Value = serde_json::from_str(&fs::read_to_string(folder.join("job/job.json")).unwrap()).unwrap();
    let settings = job.to_string();
    // The engine is in the workload's image, and servers get what the cluster's file and the task say.
    assert!(settings.contains("pyxis") && settings.contains("/data:/data"), "{settings}");
    assert_eq!((job["env"]["NCCL_DEBUG"].as_str(), job["env"]["HF_HOME"].as_str()), (Some("INFO"), Some("/hf")));
    let plan = fs::read_to_string(folder.join("plan.json")).unwrap();
    assert!(plan.contains("512"), "the task's concurrency");
    // The same again by mistake is refused, a repetition that is asked for is not.
    check(&site.tandem(&args), 2, &[], &["a job with the same plan has not ended", "Failed to launch 1 out of 1 tasks."]);
    check(&site.tandem(&format!("{args} --again -r 2")), 0, &["jobid=101", "jobid=102"], &[]);
    // What was sent is what `retry` and the job itself start from.
    let again = site.tandem(&format!("retry {} --force", folder.display()));
    check(&again, 0, &["-retry-1"], &[]);
}

#[test]
fn servers_that_do_not_fill_the_scale_are_refused() {
    let site = Site::new();
    let output = site.tandem(&format!("submit -w {R1} -s 671b --scale 48 --env NCTX=1 --dry-run"));
    check(&output, 4, &[], &["--scale 48 does not match the servers, which take 32 GPUs"]);
    let output = site.tandem(&format!("submit -w {R1} -s 671b --scale 48 --profile"));
    check(&output, 2, &[], &["Tandem's recipes have no profiling", "--launcher script"]);
}

#[test]
fn configured_jobs_have_their_folder_and_failures_are_counted() {
    let site = Site::new();
    let output = site.llmb("submit -w pretrain_llama_70b --scale 16 -d fp8");
    let workdir = format!("{}/install/workloads/pretrain_llama/experiments/pretrain_llama_70b_fp8_gpus16/", site.dir.path().display());
    check(&output, 0, &["jobid=100 workdir=", &workdir], &[]);
    let (argv, _, env) = site.call(100);
    assert!(argv.ends_with("run.sh") && argv.contains(&format!("--output={workdir}")) && env.contains("LLMB_EXPERIMENT_DIR="), "{argv}");
    // What `tandem submit` has for Slurm reaches the script's job too; what it has for its own recipes is refused.
    let output = site.tandem("submit -w pretrain_llama_70b --scale 16 -d fp8 --partition cpu --time 5 --dry-run");
    check(&output, 0, &["--partition=cpu --time=5 run.sh"], &[]);
    let output = site.tandem("submit -w pretrain_llama_70b --scale 16 -d fp8 --set ISL=5 --dry-run");
    check(&output, 2, &[], &["--set is about Tandem's recipes, and pretrain_llama runs its own script"]);
    // One of two fails: the other stays submitted, and the exit code is that of a system error.
    let output = site.llmb("submit -w pretrain_llama_70b --scale 8 -d fp8,bf16");
    check(
        &output,
        2,
        &["Jobs (2):", "SUBMITTED: pretrain_llama_70b"],
        &["dtype=bf16", "error=sbatch: error: invalid partition specified: nope", "Failed to launch 1 out of 2 tasks."],
    );
}

#[test]
fn a_batch_that_is_partly_wrong_is_submitted_only_on_request() {
    let site = Site::new();
    let tasks = format!("{R1}_671b:\n('fp8', [48, 64], 1)\n\npretrain_llama_70b:\n('fp8', [8], 2)\n('fp4', [8], 1)\n");
    site.write("t.txt", &tasks);
    let err = [
        "ERROR:   ❌ 1x inference_deepseek-r1-dynamo_671b (dtype=fp8): Scale 64 not supported for inference_deepseek-r1-dynamo_671b.\n",
        "Supported scales: 48",
        "ERROR:   ❌ 1x pretrain_llama_70b (dtype=fp4): Data type 'fp4' not supported for pretrain_llama_70b.",
    ];
    check(&site.llmb("submit -f t.txt --launcher script"), 1, &[], &[&err[..], &["nothing was submitted", "--allow-partial"]].concat());
    assert_eq!(site.n_calls(), 0);
    let output = site.llmb("submit -f t.txt --launcher script --allow-partial");
    check(&output, 0, &["Jobs (3):"], &["⚠️  Proceeding with 3 valid tasks out of 5 total."]);
    assert_eq!(site.n_calls(), 3);
    // Options beside a file count, where the tools ignore them.
    check(&site.llmb("submit -f t.txt -d fp8 --scale 8 -r 2 -p --dry-run"), 0, &["Jobs (4):", "profile=True"], &[]);
    check(
        &site.llmb("submit -f t.txt --compat dgxc-26.02 -d fp8 --scale 8 --dry-run --launcher script"),
        0,
        &["Jobs (3):", "profile=False"],
        &[],
    );
    site.write("bad.txt", "pretrain_llama_70b:\nfp8 8 1\n");
    check(&site.llmb("submit -f bad.txt"), 1, &[], &["bad.txt:2: no task"]);
}

#[test]
fn yaml_files_sweep_and_their_parameters_are_variables() {
    let site = Site::new();
    site.write(
        "t.yaml",
        "pretrain_llama_70b:\n  dtypes: fp8\n  scales: 8\n  tasks:\n    - overrides: {env: {A: b}, params: {steps: [1, 2]}}\n",
    );
    check(&site.llmb("submit -f t.yaml"), 0, &["Jobs (2):", "env={'A': 'b'} params={'steps': '2'} jobid=101"], &[]);
    assert!(site.call(100).2.contains("STEPS=1\n") && site.call(101).2.contains("STEPS=2\n"));
    let config = fs::read_dir(site.path("install/workloads/pretrain_llama/experiments/pretrain_llama_70b_fp8_gpus8")).unwrap();
    let text: String = config
        .flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("llmb-config_101"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert!(
        text.contains("env_overrides:\n    A: b\n  model_overrides:\n    steps: '2'\n") && text.contains("fw_version: '24.1'"),
        "{text}"
    );
}

#[test]
fn a_dry_run_shows_everything_and_submits_nothing() {
    let site = Site::new();
    let output = site
        .llmb_run()
        .args(["submit", "-w", R1, "--scale", "48", "--dry-run", "--launcher", "script"])
        .env("MY_KEY", "k")
        .output()
        .unwrap();
    check(
        &output,
        0,
        &[
            "Dry run enabled. Jobs will not be submitted.",
            "sbatch --parsable --output=",
            "-N 6 --ntasks-per-node=8",
            "  MODEL_SIZE=671b",
            "not passed on (--env NAME=VALUE passes one): MY_KEY",
            "repo/inference/r1",
        ],
        &[],
    );
    let all = site.llmb(&format!("submit -w {R1} --scale 48 --dry-run --launcher script --dump-env"));
    check(&all, 0, &["# kept of the shell", "  MARK=1"], &[]);
    // Tandem's own: script, commands, environment, Slurm's opinion.
    let own = site.tandem(&format!("submit -w {R1} --scale 48 --dry-run"));
    check(&own, 0, &["# the same as\n# tandem submit", "#SBATCH --nodes=6", "sbatch --parsable", "--ntasks=16"], &[]);
    // The last asks `sbatch --test-only`; nothing else called it.
    assert!(site.n_calls() <= 1 && !site.path("install/workloads").exists());
}

#[test]
fn requests_that_cannot_work_say_why_with_the_tools_exit_code() {
    let site = Site::new();
    let cases: [(&str, i32, &str); 16] = [
        (
            "submit -w inference_deepseek-r1-dynamo -s 671b",
            1,
            "Must specify scale parameter\nEither specify exact scale(s): --scale 128,256,512",
        ),
        ("submit -w pretrain_llama --scale 8 --min-scale", 1, "Cannot use --scale with --max-scale or --min-scale"),
        ("submit -s 8b --scale 8", 1, "--model-size requires --workload"),
        ("submit -w a,b -s 8b --scale 8", 1, "Global '--model-size' / '-s' cannot be used with multiple workloads."),
        ("submit -w pretrain_llama_70b -s 8b --scale 8", 1, "Workload name implies size '70b' but --model-size is '8b'."),
        ("submit -w nope --scale 8", 1, "Workload 'nope' not found.\nAvailable workloads: inference_deepseek-r1-dynamo, pretrain_llama"),
        ("submit -w inference_deepseek-r1-dynamo --scale 64", 1, "No matching job configurations found."),
        ("submit -w inference_deepseek-r1-dynamo --scale 64", 1, "supports scales 48, none was asked for"),
        ("submit -w inference_deepseek-r1-dynamo --scale 48,64", 1, "Scale 64 matches no configuration"),
        ("submit -f t.yaml -w pretrain_llama", 1, "Cannot mix --file with workload specifications"),
        ("submit -w pretrain_llama --scale 8 --force", 1, "--force takes exactly one job"),
        ("submit -w pretrain_llama --scale 8 --env 1=x", 1, "must match [A-Za-z_][A-Za-z0-9_]*"),
        (
            "submit -w pretrain_llama --scale 8 --slurm-arg nice=3",
            1,
            "`nice` has a dedicated flag. Use `--nice` instead of `--slurm-arg nice=3`.",
        ),
        ("submit -w pretrain_llama --scale 8 --launcher tandem -d fp8", 1, "Tandem has no recipe of its own for pretrain_llama"),
        ("list -w nope", 1, "Workload 'nope' not found."),
        ("submit --no-such-flag", 2, "--no-such-flag"),
    ];
    for (args, code, text) in cases {
        check(&site.llmb(args), code, &[], &[text]);
    }
    let inside = site.llmb_run().args(["submit", "-w", R1, "--scale", "48"]).env("SLURM_JOB_ID", "7").output().unwrap();
    check(&inside, 1, &[], &["runs inside Slurm job 7"]);
    check(&site.tandem("submit nano --profile"), 2, &[], &["--profile is about workloads"]);
    // What is above the listed numbers may run, with a warning; force skips the list.
    check(
        &site.llmb("submit -w pretrain_llama_70b -d fp8 --scale 64 --dry-run"),
        0,
        &["scale=64"],
        &["exceeds maximum tested scale of 16"],
    );
    check(
        &site.llmb("submit -w pretrain_llama_70b -d fp4 --scale 3 --force --dry-run"),
        0,
        &["dtype=fp4", "-N 1 --ntasks-per-node=3"],
        &[],
    );
    assert_eq!(site.n_calls(), 0);
    site.write("repo/copy/metadata.yaml", LLAMA_METADATA);
    check(&site.llmb("submit -w pretrain_llama_70b -d fp8 --scale 8"), 1, &[], &["pretrain_llama is described twice"]);
}

#[test]
fn lists_exemplar_and_deprecated_commands_work_under_both_names() {
    let site = Site::new();
    check(&site.llmb("list"), 0, &[R1, "671b     fp8      GPUs: 48\n", "70b      bf16     GPUs: 8, 16 and powers of two above"], &[]);
    check(&site.tandem("list"), 0, &["deepseek-r1\n", R1], &[]);
    check(&site.tandem("list -w pretrain_llama_70b"), 0, &["pretrain_llama\n"], &[]);
    check(&site.llmb("exemplar --dry-run"), 0, &["Jobs (2):", "profile=False", "profile=True"], &[]);
    check(&site.llmb("exemplar -r 3"), 0, &["Jobs (3):", "jobid=102"], &[]);
    assert!(site.call(102).2.contains("ENABLE_PROFILE=true") && !site.call(101).2.contains("ENABLE_PROFILE"));
    check(&site.llmb("submit-all --max-scale 8 --dtype fp8 -d"), 0, &["Jobs (1):", "Dry run"], &["deprecated"]);
    check(&site.llmb("--version"), 0, &["llmb-run"], &[]);
    site.write("repo/exemplar.yaml", "config: {scale: 16, speed: 9}\nworkloads: {h100: []}\n");
    check(&site.llmb("exemplar"), 1, &[], &["unknown key 'speed'"]);
    let bare = Command::new(env!("CARGO_BIN_EXE_tandem")).args(["archive"]).env_clear().current_dir(site.dir.path()).output().unwrap();
    check(&bare, 2, &[], &["cluster_config.yaml is neither in this directory nor in $LLMB_INSTALL", "tandem install"]);
}

#[test]
fn jobs_are_remembered_refreshed_shown_and_rebuilt() {
    let site = Site::new();
    for scale in ["8", "16"] {
        check(&site.llmb(&format!("submit -w pretrain_llama_70b -d fp8 --scale {scale}")), 0, &["jobid="], &[]);
    }
    check(&site.llmb(&format!("submit -w {R1} --scale 48 --launcher script")), 0, &["jobid=102"], &[]);
    // Number 102 is unknown to sacct, squeue and scontrol, but young: it stays as it is.
    let listed = site.llmb("jobs");
    check(&listed, 0, &["COMPLETED     00:10:00", "RUNNING"], &[]);
    let lines = stdout(&listed);
    let order: Vec<&str> = lines.lines().skip(1).map(|line| line.split_whitespace().nth(3).unwrap()).collect();
    assert_eq!(order, ["102", "100", "101"], "{lines}");
    check(
        &site.tandem("jobs show 100"),
        0,
        &["Job ID       : 100\n", "Slurm Status : COMPLETED\n", "Nodes        : n[1-6]\n", "Command      : sbatch --parsable"],
        &[],
    );
    check(&site.llmb("jobs show 999"), 1, &[], &["the history has no job 999"]);
    check(&site.llmb("jobs refresh 101"), 0, &["Refreshed 1 of 1 jobs."], &[]);
    let log = format!("install/workloads/{R1}/slurm-102.out");
    site.write(&log, "one\ntwo\nthree\n");
    check(&site.llmb("jobs log 102 --tail 2"), 0, &["two\nthree\n"], &[]);
    check(&site.llmb("jobs log 102 --path"), 0, &[&format!("{}\n", site.path(&log).display())], &[]);
    // A history that is lost comes back from the configurations.
    fs::remove_dir_all(site.path("install/.tandem")).unwrap();
    check(&site.llmb("jobs rebuild"), 0, &["Scanned 3 llmb-config files; imported 3, skipped 0."], &[]);
    check(&site.llmb("jobs rebuild"), 0, &["Scanned 3 llmb-config files; imported 0, skipped 3."], &[]);
    check(&site.tandem("jobs show 102"), 0, &["Workload     : inference_deepseek-r1-dynamo\n", "Scale        : 48\n"], &[]);
    check(&site.llmb("jobs log 102"), 0, &["three"], &[]);
}

#[test]
fn an_archive_holds_the_runs_and_what_lies_beside_them() {
    let site = Site::new();
    let base = format!("install/workloads/{R1}");
    for (name, text) in [
        ("experiments/isl1/perf_summary.txt", "x"),
        ("experiments/isl1/code/big.py", "x"),
        ("experiments/isl1/a.nsys-rep", "x"),
        ("experiments/isl1/b_trace.json", "x"),
        ("experiments/isl1/c.tar.gz", "x"),
        ("llmb-config_7.yaml", "x"),
        ("slurm-7.out", "x"),
        ("weights/model.bin", "x"),
    ] {
        site.write(&format!("{base}/{name}"), text);
    }
    std::os::unix::fs::symlink("/nowhere", site.path(&format!("{base}/experiments/isl1/link"))).unwrap();
    let out = site.path("a.tar.zst");
    let output = site.llmb(&format!("archive --output {}", out.display()));
    check(&output, 0, &[&format!("Archive created: {}\n", out.display()), "Archived 1 experiments.\n"], &[]);
    let mut tar = tar::Archive::new(zstd::Decoder::new(fs::File::open(&out).unwrap()).unwrap());
    let names: Vec<String> = tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    let top = names[0].split('/').next().unwrap().to_owned();
    assert!(top.starts_with("llmb-archive-"), "{names:?}");
    let inner: Vec<&str> = names.iter().map(|name| name.strip_prefix(&format!("{top}/{R1}/")).unwrap().trim_end_matches('/')).collect();
    assert_eq!(
        inner,
        [
            "experiments",
            "experiments/isl1",
            "experiments/isl1/link",
            "experiments/isl1/perf_summary.txt",
            "llmb-config_7.yaml",
            "slurm-7.out"
        ]
    );
    check(&site.llmb(&format!("archive --output {}", out.display())), 1, &[], &["Archive output already exists: "]);
    check(&site.llmb("archive --output none/a.tar.zst"), 1, &[], &["Output directory does not exist: none"]);
    check(&site.tandem("archive"), 0, &["install/llmb-archive-"], &[]);
}
