//! Whether the figures of a load point can be trusted, and why not.
//!
//! A verdict is the worst of its reasons. *Suspect*: the figures are what was measured, but not quite what was
//! asked. *Invalid*: they must not be used. Whoever shows figures shows this first.

use std::collections::BTreeMap;
use std::fmt;

use crate::metrics::{Sample, steady_concurrency};

/// More failed requests than this share make the figures invalid.
pub const MAX_FAILED_FRACTION: f64 = 0.01;
/// A mean length further than this from the one asked for is another benchmark.
pub const MAX_LENGTH_DEVIATION: f64 = 0.01;
/// Below this share of the nominal concurrency the client or the deployment did not keep up with the load that was asked for.
pub const MIN_CONCURRENCY_FRACTION: f64 = 0.97;

/// Whether figures can be trusted, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Yes.
    Valid,
    /// With care.
    Suspect,
    /// No.
    Invalid,
}

impl Verdict {
    /// The name in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Valid => "valid",
            Verdict::Suspect => "suspect",
            Verdict::Invalid => "invalid",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that is not as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// How bad it is; [`Verdict::Valid`] for a mere remark.
    pub verdict: Verdict,
    /// Short name for scripts, e.g. `failed_requests`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// A verdict and what led to it, worst first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Validity {
    /// The reasons, worst first; none when everything is as asked.
    pub reasons: Vec<Reason>,
}

impl Validity {
    /// Judges the records of one load point.
    #[must_use]
    pub fn of(sample: &Sample<'_>) -> Validity {
        let checks = [
            no_result,
            incomplete,
            failed_requests,
            failed_warmup,
            no_token_counts,
            output_length,
            input_length,
            too_few_requests,
            low_concurrency,
        ];
        Validity::new(checks.into_iter().filter_map(|check| check(sample)).collect())
    }

    /// Orders `reasons`.
    #[must_use]
    pub fn new(mut reasons: Vec<Reason>) -> Validity {
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.verdict));
        Validity { reasons }
    }

    /// The worst of the reasons.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.reasons.iter().map(|reason| reason.verdict).max().unwrap_or(Verdict::Valid)
    }

    /// Adds what only the caller knows, e.g. that the run was interrupted.
    pub fn add(&mut self, reason: Reason) {
        self.reasons.push(reason);
        self.reasons.sort_by_key(|reason| std::cmp::Reverse(reason.verdict));
    }
}

fn reason(verdict: Verdict, code: &'static str, message: String) -> Option<Reason> {
    Some(Reason { verdict, code, message })
}

fn no_result(sample: &Sample<'_>) -> Option<Reason> {
    if !sample.kept.is_empty() {
        return None;
    }
    reason(Verdict::Invalid, "no_result", format!("none of {} requests succeeded", sample.profiling.len()))
}

fn incomplete(sample: &Sample<'_>) -> Option<Reason> {
    let (issued, asked) = (sample.profiling.len() as u64, sample.load.n_requests);
    if issued >= asked {
        return None;
    }
    reason(Verdict::Invalid, "incomplete", format!("only {issued} of {asked} requests were issued"))
}

