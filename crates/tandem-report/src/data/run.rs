//! One run: what its files say, put together piece by piece by whoever reads them.

use tandem_metrics::metrics::{Metric, ttft};
use tandem_metrics::{RequestRecord, Verdict};
use tandem_plan::Phase;

use super::digest::Digest;
use super::error::ReportError;
use super::gpus::Gpus;
use super::iterations::PhaseLog;
use super::plan_facts::PlanFacts;
use super::prediction::Predicted;
use super::result_file::{ResultFile, SavedPoint};

/// One run of a report.
#[derive(Debug, Clone)]
pub struct Run {
    /// Short name, unique within a report.
    pub name: String,
    /// Where it lies, as the reader named it.
    pub path: String,
    pub(crate) result: ResultFile,
    pub(crate) plan: Option<PlanFacts>,
    /// One for each point of the result, in its order.
    pub(crate) digests: Vec<Option<Digest>>,
    pub(crate) logs: Vec<(Phase, PhaseLog)>,
    /// One for each point of the result, in its order.
    pub(crate) predictions: Vec<Option<Predicted>>,
    /// Why something was not predicted.
    pub(crate) prediction_remarks: Vec<String>,
    pub(crate) gpus: Option<Gpus>,
    pub(crate) evidence: Vec<Evidence>,
    /// What could not be read: said on the page, so that nothing is missing silently.
    pub(crate) problems: Vec<String>,
}

/// A file that figures rest on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Path within the run folder.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// Where the records of a load point are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointSource {
    /// Index of the point.
    pub index: usize,
    /// Its directory within the run folder.
    pub directory: String,
}

/// A load point in the plane of the frontier.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSpot {
    /// Index of the point.
    pub point: usize,
    /// Its load in words.
    pub label: String,
    /// Tokens/s/user.
    pub per_user: f64,
    /// Tokens/s/GPU.
    pub per_gpu: f64,
    /// Median time to first token, ms.
    pub ttft_median_ms: Option<f64>,
    /// GPUs of the run.
    pub n_gpus: u32,
    /// Whether the run was simulated.
    pub is_simulated: bool,
}

impl Run {
    /// A run of which `result.json` has been read.
    ///
    /// # Errors
    /// If that is not a readable account of a run.
    pub fn new(name: impl Into<String>, path: impl Into<String>, result_json: &str) -> Result<Self, ReportError> {
        let result = ResultFile::parse(result_json)?;
        Ok(Run {
            name: name.into(),
            path: path.into(),
            plan: None,
            digests: vec![None; result.points.len()],
            logs: Vec::new(),
            predictions: vec![None; result.points.len()],
            prediction_remarks: Vec::new(),
            gpus: None,
            evidence: Vec::new(),
            problems: Vec::new(),
            result,
        })
    }

    /// Where to read records from.
    pub fn point_sources(&self) -> impl Iterator<Item = PointSource> + '_ {
        let source = |(index, point): (usize, &SavedPoint)| PointSource { index, directory: point.directory.clone() };
        self.result.points.iter().enumerate().map(source)
    }

    /// Takes the text of `plan.json`; one that cannot be understood becomes a problem of the run.
    pub fn set_plan(&mut self, text: &str) {
        match PlanFacts::parse(text) {
            Ok(plan) => {
                if let Some(hash) = self.result.plan_hash.as_ref().filter(|hash| **hash != plan.hash) {
                    self.problems
                        .push(format!("plan.json has hash {}, result.json was made from {hash}: they do not belong together", plan.hash));
                }
                self.plan = Some(plan);
            }
            Err(error) => self.problems.push(format!("plan.json cannot be understood: {error}")),
        }
    }

    /// Reduces the records of point `index`, warm-up included.
    pub fn set_records(&mut self, index: usize, records: &[RequestRecord]) {
        let Some(point) = self.result.points.get(index) else { return };
        let digest = Digest::of(records, point.load.streaming);
        let n_saved = point.outcomes.values().sum::<u64>();
        let n_found = digest.as_ref().map_or(0, |digest| digest.n_measured) as u64;
        if n_found != n_saved {
            self.problems.push(format!("{}: {n_found} records, result.json counts {n_saved}", point.directory));
        }
        self.digests[index] = digest;
    }

    /// Takes the iteration lines of a phase.
    pub fn set_log(&mut self, phase: Phase, log: PhaseLog) {
        if log.n_unreadable > 0 {
            self.problems.push(format!("{} iteration lines of the {phase} workers cannot be understood", log.n_unreadable));
        }
        if log.n_steps() > 0 {
            self.logs.push((phase, log));
        }
    }

    /// Takes the text of `telemetry.jsonl`.
    pub fn set_telemetry(&mut self, text: &str) {
        match Gpus::parse(text) {
            Ok(gpus) => self.gpus = gpus,
            Err(error) => self.problems.push(format!("telemetry.jsonl: {error}")),
        }
    }

    /// Load points.
    #[must_use]
    pub fn n_points(&self) -> usize {
        self.result.points.len()
    }

    /// What the closed loop of point `index` holds in flight; none for other loads.
    #[must_use]
    pub fn concurrency(&self, index: usize) -> Option<u32> {
        self.result.points.get(index)?.load.concurrency
    }

    /// Takes what was predicted for point `index`.
    pub fn set_prediction(&mut self, index: usize, predicted: Predicted) {
        if let Some(place) = self.predictions.get_mut(index) {
            *place = Some(predicted);
        }
    }

    /// Says why something was not predicted.
    pub fn add_prediction_remark(&mut self, remark: impl Into<String>) {
        self.prediction_remarks.push(remark.into());
    }

    /// Says that something could not be read.
    pub fn add_problem(&mut self, message: impl Into<String>) {
        self.problems.push(message.into());
    }

    /// Names a file that figures rest on.
    pub fn add_evidence(&mut self, file: Evidence) {
        self.evidence.push(file);
    }

    /// Whether its figures can be trusted.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.result.validity
    }

    /// The load points that have both throughput per GPU and per user, invalid ones left out.
    #[must_use]
    pub fn spots(&self) -> Vec<RunSpot> {
        let spots = crate::frontier::spots(std::slice::from_ref(self)).into_iter().filter(|spot| spot.verdict != Verdict::Invalid);
        let spot = |spot: crate::frontier::Spot| {
            let saved = &self.result.points[spot.point];
            RunSpot {
                point: spot.point,
                label: saved.load.label(),
                per_user: spot.per_user,
                per_gpu: spot.per_gpu,
                ttft_median_ms: saved.stat(&ttft::METRIC, "p50"),
                n_gpus: self.result.n_gpus,
                is_simulated: self.is_simulated(),
            }
        };
        spots.map(spot).collect()
    }

    pub(crate) fn points(&self) -> impl ExactSizeIterator<Item = (&SavedPoint, Option<&Digest>)> {
        self.result.points.iter().zip(self.digests.iter().map(Option::as_ref))
    }

    /// The point that stands for the run.
    pub(crate) fn summary_point(&self) -> Option<&SavedPoint> {
        self.result.points.get(self.result.summary_point?)
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.result.kind == "simulated"
    }

    /// Whether any point has a value of the metric.
    pub(crate) fn has(&self, metric: &Metric) -> bool {
        self.result.points.iter().any(|point| point.summary.contains_key(metric.name))
    }
}
