//! Predicts rows and says by how much the predictions are off: overall and by group.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::aggregated::aggregated;
use crate::model::Model;
use crate::predictive::{least_relative_error, outcomes};
use crate::rows::{Kind, Row, Scenario};

/// The quantities that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Median time per output token.
    Tpot,
    /// Output tokens per second over all GPUs.
    TokensPerGpu,
    /// Median time to first token; where only the mean is known, the mean.
    TtftMedian,
    /// 99th percentile of the time to first token.
    TtftP99,
}

impl Metric {
    /// All of them, in the order of the tables.
    pub const ALL: [Metric; 4] = [Metric::Tpot, Metric::TokensPerGpu, Metric::TtftMedian, Metric::TtftP99];

    /// The name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Metric::Tpot => "tpot",
            Metric::TokensPerGpu => "out_tps_per_gpu",
            Metric::TtftMedian => "ttft_median",
            Metric::TtftP99 => "ttft_p99",
        }
    }
}

/// Predicted values of one row; seconds, and output tokens per second and GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// Median time per output token.
    pub tpot: f64,
    /// Output tokens per second over all GPUs.
    pub tokens_per_gpu: f64,
    /// Median time to first token.
    pub ttft_median: f64,
    /// Mean time to first token.
    pub ttft_mean: f64,
    /// 99th percentile of the time to first token.
    pub ttft_p99: f64,
}

/// One row with its prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The row.
    pub row: Row,
    /// What was assumed where the row says nothing.
    pub assumed: Vec<&'static str>,
    /// The prediction.
    pub predicted: Predicted,
}

/// Predicts one scenario.
#[must_use]
pub fn predict_scenario(model: &Model, s: &Scenario) -> Predicted {
    if s.kind == Kind::Aggregated {
        let a = aggregated(model, &model.constants, s);
        return Predicted {
            tpot: a.tpot,
            tokens_per_gpu: a.tokens_per_gpu,
            ttft_median: a.ttft_median,
            ttft_mean: a.ttft_median + 0.05 * a.ttft_p99,
            ttft_p99: a.ttft_p99,
        };
    }
    let (outcome, drawn) = outcomes(model, s, &model.deployment(s, model.factors(s)), &s.load, 0);
    Predicted {
        tpot: outcome.tpot.median,
        tokens_per_gpu: outcome.output_rate / s.gpus,
        ttft_median: least_relative_error(&drawn.ttft_median),
        ttft_mean: least_relative_error(&drawn.ttft_mean),
        ttft_p99: least_relative_error(&drawn.ttft_p99),
    }
}

/// Predicts every row; rows of the same configuration and concurrency are simulated once.
#[must_use]
pub fn score(model: &Model, rows: &[Row]) -> Vec<Scored> {
    let mut known: BTreeMap<String, Predicted> = BTreeMap::new();
    rows.iter()
        .map(|row| {
            let scenario = Scenario::new(row);
            // Software of another month may be faster, so the month belongs to the key.
            let key = format!("{}|{}|{:.3}|{}|{}", row.config_key, row.concurrency, row.months, row.knob_match, row.rounds);
            let predicted = *known.entry(key).or_insert_with(|| predict_scenario(model, &scenario));
            Scored { row: row.clone(), assumed: scenario.assumed, predicted }
        })
        .collect()
}

impl Scored {
    /// Predicted and measured value of a metric, where it was measured.
    #[must_use]
    pub fn pair(&self, metric: Metric) -> Option<(f64, f64)> {
        let (p, m) = (&self.predicted, &self.row.measured);
        match metric {
            Metric::Tpot => m.tpot.map(|v| (p.tpot, v)),
            Metric::TokensPerGpu => m.tokens_per_gpu.map(|v| (p.tokens_per_gpu, v)),
            Metric::TtftMedian => m.ttft_median.map(|v| (p.ttft_median, v)).or(m.ttft_mean.map(|v| (p.ttft_mean, v))),
            Metric::TtftP99 => m.ttft_p99.map(|v| (p.ttft_p99, v)),
        }
    }

