//! Traces of requests in Mooncake's form: one JSON object a line with `timestamp` (milliseconds), `input_length`, `output_length`
//! (tokens) and `hash_ids`, each the identity of a block of 512 prompt tokens and all that come before it.
//!
//! Equal identities give equal text, so a server's prefix cache finds in a replay what it found when the trace was taken.

use serde::Deserialize;
use tandem_plan::Nanos;

/// Tokens that one hash identifies.
pub const BLOCK_TOKENS: u32 = 512;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRequest {
    /// When it is due, after the first one.
    pub due: Nanos,
    /// Prompt length, tokens.
    pub isl: u32,
    /// Output length, tokens.
    pub osl: u32,
    /// Identities of its blocks, from the beginning of the prompt; what they do not cover is unique.
    pub hash_ids: Vec<u64>,
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Reads a trace; times are multiplied by `time_scale` (2 = half as fast) and counted from the earliest. Requests are sorted by time.
///
/// # Errors
/// The first line that is no request, for people.
pub fn parse_trace(text: &str, time_scale: f64) -> Result<Vec<TraceRequest>, String> {
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed: Line = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))?;
        if !(parsed.timestamp.is_finite() && parsed.timestamp >= 0.0) {
            return Err(format!("line {}: timestamp {} is not a time", i + 1, parsed.timestamp));
        }
        if parsed.input_length == 0 || parsed.output_length == 0 {
            return Err(format!("line {}: input_length and output_length must be at least 1", i + 1));
        }
        lines.push(parsed);
    }
    lines.sort_by(|a, b| a.timestamp.total_cmp(&b.timestamp));
    let Some(first) = lines.first().map(|line| line.timestamp) else { return Err("holds no request".to_owned()) };
    let request = |line: Line| TraceRequest {
        due: nanos((line.timestamp - first) * 1e6 * time_scale),
        isl: line.input_length,
        osl: line.output_length,
        hash_ids: line.hash_ids,
    };
    Ok(lines.into_iter().map(request).collect())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
fn nanos(x: f64) -> Nanos {
    Nanos(x as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_sorted_from_its_beginning_and_scaled() {
        let text = "{\"timestamp\": 3000, \"input_length\": 700, \"output_length\": 3, \"hash_ids\": [0, 46]}\n\n{\"timestamp\": 1000, \"input_length\": 6, \"output_length\": 2}\n";
        let trace = parse_trace(text, 0.5).unwrap();
        assert_eq!(trace[0], TraceRequest { due: Nanos::ZERO, isl: 6, osl: 2, hash_ids: vec![] });
        assert_eq!(trace[1], TraceRequest { due: Nanos::from_millis(1000), isl: 700, osl: 3, hash_ids: vec![0, 46] });
    }

    #[test]
    fn lines_that_are_no_request_are_named() {
        for (text, wanted) in [
            ("{}", "line 1"),
            ("\n{\"timestamp\": -1, \"input_length\": 6, \"output_length\": 2}", "line 2"),
            ("{\"timestamp\": 1, \"input_length\": 0, \"output_length\": 2}", "at least 1"),
            ("", "no request"),
        ] {
            let error = parse_trace(text, 1.0).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
