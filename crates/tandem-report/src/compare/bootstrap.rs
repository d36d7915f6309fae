//! Intervals by resampling requests: what the same run could have shown, had other of its requests come up.
//!
//! Requests are drawn in blocks (`tandem_metrics::analysis::resample`). Throughput in a closed loop is concurrency times tokens over
//! request time, so it is resampled as the sum of output tokens over the sum of latencies. What an interval cannot know is how
//! much another run on another day would differ.

use tandem_metrics::analysis::resample::{Blocks, MIN_REQUESTS, MIN_REQUESTS_FOR_P99, block_length, interval_95, quantile};
use tandem_metrics::metrics::{Metric, output_throughput_per_gpu};

use crate::data::{Digest, RequestMetric};

/// What is computed from each resample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistic {
    Mean(RequestMetric),
    P99(RequestMetric),
    Throughput,
}

impl Statistic {
    pub(super) fn of(metric: &Metric, stat: &str) -> Option<Self> {
        match (RequestMetric::of_metric(metric), stat) {
            (Some(known), "avg") => Some(Self::Mean(known)),
            (Some(known), "p99") => Some(Self::P99(known)),
            (None, "avg") if metric.name == output_throughput_per_gpu::METRIC.name => Some(Self::Throughput),
            _ => None,
        }
    }
}

/// The requests of one load point and how to draw from them.
#[derive(Debug)]
pub(super) struct Resamples<'a> {
    digest: &'a Digest,
    block: usize,
    is_closed_loop: bool,
    stream: u64,
}

impl<'a> Resamples<'a> {
    /// None when there are too few requests.
    pub(super) fn of(digest: &'a Digest, concurrency: Option<u32>, stream: u64) -> Option<Self> {
        let block = block_length(digest.requests.len(), concurrency)?;
        Some(Resamples { digest, block, is_closed_loop: concurrency.is_some(), stream })
    }

    /// The 95 % interval of `b / a - 1` of a statistic whose figures have the ratio `ratio`.
    ///
    /// Throughput is resampled up to a factor (GPUs, concurrency) that the figures know: the interval is scaled to theirs.
    pub(super) fn interval_of_change(a: &Self, b: &Self, statistic: Statistic, ratio: f64) -> Option<(f64, f64)> {
        let factor = match statistic {
            Statistic::Throughput => ratio / (b.whole_ratio()? / a.whole_ratio()?),
            Statistic::Mean(_) | Statistic::P99(_) => 1.0,
        };
        let n_resamples = (2_000_000 / a.len().max(b.len())).clamp(200, 1_000);
        let (a, b) = (a.draw(statistic, n_resamples)?, b.draw(statistic, n_resamples)?);
        let mut changes: Vec<f64> = a.iter().zip(&b).filter(|(a, _)| **a != 0.0).map(|(a, b)| factor * b / a - 1.0).collect();
        if changes.len() < n_resamples / 2 {
            return None;
        }
        Some(interval_95(&mut changes))
    }

    /// Output tokens over request time of all requests; none in an open loop, where arrivals decide about throughput.
    fn whole_ratio(&self) -> Option<f64> {
        let (tokens, times) = self.columns(Statistic::Throughput).filter(|_| self.is_closed_loop)?;
        Some(tokens.iter().sum::<f64>() / times.iter().sum::<f64>()).filter(|ratio| *ratio > 0.0)
    }

    fn len(&self) -> usize {
        self.digest.requests.len()
    }

    /// The statistic of each of `n_resamples` resamples.
    fn draw(&self, statistic: Statistic, n_resamples: usize) -> Option<Vec<f64>> {
        let (values, weights) = self.columns(statistic)?;
        let mut blocks = Blocks::new(values.len(), self.block, self.stream);
        if matches!(statistic, Statistic::P99(_)) {
            let mut drawn = Vec::with_capacity(values.len());
            let mut p99 = || {
                blocks.draw(&values, &mut drawn);
                quantile(&mut drawn, 0.99)
            };
            return Some((0..n_resamples).map(|_| p99()).collect());
        }
        let (values, weights) = (CircularSums::of(&values), CircularSums::of(&weights));
        // The sum of the values over that of the weights; whole blocks are summed at once.
        let mut ratio = || {
            let (mut value, mut weight) = (0.0, 0.0);
            blocks.resample(|start, length| {
                value += values.sum(start, length);
                weight += weights.sum(start, length);
            });
            value / weight
        };
        Some((0..n_resamples).map(|_| ratio()).collect())
    }

    /// Numerators and denominators of a statistic, one of each a request.
    fn columns(&self, statistic: Statistic) -> Option<(Vec<f64>, Vec<f64>)> {
        let requests = &self.digest.requests;
        let (values, weights): (Vec<f64>, Vec<f64>) = match statistic {
            Statistic::Mean(metric) | Statistic::P99(metric) => {
                requests.iter().filter_map(|request| request.value(metric).map(|value| (value, 1.0))).unzip()
            }
            Statistic::Throughput => {
                requests.iter().filter_map(|request| Some((f64::from(request.osl?), request.value(RequestMetric::Latency)?))).unzip()
            }
        };
        let wanted = if matches!(statistic, Statistic::P99(_)) { MIN_REQUESTS_FOR_P99 } else { MIN_REQUESTS };
        (values.len() >= wanted && weights.iter().all(|weight| *weight > 0.0)).then_some((values, weights))
    }
}

