//! Other engines as jobs of a real Slurm: TensorRT-LLM behind Dynamo with stand-ins that check what they are given, and the real
//! Dynamo with its mocker over two nodes.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::slurm_lab::{Lab, provide};
use common::{dynamo, events, read_json, stderr, wait_for};
use serde_json::Value;
use tandem_testkit::not_run;

/// Where Slurm's plugin looks for PMIx.
const PMIX: &str = "/usr/lib/x86_64-linux-gnu/pmix2/lib/libpmix.so";

/// A lab in which `tests/dynamo/shims` stand in for etcd, NATS, Dynamo and TensorRT-LLM's launcher.
struct Shims {
    lab: Lab,
}

impl Shims {
    fn start(test: &str, n_nodes: usize) -> Option<Shims> {
        Shims::start_with(test, n_nodes, "")
    }

    fn start_with(test: &str, n_nodes: usize, plugins: &str) -> Option<Shims> {
        if let Err(reason) = provide(&["python3", PMIX], &["python3", "libpmix2", "libpmix-dev"]) {
            not_run(test, reason);
            return None;
        }
        let lab = Lab::start_with(test, n_nodes, plugins)?;
        let shims = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/dynamo/shims/bin").canonicalize().expect("the shims");
        for entry in fs::read_dir(shims).expect("the shims").map(|entry| entry.expect("an entry").path()) {
            symlink(&entry, lab.path("bin").join(entry.file_name().expect("a name"))).expect("a link");
        }
        fs::create_dir(lab.path("seen")).expect("a folder");
        for weights in ["DeepSeek-R1-FP8", "DeepSeek-R1-FP4"] {
            fs::create_dir_all(lab.path("llmb/workloads/inference_deepseek-r1-dynamo").join(weights)).expect("a folder");
        }
        Some(Shims { lab })
    }

    /// Submits the published recipe with a small load and waits; exit code, what was said, and the folder is `job`.
    fn submit(&self, more: &[&str]) -> (Option<i32>, String) {
        let output = self.submission("job", "seen", &[&["--wait"], more].concat()).output().expect("tandem starts");
        let logs = ["output_prefill_1.log", "output_decode_1.log", "output_server.log", "etcd.log", "nats.log"];
        let logs: String = logs.iter().map(|log| format!("== {log}\n{}", self.read(&format!("job/logs/{log}")))).collect();
        (output.status.code(), format!("{}\n{logs}", stderr(&output)))
    }

    /// The submission of a job into folder `job`, whose stand-ins note what they see in folder `seen`.
    fn submission(&self, job: &str, seen: &str, more: &[&str]) -> Command {
        let (out, seen) = (self.lab.path(job).display().to_string(), format!("SHIM_SEEN={}", self.lab.path(seen).display()));
        let install = format!("LLMB_INSTALL={}", self.lab.path("llmb").display());
        let tokenizer = concat!("TOKENIZER=", env!("CARGO_MANIFEST_DIR"), "/../../models/nano");
        let mut args = vec!["submit", "deepseek-r1", "--gpu-type", "h100", "--out", &out, "--env", &seen, "--time", "5"];
        for set in [install.as_str(), tokenizer, "ISL=64", "OSL=8", "CONCURRENCY=4", "MULTI_ROUND=2"] {
            args.extend(["--set", set]);
        }
        args.extend_from_slice(more);
        let mut command = self.lab.tandem(&args);
        // A variable of the login shell that no server may see, and one that must be gone for UCX to choose by itself.
        command.env("MY_SECRET", "x").env("UCX_TLS", "tcp").env("GIVEN_TOKEN", "a-secret-value").args(["--env", "GIVEN_TOKEN"]);
        command
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.lab.path(path)).unwrap_or_default()
    }

    /// What a stand-in noted.
    fn seen(&self, file: &str) -> Value {
        read_json(&self.lab.path(&format!("seen/{file}.json")))
    }

    /// Node and visible devices of each rank of a server.
    fn ranks(&self, server: &str) -> Vec<String> {
        self.ranks_in("seen", server)
    }

    fn ranks_in(&self, seen: &str, server: &str) -> Vec<String> {
        let all: BTreeMap<u32, String> = (0..64)
            .map_while(|rank| Some((rank, fs::read_to_string(self.lab.path(&format!("{seen}/rank-{server}-{rank}"))).ok()?)))
            .collect();
        all.into_values().map(|text| text.trim().to_owned()).collect()
    }

    fn result(&self) -> Value {
        read_json(&self.lab.path("job/result.json"))
    }
}

