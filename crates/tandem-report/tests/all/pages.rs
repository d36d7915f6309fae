//! What the page, Markdown and JSON say of ordinary and of odd runs.

use serde_json::{Value, json};
use tandem_metrics::Verdict;
use tandem_metrics::telemetry::{Subject, SubjectKind, line};
use tandem_report::{Gate, Run, compare, comparison_markdown, json as report_json, markdown};

use crate::fixture::{comparisons, page, records, result, run, run_of, text};
use crate::markup::Markup;

/// `result.json` with every figure of a metric multiplied.
fn scaled(metric: &str, factor: f64) -> Value {
    let mut result = result();
    for point in result["points"].as_array_mut().unwrap() {
        for (name, value) in point["summary"][metric].as_object_mut().unwrap() {
            if name != "unit" && name != "count" {
                *value = json!(value.as_f64().unwrap() * factor);
            }
        }
    }
    result
}

#[test]
fn markdown_of_the_fixture() {
    insta::assert_snapshot!(markdown(&[run("small")], &[]));
}

#[test]
fn a_page_has_every_part_in_order() {
    let page = page(&[run("small")]);
    let markup = Markup::read(&page);
    let parts = [
        "class=\"badge valid\"",
        "Throughput per GPU against throughput per user",
        "<h3>Knobs that were set</h3>",
        "<h3>Summary</h3>",
        "<h3>Load points</h3>",
        "Time to first token (TTFT), ms",
        "Time per output token (TPOT), ms",
        "Request latency, ms",
        "Requests in flight",
        "Output tokens a second",
        "Waterfall of all",
        "Requests in a step, prefill",
        "Time of a step, decode",
        "KV cache in use, decode",
        "<h3>How to reproduce</h3>",
        "<pre><code>tandem run nano --set CONCURRENCY=1,2 --set ISL=64 --set MULTI_ROUND=5 --set NCTX=1 --set OSL=12</code></pre>",
        "command line --set MULTI_ROUND=5",
        "<h3>Evidence</h3>",
    ];
    let mut from = 0;
    for part in parts {
        from += page[from..].find(part).unwrap_or_else(|| panic!("no {part} after byte {from}"));
    }
    for table in ["overview", "run-1"] {
        assert!(markup.ids.contains(table));
    }
    assert!(!page.contains("NaN") && !page.contains("inf\""), "a number is none");
}

