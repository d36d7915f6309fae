//! The generated reference of all knobs, `docs/reference/knobs.md`.

use std::fmt::Write as _;

use crate::builtin::BUILTINS;
use crate::knobs::{KNOBS, Knob};

/// Markdown: one section a knob, with type, scope, environment variable and every recipe's default.
#[must_use]
pub fn knob_reference_markdown() -> String {
    let mut out = String::from(
        "# Knobs\n\nGenerated from the knob table of `tandem-recipe`. Later layers win: built-in recipe, site file, recipe file, environment, \
         command line.\nIn a recipe or site file a knob is a YAML key; several values (`[1, 8, 64]`, in the environment `\"1 8 64\"`, with \
         `--set NAME=1,8,64` or `--set NAME=1..8`) make a sweep.\n\n",
    );
    out.push_str("| knob | values | unit | concerns | default of most recipes |\n|---|---|---|---|---|\n");
    for knob in KNOBS {
        let default = if knob.default.is_empty() { "(empty)" } else { knob.default };
        let _ = writeln!(
            out,
            "| [{0}](#{1}) | {2} | {3} | {4} | {default} |",
            knob.name,
            knob.name.to_lowercase(),
            knob.kind.describe(),
            knob.unit,
            knob.scope.name()
        );
    }
    for knob in KNOBS {
        section(&mut out, knob);
    }
    out
}

fn section(out: &mut String, knob: &Knob) {
    let _ = write!(out, "\n## {}\n\n{}\n\n", knob.name, knob.doc);
    let _ = writeln!(
        out,
        "- Values: {}{}",
        knob.kind.describe(),
        if knob.unit.is_empty() { String::new() } else { format!(" ({})", knob.unit) }
    );
    let _ = writeln!(out, "- Environment: `{}`", knob.env_name());
    let _ = writeln!(out, "- Concerns: {}", knob.scope.name());
    let defaults: Vec<String> = BUILTINS
        .iter()
        .flat_map(|b| b.gpu_types.iter().map(move |&gpu| (b, gpu)))
        .map(|(b, gpu)| {
            let text = b.default_of(knob, gpu);
            let on = if b.gpu_types.len() > 1 { format!(" on {gpu}") } else { String::new() };
            format!("{}{on} {}", b.name, if text.is_empty() { "(empty)" } else { &text })
        })
        .collect();
    let _ = writeln!(out, "- Defaults: {}", defaults.join("; "));
}
