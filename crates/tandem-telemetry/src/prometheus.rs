//! Prometheus' text format, as far as samples go: `name{label="value",…} number [timestamp]`.
//!
//! Lenient: a line that is no sample is skipped, because one bad line of a server must not hide the others.

/// One sample line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// All samples of a text, in its order; values that are not finite are left out.
pub(crate) fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter_map(parse_line).filter(|sample| sample.value.is_finite()).collect()
}

fn parse_line(line: &str) -> Option<Sample> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let name_end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// Labels after the opening brace, and what follows the closing one.
fn parse_labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once('=')?;
        let mut value = String::new();
        let mut chars = after.trim_start().strip_prefix('"')?.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                plain => value.push(plain),
            }
        }
        labels.push((name.trim().to_owned(), value));
        rest = chars.as_str();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_names_labels_and_values() {
        let text = "# HELP x y\n# TYPE x gauge\nx 1\ny{a=\"b,}\\\"c\\n\", d = \"e\",} 2.5e3 1795488137000\nz{} NaN\nbroken{a=\"b\nw +Inf\n 7\nq{x=\"\"} -3\n";
        let all = parse(text);
        assert_eq!(all.iter().map(|s| (s.name.as_str(), s.value)).collect::<Vec<_>>(), [("x", 1.0), ("y", 2500.0), ("q", -3.0)]);
        assert_eq!((all[1].label("a"), all[1].label("d"), all[1].label("f")), (Some("b,}\"c\n"), Some("e"), None));
    }
}