fn flag(argv: &Value, name: &str) -> String {
    let words: Vec<&str> = argv.as_array().expect("argv").iter().filter_map(Value::as_str).collect();
    let at = words.iter().position(|word| *word == name).unwrap_or_else(|| panic!("no {name} in {words:?}"));
    words[at + 1].to_owned()
}

#[test]
fn the_published_h100_configuration_runs_end_to_end_on_six_nodes() {
    let Some(shims) = Shims::start("slurm: dynamo-trtllm with stand-ins, 6 x 8", 6) else { return };
    let (code, said) = shims.submit(&[]);
    assert_eq!(code, Some(0), "{said}");
    let result = shims.result();
    assert_ne!(result["validity"], "invalid", "{result:#}");
    assert_eq!(result["outcomes"]["ok"], 8, "{result:#}");
    // Sixteen ranks of one PMIx world each, block-wise over two nodes, all devices of each: prefill servers first.
    let all = "0,1,2,3,4,5,6,7";
    for (server, nodes) in [("prefill-0", ["n1", "n2"]), ("prefill-1", ["n3", "n4"]), ("decode-0", ["n5", "n6"])] {
        let expected: Vec<String> = (0..16).map(|rank| format!("{} {all}", nodes[rank / 8])).collect();
        assert_eq!(shims.ranks(server), expected, "{server}");
    }
    let prefill = shims.seen("trtllm-prefill-0-0");
    let decode = shims.seen("trtllm-decode-0-0");
    let model = shims.lab.path("llmb/workloads/inference_deepseek-r1-dynamo/DeepSeek-R1-FP8").display().to_string();
    for (seen, limits) in [(&prefill, ["2048", "1", "264"]), (&decode, ["128", "128", "272"])] {
        let argv = &seen["argv"];
        assert_eq!(flag(argv, "--model-path"), model);
        assert_eq!(flag(argv, "--served-model-name"), "deepseek-r1-dynamo");
        assert_eq!(["--max-num-tokens", "--max-batch-size", "--max-seq-len"].map(|name| flag(argv, name)), limits);
        assert_eq!((&seen["config"]["tensor_parallel_size"], &seen["config"]["pipeline_parallel_size"]), (&"8".into(), &"2".into()));
        assert_eq!(seen["env"]["UCX_TLS"], Value::Null);
        assert_eq!(seen["env"]["MY_SECRET"], Value::Null);
        // A secret that was given on purpose arrives, and is in no file of the job.
        assert_eq!(seen["env"]["GIVEN_TOKEN"], "a-secret-value");
    }
    // The services are on the first node, at its address, on ports of the job's own.
    let frontend = shims.seen("frontend-frontend-0");
    let etcd = frontend["env"]["ETCD_ENDPOINTS"].as_str().expect("etcd");
    assert!(etcd.starts_with("http://127.0.1.1:20"), "{etcd}");
    assert_eq!(flag(&shims.seen("etcd-etcd-0")["argv"], "--listen-client-urls"), etcd);
    assert_eq!(prefill["env"]["ETCD_ENDPOINTS"], etcd);
    let nats = shims.seen("nats-nats-0");
    let server = format!("nats://{}:{}", flag(&nats["argv"], "-a"), flag(&nats["argv"], "-p"));
    assert_eq!(decode["env"]["NATS_SERVER"], server.as_str());
    // Workers go first, then the frontend, then the services that they need to say goodbye.
    let ends: Vec<String> = shims.read("seen/ends").lines().map(str::to_owned).collect();
    assert_eq!(ends.len(), 6, "{ends:?}");
    assert!(ends[..3].iter().all(|name| name == "trtllm") && ends[3] == "frontend", "{ends:?}");
    for file in ["job/job/job.json", "job/job/job.sbatch", "job/manifest.json", "job/events.jsonl"] {
        assert!(!shims.read(file).contains("a-secret-value"), "{file}");
    }
    // Iteration lines were cut out of the logs, and the manifest has every command line.
    assert!(shims.read("job/logs/prefill.log").lines().filter(|line| line.contains("'num_ctx_tokens': 2048")).count() >= 16);
    // TensorRT-LLM's lines are read into the report's engine steps. Slurm mixes what the tasks of a step write, now and then within a line:
    // such a piece is named, and there may be one or two among the 150 lines.
    let page = shims.lab.path("page.html").display().to_string();
    let job = shims.lab.path("job").display().to_string();
    let report = shims.lab.tandem(&["report", &job, "--html", &page]).output().expect("tandem starts");
    let page = shims.read("page.html");
    assert!(report.status.success() && page.contains("Engine steps"), "{}", stderr(&report));
    let n_torn = |phase| {
        let (before, _) = page.split_once(&format!(" iteration lines of the {phase} workers cannot be understood"))?;
        before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    };
    let torn = ["prefill", "decode"].map(|phase| n_torn(phase).unwrap_or(0));
    assert!(torn.iter().sum::<u32>() <= 2, "{torn:?}\n{}\n{}", shims.read("job/logs/prefill.log"), shims.read("job/logs/decode.log"));
    let manifest = read_json(&shims.lab.path("job/manifest.json"));
    let names: Vec<&str> = manifest["processes"].as_array().expect("processes").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["nats", "etcd", "frontend", "prefill-0", "prefill-1", "decode-0"]);
    assert!(manifest["processes"][5]["argv"].to_string().contains("trtllm-llmapi-launch"), "{manifest:#}");
}

