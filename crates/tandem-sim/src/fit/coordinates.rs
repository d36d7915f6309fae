//! Where a configuration lies for the fields of leftovers: coordinates whose unit is the distance over which leftovers resemble each other.
//!
//! Each coordinate is a property times a scale. Scales and priors maximise the marginal likelihood of the published rows (type-II maximum
//! likelihood, Rasmussen and Williams 2006, chapter 5): a property with a small scale hardly tells configurations apart.

use std::f64::consts::LN_2;

use super::field::{Field, NODES, Prior, Table};
use crate::rows::{Pool, Scenario};

/// Names and scales of decode coordinates; the last two are those of the load.
pub(crate) const DECODE_SCALES: [(&str, f64); 15] = [
    ("sglang", 0.46),
    ("fp4", 0.41),
    ("hopper", 0.91),
    ("h200", 0.59),
    ("rack", 0.31),
    ("ln ranks", 0.66),
    ("attention-dp", 0.82),
    ("split experts", 0.34),
    ("drafts", 0.36),
    ("number of drafts", 0.105),
    ("eplb", 0.13),
    ("ln context", 0.09),
    ("ln output", 0.105),
    ("months", 0.14),
    ("ln batch", 0.245),
];

/// Names and scales of prefill coordinates; the last two are those of the load.
pub(crate) const PREFILL_SCALES: [(&str, f64); 16] = [
    ("sglang", 1.69),
    ("fp4", 2.56),
    ("hopper", 2.18),
    ("h200", 0.64),
    ("rack", 0.63),
    ("ln ranks", 0.31),
    ("attention-dp", 0.42),
    ("split experts", 0.38),
    ("drafts", 1.03),
    ("ln decode ranks", 0.69),
    ("ln prompt", 0.26),
    ("ln tokens", 0.175),
    ("ln output", 0.105),
    ("months", 0.28),
    ("ln load", 0.343),
    ("light", 1.98),
];

/// Of the decode correction.
pub(crate) const DECODE_PRIOR: Prior = Prior { amplitude: 0.45, noise: 0.04, feature: 0.02, huber: 0.12 };
/// Of the prefill correction.
pub(crate) const PREFILL_PRIOR: Prior = Prior { amplitude: 0.41, noise: 0.2, feature: 0.08, huber: 0.12 };

fn bit(on: bool) -> f64 {
    f64::from(u8::from(on))
}

fn ln_ranks(pool: &Pool) -> f64 {
    (f64::from(pool.layout.tp) / 8.0).ln()
}

fn scaled<const N: usize>(values: &[f64], scales: &[(&str, f64); N]) -> Vec<f64> {
    values.iter().zip(scales).map(|(value, (_, scale))| value * scale).collect()
}

/// Hopper, H200 and one rack as an NVLink domain.
fn gpu(s: &Scenario) -> [f64; 3] {
    let is = |names: &[&str]| bit(names.contains(&s.hardware.as_str()));
    [is(&["h100", "h200"]), is(&["h200"]), is(&["gb200", "gb300"])]
}

/// Coordinates of a decode pool without its batch.
fn decode_fixed(s: &Scenario) -> Vec<f64> {
    let [hopper, h200, rack] = gpu(s);
    let osl = s.load.osl.mean();
    let values = [
        bit(s.stack == "sglang"),
        bit(s.weights.is_nvfp4()),
        hopper,
        h200,
        rack,
        ln_ranks(&s.decode),
        bit(s.decode.layout.attention_dp),
        bit(s.decode.layout.ep > 1),
        bit(s.mtp > 0),
        f64::from(s.mtp),
        bit(s.eplb_slots > 0),
        ((s.load.isl.mean() + osl / 2.0) / 4096.0).ln(),
        (osl / 1024.0).ln(),
        s.months.clamp(-3.0, 7.0),
    ];
    scaled(&values, &DECODE_SCALES)
}

/// Coordinate of a batch of an attention rank.
fn of_batch(batch: f64) -> f64 {
    batch.max(1.0).ln() * DECODE_SCALES[14].1
}

/// Coordinates of a decode pool with a batch of an attention rank.
pub(crate) fn decode_coordinates(s: &Scenario, batch: f64) -> Vec<f64> {
    let mut at = decode_fixed(s);
    at.push(of_batch(batch));
    at
}