/// Sums of stretches of a circle of values, in constant time each.
#[derive(Debug)]
struct CircularSums(Vec<f64>);

impl CircularSums {
    fn of(values: &[f64]) -> Self {
        let mut sums = Vec::with_capacity(values.len() + 1);
        let mut total = 0.0;
        sums.push(total);
        for value in values {
            total += value;
            sums.push(total);
        }
        CircularSums(sums)
    }

    fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// `length` values from `start` on, at most once around.
    fn sum(&self, start: usize, length: usize) -> f64 {
        let (n, end) = (self.len(), start + length);
        if end <= n { self.0[end] - self.0[start] } else { self.0[n] - self.0[start] + self.0[end - n] }
    }
}

#[cfg(test)]
mod tests {
    use tandem_metrics::analysis::resample::SplitMix;
    use tandem_metrics::{Chunk, LoadPhase, RequestRecord};

    use super::*;

    const MS: u64 = 1_000_000;

    /// Requests one after another whose latency in ms is `latency(i)`.
    fn digest(n: u64, latency: impl Fn(u64) -> u64) -> Digest {
        let record = |i: u64| {
            let mut record = RequestRecord::issued(i, "r", 0, LoadPhase::Profiling, i * 1000 * MS);
            record.chunks = [Chunk::content(record.start_ns + MS), Chunk::content(record.start_ns + latency(i) * MS)].into_iter().collect();
            record.end_ns = record.start_ns + latency(i) * MS;
            record.osl.server = Some(10);
            record
        };
        Digest::of(&(0..n).map(record).collect::<Vec<_>>(), true).unwrap()
    }

    /// Independent noise of ±20 % around `mean` ms.
    fn noisy(n: u64, mean: u64, seed: u64) -> Digest {
        let mut random = SplitMix(seed);
        let noise: Vec<u64> = (0..n).map(|_| mean * (80 + random.below(41) as u64) / 100).collect();
        digest(n, |i| noise[usize::try_from(i).unwrap()])
    }

    fn interval(a: &Digest, b: &Digest, statistic: Statistic) -> Option<(f64, f64)> {
        let of = |digest, stream| Resamples::of(digest, Some(4), stream);
        Resamples::interval_of_change(&of(a, 1)?, &of(b, 2)?, statistic, 0.8)
    }

    #[test]
    fn an_interval_covers_the_true_change_about_as_often_as_it_says() {
        let covered = (0..200).filter(|&seed| {
            let (low, high) =
                interval(&noisy(120, 1000, seed), &noisy(120, 1100, seed + 7777), Statistic::Mean(RequestMetric::Latency)).unwrap();
            (low..=high).contains(&0.1)
        });
        let covered = covered.count();
        assert!((178..=198).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn equal_runs_show_no_change_and_throughput_mirrors_latency() {
        let (a, b) = (noisy(200, 1000, 1), noisy(200, 1250, 2));
        let (low, high) = interval(&a, &a, Statistic::Mean(RequestMetric::Latency)).unwrap();
        assert!(low < 0.0 && high > 0.0);
        let (low, high) = interval(&a, &b, Statistic::Throughput).unwrap();
        assert!(low < -0.2 && high > -0.2 && high < -0.15, "{low} {high}");
    }

    #[test]
    fn the_interval_of_throughput_lies_around_the_change_of_the_figures() {
        // Half the GPUs for the same tokens: the figure doubles although the requests are the same.
        let digest = noisy(200, 1000, 1);
        let of = |concurrency, stream| Resamples::of(&digest, concurrency, stream).unwrap();
        let closed = Resamples::interval_of_change(&of(Some(4), 1), &of(Some(4), 2), Statistic::Throughput, 2.0).unwrap();
        assert!(closed.0 > 0.9 && closed.0 < 1.0 && closed.1 > 1.0 && closed.1 < 1.1, "{closed:?}");
        assert_eq!(Resamples::interval_of_change(&of(None, 1), &of(None, 2), Statistic::Throughput, 2.0), None);
    }

    #[test]
    fn blocks_widen_the_interval_of_requests_that_share_their_fate() {
        // Latency is high in stretches of eight requests: single draws would see 160 independent ones.
        let shared = digest(160, |i| if (i / 8) % 2 == 0 { 900 } else { 1100 });
        let width = |concurrency| {
            let of = |stream| Resamples::of(&shared, Some(concurrency), stream).unwrap();
            let (low, high) = Resamples::interval_of_change(&of(1), &of(2), Statistic::Mean(RequestMetric::Latency), 1.0).unwrap();
            high - low
        };
        assert!(width(8) > 1.5 * width(1), "{} {}", width(8), width(1));
    }

    #[test]
    fn too_few_requests_have_no_interval() {
        let (few, more) = (noisy(7, 1000, 1), noisy(50, 1000, 2));
        assert_eq!(interval(&few, &more, Statistic::Mean(RequestMetric::Latency)), None);
        assert_eq!(interval(&more, &more, Statistic::P99(RequestMetric::Latency)), None);
    }

    #[test]
    fn the_same_runs_give_the_same_interval() {
        let (a, b) = (noisy(60, 1000, 1), noisy(60, 1010, 2));
        let once = || interval(&a, &b, Statistic::Mean(RequestMetric::Ttft));
        assert_eq!(once(), once());
    }
}
