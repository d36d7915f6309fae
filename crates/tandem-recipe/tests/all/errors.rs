//! What a user sees after typical mistakes: every text names layer, line and knob, and says what would help.

use std::fmt::Write as _;

use tandem_recipe::{Inputs, RecipeSource, TextFile};

use crate::common::{env, failure, file_inputs, inputs, snapshot};

/// All texts of one kind of mistakes, each after what was done.
fn texts(cases: Vec<(&str, Inputs)>) -> String {
    let mut out = String::new();
    for (done, inputs) in cases {
        let _ = writeln!(out, "## {done}\n{}\n", failure(&inputs));
    }
    out
}

fn set(set: &'static str) -> (&'static str, Inputs) {
    (set, inputs("nano", &[set]))
}

fn r1(gpu: &str, set: &'static str) -> (&'static str, Inputs) {
    (set, inputs(&format!("deepseek-r1/{gpu}"), &[set]))
}

fn file(text: &'static str) -> (&'static str, Inputs) {
    (text, file_inputs(text))
}

#[test]
fn command_line_mistakes() {
    snapshot(
        "command_line_mistakes",
        &texts(vec![
            set("GEN_MTP_SZIE=3"),
            set("ISL=0"),
            set("ISL=12.5"),
            set("ISL=many"),
            set("NCTX=-1"),
            set("NCTX=99999999999999999999999"),
            set("CTX_GPU_MEMORY_FRACTION=1.5"),
            set("STREAMING=maybe"),
            set("KV_DTYPE=int8"),
            set("DEVICE_MEMORY=lots"),
            set("CONCURRENCY=0"),
            set("CONCURRENCY=1,,8"),
            set("CONCURRENCY=8,8"),
            set("CONCURRENCY"),
            set("SBATCH_TIMELIMIT=soon"),
            set("=3"),
        ]),
    );
}

#[test]
fn file_mistakes() {
    snapshot(
        "file_mistakes",
        &texts(vec![
            file("base: nano\nISL: 128\nCTX_MAX_BATCH_SIZE: 0\n"),
            file("base: nano\nNXTX: 3\n"),
            file("base: nano\nisl: 3\n"),
            file("ISL: 128\n"),
            file("base: deepseek-r2\n"),
            file("base: nano\nCONCURRENCY: {a: 1}\n"),
            file("base: nano\nCONCURRENCY: [1, [2]]\n"),
            file("base: nano\nCONCURRENCY: []\n"),
            file("base: nano\nCONCURRENCY:\n"),
            file("base: nano\nISL: [\n"),
            file("base: nano\nISL: 1\nISL: 2\n"),
            file("just words\n"),
            file(""),
        ]),
    );
}

#[test]
fn environment_site_and_recipe_mistakes() {
    let environment = |name, value| Inputs { env: env(&[(name, value)]), ..Inputs::default() };
    let site = |text: &str| Inputs { site: Some(TextFile { path: "site.yaml".to_owned(), text: text.to_owned() }), ..Inputs::default() };
    let recipe = |name: &str| Inputs { recipe: Some(RecipeSource::Builtin(name.to_owned())), ..Inputs::default() };
    snapshot(
        "environment_site_and_recipe_mistakes",
        &texts(vec![
            ("OSL=0 in the environment", environment("OSL", "0")),
            ("GEN_MTP_SZIE=3 in the environment", environment("GEN_MTP_SZIE", "3")),
            ("TANDEM_MODLE=x in the environment", environment("TANDEM_MODLE", "x")),
            ("GPU_TYPE=h100 with nano", environment("GPU_TYPE", "h100")),
            ("unknown key in the site file", site("SBATCH_PARTITON: batch\n")),
            ("base in the site file", site("base: nano\n")),
            ("tandem run nanno", recipe("nanno")),
            ("tandem run xyz", recipe("xyz")),
            ("tandem run deepseek-r1", recipe("deepseek-r1")),
            ("--gpu-type a100", inputs("deepseek-r1/a100", &[])),
            ("--gpu-type cpu", inputs("deepseek-r1/cpu", &[])),
            (
                "a million cases",
                inputs(
                    "nano",
                    &[
                        "ISL=1,2,3,4,5,6,7,8,9,10",
                        "OSL=1,2,3,4,5,6,7,8,9,10",
                        "NCTX=1,2,3,4,5,6,7,8,9,10",
                        "NGEN=1,2,3,4,5,6,7,8,9,10",
                        "SEED=1,2,3,4,5,6,7,8,9,10,11",
                    ],
                ),
            ),
        ]),
    );
}

