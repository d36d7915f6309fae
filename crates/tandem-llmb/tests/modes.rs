//! The modes of `llmb-run submit`: which tasks, in which order, on how many nodes, with which variables, and the error texts.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use std::collections::BTreeMap;
use tandem_llmb::flags::{env_args, slurm_args};
use tandem_llmb::metadata::split_size;
use tandem_llmb::submission::{gpus_per_node, nodes};

use tandem_llmb::{
    Circumstances, Cluster, Compat, Options, SlurmFlags, Task, Workload, generate, submission, text_tasks, validate, yaml_tasks,
};

const R1: &str = "
general: {workload: deepseek-r1-dynamo, workload_type: inference, framework: dynamo}
run:
  launcher_type: sbatch
  gpu_configs:
    h100: {model_configs: [{model_size: '671b', dtypes: fp8, scales: [48], exact_scales: true}]}
    gb200: {model_configs: [{model_size: '671b', dtypes: nvfp4, scales: [32], exact_scales: true}]}
";

/// Two number formats with scales of their own, one of them exact, and a model with the list form.
const TRAIN: &str = "
general: {workload: llama, workload_type: pretrain}
run:
  launcher_type: configured_sbatch
  launch_script: run.sh
  gpu_configs:
    h100:
      model_configs:
      - model_size: 70b
        exact_scales: false
        proxy_scales: [8]
        dtypes:
          fp8: [128, 64]
          bf16: {scales: [64], exact_scales: true}
          int3: [2]
      - {model_size: 8b, dtypes: [fp8, bf16], scales: [8, 16]}
    gb200: {model_configs: [{model_size: 8b, dtypes: fp8, scales: [72]}]}
";

const CLUSTER: &str = "
schema_version: 2
llmb_repo: /repo
llmb_install: /llmb
gpu_type: h100
environment: {HF_HOME: /hf, DTYPE: wrong}
slurm:
  account: acct
  qos: q
  gpu: {partition: batch, gres: 8, qos: null, time-limit: 60}
  cpu: {partition: cpu, gres: null}
workloads: {installed: [inference_deepseek-r1-dynamo]}
";

fn workloads() -> Vec<Workload> {
    [R1, TRAIN].iter().map(|text| Workload::parse("metadata.yaml", text).unwrap().unwrap()).collect()
}

/// `-w … -s … --scale …` without commas for brevity.
fn options(text: &str) -> Options {
    let mut o = Options::default();
    let mut words = text.split(' ').filter(|w| !w.is_empty());
    let list = |word: Option<&str>| word.unwrap().split(',').map(str::to_owned).collect::<Vec<_>>();
    while let Some(word) = words.next() {
        match word {
            "-w" => o.workloads = list(words.next()),
            "-s" => o.size = words.next().map(str::to_owned),
            "-d" => o.dtypes = list(words.next()),
            "--scale" => o.scales = list(words.next()).iter().map(|s| s.parse().unwrap()).collect(),
            "--max-scale" => o.max_scale = words.next().map(|s| s.parse().unwrap()),
            "--min-scale" => o.min_scale = true,
            "--exact-scales" => o.exact_scales = true,
            "--proxy" => o.proxy = true,
            "-r" => o.repeats = words.next().unwrap().parse().unwrap(),
            other => panic!("{other}"),
        }
    }
    o
}

fn short(tasks: &[Task]) -> String {
    tasks.iter().map(|t| format!("{} {} {}", t.size, t.dtype, t.scale)).collect::<Vec<_>>().join("; ")
}

