//! The end of a measurement: files written, verdict and summary shown, exit code chosen.

use std::io::Write;

use tandem_metrics::Verdict;
use tandem_metrics::artifacts::result::run_validity;
use tandem_metrics::artifacts::{PointArtifacts, RunContext, render_run};

use super::progress::say;
use super::run_folder::RunFolder;
use crate::exit::{Exit, Failure};

/// Writes every artifact of `points`, then says whether they can be trusted, then shows them.
///
/// Returns `ended_early` if there is one, else a failure when a point is invalid, or (if `strict`) anything but valid.
pub(crate) fn conclude(
    folder: &RunFolder,
    points: Vec<PointArtifacts>,
    context: &RunContext,
    ended_early: Option<Failure>,
    strict: bool,
) -> Result<(), Failure> {
    let validity = run_validity(&points, context);
    let failed = points.iter().any(|point| point.summary.validity.verdict() == Verdict::Invalid);
    let has_figures =
        points.iter().any(|point| point.summary.avg(&tandem_metrics::metrics::request_count::METRIC).is_some_and(|n| n > 0.0));
    let files = render_run(points, context);
    // A full disk must not keep the figures from somebody who paid for them: the rest is tried, and all are shown.
    let unwritten: Vec<Failure> = files.iter().filter_map(|(name, bytes)| folder.write(name, bytes).err()).collect();
    for reason in validity.reasons.iter().filter(|reason| reason.code != "ended_early") {
        say(&format!("{}: {}", reason.verdict, reason.message));
    }
    if has_figures {
        let summary = files.iter().find(|(name, _)| name == "perf_summary.txt");
        // A reader that has gone has seen enough; the file is there.
        let _ = std::io::stdout().write_all(summary.map_or(&[], |(_, bytes)| bytes));
    }
    if let Some(first) = unwritten.into_iter().next() {
        return Err(first);
    }
    say(&format!("results ({}) in {}", validity.verdict(), folder.root().display()));
    match ended_early {
        Some(failure) => Err(failure),
        None if failed => Err(Failure::message(Exit::Incomplete, "the load is incomplete or too many requests failed")
            .with_hint("each request is a line of profile_export.jsonl, with its outcome")),
        None if strict && validity.verdict() != Verdict::Valid => {
            Err(Failure::message(Exit::CheckFailed, format!("the verdict is {}, --strict wants valid", validity.verdict())))
        }
        None => Ok(()),
    }
}