#[test]
fn plans_that_contradict_themselves() {
    snapshot(
        "plans_that_contradict_themselves",
        &texts(vec![
            set("CTX_MAX_NUM_TOKENS=16"),
            ("CTX_CHUNKED_PREFILL=false", inputs("nano", &["CTX_CHUNKED_PREFILL=false", "CTX_MAX_NUM_TOKENS=128"])),
            ("GEN_MTP_SIZE=8", inputs("nano", &["GEN_MTP_SIZE=8", "ENGINE=modeled"])),
            set("CONCURRENCY=8,20000"),
            ("16 billion requests", inputs("nano", &["CONCURRENCY=16384", "MULTI_ROUND=1000000"])),
            set("MODEL=/no/such/model"),
            set("DUMMY_LAYERS=2"),
            ("16 million devices", inputs("nano", &["NCTX=4096", "CTX_WORLD_SIZE=4096"])),
            ("two servers on port 9000", inputs("nano", &["DYNAMO_FRONTEND_PORT=9000", "CONTROL_PORT=9000"])),
            r1("h100", "ETCD_SERVER_PORT=8000"),
        ]),
    );
}

#[test]
fn plans_that_cannot_work() {
    snapshot(
        "plans_that_cannot_work",
        &texts(vec![
            r1("h100", "GEN_WORLD_SIZE=12"),
            r1("h100", "CTX_WORLD_SIZE=12"),
            r1("b200", "GEN_TENSOR_PARALLEL_SIZE=3"),
            r1("b200", "GEN_EXPERT_PARALLEL_SIZE=3"),
            r1("gb200", "GEN_WORLD_SIZE=6"),
            r1("h100", "SBATCH_GPUS_PER_NODE=4"),
            ("7 ranks without attention DP", inputs("deepseek-r1/b200", &["GEN_WORLD_SIZE=7", "GEN_ATTENTION_DP=false"])),
            ("7 ranks with attention DP", inputs("deepseek-r1/b200", &["GEN_WORLD_SIZE=7"])),
            r1("gb200", "GEN_EPLB_NUM_SLOTS=250"),
            r1("gb200", "GEN_EPLB_NUM_SLOTS=260"),
            r1("h100", "GEN_MAX_BATCH_SIZE=256"),
            r1("h100", "GEN_WORLD_SIZE=8"),
            r1("h100", "CTX_WORLD_SIZE=8"),
            r1("b200", "CTX_WORLD_SIZE=1"),
            r1("gb200", "KV_DTYPE=f32"),
            r1("gb200", "ISL=163840"),
            set("DEVICE_MEMORY=16MiB"),
            set("GEN_MAX_BATCH_SIZE=5000"),
            ("nearly no cache", inputs("nano", &["DEVICE_MEMORY=60MiB", "ISL=20000"])),
            set("ENGINE=dynamo-trtllm"),
            set("WEIGHT_DTYPE=nvfp4"),
            set("CTX_WORLD_SIZE=2"),
            set("GEN_EPLB_NUM_SLOTS=32"),
            ("3 ranks of 8 heads", inputs("nano", &["ENGINE=modeled", "CTX_WORLD_SIZE=3"])),
        ]),
    );
}

/// Settings that fail, and the setting that the hint names.
#[test]
fn following_a_hint_leads_to_a_plan() {
    for (recipe, set, hint, then) in [
        ("nano", "DEVICE_MEMORY=16MiB", "raise DEVICE_MEMORY to ", "DEVICE_MEMORY="),
        ("nano", "GEN_MAX_BATCH_SIZE=5000", "GEN_MAX_NUM_TOKENS) to ", "GEN_MAX_BATCH_SIZE="),
        ("deepseek-r1/h100", "GEN_MAX_BATCH_SIZE=140", "GEN_GPU_MEMORY_FRACTION to ", "GEN_GPU_MEMORY_FRACTION="),
        ("deepseek-r1/h100", "GEN_WORLD_SIZE=8", "GEN_WORLD_SIZE = ", "GEN_WORLD_SIZE="),
        ("deepseek-r1/b200", "CTX_WORLD_SIZE=1", "CTX_WORLD_SIZE = ", "CTX_WORLD_SIZE="),
        ("deepseek-r1/gb200", "GEN_EPLB_NUM_SLOTS=260", "or ", "GEN_EPLB_NUM_SLOTS="),
        ("nano", "CTX_MAX_NUM_TOKENS=8", "use at least ", "CTX_MAX_NUM_TOKENS="),
        ("nano", "CONCURRENCY=20000", "MAX_INFLIGHT to ", "MAX_INFLIGHT="),
    ] {
        let text = failure(&inputs(recipe, &[set]));
        let (_, rest) = text.split_once("hint: ").and_then(|(_, h)| h.split_once(hint)).unwrap_or_else(|| panic!("{text}"));
        let value: String = rest.lines().next().unwrap_or_default().chars().take_while(|c| !",(".contains(*c)).collect();
        let words: Vec<&str> = value.split_whitespace().take(2).collect();
        // An amount is a number and its unit; everything else is one word.
        let value = if words.get(1).is_some_and(|unit| unit.ends_with("iB")) { words.concat() } else { words[0].to_owned() };
        let plan = crate::common::plan(recipe, &[set, &format!("{then}{value}")]);
        assert!(!plan.workers.is_empty());
    }
}