/// A prefill and a decode server of four GPUs each, on one node.
const HALVES: [&str; 4] = ["NCTX=1", "CTX_WORLD_SIZE=4", "GEN_WORLD_SIZE=4", "DEVICE_MEMORY=400GiB"];

#[test]
fn servers_of_four_gpus_share_a_node_and_speak_dialect_1() {
    let Some(shims) = Shims::start("slurm: two GPU servers on a node", 1) else { return };
    let sets = HALVES.into_iter().chain(["ENGINE_DIALECT=1", "ENGINE_DISCOVERY=etcd"]);
    let (code, said) = shims.submit(&sets.flat_map(|set| ["--set", set]).collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{said}");
    assert_ne!(shims.result()["validity"], "invalid", "{:#}", shims.result());
    assert_eq!(shims.ranks("prefill-0"), ["n1 0,1,2,3"; 4]);
    assert_eq!(shims.ranks("decode-0"), ["n1 4,5,6,7"; 4]);
    let frontend = shims.seen("frontend-frontend-0");
    assert_eq!(flag(&frontend["argv"], "--router-mode"), "least-loaded");
    let env = &shims.seen("trtllm-decode-0-0")["env"];
    assert_eq!((&env["DYN_SYSTEM_HOST"], &env["NATS_SERVER"]), (&"127.0.1.1".into(), &Value::Null));
}

/// Builds the stand-in for pyxis; its path.
fn fake_pyxis() -> Result<PathBuf, String> {
    provide(&["cc", "/usr/include/slurm/spank.h"], &["gcc", "libc6-dev", "libslurm-dev"])?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/slurm/fake_pyxis.c");
    let plugin = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_pyxis.so");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-Wall", "-o"]).arg(&plugin).arg(source).output().map_err(|e| e.to_string())?;
    if built.status.success() { Ok(plugin) } else { Err(stderr(&built)) }
}