    /// Whether phases were separate and the engine's knobs are those of the run.
    #[must_use]
    pub fn has_known_knobs(&self) -> bool {
        self.row.kind == Kind::Disaggregated && self.row.knob_match.starts_with("exact")
    }

    fn to_json(&self) -> Value {
        let p = &self.predicted;
        let m = &self.row.measured;
        json!({
            "id": self.row.id,
            "predicted": {
                "tpot_ms": p.tpot * 1e3, "out_tps_per_gpu": p.tokens_per_gpu, "ttft_ms_median": p.ttft_median * 1e3,
                "ttft_ms_mean": p.ttft_mean * 1e3, "ttft_ms_p99": p.ttft_p99 * 1e3,
            },
            "measured": {
                "tpot_ms": m.tpot.map(|v| v * 1e3), "out_tps_per_gpu": m.tokens_per_gpu, "ttft_ms_median": m.ttft_median.map(|v| v * 1e3),
                "ttft_ms_mean": m.ttft_mean.map(|v| v * 1e3), "ttft_ms_p99": m.ttft_p99.map(|v| v * 1e3),
            },
            "assumed": self.assumed,
        })
    }
}

/// Errors of one metric in one group, percent of the measured value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Errors {
    /// Rows that measured it.
    pub n: usize,
    /// Mean of the absolute errors.
    pub mape: f64,
    /// Median of the absolute errors.
    pub median: f64,
    /// Mean of the signed errors.
    pub bias: f64,
}

impl Errors {
    fn of(pairs: &[(f64, f64)]) -> Option<Errors> {
        if pairs.is_empty() {
            return None;
        }
        let signed: Vec<f64> = pairs.iter().map(|(p, m)| 100.0 * (p / m - 1.0)).collect();
        let mut absolute: Vec<f64> = signed.iter().map(|e| e.abs()).collect();
        #[expect(clippy::cast_precision_loss, reason = "a count of rows")]
        let n = signed.len() as f64;
        let mape = absolute.iter().sum::<f64>() / n;
        let median = crate::des::percentile(&mut absolute, 0.5);
        Some(Errors { n: signed.len(), mape, median, bias: signed.iter().sum::<f64>() / n })
    }
}

/// One line of a table: a group and its errors by metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What the group is, e.g. `gb200`.
    pub group: String,
    /// Rows of the group.
    pub rows: usize,
    /// In the order of [`Metric::ALL`].
    pub errors: [Option<Errors>; 4],
}

/// A named table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// By what its lines differ.
    pub name: &'static str,
    /// The groups, in alphabetic order.
    pub lines: Vec<Line>,
}

/// The line of all rows of `scored`.
#[must_use]
pub fn line(group: impl Into<String>, scored: &[&Scored]) -> Line {
    let errors = Metric::ALL.map(|metric| Errors::of(&scored.iter().filter_map(|s| s.pair(metric)).collect::<Vec<_>>()));
    Line { group: group.into(), rows: scored.len(), errors }
}

/// The means of the figures of `lines`.
#[must_use]
pub fn mean(group: impl Into<String>, lines: &[Line]) -> Line {
    let errors = std::array::from_fn(|metric| {
        let known: Vec<Errors> = lines.iter().filter_map(|l| l.errors[metric]).collect();
        #[expect(clippy::cast_precision_loss, reason = "a count of lines")]
        let each = 1.0 / known.len() as f64;
        let mean = |get: fn(&Errors) -> f64| known.iter().map(get).sum::<f64>() * each;
        let n = known.first()?.n;
        Some(Errors { n, mape: mean(|e| e.mape), median: mean(|e| e.median), bias: mean(|e| e.bias) })
    });
    Line { group: group.into(), rows: lines.first().map_or(0, |l| l.rows), errors }
}

