//! Run folders come from other machines and other programs: nothing in them may become part of the page.

use serde_json::Value;

use crate::fixture::{comparisons, page, result, run_of, text};
use crate::markup::Markup;

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onload=\"alert(3)' &lt; \u{202e}";

/// What the page is made of; nothing else may appear, whatever the files contain.
const ATTRIBUTES: [&str; 33] = [
    "aria-hidden",
    "aria-label",
    "aria-labelledby",
    "charset",
    "class",
    "content",
    "cx",
    "cy",
    "d",
    "data-hover",
    "aria-live",
    "data-changed",
    "data-knobs",
    "data-tip",
    "height",
    "hidden",
    "href",
    "html",
    "http-equiv",
    "id",
    "lang",
    "name",
    "open",
    "r",
    "rel",
    "role",
    "scope",
    "tabindex",
    "text-anchor",
    "viewBox",
    "width",
    "x",
    "y",
];

/// Appends hostile text to every string that is free text.
fn spoil(value: &mut Value) {
    match value {
        Value::String(text) if !["valid", "suspect", "invalid"].contains(&text.as_str()) => text.push_str(HOSTILE),
        Value::Array(items) => items.iter_mut().for_each(spoil),
        Value::Object(entries) => entries.values_mut().for_each(spoil),
        _ => {}
    }
}

fn spoiled_page() -> (String, Vec<tandem_report::Run>) {
    let mut result = result();
    result["validity"] = "suspect".into();
    let reason = serde_json::json!([{"verdict": "suspect", "code": "x", "message": "because"}]);
    result["validity_reasons"] = reason.clone();
    result["points"][0]["validity_reasons"] = reason;
    spoil(&mut result);
    let mut plan: Value = serde_json::from_str(&text("plan.json")).unwrap();
    spoil(&mut plan["recipe"]);
    spoil(&mut plan["knobs"]);
    let mut runs = vec![run_of(HOSTILE, &result, Some(&plan.to_string())), run_of("b", &result, Some("{\"broken\": <b>"))];
    runs[0].add_problem(HOSTILE);
    (page(&runs), runs)
}

#[test]
fn hostile_text_stays_text() {
    let (page, _) = spoiled_page();
    let markup = Markup::read(&page);
    let unknown: Vec<_> = markup.attributes.iter().filter(|name| !ATTRIBUTES.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(!markup.tags.contains("img"));
    assert_eq!(page.matches("<script>").count(), 1);
    assert!(markup.texts.contains("&lt;script&gt;alert(1)"), "it is shown");
    assert!(!page.contains('\u{202e}'), "text is not reordered");
}

#[test]
fn hostile_text_does_not_break_markdown_tables() {
    let (_, runs) = spoiled_page();
    let text = tandem_report::markdown(&runs, &comparisons(&runs));
    // An indented line is code, in which nothing has a meaning.
    let outside_code = || text.lines().filter(|line| !line.starts_with("    "));
    assert!(outside_code().all(|line| !line.contains("<script") && !line.contains("<img")));
    assert!(outside_code().any(|line| line.contains("&lt;script")));
}

#[test]
fn the_command_quotes_what_a_shell_would_run() {
    let mut plan: Value = serde_json::from_str(&text("plan.json")).unwrap();
    plan["knobs"]["MODEL"] = serde_json::json!({"value": "$(rm -rf x)'; y", "layer": "environment variable MODEL"});
    let run = run_of("a", &result(), Some(&plan.to_string()));
    let json = tandem_report::json(&[run], &[]);
    assert!(json["runs"][0]["command"].as_str().unwrap().contains(r"--set 'MODEL=$(rm -rf x)'\''; y'"), "{}", json["runs"][0]["command"]);
}
