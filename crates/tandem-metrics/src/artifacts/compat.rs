//! GenAI-Perf 0.0.16's way of counting, defects included, for users who compare with its older results.
//!
//! What differs from ours: reasoning does not exist (TTFT waits for the first piece of the answer, reasoning tokens
//! are no output), a request without an answer is left out of every metric but `request_throughput`, tokens are those of the
//! texts alone by the client's tokenizer (not the server's count, no chat template), and goodput pairs metrics of different requests
//! where one lacks a metric. `result.json` labels files that were written this way (`genai_perf_counting`).

use crate::metrics::{Kind, Load, Sample, goodput, request_throughput};
use crate::record::{ChunkKind, RequestRecord};
use crate::summary::Summary;

/// The summary that GenAI-Perf would have made.
#[must_use]
pub fn summary(all: &[RequestRecord], load: &Load) -> Summary {
    let seen = records(all);
    let sample = Sample::new(&seen, load);
    let mut summary = Summary::of_sample(&sample);
    if let Some(duration_s) = sample.duration_s() {
        // An empty response is counted here, and nowhere else.
        let n_responses = sample.profiling.iter().filter(|record| record.outcome.is_ok()).count();
        summary.set_number(&request_throughput::METRIC, n_responses as f64 / duration_s);
        if !load.slos.is_empty() {
            summary.set_number(&goodput::METRIC, n_good(&sample) as f64 / duration_s);
        }
    }
    summary
}

/// Its goodput: the lists of values are paired place by place, though a request without a value is missing in one of them.
fn n_good(sample: &Sample<'_>) -> usize {
    let verdicts = |slo: &goodput::Slo| -> Vec<bool> {
        let Kind::Record(value) = slo.metric().kind else { return Vec::new() };
        sample.kept.iter().filter(|record| value(record).is_some()).map(|record| slo.is_met(record)).collect()
    };
    let lists: Vec<Vec<bool>> = sample.load.slos.iter().map(verdicts).collect();
    let n = lists.iter().map(Vec::len).min().unwrap_or(0);
    (0..n).filter(|&i| lists.iter().all(|list| list[i])).count()
}

/// The records as GenAI-Perf would have seen them.
#[must_use]
pub fn records(records: &[RequestRecord]) -> Vec<RequestRecord> {
    records.iter().map(record).collect()
}

fn record(record: &RequestRecord) -> RequestRecord {
    let mut seen = record.clone();
    let has_reasoning = record.chunks.iter().any(|chunk| chunk.kind == ChunkKind::Reasoning);
    if has_reasoning {
        seen.chunks = record.chunks.iter().filter(|chunk| chunk.kind == ChunkKind::Content).collect();
    }
    // The tokens of the answer, if nobody counted them: chunk by chunk where that is known, else its share of the chunks.
    let counted: Option<u32> = seen.chunks.iter().map(|chunk| chunk.n_tokens).sum();
    let whole = record.osl.client.or(record.osl.server);
    seen.osl.client = match (record.text_tokens.answer, has_reasoning, counted, whole) {
        (Some(exact), ..) => Some(exact),
        (None, false, _, whole) => whole,
        (None, true, Some(counted), _) => Some(counted),
        (None, true, None, Some(whole)) => share(whole, seen.chunks.len(), record.chunks.len()),
        (None, true, None, None) => None,
    };
    seen.osl.server = None;
    seen.isl.client = record.text_tokens.prompt.or(seen.isl.client);
    seen
}

fn share(whole: u32, part: usize, all: usize) -> Option<u32> {
    u32::try_from(u64::from(whole) * part as u64 / (all.max(1) as u64)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{osl, request_count, ttft};
    use crate::record::{Chunk, LoadPhase};

    /// 64 tokens of reasoning, 64 of answer, 10 ms each after 50 ms: the case in which GenAI-Perf reports 690 ms.
    #[test]
    fn reasoning_does_not_exist_for_genai_perf() {
        let mut record = RequestRecord::issued(0, "r", 0, LoadPhase::Profiling, 0);
        let chunk = |i: u64| Chunk {
            at_ns: (50 + 10 * i) * 1_000_000,
            n_tokens: None,
            kind: if i < 64 { ChunkKind::Reasoning } else { ChunkKind::Content },
            clumped: false,
        };
        record.chunks = (0..128).map(chunk).collect();
        record.end_ns = 1_320_000_000;
        record.osl.server = Some(128);
        let mut silent = record.clone();
        silent.chunks = record.chunks.iter().take(64).collect();
        let load = Load {
            streaming: true,
            concurrency: Some(1),
            request_rate: None,
            n_requests: 2,
            isl: None,
            osl: None,
            n_gpus: 1,
            slos: Vec::new(),
        };
        let all = [record, silent];
        let (ours, theirs) = (Summary::of(&all, &load), summary(&all, &load));
        assert_eq!((ours.avg(&ttft::METRIC), theirs.avg(&ttft::METRIC)), (Some(50.0), Some(690.0)));
        assert_eq!((ours.avg(&osl::METRIC), theirs.avg(&osl::METRIC)), (Some(128.0), Some(64.0)));
        assert_eq!((ours.avg(&request_count::METRIC), theirs.avg(&request_count::METRIC)), (Some(2.0), Some(1.0)));
        // 1.32 s from the first start to the last piece of an answer.
        assert_eq!(theirs.avg(&request_throughput::METRIC), Some(2.0 / 1.32), "the silent request is counted");
    }
}
