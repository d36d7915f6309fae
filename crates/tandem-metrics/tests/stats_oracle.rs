//! Statistics against two oracles: numpy's own figures, and a naive second version on random samples.

use proptest::prelude::*;
use serde_json::Value;
use tandem_metrics::stats::{PERCENTILES, Stats};

/// Textbook statistics: no pairwise sums, no clever interpolation.
fn naive(values: &[f64]) -> (f64, f64, Vec<f64>) {
    let n = values.len() as f64;
    let avg = values.iter().sum::<f64>() / n;
    let std = (values.iter().map(|v| (v - avg).powi(2)).sum::<f64>() / n).sqrt();
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let percentile = |p: u32| {
        // In whole hundredths of a place, so that no rounding decides between two neighbours.
        let hundredths = p as usize * (sorted.len() - 1);
        let below = sorted[hundredths / 100];
        let above = sorted[hundredths.div_ceil(100)];
        below + (above - below) * (hundredths % 100) as f64 / 100.0
    };
    (avg, std, PERCENTILES.map(percentile).to_vec())
}

fn close(a: f64, b: f64, scale: f64) -> bool {
    (a - b).abs() <= 1e-9 * scale.abs().max(1.0)
}

fn assert_agree(stats: &Stats, values: &[f64]) -> Result<(), TestCaseError> {
    let (avg, std, percentiles) = naive(values);
    let scale = values.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    prop_assert_eq!(stats.count, values.len() as u64);
    prop_assert!(close(stats.avg, avg, scale), "avg {} {}", stats.avg, avg);
    prop_assert!((stats.std - std).abs() <= 1e-6 * scale.max(1.0), "std {} {}", stats.std, std);
    for (ours, theirs) in stats.percentiles.iter().zip(percentiles) {
        prop_assert!(close(*ours, theirs, scale), "percentile {ours} {theirs}");
    }
    prop_assert_eq!(stats.min, values.iter().copied().fold(f64::INFINITY, f64::min));
    prop_assert_eq!(stats.max, values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    let ordered = [[stats.min].as_slice(), &stats.percentiles, &[stats.p999, stats.max]].concat();
    prop_assert!(ordered.windows(2).all(|pair| pair[0] <= pair[1] + 1e-9 * scale), "ascending: {ordered:?}");
    Ok(())
}

proptest! {
    #[test]
    fn statistics_agree_with_a_naive_version(values in prop::collection::vec(-1e9..1e9f64, 1..400)) {
        assert_agree(&Stats::of(&values).unwrap(), &values)?;
    }

    #[test]
    fn latencies_in_nanoseconds_keep_their_last_digit(values in prop::collection::vec(0u64..10_000_000_000_000, 1..300)) {
        let values: Vec<f64> = values.into_iter().map(|ns| ns as f64).collect();
        let stats = Stats::of(&values).unwrap();
        assert_agree(&stats, &values)?;
        prop_assert_eq!(stats.avg, values.iter().sum::<f64>() / values.len() as f64, "sums of whole nanoseconds are exact");
    }

    #[test]
    fn weights_mean_repetition(pairs in prop::collection::vec((-1e6..1e6f64, 0u64..30), 1..60)) {
        let written_out: Vec<f64> = pairs.iter().flat_map(|&(v, weight)| std::iter::repeat_n(v, usize::try_from(weight).unwrap())).collect();
        match Stats::of_weighted(pairs) {
            None => prop_assert!(written_out.is_empty()),
            Some(stats) => {
                assert_agree(&stats, &written_out)?;
                prop_assert_eq!(stats.percentiles, Stats::of(&written_out).unwrap().percentiles);
            }
        }
    }
}

/// Written by `data/generate.py --numpy`.
#[test]
fn statistics_equal_numpys_to_the_last_bit() {
    let table: Value = serde_json::from_str(include_str!("data/numpy_stats.json")).unwrap();
    let cases = table["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
        let stats = Stats::of(&numbers("values")).unwrap();
        assert_eq!(stats.percentiles.to_vec(), numbers("percentiles"), "n = {}", stats.count);
        let single = [("avg", stats.avg), ("std", stats.std), ("min", stats.min), ("max", stats.max), ("p999", stats.p999)];
        for (key, ours) in single {
            assert_eq!(Some(ours), case[key].as_f64(), "{key}, n = {}", stats.count);
        }
    }
}
