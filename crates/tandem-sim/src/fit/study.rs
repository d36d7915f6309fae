//! A fit with its own examination: predictions of rows that it was not fitted on, and what was covered.

use super::calibrate::{Options, calibrate};
use super::constants::{Constants, Support};
use super::targets::Target;
use crate::evaluate::{Metric, Scored, score};
use crate::model::Model;
use crate::rows::{Kind, Row};

/// Folds of the examination by configuration.
const FOLDS: u64 = 5;
/// Share of errors that an interval covers.
const COVERAGE: f64 = 0.8;
/// Rows below which a group has no spread of its own.
const MIN_GROUP: usize = 8;

/// How rows are divided for an examination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Five folds; all rows of a configuration are in one.
    Configuration {
        /// Number of the assignment of configurations to folds.
        seed: u64,
    },
    /// Each GPU once left out.
    Gpu,
    /// Each stack once left out.
    Stack,
}

impl Split {
    fn label(self, key: &str, gpu: &str, stack: &str) -> String {
        match self {
            Split::Configuration { seed } => format!("fold {}", fold(key, seed)),
            Split::Gpu => gpu.to_owned(),
            Split::Stack => stack.to_owned(),
        }
    }
}

/// Fold of a configuration: FNV-1a of its key, so that a row keeps its fold when others are added.
fn fold(key: &str, seed: u64) -> u64 {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash >> 20) % FOLDS
}

/// Predicts each of `rows` with constants fitted without its part.
#[must_use]
pub fn examine(base: &Model, targets: &[Target], rows: &[Row], split: Split, options: &Options) -> Vec<Scored> {
    let label_of = |t: &Target| split.label(&t.key, &t.scenario.hardware, &t.scenario.stack);
    let row_label = |r: &Row| split.label(&r.config_key, &r.hardware, &r.stack);
    let mut labels: Vec<String> = rows.iter().map(row_label).collect();
    labels.sort_unstable();
    labels.dedup();
    let mut scored = Vec::with_capacity(rows.len());
    for label in labels {
        let train: Vec<&Target> = targets.iter().filter(|t| label_of(t) != label).collect();
        let test: Vec<Row> = rows.iter().filter(|r| row_label(r) == label).cloned().collect();
        let mut model = base.clone();
        model.constants = calibrate(base, &train, options);
        scored.extend(score(&model, &test));
    }
    scored
}

/// Writes into `constants` what their fit covered and how far off predictions of unseen configurations are.
pub fn record_provenance(constants: &mut Constants, source: &str, targets: &[Target], out_of_fold: &[Scored]) {
    let p = &mut constants.provenance;
    source.clone_into(&mut p.source);
    p.rows = targets.iter().map(|t| u64::from(t.repeats)).sum();
    p.support.clear();
    for t in targets.iter().filter(|t| t.scenario.kind == Kind::Disaggregated) {
        let s = &t.scenario;
        let entry = p.support.entry(format!("{} {} {}", s.hardware, s.stack, s.weights)).or_insert(Support {
            rows: 0,
            batch: (f64::INFINITY, 0.0),
            latest: f64::NEG_INFINITY,
        });
        entry.rows += u64::from(t.repeats);
        entry.batch = (entry.batch.0.min(t.batch()), entry.batch.1.max(t.batch()));
        entry.latest = entry.latest.max(s.months);
    }
    p.spread.clear();
    let known: Vec<&Scored> = out_of_fold.iter().filter(|s| s.has_known_knobs()).collect();
    for metric in Metric::ALL {
        let mut groups = vec![(metric.name().to_owned(), known.clone())];
        for key in p.support.keys() {
            let of_group = |s: &&Scored| key.starts_with(&format!("{} {} ", s.row.hardware, s.row.stack));
            groups.push((format!("{} {}", metric.name(), gpu_and_stack(key)), known.iter().copied().filter(of_group).collect()));
        }
        for (name, rows) in groups {
            let mut errors: Vec<f64> = rows.iter().filter_map(|s| s.pair(metric)).map(|(p, m)| (p / m).ln().abs()).collect();
            if errors.len() >= MIN_GROUP {
                p.spread.insert(name, crate::des::percentile(&mut errors, COVERAGE));
            }
        }
    }
}

/// The first two words of a support key.
fn gpu_and_stack(key: &str) -> String {
    key.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