fn failed_requests(sample: &Sample<'_>) -> Option<Reason> {
    let (n, failed) = (sample.profiling.len(), sample.profiling.len() - sample.kept.len());
    if failed == 0 {
        return None;
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for record in sample.profiling.iter().filter(|record| !record.is_kept()) {
        *kinds.entry(record.outcome.failure().map_or("no_output", |kind| kind.as_str())).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let verdict = if failed as f64 > MAX_FAILED_FRACTION * n as f64 { Verdict::Invalid } else { Verdict::Suspect };
    reason(verdict, "failed_requests", format!("{failed} of {n} requests failed: {}", kinds.join(", ")))
}

fn failed_warmup(sample: &Sample<'_>) -> Option<Reason> {
    let failed = sample.warmup.iter().filter(|record| !record.outcome.is_ok()).count();
    if failed == 0 {
        return None;
    }
    reason(Verdict::Suspect, "failed_warmup", format!("{failed} of {} warm-up requests failed", sample.warmup.len()))
}

fn no_token_counts(sample: &Sample<'_>) -> Option<Reason> {
    let missing = sample.kept.iter().filter(|record| record.osl_tokens().is_none()).count();
    if missing == 0 {
        return None;
    }
    let message = format!("{missing} of {} responses have no token count, so there is no token throughput", sample.kept.len());
    reason(Verdict::Suspect, "no_token_counts", message)
}

fn output_length(sample: &Sample<'_>) -> Option<Reason> {
    let lengths: Vec<u32> = sample.kept.iter().filter_map(|record| record.osl_tokens()).collect();
    length_reason("osl_mismatch", "output", Verdict::Suspect, sample.load.osl?, &lengths)
}

/// The server sees the chat template too, so a small surplus is a remark only.
fn input_length(sample: &Sample<'_>) -> Option<Reason> {
    let lengths: Vec<u32> = sample.kept.iter().filter_map(|record| record.isl.server.or(record.isl.client)).collect();
    let mut reason = length_reason("isl_mismatch", "input", Verdict::Valid, sample.load.isl?, &lengths)?;
    reason.verdict = reason.verdict.min(Verdict::Suspect);
    Some(reason)
}

fn length_reason(code: &'static str, what: &str, mild: Verdict, asked: u32, lengths: &[u32]) -> Option<Reason> {
    let n_off = lengths.iter().filter(|&&length| length != asked).count();
    if n_off == 0 {
        return None;
    }
    let mean = lengths.iter().map(|&length| f64::from(length)).sum::<f64>() / lengths.len() as f64;
    let far = (mean - f64::from(asked)).abs() > MAX_LENGTH_DEVIATION * f64::from(asked);
    let message = format!("{n_off} of {} requests have another {what} length than {asked} tokens; the mean is {mean:.2}", lengths.len());
    reason(if far { Verdict::Invalid } else { mild }, code, message)
}

/// With fewer requests than slots the asked concurrency is never there, and no mean over time would show it.
fn too_few_requests(sample: &Sample<'_>) -> Option<Reason> {
    let (asked, nominal) = (sample.load.n_requests, u64::from(sample.load.concurrency?));
    if asked >= nominal {
        return None;
    }
    reason(Verdict::Suspect, "too_few_requests", format!("{asked} requests can never be {nominal} in flight"))
}

fn low_concurrency(sample: &Sample<'_>) -> Option<Reason> {
    let nominal = sample.load.concurrency?;
    let steady = steady_concurrency::of(sample)?;
    if steady >= MIN_CONCURRENCY_FRACTION * f64::from(nominal) {
        return None;
    }
    let message = format!("{steady:.2} requests in flight on average while sending, {nominal} asked for");
    reason(Verdict::Suspect, "low_concurrency", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Load;
    use crate::record::{Chunk, FailureKind, LoadPhase, Outcome, RequestRecord};

    const MS: u64 = 1_000_000;

    /// `n` requests of 10 ms, one after another, with `gap_ms` between them.
    fn back_to_back(n: u64, gap_ms: u64) -> Vec<RequestRecord> {
        let of = |index: u64| {
            let mut record = RequestRecord::issued(index, "r", 0, LoadPhase::Profiling, index * (10 + gap_ms) * MS);
            record.end_ns = record.start_ns + 10 * MS;
            record.chunks = [Chunk::content(record.end_ns)].into_iter().collect();
            record.isl.client = Some(100);
            record.osl.server = Some(200);
            record
        };
        (0..n).map(of).collect()
    }

    fn check(records: &[RequestRecord], n_requests: u64) -> (Verdict, Vec<&'static str>) {
        let load = Load {
            streaming: true,
            concurrency: Some(1),
            request_rate: None,
            n_requests,
            isl: Some(100),
            osl: Some(200),
            n_gpus: 1,
            slos: Vec::new(),
        };
        let validity = Validity::of(&Sample::new(records, &load));
        (validity.verdict(), validity.reasons.iter().map(|reason| reason.code).collect())
    }

    #[test]
    fn a_run_as_asked_is_valid() {
        assert_eq!(check(&back_to_back(20, 0), 20), (Verdict::Valid, vec![]));
    }

    #[test]
    fn one_failure_is_suspect_and_many_are_invalid() {
        let fail = |records: &mut [RequestRecord]| {
            records.iter_mut().for_each(|record| record.outcome = Outcome::failed(FailureKind::Truncated, "eof"));
        };
        let mut records = back_to_back(200, 0);
        fail(&mut records[..2]);
        assert_eq!(check(&records, 200), (Verdict::Suspect, vec!["failed_requests"]));
        fail(&mut records[..3]);
        assert_eq!(check(&records, 200), (Verdict::Invalid, vec!["failed_requests"]));
        fail(&mut records);
        assert_eq!(check(&records, 200), (Verdict::Invalid, vec!["no_result", "failed_requests"]));
    }

    #[test]
    fn fewer_requests_than_asked_are_invalid() {
        assert_eq!(check(&back_to_back(19, 0), 20), (Verdict::Invalid, vec!["incomplete"]));
        assert_eq!(check(&[], 20), (Verdict::Invalid, vec!["no_result", "incomplete"]));
    }

    #[test]
    fn other_lengths_are_judged_by_their_mean() {
        let mut records = back_to_back(20, 0);
        records[3].osl.server = Some(199);
        assert_eq!(check(&records, 20), (Verdict::Suspect, vec!["osl_mismatch"]));
        records.iter_mut().for_each(|record| record.osl.server = Some(150));
        assert_eq!(check(&records, 20), (Verdict::Invalid, vec!["osl_mismatch"]));
        let mut records = back_to_back(20, 0);
        records.iter_mut().for_each(|record| record.isl.server = Some(101));
        assert_eq!(check(&records, 20), (Verdict::Valid, vec!["isl_mismatch"]));
        records.iter_mut().for_each(|record| record.isl.server = Some(104));
        assert_eq!(check(&records, 20), (Verdict::Suspect, vec!["isl_mismatch"]));
    }

    #[test]
    fn fewer_requests_than_slots_are_suspect() {
        let load = Load {
            streaming: true,
            concurrency: Some(3),
            request_rate: None,
            n_requests: 2,
            isl: None,
            osl: None,
            n_gpus: 1,
            slos: Vec::new(),
        };
        let validity = Validity::of(&Sample::new(&back_to_back(2, 0), &load));
        assert!(validity.reasons.iter().any(|reason| reason.code == "too_few_requests"), "{validity:?}");
    }

    #[test]
    fn idle_slots_are_suspect() {
        assert_eq!(check(&back_to_back(20, 1), 20), (Verdict::Suspect, vec!["low_concurrency"]));
    }
}