#[test]
fn servers_in_pyxis_containers_get_image_mounts_and_listed_variables() {
    const WHAT: &str = "slurm: pyxis containers";
    let plugin = match fake_pyxis() {
        Ok(plugin) => plugin,
        Err(reason) => return not_run(WHAT, reason),
    };
    let Some(shims) = Shims::start_with(WHAT, 1, &format!("required {}\n", plugin.display())) else { return };
    let mut args: Vec<&str> = HALVES.iter().flat_map(|set| ["--set", *set]).collect();
    let image = shims.lab.path("image.sqsh").display().to_string();
    fs::write(&image, "an image").expect("a file");
    args.extend(["--container", "pyxis", "--image", &image, "--mount", "/data:/data:ro"]);
    let (code, said) = shims.submit(&args);
    assert_eq!(code, Some(0), "{said}");
    let env = &shims.seen("trtllm-decode-0-0")["env"];
    let of = |name: &str| env[format!("FAKE_PYXIS_{name}")].as_str().unwrap_or_default().to_owned();
    assert_eq!((of("IMAGE"), of("NAME"), of("FLAGS")), (image, "tandem-1".to_owned(), "no-mount-home".to_owned()));
    assert!(of("MOUNTS").starts_with("/data:/data:ro,"), "{}", of("MOUNTS"));
    // The paths of the image hold, and everything else that was listed arrives.
    let inside = of("ENV");
    let inside: Vec<&str> = inside.split(',').collect();
    assert!(inside.contains(&"SHIM_SEEN") && inside.contains(&"ETCD_ENDPOINTS") && !inside.contains(&"PATH"), "{inside:?}");
    let manifest = read_json(&shims.lab.path("job/manifest.json"));
    assert_eq!(manifest["slurm"]["image"]["n_bytes"], 8, "{}", manifest["slurm"]);
}

#[test]
fn two_jobs_share_a_node_and_neither_ports_nor_gpus() {
    let Some(shims) = Shims::start("slurm: two jobs on one node", 1) else { return };
    fs::create_dir(shims.lab.path("seen-2")).expect("a folder");
    // Each asks for half of the node and runs two servers on it.
    let half = ["NCTX=1", "CTX_WORLD_SIZE=2", "GEN_WORLD_SIZE=2", "DEVICE_MEMORY=900GiB", "SBATCH_GPUS_PER_NODE=4"];
    let mut args: Vec<&str> = half.iter().flat_map(|set| ["--set", *set]).collect();
    args.push("--exclusive=false");
    let long = shims.submission("job", "seen", &[&args[..], &["--set", "MULTI_ROUND=100000"]].concat()).output().expect("tandem starts");
    assert!(long.status.success(), "{}", stderr(&long));
    let started = |job: &str| events(&shims.lab.path(job)).into_iter().any(|event| event["event"] == "point_started");
    wait_for("the first job's load", || started("job").then_some(()));
    let short = shims.submission("job-2", "seen-2", &[&args[..], &["--wait"]].concat()).output().expect("tandem starts");
    assert!(short.status.success(), "{}\n{}", stderr(&short), shims.read("job-2/logs/output_server.log"));
    // The first one still runs: they did share the node.
    assert!(!shims.lab.path("job/job/result.json").exists(), "{}", shims.read("job/job/result.json"));
    let devices = |seen| ["prefill-0", "decode-0"].map(|server| shims.ranks_in(seen, server).first().cloned().unwrap_or_default());
    let mut all = [devices("seen"), devices("seen-2")].concat();
    all.sort();
    assert_eq!(all, ["n1 0,1", "n1 2,3", "n1 4,5", "n1 6,7"]);
    let port = |job: &str| events(&shims.lab.path(job)).into_iter().find(|e| e["event"] == "ports_bound").map(|e| e["http"].as_u64());
    assert_eq!((port("job"), port("job-2")), (Some(Some(20_050)), Some(Some(20_100))));
    let job = shims.lab.path("job").display().to_string();
    assert!(shims.lab.tandem(&["cancel", &job]).status().expect("tandem starts").success());
    let ended = wait_for("its result", || fs::read(shims.lab.path("job/job/result.json")).ok());
    assert!(String::from_utf8_lossy(&ended).contains("130"));
}