#[test]
fn options_make_these_tasks_in_this_order() {
    let cases = [
        ("-w inference_deepseek-r1-dynamo -s 671b -d fp8 --scale 48", "671b fp8 48"),
        ("-w inference_deepseek-r1-dynamo_671b --max-scale 1024", "671b fp8 48"),
        ("-w pretrain_llama_70b --scale 64,128,256", "70b fp8 256; 70b fp8 128; 70b fp8 64; 70b bf16 64"),
        ("-w pretrain_llama -s 70B --max-scale 512 -d fp8", "70b fp8 512; 70b fp8 256; 70b fp8 128; 70b fp8 64"),
        ("-w pretrain_llama -s 70b --max-scale 512 -d fp8 --exact-scales", "70b fp8 128; 70b fp8 64"),
        ("-w pretrain_llama -s 70b --min-scale", "70b fp8 64; 70b bf16 64"),
        ("-w pretrain_llama -s 70b --proxy --max-scale 8 -d fp8", "70b fp8 8"),
        ("-w pretrain_llama_8b -d bf16 --scale 8,16 -r 2", "8b bf16 16; 8b bf16 16; 8b bf16 8; 8b bf16 8"),
        // Without -w only what is trained.
        ("--max-scale 16 --exact-scales", "8b fp8 16; 8b bf16 16; 8b fp8 8; 8b bf16 8"),
    ];
    for (text, expected) in cases {
        assert_eq!(short(&generate(&options(text), &workloads(), "h100").unwrap().tasks), expected, "{text}");
    }
}

