//! The end of a measurement: files written, verdict and summary shown, exit code chosen.

use std::io::Write;

use tandem_metrics::Verdict;
use tandem_metrics::artifacts::result::run_validity;
use tandem_metrics::artifacts::{PointArtifacts, RunContext, render_run};

use super::progress::say;
use super::run_folder::RunFolder;
use crate::exit::{Exit, Failure};

/// The points of a run so far. Their files are in its folder: what comes later cannot lose them.
#[derive(Debug, Default)]
pub(crate) struct Results {
    points: Vec<PointArtifacts>,
    unwritten: Vec<Failure>,
}

impl Results {
    /// Writes the files of a point. A full disk must not keep the figures from somebody who paid for them: the rest is tried, and the
    /// failure waits for the end of the run.
    pub(crate) fn add(&mut self, folder: &RunFolder, mut point: PointArtifacts) {
        number_repeats(&self.points, &mut point);
        let files = std::mem::take(&mut point.files);
        self.unwritten.extend(files.iter().filter_map(|(name, content)| folder.write_content(name, content).err()));
        self.points.push(point);
    }

    /// Writes what is about the whole run, then says whether its points can be trusted, then shows them.
    ///
    /// Returns `ended_early` if there is one, else a failure when a point is invalid, or (if `strict`) anything but valid.
    pub(crate) fn conclude(
        mut self,
        folder: &RunFolder,
        context: &RunContext,
        ended_early: Option<Failure>,
        strict: bool,
    ) -> Result<(), Failure> {
        let points = &self.points;
        let validity = run_validity(points, context);
        let failed = points.iter().any(|point| point.summary.validity.verdict() == Verdict::Invalid);
        let has_figures =
            points.iter().any(|point| point.summary.avg(&tandem_metrics::metrics::request_count::METRIC).is_some_and(|n| n > 0.0));
        let files = render_run(points, context);
        self.unwritten.extend(files.iter().filter_map(|(name, content)| folder.write_content(name, content).err()));
        for reason in validity.reasons.iter().filter(|reason| reason.code != "ended_early") {
            say(&format!("{}: {}", reason.verdict, reason.message));
        }
        if has_figures {
            let summary = files.iter().find(|(name, _)| name == "perf_summary.txt");
            // A reader that has gone has seen enough; the file is there.
            let _ = std::io::stdout().write_all(&summary.map_or_else(Vec::new, |(_, content)| content.to_vec()));
        }
        if let Some(first) = self.unwritten.into_iter().next() {
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
}

/// Gives points of one run that have the same load directories of their own: the second one's name ends in `_2`.
fn number_repeats(points: &[PointArtifacts], point: &mut PointArtifacts) {
    let taken = |name: &str| points.iter().any(|other| other.directory == name);
    let first = point.directory.clone();
    let Some(name) = (1..).map(|n| if n == 1 { first.clone() } else { format!("{first}_{n}") }).find(|name| !taken(name)) else { return };
    for (file, _) in &mut point.files {
        if let Some(rest) = file.strip_prefix(&first) {
            *file = format!("{name}{rest}");
        }
    }
    point.directory = name;
}
