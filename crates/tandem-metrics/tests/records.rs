//! Properties of records and of what is computed from them, over arbitrary records.

use proptest::prelude::*;
use tandem_metrics::artifacts::profile_export::{parse, render};
use tandem_metrics::metrics::{self, Kind, Sample, itl, output_throughput, request_latency, tpot, ttft};
use tandem_metrics::{Chunk, ChunkKind, FailureKind, Load, LoadPhase, Outcome, RequestRecord, RunClock, Summary, TextTokens, TokenCount};

const CLOCK: RunClock = RunClock { wall_origin_ns: 1_795_488_137_000_000_003 };

fn chunks() -> impl Strategy<Value = Vec<(u64, Option<u32>, bool, bool)>> {
    prop::collection::vec((0u64..2_000_000_000, prop::option::of(1u32..40), any::<bool>(), any::<bool>()), 0..40)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Ok),
        1 => (prop::sample::select(FailureKind::ALL.to_vec()), ".{0,20}").prop_map(|(kind, message)| Outcome::failed(kind, message)),
    ]
}

fn count() -> impl Strategy<Value = TokenCount> {
    (prop::option::of(0u32..10_000), prop::option::of(0u32..10_000)).prop_map(|(client, server)| TokenCount { client, server })
}

prop_compose! {
    fn record()(
        (index, point, worker, turn) in (0u64..1000, 0u32..4, 0u32..64, 0u32..3),
        id in "[ -~]{0,12}",
        phase in prop::sample::select(vec![LoadPhase::Warmup, LoadPhase::Profiling]),
        (scheduled_ns, lag, tail) in (0u64..1_000_000_000_000, 0u64..1_000_000, 0u64..1_000_000),
        ack in prop::option::of(0u64..1_000_000_000),
        chunks in chunks(),
        (isl, osl, text) in (count(), count(), count()),
        finish_reason in prop::option::of("[a-z]{1,8}"),
        http_status in prop::option::of(200u16..600),
        outcome in outcome(),
    ) -> RequestRecord {
        let start_ns = scheduled_ns + lag;
        let mut at_ns = start_ns;
        let chunks = chunks.into_iter().map(|(gap_ns, n_tokens, is_reasoning, clumped)| {
            at_ns += gap_ns;
            Chunk { at_ns, n_tokens, kind: if is_reasoning { ChunkKind::Reasoning } else { ChunkKind::Content }, clumped }
        }).collect();
        RequestRecord {
            index, x_request_id: id, point, session: index / 2, turn, worker, phase, scheduled_ns, start_ns,
            sent_ns: ack.map(|ns| start_ns + ns / 2), ack_ns: ack.map(|ns| start_ns + ns), end_ns: at_ns + tail, chunks, isl, osl,
            text_tokens: TextTokens { prompt: text.client, answer: text.server }, finish_reason, http_status, outcome,
        }
    }
}

fn load(streaming: bool) -> Load {
    Load { streaming, concurrency: Some(2), request_rate: None, n_requests: 1, isl: Some(100), osl: Some(100), n_gpus: 4, slos: Vec::new() }
}

proptest! {
    #[test]
    fn records_come_back_from_their_lines(records in prop::collection::vec(record(), 0..8), streaming: bool) {
        let text = render(&records, CLOCK, streaming);
        prop_assert_eq!(text.lines().count(), records.len());
        prop_assert_eq!(parse(&text, CLOCK).unwrap(), records);
    }

    #[test]
    fn every_figure_is_finite_whatever_the_records(records in prop::collection::vec(record(), 0..20), streaming: bool) {
        let load = load(streaming);
        let json = Summary::of(&records, &load).to_json();
        for (name, entry) in json.as_object().unwrap() {
            for (key, value) in entry.as_object().unwrap() {
                prop_assert!(key == "unit" || value.as_f64().is_some_and(f64::is_finite), "{name}.{key}: {value}");
            }
        }
    }

    #[test]
    fn the_order_of_records_changes_no_figure(mut records in prop::collection::vec(record(), 1..20)) {
        let load = load(true);
        let before = Summary::of(&records, &load);
        records.reverse();
        let after = Summary::of(&records, &load);
        for ((metric, a), (_, b)) in before.figures().zip(after.figures()) {
            let (a, b) = (a.avg(), b.avg());
            prop_assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{}: {a} {b}", metric.name);
        }
    }

    #[test]
    fn latency_is_ttft_and_all_gaps(record in record()) {
        if let (Some(latency), Some(first)) = (request_latency::of(&record), ttft::of(&record)) {
            let gaps: u64 = record.chunks.gaps().map(|(gap_ns, _)| gap_ns).sum();
            prop_assert_eq!(latency, first + gaps as f64);
        }
        let mut per_token = Vec::new();
        itl::of(&record, &mut per_token);
        if let (false, Some(latency), Some(first)) = (per_token.is_empty(), request_latency::of(&record), ttft::of(&record)) {
            let sum: f64 = per_token.iter().map(|&(gap, n)| gap * n as f64).sum();
            prop_assert!((sum - (latency - first)).abs() <= 1e-6 * latency.max(1.0), "gaps of tokens add up: {sum}");
        }
    }
}

