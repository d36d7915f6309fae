//! `profile_export.json`: the raw file of perf_analyzer 2.60, from which GenAI-Perf computes everything.
//!
//! One line of JSON; each measured request that ended well has its body, and each event its text and its stamp. Failed requests are
//! not in it: perf_analyzer ends a run at the first of them. An event without a choice (the `usage` that ends a stream) is not in it
//! either: perf_analyzer never asks for one, and GenAI-Perf's parser ends with an IndexError at it. Events that arrived in one read stay
//! apart, with one stamp; perf_analyzer would write them as one response.

use serde::Serialize;
use serde_json::Value;

use crate::artifacts::directory::Stimulus;
use crate::record::RunClock;

/// A request and its response as they were on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// When its sending began, ns since the run's origin.
    pub start_ns: u64,
    /// Its body.
    pub payload: String,
    /// When what arrived, ns since the run's origin: events of a stream as `data: …` with a blank line after it, or one whole body.
    pub responses: Vec<(u64, String)>,
}

#[derive(Serialize)]
struct File<'a> {
    experiments: [Experiment<'a>; 1],
    version: &'static str,
    service_kind: &'static str,
    endpoint: &'static str,
}

#[derive(Serialize)]
struct Experiment<'a> {
    experiment: Mode,
    requests: Vec<Request<'a>>,
    window_boundaries: Vec<u64>,
}

#[derive(Serialize)]
struct Mode {
    mode: &'static str,
    value: Value,
}

#[derive(Serialize)]
struct Request<'a> {
    timestamp: u64,
    request_inputs: Inputs<'a>,
    response_timestamps: Vec<u64>,
    response_outputs: Vec<Response<'a>>,
}

#[derive(Serialize)]
struct Inputs<'a> {
    payload: &'a str,
}

#[derive(Serialize)]
struct Response<'a> {
    response: &'a str,
}

/// The file's bytes; `window` is the measured span on the wall clock, ns.
#[must_use]
pub fn render(exchanges: &[Exchange], clock: RunClock, stimulus: Stimulus, window: Option<(u64, u64)>) -> Vec<u8> {
    let (mode, value) = match stimulus {
        // GenAI-Perf looks for a schedule under this name.
        Stimulus::FixedSchedule => ("request_rate", 0.0.into()),
        timed => timed.entry(),
    };
    let experiment = Experiment {
        experiment: Mode { mode, value },
        requests: exchanges.iter().map(|exchange| request(exchange, clock)).collect(),
        window_boundaries: window.map(|(from, to)| vec![from, to]).unwrap_or_default(),
    };
    let file = File { experiments: [experiment], version: VERSION, service_kind: "openai", endpoint: "v1/chat/completions" };
    serde_json::to_vec(&file).expect("plain data with string keys is serialisable")
}

fn request(exchange: &Exchange, clock: RunClock) -> Request<'_> {
    let kept = || exchange.responses.iter().filter(|(_, text)| !is_without_choice(text));
    Request {
        timestamp: clock.wall_ns(exchange.start_ns),
        request_inputs: Inputs { payload: &exchange.payload },
        response_timestamps: kept().map(|(at_ns, _)| clock.wall_ns(*at_ns)).collect(),
        response_outputs: kept().map(|(_, response)| Response { response }).collect(),
    }
}

/// Whether an event has an empty list of choices. Only the few that mention `usage` are parsed.
fn is_without_choice(text: &str) -> bool {
    let parsed = || serde_json::from_str::<Value>(text.strip_prefix("data: ")?.trim_end()).ok();
    text.contains("\"usage\"") && parsed().is_some_and(|event| event["choices"].as_array().is_some_and(Vec::is_empty))
}

/// The file says which perf_analyzer wrote it; nobody reads that.
const VERSION: &str = "0.0.0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_laid_out_as_perf_analyzer_does_it() {
        let responses = ["data: {\"choices\":[{}]}\n\n", "data: {\"choices\":[],\"usage\":{}}\n\n", "data: [DONE]\n\n"];
        let responses = (5..).zip(responses).map(|(at_ns, text)| (at_ns, text.to_owned())).collect();
        let exchange = Exchange { start_ns: 1, payload: "{\"a\":\"é\"}".to_owned(), responses };
        let clock = RunClock { wall_origin_ns: 100 };
        let text = |stimulus, window| String::from_utf8(render(std::slice::from_ref(&exchange), clock, stimulus, window)).unwrap();
        assert_eq!(
            text(Stimulus::Concurrency(4), Some((101, 107))),
            concat!(
                r#"{"experiments":[{"experiment":{"mode":"concurrency","value":4},"requests":[{"timestamp":101,"#,
                r#""request_inputs":{"payload":"{\"a\":\"é\"}"},"response_timestamps":[105,107],"#,
                r#""response_outputs":[{"response":"data: {\"choices\":[{}]}\n\n"},{"response":"data: [DONE]\n\n"}]}],"#,
                r#""window_boundaries":[101,107]}],"version":"0.0.0","service_kind":"openai","endpoint":"v1/chat/completions"}"#
            )
        );
        assert!(text(Stimulus::RequestRate(2.0), None).contains(r#""experiment":{"mode":"request_rate","value":2.0}"#));
        assert!(text(Stimulus::FixedSchedule, None).contains(r#"{"mode":"request_rate","value":0.0}"#));
    }
}
