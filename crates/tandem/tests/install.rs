//! `tandem install` with `enroot` and `hf` that record what they are given: nothing is fetched twice, and what broke off goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{stderr, stdout};
use sha2::{Digest, Sha256};

const R1: &str = "inference_deepseek-r1-dynamo";

/// Writes an image, and records its arguments; fails while the file `no-enroot` exists.
const ENROOT: &str = r#"#!/bin/bash
AT="$(dirname "$0")/.."
echo "enroot $*" >> "$AT/calls"
[ -e "$AT/no-enroot" ] && exit 1
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo image > "$2"; shift; done
exit 0
"#;

/// Downloads two shards, one a call: the first call breaks off after the first shard.
const HF: &str = r#"#!/bin/bash
AT="$(dirname "$0")/.."
echo "hf $* HF_HOME=$HF_HOME" >> "$AT/calls"
while [ $# -gt 1 ]; do [ "$1" = --local-dir ] && DIR="$2"; shift; done
[ -z "$DIR" ] && exit 0
META="$DIR/.cache/huggingface/download"; mkdir -p "$META"
put() { printf '%s' "$2" > "$DIR/$1"; printf 'commit\n%s\n0\n' "$3" > "$META/$1.metadata"; }
put config.json '{}' 0123456789012345678901234567890123456789
put model.safetensors.index.json '{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}' 0123456789012345678901234567890123456789
if [ ! -e "$DIR/m-1.safetensors" ]; then put m-1.safetensors one "$(printf one | sha256sum | cut -d' ' -f1)"; exit 1; fi
put m-2.safetensors "$(cat "$AT/second" 2>/dev/null || printf two)" "$(printf two | sha256sum | cut -d' ' -f1)"
"#;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.path("bin")).unwrap();
        place.program("enroot", ENROOT);
        place.program("hf", HF);
        place.program(
            "srun",
            "#!/bin/bash\necho \"srun $*\" >> \"$(dirname \"$0\")/../calls\"\nwhile [ \"$1\" != enroot ]; do shift; done\nexec \"$@\"\n",
        );
        place.program("sinfo", "#!/bin/sh\necho 'cpu|9|(null)'\necho 'batch*|6|gpu:h100:8(S:0-1)'\n");
        place.program("sacctmgr", "#!/bin/sh\necho acct\n");
        place.program("scontrol", "#!/bin/sh\necho 'ClusterName             = lab'\n");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        command.args(args).env_clear().env("PATH", path).env("HOME", self.dir.path()).env("USER", "u").current_dir(self.dir.path());
        command.stdin(std::process::Stdio::null());
        command
    }

    fn tandem(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Installs into `llmb`; the space check is for machines that hold such models, so the sizes are small here.
    fn install(&self, more: &[&str]) -> Output {
        let play = format!(
            "install_path: {}\ngpu_type: h100\nnode_architecture: x86_64\ninstall_method: local\nselected_workloads: [inference_x]\n\
             llmb_repo: {}\nslurm: {{account: acct, gpu_partition: batch, cpu_partition: cpu, gpu_partition_gres: 8}}\n",
            self.path("llmb").display(),
            self.path("repo").display()
        );
        fs::create_dir_all(self.path("repo/x")).unwrap();
        let metadata = "
general: {workload: x, workload_type: inference, framework: f}
container: {images: ['nvcr.io#team/engine:1.0']}
downloads: {huggingface: {repos: [{repo_id: o/weights, target: workload, include: ['*.safetensors', '*.json'], exclude: [onnx/*], revision: abc}]}}
setup: {venv_req: true, tasks: [{name: t, cmd: ./prepare.sh, job_type: local}]}
run: {launcher_type: sbatch, gpu_configs: {h100: {model_configs: [{model_size: 7b, dtypes: fp8, scales: [8]}]}}}
";
        fs::write(self.path("repo/x/metadata.yaml"), metadata).unwrap();
        fs::write(self.path("play.yaml"), play).unwrap();
        let mut args = vec!["install", "--play", "play.yaml", "--retry-after", "0"];
        args.extend_from_slice(more);
        self.tandem(&args)
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(|line| line.replace(&self.dir.path().display().to_string(), "AT")).collect()
    }
}

#[track_caller]
fn check(output: &Output, code: i32, err: &[&str]) {
    let errors = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{}\n{errors}", stdout(output));
    err.iter().for_each(|text| assert!(errors.contains(text), "{text}\nin {errors}"));
}

#[test]
fn an_installation_is_complete_after_one_call_and_a_second_fetches_nothing() {
    let place = Place::new();
    check(
        &place.install(&[]),
        0,
        &["hf ended with exit status: 1; once more", "model o/weights is complete: 4 files", "its setup task is not run: ./prepare.sh"],
    );
    let hf = "hf download o/weights --revision abc --include *.safetensors --include *.json --exclude onnx/* \
              --local-dir AT/llmb/workloads/inference_x/weights HF_HOME=AT/llmb/.cache/huggingface";
    let enroot = "enroot import -o AT/llmb/images/team+engine+1.0.sqsh.partial -a x86_64 docker://nvcr.io#team/engine:1.0";
    // The download broke off once, and went on with the same call.
    assert_eq!(place.calls(), [enroot, hf, hf]);
    assert!(place.path("llmb/images/team+engine+1.0.sqsh").is_file());
    for folder in [".cache", "datasets", "tools", "venvs", "workloads/inference_x/experiments"] {
        assert!(place.path("llmb").join(folder).is_dir(), "{folder}");
    }
    let config = fs::read_to_string(place.path("llmb/cluster_config.yaml")).unwrap();
    assert!(config.contains("cluster_name: lab\n") && config.contains("  gpu:\n    partition: batch\n    gres: 8\n"), "{config}");
    check(&place.install(&[]), 0, &["image team+engine+1.0.sqsh is there", "model o/weights is there: 4 files"]);
    assert_eq!(place.calls().len(), 3);
    // What was installed is what the other commands use, and the doctor finds all of it.
    let list = place.command(&["list", "-w", "inference_x"]).env("LLMB_INSTALL", place.path("llmb")).output().unwrap();
    assert!(stdout(&list).contains("7b       fp8      GPUs: 8"), "{}", stdout(&list));
    let doctor = |code: i32| {
        let output = place.command(&["doctor", "--for", "llmb"]).env("LLMB_INSTALL", place.path("llmb")).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}{}", stdout(&output), stderr(&output));
        stdout(&output)
    };
    doctor(0);
    fs::remove_file(place.path("llmb/images/team+engine+1.0.sqsh")).unwrap();
    let said = doctor(8);
    assert!(said.contains("inference_x image") && said.contains("tandem install --only images"), "{said}");
}

#[test]
fn damage_is_found_and_named_and_gaps_are_fetched_again() {
    let place = Place::new();
    fs::write(place.path("second"), "twx").unwrap();
    let damaged = place.install(&["--only", "models"]);
    check(&damaged, 8, &["m-2.safetensors is damaged: SHA-256", "delete the file"]);
    fs::remove_file(place.path("second")).unwrap();
    check(&place.install(&["--only", "models"]), 0, &["is complete"]);
    let n_calls = place.calls().len();
    // Same size, other content: only the full check sees it.
    let shard = place.path("llmb/workloads/inference_x/weights/m-2.safetensors");
    fs::write(&shard, "twx").unwrap();
    check(&place.install(&["--only", "models"]), 0, &["is there"]);
    check(&place.install(&["--only", "models", "--verify"]), 8, &["is damaged"]);
    fs::remove_file(&shard).unwrap();
    check(&place.install(&["--only", "models"]), 0, &["is complete"]);
    assert_eq!(place.calls().len(), n_calls + 1);
    assert_eq!(Sha256::digest(fs::read(&shard).unwrap()), Sha256::digest("two"));
}

#[test]
fn a_failed_import_leaves_no_image_and_says_how_to_go_on() {
    let place = Place::new();
    fs::write(place.path("no-enroot"), "").unwrap();
    check(&place.install(&["--only", "images"]), 5, &["enroot failed for nvcr.io#team/engine:1.0", "run `tandem install` again"]);
    assert_eq!(fs::read_dir(place.path("llmb/images")).unwrap().count(), 0);
    fs::remove_file(place.path("no-enroot")).unwrap();
    // On a compute node, without its GPUs.
    let text = fs::read_to_string(place.path("play.yaml")).unwrap().replace("install_method: local", "install_method: slurm");
    fs::write(place.path("slurm.yaml"), text).unwrap();
    check(&place.tandem(&["install", "--play", "slurm.yaml", "--only", "images"]), 0, &[]);
    let calls = place.calls();
    assert!(calls[1].starts_with("srun --account=acct --partition=cpu -N1 -n1 --exclusive --time=35 enroot import -o "), "{calls:?}");
    // An image that is somewhere already is linked.
    let place = Place::new();
    fs::create_dir(place.path("ready")).unwrap();
    fs::write(place.path("ready/team+engine+1.0.sqsh"), "x").unwrap();
    check(&place.install(&["--only", "images", "--image-folder", "ready"]), 0, &["is linked to"]);
    assert!(place.calls().is_empty() && place.path("llmb/images/team+engine+1.0.sqsh").is_symlink());
}

#[test]
fn what_is_not_stated_is_detected_and_what_does_not_fit_is_refused() {
    let place = Place::new();
    let root = place.path("big").display().to_string();
    let output = place.tandem(&["install", &root, "--yes", "--only", "site", "--record", "played.yaml"]);
    check(&output, 0, &["wrote"]);
    let config = fs::read_to_string(place.path("big/cluster_config.yaml")).unwrap();
    for line in ["gpu_type: h100", "  account: acct", "    partition: batch", "    gres: 8", "    partition: cpu", &format!("  - {R1}")] {
        assert!(config.lines().any(|l| l == line), "{line} in {config}");
    }
    let played = place.path("played.yaml");
    assert_eq!(fs::metadata(&played).unwrap().permissions().mode() & 0o777, 0o600);
    // The answers play again; the workload that Tandem runs itself is described.
    let again = place.tandem(&["install", "--play", "played.yaml", "--only", "site"]);
    check(&again, 0, &["installed"]);
    assert!(!place.path("big/cluster_config.yaml.old").exists(), "nothing changed");
    let list = place.command(&["list", "-w", R1]).env("LLMB_INSTALL", place.path("big")).output().unwrap();
    assert!(stdout(&list).contains("671b     fp8      GPUs: 48"), "{}", stdout(&list));
    // 10^18 bytes are more than any disk has: refused before anything is fetched.
    let text = fs::read_to_string(&played).unwrap() + "models:\n- {repo_id: o/huge, dir: datasets/huge, bytes: 1000000000000000000}\n";
    fs::write(place.path("huge.yaml"), text).unwrap();
    check(&place.tandem(&["install", "--play", "huge.yaml", "--only", "models"]), 4, &["o/huge needs", "are free", "nothing was fetched"]);
    assert!(place.calls().is_empty());
    // A dry run says what it would do.
    let dry = place.tandem(&["install", "--play", "played.yaml", "--only", "images", "--dry-run"]);
    check(&dry, 0, &["would run enroot import -o", "ai-dynamo+tensorrtllm-runtime+0.6.1.sqsh.partial", "dry run: nothing was done"]);
    let lacks = place.command(&["install", &root, "--yes"]).env("PATH", Path::new("/nowhere")).output().unwrap();
    check(&lacks, 2, &["these are neither stated nor detected", "slurm.gpu_partition"]);
    check(&place.tandem(&["install", "--play", "played.yaml", "-w", "nope"]), 2, &["workload 'nope' is not in", R1]);
}