#[test]
fn options_that_cannot_work_say_why() {
    let cases = [
        ("-w pretrain_llama_70b -s 8b --scale 8", "Workload name implies size '70b' but --model-size is '8b'."),
        ("-s 8b --scale 8", "--model-size requires --workload"),
        ("-w a,b -s 8b --scale 8", "cannot be used with multiple workloads"),
        ("-w pretrain_llama", "Must specify scale parameter"),
        ("-w pretrain_llama --scale 8 --min-scale", "Cannot use --scale with --max-scale or --min-scale"),
        ("-w pretrain_lama --scale 8", "Workload 'pretrain_lama' not found."),
        ("-w inference_deepseek-r1-dynamo --scale 64", "inference_deepseek-r1-dynamo_671b fp8: supports scales 48, none was asked for"),
        ("-w pretrain_llama -s 9b --scale 8", "Model size '9b' not supported for workload 'pretrain_llama' for GPU type 'h100'."),
        ("-w pretrain_llama_8b -d fp4 --scale 8", "pretrain_llama_8b: dtype fp8 was not asked for"),
    ];
    for (text, expected) in cases {
        let error = generate(&options(text), &workloads(), "h100").unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn tasks_are_validated_in_the_tools_order_and_words() {
    let task = |workload: &str, size: &str, dtype: &str, scale| Task {
        workload: workload.into(),
        size: size.into(),
        dtype: dtype.into(),
        scale,
        profile: false,
        proxy: false,
        env: Vec::new(),
        params: Vec::new(),
    };
    let r1 = "inference_deepseek-r1-dynamo";
    let cases = [
        (task("x", "671b", "fp8", 48), "h100", "Workload 'x' not found."),
        (
            task("pretrain_llama", "8b", "fp8", 8),
            "h100",
            "is not installed on this cluster.\nInstalled workloads: inference_deepseek-r1-dynamo",
        ),
        (task(r1, "671b", "fp8", 48), "b300", "GPU type 'b300' not supported for workload 'inference_deepseek-r1-dynamo'."),
        (task(r1, "70b", "fp8", 48), "h100", "Model size '70b' not supported"),
        (
            task(r1, "671b", "bf16", 48),
            "h100",
            "Data type 'bf16' not supported for inference_deepseek-r1-dynamo_671b.\nSupported data types: fp8",
        ),
        (task(r1, "671b", "fp8", 64), "h100", "Scale 64 not supported for inference_deepseek-r1-dynamo_671b.\nSupported scales: 48"),
    ];
    let installed = [r1.to_owned()];
    for (task, gpu, expected) in cases {
        let error = validate(&task, &workloads(), &installed, gpu, false).expect(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(validate(&task(r1, "671b", "fp8", 48), &workloads(), &installed, "h100", false), None);
    let below = validate(&task("pretrain_llama", "70b", "fp8", 32), &workloads(), &[], "h100", false).unwrap().to_string();
    assert!(below.starts_with("Scale 32 is below minimum supported scale for pretrain_llama_70b."), "{below}");
    assert_eq!(validate(&task("pretrain_llama", "70b", "fp8", 1024), &workloads(), &[], "h100", false), None);
    let proxy = Task { proxy: true, ..task(r1, "671b", "fp8", 48) };
    assert!(validate(&proxy, &workloads(), &[], "h100", false).unwrap().to_string().starts_with("No proxy scales defined"));
}

/// What `submission` makes of a task of `all[index]`, with these variables in the shell.
fn job(task: &Task, index: usize, gpu: &str, compat: Compat, shell: &[(&str, &str)]) -> Result<tandem_llmb::Submission, String> {
    let cluster = Cluster { gpu_type: gpu.into(), ..Cluster::parse("cluster_config.yaml", CLUSTER).unwrap() };
    let shell: BTreeMap<String, String> = shell.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let flags = SlurmFlags::default();
    let around = Circumstances { gpus_per_node: None, compat, shell: &shell, flags: &flags, experiment: Some("/x") };
    submission(task, &workloads()[index], &cluster, &around).map_err(|e| e.to_string())
}

#[test]
fn a_job_has_these_nodes_arguments_and_variables() {
    let mut task = Task::new("inference_deepseek-r1-dynamo", "671b", "fp8", 48);
    task.params.push(("concurrency".into(), "256".into()));
    task.env.push(("A".into(), "b c".into()));
    let plain = job(&task, 0, "h100", Compat::Corrected, &[]).unwrap();
    assert_eq!(
        plain.argv.join(" "),
        "sbatch --parsable --output=/llmb/workloads/inference_deepseek-r1-dynamo/slurm-%j.out \
         -J inference_deepseek-r1-dynamo_671b_fp8 -N 6 --ntasks-per-node=8 launch.sh"
    );
    let text = |env: &[(String, String)]| env.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ");
    // The cluster's `environment` comes after the task's facts and wins; qos is removed by the block's null.
    let facts = "LLMB_INSTALL=/llmb MODEL_SIZE=671b JOB_TOTAL_GPUS=48 GPU_TYPE=h100 SBATCH_ACCOUNT=acct SBATCH_PARTITION=batch \
                 SBATCH_GPUS_PER_NODE=8 SBATCH_TIME_LIMIT=60 HF_HOME=/hf DTYPE=wrong A=b c";
    assert_eq!(text(&plain.env), format!("{facts} LLMB_CONTAINER_ENV=A CONCURRENCY=256"));
    assert_eq!(text(&job(&task, 0, "h100", Compat::Dgxc26_02, &[]).unwrap().env), format!("{facts} CONCURRENCY=256"));
    assert!(plain.notes.is_empty() && plain.withheld.is_empty());
    assert_eq!((nodes(12, 8), nodes(4, 8)), ((2, 8), (1, 4)));
    assert_eq!(gpus_per_node("h100", Some(4)).unwrap(), 4);
    assert!(gpus_per_node("x", None).unwrap_err().to_string().starts_with("Invalid GPU type specified: 'x'."));
}

#[test]
fn the_shell_wins_over_the_clusters_file_and_it_is_said() {
    let task = Task::new("inference_deepseek-r1-dynamo", "671b", "fp8", 48);
    let shell = [("SBATCH_PARTITION", "cpu"), ("HF_HOME", "/mine"), ("HF_TOKEN", "t"), ("VIRTUAL_ENV", "/v"), ("ISL", "5"), ("DTYPE", "x")];
    let ours = job(&task, 0, "h100", Compat::Corrected, &shell).unwrap();
    let of = |job: &tandem_llmb::Submission, name: &str| job.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap();
    assert_eq!((of(&ours, "SBATCH_PARTITION").as_str(), of(&ours, "HF_HOME").as_str()), ("cpu", "/mine"));
    assert_eq!(ours.notes[0], "SBATCH_PARTITION=cpu, not batch: the shell wins over cluster_config.yaml");
    assert_eq!(ours.inherited, [("ISL".to_owned(), "5".to_owned())]);
    assert_eq!(ours.withheld, ["HF_TOKEN", "VIRTUAL_ENV"]);
    // The old order, on request.
    let old = job(&task, 0, "h100", Compat::Dgxc26_02, &shell).unwrap();
    assert_eq!((of(&old, "SBATCH_PARTITION").as_str(), of(&old, "HF_HOME").as_str()), ("batch", "/hf"));
    assert!(old.notes[0].contains("cluster_config.yaml wins over the shell") && old.withheld.is_empty(), "{:?}", old.notes);
    // The login's own PATH says nothing about the job; what a task states beats both.
    let task = Task { env: vec![("HF_HOME".into(), "/task".into())], ..task };
    assert_eq!(of(&job(&task, 0, "h100", Compat::Corrected, &shell).unwrap(), "HF_HOME"), "/task");
}

#[test]
fn configured_jobs_have_a_folder_and_racks_a_segment() {
    let task = Task::new("pretrain_llama", "8b", "fp8", 72);
    let wide = job(&task, 1, "gb200", Compat::Corrected, &[]).unwrap();
    assert_eq!((wide.n_nodes, wide.n_tasks_per_node), (18, 4));
    assert_eq!(
        wide.argv.join(" "),
        "sbatch --parsable --output=/x/slurm-%j.out -J pretrain_llama_8b_fp8 -N 18 --ntasks-per-node=4 --segment=18 run.sh"
    );
    assert!(wide.env.contains(&("LLMB_EXPERIMENT_DIR".to_owned(), "/x".to_owned())));
    let forty = Task { scale: 160, ..task.clone() };
    assert!(job(&forty, 1, "gb200", Compat::Corrected, &[]).unwrap().argv.contains(&"--segment=10".to_owned()));
    let own = job(&task, 1, "gb200", Compat::Corrected, &[("SBATCH_SEGMENT_SIZE", "9")]).unwrap();
    assert!(own.argv.iter().all(|word| !word.starts_with("--segment")), "{:?}", own.argv);
    assert!(job(&task, 1, "h100", Compat::Corrected, &[]).unwrap().argv.iter().all(|word| !word.starts_with("--segment")));
}

#[test]
fn slurms_options_come_in_the_tools_order_and_bad_ones_are_refused() {
    let passthrough = slurm_args(&["licenses=x".into(), "requeue".into()]).unwrap();
    let flags = SlurmFlags {
        nodelist: Some("n[1-2]".into()),
        exclude: Some("n3".into()),
        reservation: Some("r".into()),
        segment: Some(2),
        nice: Some(5),
        passthrough,
    };
    assert_eq!(flags.arguments().join(" "), "--nodelist=n[1-2] --exclude=n3 --reservation=r --segment=2 --nice=5 --licenses=x --requeue");
    for (given, expected) in [
        ("nice=3", "`nice` has a dedicated flag. Use `--nice` instead of `--slurm-arg nice=3`."),
        ("--x=1", "leave the leading"),
        ("x=", "must not be empty"),
        ("=1", "must not be empty"),
    ] {
        assert!(slurm_args(&[given.to_owned()]).unwrap_err().to_string().contains(expected), "{given}");
    }
    assert!(slurm_args(&["a=1".into(), "a".into()]).unwrap_err().to_string().contains("twice"));
    assert_eq!(env_args(&["A=b 'c'".into()]).unwrap(), [("A".to_owned(), "b 'c'".to_owned())]);
    for (given, expected) in [("A", "must be in `KEY=value` form."), ("1A=x", "must match [A-Za-z_]"), ("A=x\ny", "a line break")] {
        assert!(env_args(&[given.to_owned()]).unwrap_err().to_string().contains(expected), "{given}");
    }
}

#[test]
fn launchers_that_cannot_be_started_are_named() {
    let task = Task::new("inference_deepseek-r1-dynamo", "671b", "fp8", 48);
    let cluster = Cluster::parse("c", CLUSTER).unwrap();
    let (shell, flags) = (BTreeMap::new(), SlurmFlags::default());
    let around = Circumstances { gpus_per_node: None, compat: Compat::Corrected, shell: &shell, flags: &flags, experiment: None };
    for (launcher, expected) in [
        (Some("make"), "Unknown launcher type: make"),
        (Some("nemo"), "Launcher type nemo"),
        (None, "Missing required 'run.launcher_type' field in metadata for workload inference_deepseek-r1-dynamo"),
    ] {
        let line = launcher.map(|name| format!("  launcher_type: {name}\n")).unwrap_or_default();
        let workload = Workload::parse("m", &R1.replace("  launcher_type: sbatch\n", &line)).unwrap().unwrap();
        let error = submission(&task, &workload, &cluster, &around).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn both_versions_of_the_cluster_file_are_read() {
    let v1 = "
launcher: {gpu_type: h100, llmb_install: /llmb, llmb_repo: /repo}
slurm: {account: acct, gpu_partition: batch, gpu_gres: 8, cpu_partition: cpu}
";
    let cluster = Cluster::parse("c", v1).unwrap();
    let text = |variables: &[(String, String)]| variables.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ");
    assert_eq!(text(&cluster.slurm_gpu), "SBATCH_ACCOUNT=acct SBATCH_PARTITION=batch SBATCH_GPUS_PER_NODE=8");
    assert_eq!(text(&cluster.slurm_cpu), "SBATCH_ACCOUNT=acct SBATCH_PARTITION=cpu");
    for (text, expected) in [
        ("schema_version: 3", "Unsupported cluster configuration schema_version '3'. Supported versions are: 1, 2."),
        ("schema_version: 2\nllmb_repo: /r\nllmb_install: /l\ngpu_type: h100", "Missing required 'slurm' section"),
        ("schema_version: 2\nllmb_repo: /r\nllmb_install: /l\ngpu_type: h100\nslurm: {account: a}", "'slurm.gpu' section is required"),
        ("schema_version: 2\nslurm: {gpu: {partition: p}}", "Missing required 'llmb_repo'"),
    ] {
        assert!(Cluster::parse("c", text).unwrap_err().to_string().contains(expected), "{text}");
    }
}

#[test]
fn yaml_files_expand_sweeps_outermost() {
    let text = "
inference_deepseek-r1-dynamo_671b:
  defaults: {env: {A: x}, params: {osl: 512}}
  dtypes: fp8
  tasks:
    - scales: [48, 96]
      overrides: {env: {B: z}, params: {concurrency: [256, 512], isl: 2000}}
      repeats: 2
      add_profile: true
";
    let tasks = yaml_tasks("t.yaml", text).unwrap();
    assert_eq!(tasks.len(), 2 * 2 * 3);
    let line =
        |t: &Task| format!("{} {} {}", t.scale, t.params.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(","), t.profile);
    assert_eq!(line(&tasks[0]), "48 osl=512,concurrency=256,isl=2000 false");
    assert_eq!(line(&tasks[2]), "48 osl=512,concurrency=256,isl=2000 true");
    assert_eq!(line(&tasks[3]), "96 osl=512,concurrency=256,isl=2000 false");
    assert_eq!(line(&tasks[6]), "48 osl=512,concurrency=512,isl=2000 false");
    assert_eq!(tasks[0].env, [("A".to_owned(), "x".to_owned()), ("B".to_owned(), "z".to_owned())]);
    for (text, expected) in [
        ("nosize:\n  tasks: [{}]", "Invalid YAML header: 'nosize'"),
        ("a_7b:\n  tasks: [{scales: 8}]", "Missing required field 'dtypes' in task"),
        ("a_7b:\n  tasks: [{dtypes: fp8}]", "Missing required field 'scales' in task"),
        ("a_7b:\n  dtypes: fp8\n  tasks: [{scales: 8, profile: true, add_profile: true}]", "Cannot specify both"),
        ("a_7b: {}", "at least one entry under 'tasks:'"),
    ] {
        assert!(yaml_tasks("t.yaml", text).unwrap_err().to_string().contains(expected), "{text}");
    }
}

#[test]
fn text_files_take_hyphens_and_report_bad_lines() {
    let good = "inference_deepseek-r1-dynamo_671b:\n('fp8', [48], 2)\n(['fp8', 'bf16'], [8, 16], 1, True)\n";
    let tasks = text_tasks("t.txt", good).unwrap();
    assert_eq!(short(&tasks), "671b fp8 48; 671b fp8 48; 671b fp8 8; 671b fp8 16; 671b bf16 8; 671b bf16 16");
    assert!(!tasks[1].profile && tasks[2].profile);
    let bad = "a_7b:\n('fp8', [8], 1)\nfp8 8 1\n\n('fp8', [8], 1)\n";
    let error = text_tasks("t.txt", bad).unwrap_err().to_string();
    assert!(error.contains("t.txt:3: no task") && error.contains("t.txt:5: a task outside a section"), "{error}");
}

#[test]
fn sizes_are_told_from_names() {
    for (name, key, size) in
        [("a_70b", "a", Some("70b")), ("a_b_1.5T", "a_b", Some("1.5t")), ("a_b", "a_b", None), ("a_.5b", "a_.5b", None)]
    {
        assert_eq!(split_size(name), (key, size.map(str::to_owned)));
    }
}