#[test]
fn a_deployment_that_silently_serves_aggregated_is_invalid_in_either_dialect() {
    for (dialect, message) in [("1", "prefill workers served 0 of 16 requests"), ("0.6", "prefill servers computed no token")] {
        let Some(shims) = Shims::start("slurm: silently aggregated", 1) else { return };
        let dialect = format!("ENGINE_DIALECT={dialect}");
        let sets = HALVES.into_iter().chain([dialect.as_str(), "ENGINE_DISCOVERY=etcd"]).flat_map(|set| ["--set", set]);
        let (_, said) = shims.submit(&sets.chain(["--env", "SHIM_AGGREGATED=1"]).collect::<Vec<_>>());
        let result = shims.result();
        assert_eq!(result["validity"], "invalid", "{said}");
        let reasons = result["validity_reasons"].to_string();
        assert!(reasons.contains("not_disaggregated") && reasons.contains(message), "{reasons}");
    }
}

#[test]
fn frontend_and_client_may_have_nodes_of_their_own() {
    let Some(shims) = Shims::start("slurm: dedicated nodes", 4) else { return };
    // A port that is busy on the frontend's node, which is not the one where the orchestrator runs.
    let taken = std::net::TcpListener::bind("127.0.1.2:20050").expect("the port is free");
    let sets = ["NCTX=1", "CTX_WORLD_SIZE=8", "GEN_WORLD_SIZE=8", "DEVICE_MEMORY=400GiB", "ENGINE_DIALECT=1"];
    let dedicated = ["FRONTEND_DEDICATED_NODE=true", "CLIENT_DEDICATED_NODE=true", "FRONTEND_HOST=127.0.1.2"];
    let args: Vec<&str> = sets.into_iter().chain(dedicated).flat_map(|set| ["--set", set]).collect();
    let (code, said) = shims.submit(&args);
    drop(taken);
    assert_eq!(code, Some(0), "{said}");
    let node = |file: &str| shims.seen(file)["env"]["SLURMD_NODENAME"].as_str().map(str::to_owned);
    let placed = ["frontend-frontend-0", "etcd-etcd-0", "trtllm-prefill-0-0", "trtllm-decode-0-0"].map(node);
    assert_eq!(placed, ["n2", "n2", "n3", "n4"].map(|name| Some(name.to_owned())));
    let bound = events(&shims.lab.path("job")).into_iter().find(|event| event["event"] == "ports_bound").expect("an event");
    assert_eq!(bound["busy"], serde_json::json!([20050]), "{bound}");
    assert_ne!(bound["http"], 20050);
}

#[test]
fn nodes_without_servers_may_come_from_another_partition() {
    let Some(shims) = Shims::start("slurm: a heterogeneous job", 3) else { return };
    let sets =
        ["NCTX=1", "CTX_WORLD_SIZE=8", "GEN_WORLD_SIZE=8", "DEVICE_MEMORY=400GiB", "ENGINE_DIALECT=1", "FRONTEND_DEDICATED_NODE=true"];
    let mut args: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    args.extend(["--partition", "batch", "--head-partition", "cpu"]);
    let (code, said) = shims.submit(&args);
    assert_eq!(code, Some(0), "{said}");
    let script = shims.read("job/job/job.sbatch");
    let (head, rest) = script.split_once("#SBATCH hetjob").expect("two components");
    assert!(head.contains("--partition=cpu") && head.contains("--nodes=1") && !head.contains("gpus"), "{script}");
    assert!(rest.contains("--partition=batch") && rest.contains("--nodes=2") && rest.contains("--gpus-per-node=8"), "{script}");
    // The frontend has no GPU, each server its own node of the other component.
    let frontend = shims.seen("frontend-frontend-0");
    assert_eq!(frontend["env"]["SLURM_JOB_PARTITION"], "cpu", "{frontend:#}");
    let nodes: Vec<String> = ["prefill-0", "decode-0"].iter().flat_map(|server| shims.ranks(server)).collect();
    assert_eq!(nodes.len(), 16, "{nodes:?}");
    assert!(nodes.iter().all(|rank| rank.ends_with(" 0,1,2,3,4,5,6,7")), "{nodes:?}");
    assert!(nodes[0][..2] != nodes[8][..2], "{nodes:?}");
    // Steps of both components are asked to end, not killed.
    let ends: Vec<String> = shims.read("seen/ends").lines().map(str::to_owned).collect();
    assert_eq!(ends, ["trtllm", "trtllm", "frontend", "etcd"]);
    let impossible = shims.submission("job-2", "seen", &["--head-partition", "cpu"]).output().expect("tandem starts");
    assert!(stderr(&impossible).contains("no node without servers"), "{}", stderr(&impossible));
}

