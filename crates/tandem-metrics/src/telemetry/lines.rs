//! `telemetry.jsonl`: one sample a line, each naming its subject, so that lines can be filtered, joined and cut anywhere.

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::series::{Series, Subject, SubjectKind};

/// Why a line is not a sample.
#[derive(Debug, Error)]
pub enum TelemetryLineError {
    /// Not JSON.
    #[error("line {line}: not JSON")]
    Json {
        /// Number of the line, from 1.
        line: usize,
        /// What exactly.
        #[source]
        source: serde_json::Error,
    },
    /// A key is missing or of another type.
    #[error("line {line}: no usable '{key}'")]
    Key {
        /// Number of the line, from 1.
        line: usize,
        /// The key.
        key: &'static str,
    },
}

/// One sample as a line with its end. Values that are not finite are left out: JSON has no such numbers.
#[must_use]
pub fn line<S: AsRef<str>>(at_ns: u64, subject: &Subject, values: &[(S, f64)]) -> String {
    let finite = values.iter().filter(|(_, value)| value.is_finite());
    let values: Map<String, Value> = finite.map(|(name, value)| (name.as_ref().to_owned(), json!(value))).collect();
    let line = json!({
        "at_ns": at_ns,
        "kind": subject.kind.as_str(),
        "host": subject.host,
        "id": subject.id,
        "index": subject.index,
        "name": subject.name,
        "role": subject.role,
        "values": values,
    });
    format!("{line}\n")
}

/// Reads a whole file into one series a subject, in the order in which they first appear. A last line without its end is a
/// run that was killed while it wrote: it is skipped.
///
/// # Errors
/// At the first line that is no sample.
pub fn parse(text: &str) -> Result<Vec<Series>, TelemetryLineError> {
    let mut all: Vec<Series> = Vec::new();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (i, line) in whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (at_ns, subject, values) = parse_line(line, i + 1)?;
        let series = match all.iter().position(|known| known.subject.is_same(&subject)) {
            Some(index) => &mut all[index],
            None => {
                all.push(Series::new(subject));
                all.last_mut().expect("it was just pushed")
            }
        };
        series.push(at_ns, &values);
    }
    Ok(all)
}

type ParsedLine = (u64, Subject, Vec<(String, f64)>);

fn parse_line(text: &str, line: usize) -> Result<ParsedLine, TelemetryLineError> {
    let value: Value = serde_json::from_str(text).map_err(|source| TelemetryLineError::Json { line, source })?;
    let key = |key: &'static str| TelemetryLineError::Key { line, key };
    let string = |name: &'static str| value[name].as_str().map(str::to_owned).ok_or_else(|| key(name));
    let subject = Subject {
        kind: value["kind"].as_str().and_then(SubjectKind::from_name).ok_or_else(|| key("kind"))?,
        host: string("host")?,
        id: string("id")?,
        index: value["index"].as_u64().and_then(|index| u32::try_from(index).ok()),
        name: string("name")?,
        role: value["role"].as_str().map(str::to_owned),
    };
    let values = value["values"].as_object().ok_or_else(|| key("values"))?;
    let values = values.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
    Ok((value["at_ns"].as_u64().ok_or_else(|| key("at_ns"))?, subject, values))
}

#[cfg(test)]
mod tests {
    use super::super::series::tests::gpu;
    use super::*;

    #[test]
    fn lines_become_the_series_that_they_were() {
        let (a, b) = (gpu("n1", "GPU-1", Some("decode")), gpu("n2", "GPU-1", None));
        let mut text = String::new();
        for at in 1..4u64 {
            text += &line(at, &a, &[("power_w", at as f64), ("temperature_c", f64::NAN)]);
            text += &line(at, &b, &[("power_w", 10.0 * at as f64)]);
        }
        text += "{\"at_ns\":4,\"ki";
        let all = parse(&text).unwrap();
        assert_eq!(all.len(), 2, "the same UUID on two hosts is two GPUs");
        assert_eq!(all[0].subject, a);
        assert_eq!(all[1].values("power_w").map(|(_, v)| v).collect::<Vec<_>>(), [10.0, 20.0, 30.0]);
        assert_eq!(all[0].columns().collect::<Vec<_>>(), ["power_w"]);
    }

    #[test]
    fn a_line_that_is_no_sample_is_named() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(message("\n{\"kind\":\"cat\"}\n"), "line 2: no usable 'kind'");
        assert_eq!(message("nothing\n"), "line 1: not JSON");
    }
}
