//! Step costs looked up between measured compositions: linear costs, corrected by what steps of about the same composition took.
//!
//! Kernels change with the number of rows in ways that no few coefficients describe (vector widths, how work is split, caches). The
//! correction of a step is the mean of the cells around it, weighted by nearness and by how often they were seen (a Nadaraya-Watson
//! mean of the residuals); far from everything that was measured it fades and the linear costs remain.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::costs::{LinearCosts, float};

/// Weight of no correction, in steps.
const PRIOR: f64 = 4.0;
/// Steps beyond which a cell weighs no more.
const ENOUGH: f64 = 40.0;
/// Nearness of numbers of rows, and of attended pairs a row: standard deviations of their logarithms.
const WIDTH: [f64; 2] = [0.04, 0.08];
/// A step that took so many times longer or shorter than linear costs say was disturbed; beyond this it counts as this.
const DISTURBED: f64 = 2.0;

/// Steps of about one composition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Prompt tokens and decoding sequences.
    pub rows: u64,
    /// Whether the rows are prompt tokens (else decoding sequences; steps that mix them count as prompts).
    pub is_prefill: bool,
    /// Mean pairs of a query token and a token at or before it.
    pub n_attended: f64,
    /// What they took over what the linear costs say.
    pub factor: f64,
    /// How many were measured.
    pub n: u64,
}

/// Sums over steps of about one composition: seconds that they took and that the linear costs say, pairs, and how many they are.
#[derive(Debug, Clone, Copy, Default)]
struct Alike {
    took: f64,
    said: f64,
    n_attended: f64,
    n: u64,
}

/// Linear costs and what was measured around them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableCosts {
    /// What holds far from all that was measured.
    pub linear: LinearCosts,
    /// What was measured.
    pub cells: Vec<Cell>,
    /// What the steps after a rest take longer, all together, seconds: caches have been lost and cores were asleep.
    pub cold_s: f64,
}

impl From<LinearCosts> for TableCosts {
    fn from(linear: LinearCosts) -> Self {
        TableCosts { linear, ..TableCosts::default() }
    }
}

impl TableCosts {
    /// Corrects `linear` by steps: each with prompt tokens, decoding sequences, attended pairs, and the seconds that it would have taken alone.
    #[must_use]
    pub fn new(linear: LinearCosts, steps: impl Iterator<Item = (u64, u64, u64, f64)>) -> Self {
        let mut sums: BTreeMap<(bool, u64, u64), Alike> = BTreeMap::new();
        for (n_ctx_tokens, n_gen, n_attended, seconds) in steps {
            let said = linear.seconds(n_ctx_tokens, n_gen, n_attended);
            if said <= 0.0 {
                continue;
            }
            let sum = sums.entry((n_ctx_tokens > 0, n_ctx_tokens + n_gen, bucket(n_attended))).or_default();
            sum.took += seconds.clamp(said / DISTURBED, said * DISTURBED);
            sum.said += said;
            sum.n_attended += float(n_attended);
            sum.n += 1;
        }
        let cells = sums.into_iter().map(|((is_prefill, rows, _), sum)| Cell {
            rows,
            is_prefill,
            n_attended: sum.n_attended / float(sum.n),
            factor: sum.took / sum.said,
            n: sum.n,
        });
        TableCosts { linear, cells: cells.collect(), cold_s: 0.0 }
    }

    /// Seconds of a step with so many prompt tokens, decoding sequences and pairs, while no other worker computes.
    #[must_use]
    pub fn seconds(&self, n_ctx_tokens: u64, n_gen: u64, n_attended: u64) -> f64 {
        let rows = float(n_ctx_tokens + n_gen).max(1.0);
        let depth = float(n_attended).max(1.0) / rows;
        let (mut sum, mut weight) = (PRIOR, PRIOR);
        for cell in self.cells.iter().filter(|c| c.is_prefill == (n_ctx_tokens > 0)) {
            let cell_rows = float(cell.rows).max(1.0);
            let away = [(rows / cell_rows).ln() / WIDTH[0], (depth * cell_rows / cell.n_attended.max(1.0)).ln() / WIDTH[1]];
            let near = (-(away[0] * away[0] + away[1] * away[1]) / 2.0).exp() * float(cell.n).min(ENOUGH);
            sum += near * cell.factor;
            weight += near;
        }
        self.linear.seconds(n_ctx_tokens, n_gen, n_attended) * sum / weight
    }

    /// As a JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = self.linear.to_json();
        let cell = |c: &Cell| json!({"rows": c.rows, "is_prefill": c.is_prefill, "n_attended": c.n_attended, "factor": c.factor, "n": c.n});
        json["cold_s"] = self.cold_s.into();
        json["cells"] = self.cells.iter().map(cell).collect();
        json
    }

    /// From a JSON object; none when a number is missing.
    #[must_use]
    pub fn from_json(json: &Value) -> Option<Self> {
        let positive = |v: &Value| v.as_f64().filter(|v| v.is_finite() && *v > 0.0);
        let cell = |c: &Value| {
            Some(Cell {
                rows: c["rows"].as_u64()?,
                is_prefill: c["is_prefill"].as_bool()?,
                n_attended: positive(&c["n_attended"])?,
                factor: positive(&c["factor"])?,
                n: c["n"].as_u64()?,
            })
        };
        Some(TableCosts {
            linear: LinearCosts::from_json(json)?,
            cells: json["cells"].as_array()?.iter().map(cell).collect::<Option<_>>()?,
            cold_s: json["cold_s"].as_f64().filter(|v| v.is_finite() && *v >= 0.0)?,
        })
    }
}

/// Numbers that differ by less than about a tenth share one: eight an octave.
pub(super) fn bucket(n: u64) -> u64 {
    let octave = n.max(1).ilog2();
    u64::from(octave) * 8 + ((n.max(1) << 3 >> octave) & 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_found_again_and_fades_far_from_it() {
        let linear = LinearCosts { decode_seq_us: 100.0, ..LinearCosts::default() };
        // Steps of four sequences are a fifth cheaper than the linear costs say, those of three dearer.
        let took = |n: u64| 1e-4 * float(n) * if n == 4 { 0.8 } else { 1.1 };
        let steps = (0..400).map(|i| (0, 3 + i % 2, (3 + i % 2) * (200 + i % 50), took(3 + i % 2)));
        let costs = TableCosts::new(linear, steps);
        for n in [3, 4] {
            let off = costs.seconds(0, n, n * 220) / took(n) - 1.0;
            assert!(off.abs() < 0.03, "{n}: {off}");
        }
        let far = [costs.seconds(0, 8, 8 * 220), costs.seconds(0, 4, 4 * 2000), costs.seconds(4, 0, 10)];
        for (far, plain) in far.into_iter().zip([8e-4, 4e-4, 0.0]) {
            assert!((far - plain).abs() <= 0.01 * plain, "{far} for {plain}");
        }
        assert_eq!(TableCosts::from_json(&costs.to_json()), Some(costs));
    }

    #[test]
    fn buckets_are_narrow_and_in_order() {
        let all: Vec<u64> = (1..5000).map(bucket).collect();
        assert!(all.is_sorted() && all[255] != all[290] && all[1000] == all[1010], "{:?}", &all[..16]);
    }
}