#[test]
fn the_real_dynamo_serves_over_two_nodes_with_etcd_and_nats() {
    const WHAT: &str = "slurm: Dynamo 1.6.1 with etcd and NATS over 2 nodes";
    let services = provide(&["etcd", "nats-server"], &["etcd-server", "nats-server"]);
    let (python, model) = match services.and_then(|()| dynamo()) {
        Ok(found) => found,
        Err(reason) => return not_run(WHAT, reason),
    };
    let Some(lab) = Lab::start(WHAT, 2) else { return };
    let (out, python, model) = (lab.path("job").display().to_string(), format!("ENGINE_PYTHON={python}"), format!("MODEL={model}"));
    let sets = [
        "ENGINE=dynamo-mocker",
        &python,
        &model,
        "SERVED_MODEL_NAME=deepseek-r1",
        "NCTX=1",
        "CTX_WORLD_SIZE=8",
        "GEN_WORLD_SIZE=8",
        "CTX_ATTENTION_DP=false",
        "GEN_ATTENTION_DP=false",
        "DEVICE_MEMORY=400GiB",
        "ENGINE_DIALECT=1",
        "ENGINE_REQUEST_PLANE=nats",
        "ENGINE_SPEEDUP=20",
        "ISL=128",
        "OSL=16",
        "CONCURRENCY=4",
        "MULTI_ROUND=4",
    ];
    let mut args = vec!["submit", "deepseek-r1", "--gpu-type", "h100", "--out", &out, "--wait", "--time", "5"];
    args.extend(sets.into_iter().flat_map(|set| ["--set", set]));
    let output = lab.tandem(&args).output().expect("tandem starts");
    let log = |name: &str| fs::read_to_string(lab.path("job/logs").join(name)).unwrap_or_default();
    let logs = || ["output_server.log", "output_prefill_1.log", "output_decode_1.log", "etcd.log", "nats.log"].map(log).join("\n==\n");
    assert!(output.status.success(), "{}\n{}", stderr(&output), logs());
    let result = read_json(&lab.path("job/result.json"));
    let reasons = &result["validity_reasons"];
    assert!(!reasons.to_string().contains("invalid"), "{reasons}");
    assert_eq!(result["outcomes"]["ok"], 16, "{result:#}");
    let manifest = read_json(&lab.path("job/manifest.json"));
    let on = |name: &str| {
        let processes = manifest["processes"].as_array().expect("processes");
        processes.iter().find(|p| p["name"] == name).map(|p| p["nodes"].clone()).unwrap_or_default()
    };
    assert_eq!((on("nats"), on("etcd"), on("frontend")), (serde_json::json!(["n1"]), serde_json::json!(["n1"]), serde_json::json!(["n1"])));
    assert_eq!((on("prefill-0"), on("decode-0")), (serde_json::json!(["n1"]), serde_json::json!(["n2"])));
    for file in ["plan.json", "perf_summary.txt", "events.jsonl", "configs/machines.txt", "configs/decode.yaml", "logs/etcd.log"] {
        assert!(lab.path("job").join(file).exists(), "{file}");
    }
}