/// Eight tokens a chunk at a true 10 ms a token: the case that a mean over chunks gets wrong.
#[test]
fn chunks_of_several_tokens_have_the_right_gaps_between_tokens() {
    let mut record = RequestRecord::issued(0, "r", 0, LoadPhase::Profiling, 0);
    record.chunks = (1..=16).map(|i| Chunk { n_tokens: Some(8), ..Chunk::content(i * 80_000_000) }).collect();
    record.osl.server = Some(128);
    record.end_ns = 16 * 80_000_000;
    let summary = Summary::of(&[record.clone()], &load(true));
    let itl = summary.stats(&itl::METRIC).unwrap();
    assert_eq!((itl.avg, itl.min, itl.max, itl.count), (10.0, 10.0, 10.0, 120));
    assert_eq!(summary.avg(&metrics::icl::METRIC), Some(80.0));
    let tpot = summary.avg(&tpot::METRIC).unwrap();
    assert!((tpot - 9.448_819).abs() < 1e-6, "TPOT keeps its definition, and its bias: {tpot}");
}

/// The first half of the output is reasoning: it counts, and its first token is the first token.
#[test]
fn reasoning_is_output() {
    let mut record = RequestRecord::issued(0, "r", 0, LoadPhase::Profiling, 0);
    let kind = |i| if i < 64 { ChunkKind::Reasoning } else { ChunkKind::Content };
    record.chunks = (0..128).map(|i| Chunk { kind: kind(i), n_tokens: Some(1), ..Chunk::content(50_000_000 + i * 10_000_000) }).collect();
    record.osl.server = Some(128);
    let summary = Summary::of(&[record], &load(true));
    assert_eq!(summary.avg(&ttft::METRIC), Some(50.0));
    assert_eq!(summary.avg(&metrics::ttfr::METRIC), Some(50.0));
    assert_eq!(summary.avg(&metrics::ttfo::METRIC), Some(690.0));
    assert_eq!(summary.avg(&tpot::METRIC), Some(10.0));
    assert_eq!(summary.avg(&output_throughput::METRIC), Some(128.0 / 1.32));
}

#[test]
fn warmup_stragglers_fill_slots_but_enter_no_statistic() {
    let ms = 1_000_000;
    let of = |index, phase, start_ns, end_ns| {
        let mut record = RequestRecord::issued(index, "r", 0, phase, start_ns);
        record.chunks = [Chunk::content(end_ns)].into_iter().collect();
        record.end_ns = end_ns;
        record
    };
    let records = [
        of(0, LoadPhase::Warmup, 0, 20 * ms),
        of(0, LoadPhase::Profiling, 10 * ms, 30 * ms),
        of(1, LoadPhase::Profiling, 20 * ms, 40 * ms),
        of(2, LoadPhase::Profiling, 30 * ms, 50 * ms),
        of(3, LoadPhase::Profiling, 40 * ms, 60 * ms),
    ];
    let summary = Summary::of(&records, &load(true));
    assert_eq!(summary.avg(&metrics::steady_concurrency::METRIC), Some(2.0));
    assert_eq!(summary.avg(&metrics::effective_concurrency::METRIC), Some(90.0 / 50.0));
    assert_eq!(summary.avg(&metrics::request_count::METRIC), Some(4.0));
    assert_eq!(summary.avg(&metrics::benchmark_duration::METRIC), Some(0.05));
}

#[test]
fn every_kind_of_metric_is_computed() {
    let records: Vec<RequestRecord> = Vec::new();
    let load = load(true);
    let sample = Sample::new(&records, &load);
    for metric in metrics::ALL {
        let value = match metric.kind {
            Kind::Aggregate(value) | Kind::Derived(value) => value(&sample),
            Kind::Record(_) | Kind::Pooled(_) => None,
        };
        assert!(value.is_none() || metric.name.ends_with("_count"), "{} of nothing is {value:?}", metric.name);
    }
}