/// Leftovers of decode at batches of 1, 2, 4, …
pub(crate) fn decode_table(field: &Field, s: &Scenario) -> Table {
    let mut batch = 0.5;
    let nodes: [[f64; 1]; NODES] = std::array::from_fn(|_| {
        batch *= 2.0;
        [of_batch(batch)]
    });
    field.table(&decode_fixed(s), &nodes)
}

/// Coordinates of a prefill pool without its load.
fn prefill_fixed(s: &Scenario) -> Vec<f64> {
    let [hopper, h200, rack] = gpu(s);
    let pool = &s.prefill;
    let prompt = s.load.isl.mean();
    let tokens = f64::from(pool.max_tokens).min(f64::from(pool.max_batch) * prompt).clamp(512.0, 131_072.0);
    let values = [
        bit(s.stack == "sglang"),
        bit(s.weights.is_nvfp4()),
        hopper,
        h200,
        rack,
        ln_ranks(pool),
        bit(pool.layout.attention_dp),
        bit(pool.layout.ep > 1),
        bit(s.mtp > 0),
        ln_ranks(&s.decode),
        (prompt / 4096.0).ln(),
        (tokens / 8192.0).ln(),
        (s.load.osl.mean() / 1024.0).ln(),
        s.months.clamp(-3.0, 7.0),
    ];
    scaled(&values, &PREFILL_SCALES)
}

/// Logarithm of the requests in the system for each attention rank of prefill; below two such a rank often has nothing to do.
fn ln_load(s: &Scenario) -> f64 {
    (f64::from(s.load.concurrency) / s.prefill.attention_ranks()).max(1.0).ln()
}

fn of_load(ln_load: f64, light: bool) -> [f64; 2] {
    [ln_load * PREFILL_SCALES[14].1, bit(light) * PREFILL_SCALES[15].1]
}

/// Coordinates of a prefill pool with its load.
pub(crate) fn prefill_coordinates(s: &Scenario) -> Vec<f64> {
    let mut at = prefill_fixed(s);
    let load = ln_load(s);
    at.extend(of_load(load, load < LN_2));
    at
}

/// Leftover of prefill, from a table with one interval for light loads and others from 2, 4, 8, … requests a rank on.
pub(crate) fn prefill_value(field: &Field, s: &Scenario) -> f64 {
    let mut ln = -LN_2;
    let nodes: [[f64; 2]; NODES] = std::array::from_fn(|i| {
        if i == 2 {
            return of_load(LN_2, false);
        }
        ln += LN_2;
        of_load(ln, i < 2)
    });
    let table = field.table(&prefill_fixed(s), &nodes);
    let position = ln_load(s) / LN_2;
    if position < 1.0 {
        return table[0] + position * (table[1] - table[0]);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the number of nodes")]
    let low = (position as usize + 1).min(NODES - 2);
    let share = (position - f64::from(u8::try_from(low).unwrap_or_default()) + 1.0).min(1.0);
    table[low] + share * (table[low + 1] - table[low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Constants;
    use crate::rows::parse;

    fn scenario() -> Scenario {
        let text =
            "id,kind,hardware,framework,precision,isl,osl,concurrency,ctx_tp,ctx_attn_dp\nx,disagg,b200,sglang,fp8,1024,1024,64,4,True\n";
        Scenario::new(&parse(text).expect("a table").0.remove(0))
    }

    #[test]
    fn every_coordinate_has_a_scale() {
        let s = scenario();
        assert_eq!(decode_coordinates(&s, 8.0).len(), DECODE_SCALES.len());
        assert_eq!(prefill_coordinates(&s).len(), PREFILL_SCALES.len());
    }

    #[test]
    fn tables_hold_the_fields_values_at_their_nodes() {
        let field = Constants::shipped().prefill_field;
        for concurrency in [1, 4, 7, 8, 9, 16, 64, 1024, 10_000] {
            let mut s = scenario();
            s.load.concurrency = concurrency;
            let (near, exact) = (prefill_value(&field, &s), field.value(&prefill_coordinates(&s)));
            assert!((near - exact).abs() < 0.02, "{concurrency}: {near} for {exact}");
        }
    }
}
