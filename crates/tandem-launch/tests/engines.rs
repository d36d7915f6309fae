//! Steps of every engine against golden files: command lines, environment, nodes, devices, files.

use std::fmt::Write as _;
use std::path::Path;

use tandem_launch::LaunchError;
use tandem_launch::engines::{self, Binding, NodeBinding, Ports, Step};
use tandem_plan::Plan;
use tandem_recipe::{Inputs, RecipeSource, load_recipe, plans};

/// The only plan of a recipe; `gpu` may be empty.
fn plan(recipe: &str, gpu: &str, sets: &[&str]) -> Plan {
    let inputs = Inputs {
        recipe: Some(RecipeSource::Builtin(recipe.into())),
        gpu_type: (!gpu.is_empty()).then(|| gpu.to_owned()),
        sets: sets.iter().map(ToString::to_string).collect(),
        ..Inputs::default()
    };
    let config = |path: &str| {
        let r1 = path == "/r1/config.json";
        r1.then(|| include_str!("../../tandem-recipe/data/deepseek-r1.json").to_owned()).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    };
    let mut plans = plans(&load_recipe(&inputs).expect("a recipe"), &config).expect("a plan");
    assert_eq!(plans.len(), 1);
    plans.remove(0)
}

/// A cluster's binding, or with `local` one machine's, with fixed ports.
fn binding(plan: &Plan, local: bool) -> Binding {
    let node = |i: u32| NodeBinding { name: format!("n{i}"), address: if local { "127.0.0.1".into() } else { format!("10.0.0.{i}") } };
    Binding {
        run_dir: "/run".into(),
        program: "/bin/tandem".into(),
        nodes: (1..=plan.n_nodes).map(node).collect(),
        ports: Ports { http: 8000, etcd: 2379, etcd_peer: 2380, nats: 4222, workers: (9001..).take(plan.workers.len()).collect() },
        control: None,
        stop_with_stdin: local,
        in_job: !local,
    }
}

fn all_steps(plan: &Plan, local: bool) -> Result<Vec<Step>, LaunchError> {
    let (adapter, binding) = (engines::adapter(plan), binding(plan, local));
    let mut steps = adapter.front(plan, &binding)?;
    steps.extend(adapter.workers(plan, &binding)?);
    Ok(steps)
}

fn text(plan: &Plan, local: bool) -> String {
    let mut out = String::new();
    for (name, content) in engines::adapter(plan).files(plan, &binding(plan, local)) {
        let _ = writeln!(out, "==> {name} <==\n{content}");
    }
    for step in all_steps(plan, local).expect("steps") {
        let mpi = if step.mpi { " (MPI)" } else { "" };
        let _ = writeln!(
            out,
            "{} on nodes {:?} devices {:?}: {} tasks{mpi}, stop {}",
            step.name, step.nodes, step.devices, step.n_tasks, step.stop_order
        );
        let _ = writeln!(out, "  {}", step.argv.join(" "));
        for (name, value) in &step.env {
            let _ = writeln!(out, "  {name}={value}");
        }
        for name in &step.unset {
            let _ = writeln!(out, "  unset {name}");
        }
        let _ = writeln!(out, "  log {}; ready when port {:?} answers", step.log, step.wait_for_port);
    }
    out
}

#[test]
fn published_configurations_start_as_the_recipe_does() {
    for gpu in ["gb200", "b200", "h100"] {
        insta::assert_snapshot!(format!("dynamo-trtllm-{gpu}"), text(&plan("deepseek-r1", gpu, &["LLMB_INSTALL=/llmb"]), false));
    }
}

#[test]
fn other_engines_have_their_command_lines() {
    let small = ["NCTX=1", "CTX_WORLD_SIZE=8", "NGEN=1", "GEN_WORLD_SIZE=8", "LLMB_INSTALL=/llmb"];
    for (name, engine) in
        [("dynamo-vllm", "ENGINE=dynamo-vllm"), ("dynamo-sglang", "ENGINE=dynamo-sglang"), ("trtllm-serve", "ENGINE=trtllm-serve")]
    {
        let plan = plan("deepseek-r1", "b200", &[&small[..], &[engine]].concat());
        insta::assert_snapshot!(name, text(&plan, false));
    }
    let dialect_1 = plan("deepseek-r1", "h100", &["ENGINE_DIALECT=1", "LLMB_INSTALL=/llmb"]);
    insta::assert_snapshot!("dynamo-trtllm-dialect-1", text(&dialect_1, false));
}

#[test]
fn the_mocker_speaks_both_dialects() {
    let sets = ["MODEL=/r1", "NCTX=2", "ENGINE_PYTHON=/venv/bin/python"];
    for (name, more) in [
        ("mocker-file", &[][..]),
        ("mocker-etcd", &["ENGINE_DISCOVERY=etcd", "ENGINE_SPEEDUP=50"]),
        ("mocker-nats", &["ENGINE_DISCOVERY=etcd", "ENGINE_REQUEST_PLANE=nats"]),
        ("mocker-0.6", &["ENGINE_DIALECT=0.6"]),
    ] {
        insta::assert_snapshot!(name, text(&plan("mocker", "", &[&sets[..], more].concat()), true));
    }
}

#[test]
fn the_embedded_engine_and_an_external_one() {
    insta::assert_snapshot!("tandem", text(&plan("nano", "", &[]), true));
    let external = plan("nano", "", &["ENGINE=external", "ENGINE_URL=http://127.0.0.1:8000/"]);
    assert!(all_steps(&external, true).expect("no steps").is_empty());
    assert_eq!(engines::adapter(&external).url(&external, &binding(&external, true)), "http://127.0.0.1:8000");
    let nowhere = plan("nano", "", &["ENGINE=external"]);
    assert!(all_steps(&nowhere, true).unwrap_err().to_string().contains("ENGINE_URL"));
}

#[test]
fn what_an_engine_cannot_do_is_refused() {
    let wide = plan("deepseek-r1", "h100", &["ENGINE=dynamo-vllm"]);
    assert!(all_steps(&wide, false).unwrap_err().to_string().contains("prefill-0 spans nodes"));
    let far = plan("deepseek-r1", "h100", &["ENGINE_DIALECT=1", "ENGINE_DISCOVERY=file"]);
    assert!(all_steps(&far, false).unwrap_err().to_string().contains("use etcd"));
    let cluster = plan("deepseek-r1", "h100", &[]);
    assert!(engines::adapter(&cluster).needs_cluster(&cluster).is_some_and(|reason| reason.contains("6 nodes")));
}

#[test]
fn local_ports_are_free_and_different() {
    let plan = plan("mocker", "", &["MODEL=/r1", "ENGINE_DIALECT=0.6"]);
    let needs = engines::adapter(&plan).ports(&plan);
    let ports = Binding::local(&plan, Path::new("run"), Path::new("tandem"), needs).expect("ports").ports;
    let mut all = vec![ports.http, ports.etcd, ports.etcd_peer, ports.nats];
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), all.contains(&0)), (4, false));
    let plan = self::plan("mocker", "", &["MODEL=/r1", "ENGINE_DIALECT=0.6", "ETCD_SERVER_PORT=23790", "NATS_SERVER_PORT=42220"]);
    let stated = Binding::local(&plan, Path::new("run"), Path::new("tandem"), needs).expect("ports").ports;
    assert_eq!((stated.etcd, stated.nats), (23_790, 42_220));
}