type Grouping = (&'static str, fn(&Scored) -> String);

const GROUPINGS: [Grouping; 7] = [
    ("gpu", |s| s.row.hardware.clone()),
    ("stack", |s| s.row.stack.clone()),
    ("gpu and stack", |s| format!("{} {}", s.row.hardware, s.row.stack)),
    ("precision", |s| s.row.precision.clone()),
    ("isl/osl", |s| format!("{}/{}", s.row.isl, s.row.osl)),
    ("concurrency", |s| decade(s.row.concurrency)),
    ("drafted tokens", |s| if s.row.mtp.is_empty() { "unknown".to_owned() } else { s.row.mtp.clone() }),
];

fn decade(concurrency: u32) -> String {
    let low = 10_u64.pow(concurrency.max(1).ilog10());
    format!("{low}-{}", low * 10 - 1)
}

/// Tables of errors: all rows by kind and certainty first, then groups of the disaggregated rows with known knobs.
#[must_use]
pub fn tables(scored: &[Scored]) -> Vec<Table> {
    let select = |keep: &dyn Fn(&Scored) -> bool| -> Vec<&Scored> { scored.iter().filter(|s| keep(s)).collect() };
    let known = select(&Scored::has_known_knobs);
    let overall = vec![
        line("disaggregated, known knobs", &known),
        line("disaggregated, known knobs, no drafts", &known.iter().copied().filter(|s| s.row.mtp == "0").collect::<Vec<_>>()),
        line("disaggregated, other", &select(&|s| s.row.kind == Kind::Disaggregated && !s.has_known_knobs())),
        line("aggregated", &select(&|s| s.row.kind == Kind::Aggregated)),
    ];
    let mut all = vec![Table { name: "overall", lines: overall }];
    for (name, group) in GROUPINGS {
        let mut groups: BTreeMap<String, Vec<&Scored>> = BTreeMap::new();
        for s in &known {
            groups.entry(group(s)).or_default().push(s);
        }
        all.push(Table { name, lines: groups.into_iter().map(|(g, rows)| line(g, &rows)).collect() });
    }
    all
}

/// Tables for people: MAPE, median and bias of each metric, percent.
#[must_use]
pub fn render(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables {
        let heads = Metric::ALL.map(|m| format!("{:>27}", format!("{} (n)", m.name())));
        text += &format!("{:<40}{}\n", table.name, heads.concat());
        for line in &table.lines {
            let cells = line.errors.map(|e| match e {
                None => format!("{:>27}", "-"),
                Some(e) => format!("{:>8.1} {:>6.1} {:>+6.1} {:>4}", e.mape, e.median, e.bias, e.n),
            });
            text += &format!("  {:<38}{}\n", line.group, cells.concat());
        }
        text.push('\n');
    }
    text + "each cell: mean and median absolute error, mean signed error, percent of the measured value; rows\n"
}

/// Everything as JSON: `tables[name][group]` and one entry a row.
#[must_use]
pub fn to_json(tables: &[Table], scored: &[Scored], other_rows: usize) -> Value {
    let errors = |line: &Line| -> Value {
        let cells = Metric::ALL.iter().zip(&line.errors).filter_map(|(m, e)| {
            let e = (*e)?;
            Some((m.name().to_owned(), json!({"n": e.n, "mape": e.mape, "median": e.median, "bias": e.bias})))
        });
        let mut object: serde_json::Map<String, Value> = cells.collect();
        object.insert("rows".to_owned(), line.rows.into());
        Value::Object(object)
    };
    let table = |t: &Table| (t.name.to_owned(), Value::Object(t.lines.iter().map(|l| (l.group.clone(), errors(l))).collect()));
    json!({
        "tables": Value::Object(tables.iter().map(table).collect()),
        "rows": scored.iter().map(Scored::to_json).collect::<Vec<_>>(),
        "rows_that_measure_no_serving": other_rows,
        "rows_refused": 0,
    })
}
