//! What the tools print: the line of a job, grouped errors, the list of workloads.

use std::fmt::Write;

use crate::submission::shown;
use crate::{LlmbError, Task, Workload};

/// The line of a job: name padded to 30, then its properties; Python's words for truth.
#[must_use]
pub fn job_line(task: &Task) -> String {
    let truth = |value: bool| if value { "True" } else { "False" };
    let name = format!("{}_{}", task.workload, task.size);
    let mut line = format!(
        "  - {name:<30} {:<12} {:<12} {:<15} {:<12}",
        format!("dtype={}", task.dtype),
        format!("scale={}", task.scale),
        format!("profile={}", truth(task.profile)),
        format!("proxy={}", truth(task.proxy)),
    );
    for (what, pairs) in [("env", &task.env), ("params", &task.params)] {
        if !pairs.is_empty() {
            let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("'{name}': '{}'", shown(name, value))).collect();
            let _ = write!(line, " {what}={{{}}}", pairs.join(", "));
        }
    }
    line.trim_end().to_owned()
}

/// Tasks that cannot run, grouped by what is wrong with them: a line with the count, then what would work.
#[must_use]
pub fn error_lines(wrong: &[(Task, LlmbError)]) -> Vec<String> {
    let mut groups: Vec<(String, &str, u32)> = Vec::new();
    for (task, error) in wrong {
        let who = format!("{}_{} (dtype={})", task.workload, task.size, task.dtype);
        match groups.iter_mut().find(|(known, text, _)| *known == who && *text == error.0) {
            Some((.., n)) => *n += 1,
            None => groups.push((who, &error.0, 1)),
        }
    }
    let lines = groups.iter().flat_map(|(who, text, n)| {
        let mut parts = text.lines();
        let first = format!("ERROR:   ❌ {n}x {who}: {}", parts.next().unwrap_or_default());
        std::iter::once(first).chain(parts.map(|line| format!("ERROR:      {line}"))).collect::<Vec<_>>()
    });
    lines.collect()
}

/// Workloads with what they support on a GPU type, sizes in numerical order.
#[must_use]
pub fn list(workloads: &[&Workload], installed: &[String], gpu: &str) -> String {
    let mut out = String::new();
    for workload in workloads {
        let note = if installed.is_empty() || installed.contains(&workload.key) { "" } else { "  (not installed)" };
        let _ = writeln!(out, "{}{note}", workload.key);
        let Some(models) = workload.models(gpu) else {
            let known: Vec<&str> = workload.gpus.iter().map(|(name, _)| name.as_str()).collect();
            let _ =
                writeln!(out, "  nothing for {gpu}; it runs on {}", if known.is_empty() { "no GPU type".into() } else { known.join(", ") });
            continue;
        };
        let mut models: Vec<_> = models.iter().collect();
        models.sort_by(|a, b| billions(&a.size).total_cmp(&billions(&b.size)));
        for model in models {
            for (dtype, support) in &model.dtypes {
                let scales: Vec<String> = support.scales.iter().map(ToString::to_string).collect();
                let above = if support.exact { "" } else { " and powers of two above" };
                let proxy: Vec<String> = support.proxy.iter().map(ToString::to_string).collect();
                let proxy = if proxy.is_empty() { String::new() } else { format!("; proxy {}", proxy.join(", ")) };
                let _ = writeln!(out, "  {:<8} {dtype:<8} GPUs: {}{above}{proxy}", model.size, scales.join(", "));
            }
        }
    }
    out
}

/// A size as a number: `70b` is 70, `1t` is 1000.
#[must_use]
pub fn billions(size: &str) -> f64 {
    let size = size.to_ascii_lowercase();
    let number = |text: &str| text.parse::<f64>().ok();
    let value = match size.strip_suffix('t') {
        Some(trillions) => number(trillions).map(|n| n * 1000.0),
        None => number(size.trim_end_matches('b')),
    };
    value.unwrap_or(f64::MAX)
}