#[test]
fn a_page_needs_nothing_else() {
    let page = page(&[run("small")]);
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        // The SVG namespace is a name, not an address, and stands in the script only.
        let n = page.replace("http://www.w3.org/2000/svg", "").matches(outside).count();
        assert_eq!(n, 0, "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn every_picture_is_described_and_has_a_table() {
    let page = page(&[run("a"), run("b")]);
    let pictures: Vec<&str> = page.split("<svg class=\"chart\"").skip(1).collect();
    assert!(pictures.len() > 20);
    for picture in pictures {
        let (svg, after) = picture.split_once("</svg>").unwrap();
        assert!(svg.contains("<title") && svg.contains("<desc"));
        assert!(after.starts_with("<details class=\"data\">"), "{}", &svg[..200]);
    }
}

#[test]
fn equal_runs_give_equal_pages_and_no_clear_change() {
    let runs = [run("a"), run("b")];
    let first = page(&runs);
    assert_eq!(first, page(&[run("a"), run("b")]));
    Markup::read(&first);
    let comparison = compare(&runs[0], &runs[1]);
    assert_eq!((comparison.points.len(), comparison.warnings.len()), (2, 0));
    for change in comparison.points.iter().flat_map(|point| &point.changes) {
        assert!(change.relative.is_none_or(|change| change == 0.0));
        assert!(change.interval.is_none_or(|(low, high)| low <= 0.0 && high >= 0.0), "{change:?}");
    }
}

#[test]
fn only_equal_loads_are_compared() {
    let mut other = result();
    other["points"][1]["load"]["isl"] = json!(65);
    let comparison = compare(&run("a"), &run_of("b", &other, None));
    assert_eq!(comparison.points.len(), 1);
    assert_eq!(
        comparison.unmatched,
        ["concurrency 2 (ISL 64, OSL 12, streaming) only in a", "concurrency 2 (ISL 65, OSL 12, streaming) only in b"]
    );
    assert!(comparison.warnings.iter().any(|warning| warning.starts_with("the engine differs")), "{:?}", comparison.warnings);
    assert!(comparison_markdown(&comparison).contains("Not compared: concurrency 2 (ISL 64"));
}

#[test]
fn a_gate_fails_at_a_regression_and_only_then() {
    let (before, after) = (run("before"), run_of("after", &scaled("output_throughput_per_gpu", 0.95), Some(&text("plan.json"))));
    let judge = |condition: &str, a: &Run, b: &Run| condition.parse::<Gate>().unwrap().judge(a, b, &compare(a, b));
    let judgement = judge("tokens_per_gpu<-3%", &before, &after);
    assert!(judgement.fails());
    assert!(judgement.failures[0].starts_with("tokens_per_gpu<-3%: at concurrency 1 it is −5.0 %"), "{:?}", judgement.failures);
    assert!(!judge("tokens_per_gpu<-3%", &after, &before).fails());
    assert!(!judge("tokens_per_gpu<-6%", &before, &after).fails());
    assert!(judge("goodput<-3%", &before, &after).fails(), "a figure that nobody has");
}

#[test]
fn nothing_is_better_or_worse_than_an_invalid_run() {
    let mut invalid = result();
    invalid["validity"] = json!("invalid");
    let comparison = compare(&run("a"), &run_of("b", &invalid, Some(&text("plan.json"))));
    assert!(comparison.points.iter().flat_map(|point| &point.changes).all(|change| change.interval.is_none()));
    assert!(comparison.warnings[0].ends_with("changes are shown, not judged"), "{:?}", comparison.warnings);
}

#[test]
fn a_gate_does_not_pass_without_trustworthy_common_points() {
    let gate: Gate = "tokens_per_gpu<-3%".parse().unwrap();
    let mut invalid = result();
    invalid["validity"] = json!("invalid");
    let mut elsewhere = result();
    elsewhere["points"].as_array_mut().unwrap().iter_mut().for_each(|point| point["load"]["osl"] = json!(999));
    for other in [invalid, elsewhere] {
        let (a, b) = (run("a"), run_of("b", &other, None));
        assert!(gate.judge(&a, &b, &compare(&a, &b)).fails());
    }
}

#[test]
fn an_empty_run_says_why_it_is_empty() {
    let mut empty = result();
    empty["validity"] = json!("invalid");
    empty["validity_reasons"] = json!([{"verdict": "invalid", "code": "no_result", "message": "no load point was measured"}]);
    empty["partial"] = json!(true);
    empty["points"] = json!([]);
    empty["summary"] = json!({});
    empty["summary_point"] = Value::Null;
    let run = Run::new("empty", "runs/empty", &empty.to_string()).unwrap();
    assert_eq!(run.verdict(), Verdict::Invalid);
    let page = page(std::slice::from_ref(&run));
    Markup::read(&page);
    assert!(page.contains("invalid: no load point was measured") && page.contains("measured, partial"));
    assert!(markdown(&[run], &[]).contains("No load point was measured."));
}

#[test]
fn without_plan_and_records_nothing_is_made_up() {
    let run = Run::new("bare", "runs/bare", &result().to_string()).unwrap();
    let bare = page(std::slice::from_ref(&run));
    assert!(bare.contains("Not known: there is no plan.json.") && !bare.contains("every knob has the value"));
    assert!(!bare.contains("Latency distributions") && bare.contains("no records of measured requests"));
    assert!(page(&[crate::fixture::run("whole")]).contains("Latency distributions"));
}

#[test]
fn a_partial_run_is_not_on_the_frontier() {
    let mut partial = result();
    partial["partial"] = json!(true);
    partial["validity"] = json!("invalid");
    let runs = [run_of("partial", &partial, None)];
    assert_eq!(report_json(&runs, &[])["frontier"], json!([]));
    Markup::read(&page(&runs));
}

#[test]
fn a_simulated_run_is_reproduced_by_simulating_and_has_no_date() {
    let mut simulated = result();
    simulated["kind"] = "simulated".into();
    simulated["started_at"] = "1970-01-01T00:00:00.000000000Z".into();
    let virtual_run = run_of("virtual", &simulated, Some(&text("plan.json")));
    let (page, text) = (page(std::slice::from_ref(&virtual_run)), markdown(std::slice::from_ref(&virtual_run), &[]));
    for shown in [&page, &text] {
        assert!(shown.contains("tandem simulate nano") && !shown.contains("tandem run nano") && !shown.contains("1970"), "{shown}");
    }
    let measured = crate::fixture::page(&[crate::fixture::run("real")]);
    assert!(measured.contains("tandem run nano") && !measured.contains("tandem simulate"));
}

#[test]
fn what_cannot_be_read_is_said() {
    let mut run = run_of("a", &result(), Some("{}"));
    run.set_records(0, &records(0)[..1]);
    run.set_records(1, &[]);
    let page = page(&[run]);
    Markup::read(&page);
    for said in ["plan.json cannot be understood", "1 records, result.json counts", "no records of measured requests"] {
        assert!(page.contains(said), "{said}");
    }
}

#[test]
fn a_plan_of_another_run_is_noticed() {
    let mut result = result();
    result["plan_hash"] = json!("00ff");
    assert!(page(&[run_of("a", &result, Some(&text("plan.json")))]).contains("they do not belong together"));
}

#[test]
fn a_run_without_streaming_has_no_columns_of_dashes() {
    let mut whole = result();
    for point in whole["points"].as_array_mut().unwrap() {
        point["load"]["streaming"] = json!(false);
        ["ttft", "tpot", "output_throughput_per_user"].iter().for_each(|name| {
            point["summary"].as_object_mut().unwrap().remove(*name);
        });
    }
    let runs = [run_of("whole", &whole, None)];
    let page = page(&runs);
    Markup::read(&page);
    assert!(!page.contains("TTFT mean") && !page.contains("Time to first token (TTFT), ms"));
    assert!(page.contains("Request latency, ms") && page.contains("no rate per user"));
    assert!(!markdown(&runs, &[]).contains("TTFT"));
}

#[test]
fn json_carries_verdicts_figures_and_changes() {
    let runs = [run("a"), run_of("b", &scaled("ttft", 2.0), Some(&text("plan.json")))];
    let json = report_json(&runs, &comparisons(&runs));
    assert_eq!(json["runs"][0]["validity"], "valid");
    assert_eq!(json["runs"][0]["points"][1]["load"]["concurrency"], 2);
    assert!(json["runs"][0]["points"][0]["summary"]["ttft"]["p99"].is_number());
    let changes = json["comparisons"][0]["points"][0]["changes"].as_array().unwrap();
    let ttft = changes.iter().find(|change| change["metric"] == "ttft" && change["stat"] == "avg").unwrap();
    assert_eq!(ttft["change"], 1.0);
    assert!(!json["frontier"].as_array().unwrap().is_empty());
}

/// Telemetry of ten seconds: two GPUs at 300 and 500 W, and what the point's figures say of them.
#[test]
fn telemetry_of_gpus_is_drawn_by_role_and_their_energy_is_told() {
    let gpu = |id: &str, role: &str| Subject {
        kind: SubjectKind::Gpu,
        host: "n1".to_owned(),
        id: id.to_owned(),
        index: Some(0),
        name: "NVIDIA H100".to_owned(),
        role: Some(role.to_owned()),
    };
    let mut telemetry = String::new();
    for second in 0..=10u64 {
        let values = |watts: f64, memory_c: f64| {
            [
                ("power_w", watts),
                ("temperature_c", 50.0),
                ("memory_temperature_c", memory_c),
                ("sm_clock_mhz", 1980.0),
                ("gpu_utilization_percent", 80.0),
            ]
        };
        telemetry += &line(second * 1_000_000_000, &gpu("GPU-a", "prefill"), &values(300.0, 61.0));
        telemetry += &line(second * 1_000_000_000, &gpu("GPU-b", "decode"), &values(500.0, 72.0));
    }
    let mut result = result();
    let role = |joules: f64, watts: f64| json!({"n_gpus": 1, "energy_j": joules, "mean_power_w": watts, "output_tokens_per_joule": 400.0 / joules});
    result["points"][0]["telemetry"] = json!({"energy": {"total_j": 8000.0, "mean_power_w": 800.0, "roles": {"prefill": role(3000.0, 300.0), "decode": role(5000.0, 500.0)}}});
    let mut run = run_of("powered", &result, None);
    run.set_telemetry(&telemetry);
    let html = page(&[run.clone()]);
    for title in [
        "GPU power, by role",
        "GPU temperature, by role",
        "GPU memory temperature, by role",
        "SM clock, by role",
        "GPU utilisation, by role",
    ] {
        assert!(html.contains(title), "{title}");
    }
    assert!(!html.contains("GPU memory in use"), "what nobody sampled is not drawn");
    // 8,000 J for 400 tokens.
    let markdown = markdown(&[run.clone()], &[]);
    assert!(markdown.contains("| decode | 1 | 5,000 | 500 | 12.50 | 0.08000 |"), "{markdown}");
    assert!(markdown.contains("| together | 2 | 8,000 | 800 | 20 | 0.05000 |"), "{markdown}");
    let json = report_json(&[run], &[]);
    assert_eq!(
        json["runs"][0]["points"][0]["energy"][2],
        json!({"role": "together", "n_gpus": 2, "energy_j": 8000.0,
        "mean_power_w": 800.0, "joules_per_output_token": 20.0, "output_tokens_per_s_per_w": 0.05})
    );
    assert_eq!(json["runs"][0]["points"][1]["energy"], Value::Null);
    let mut broken = run_of("broken", &result, None);
    broken.set_telemetry("{}\n");
    assert!(page(&[broken]).contains("telemetry.jsonl: line 1"));
}
