//! What a client recorded against what the server did: the error of every figure, chunk by chunk.

use std::collections::HashMap;

use tandem_metrics::{LoadPhase, RequestRecord};
use tandem_plan::Nanos;

use super::{Emission, EmissionLog, PacedConfig};
use crate::run::LoadReport;

/// Errors of a run, in nanoseconds; positive = the client's figure is larger.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    /// Measured requests that ended well and are in the server's log.
    pub n_requests: usize,
    /// Of these, requests of which client and server count different chunks; they are left out of what follows.
    pub n_miscounted: usize,
    /// Stamp of each chunk minus the time just before its write.
    pub stamp: Spread,
    /// From the client's start of sending to the last byte's arrival at the server's socket.
    pub send: Spread,
    /// From there to the server having read it: the server's own delay, no error of the client's.
    pub pickup: Spread,
    /// Recorded TTFT minus the server's time from the request's arrival to its first write.
    pub ttft: Spread,
    /// Recorded mean gap between chunks minus the server's, for each request of two chunks or more.
    pub itl: Spread,
}

/// Mean and quantiles of errors, nanoseconds. All zero when there was none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

impl Accuracy {
    /// Compares `report`, made by driving a paced server, with that server's log.
    #[must_use]
    pub fn of(report: &LoadReport, log: &EmissionLog) -> Self {
        let emissions: HashMap<&str, &Emission> = log.emissions.iter().map(|e| (e.id.as_str(), e)).collect();
        let pairs: Vec<_> = report
            .records
            .iter()
            .filter(|r| r.phase == LoadPhase::Profiling && r.outcome.is_ok())
            .filter_map(|r| Some((r, *emissions.get(r.x_request_id.as_str())?)))
            .collect();
        let counted: Vec<_> = pairs.iter().filter(|(r, e)| r.chunks.len() == e.writes.len() && !e.writes.is_empty()).collect();
        // The server's times on the client's clock.
        let at = |t: Nanos| nanos(report.clock.from_other(&log.clock, t).0);
        let spread =
            |of: &dyn Fn(&RequestRecord, &Emission) -> Option<f64>| Spread::of(counted.iter().filter_map(|(r, e)| of(r, e)).collect());
        Self {
            n_requests: pairs.len(),
            n_miscounted: pairs.len() - counted.len(),
            stamp: Spread::of(
                counted.iter().flat_map(|(r, e)| r.chunks.iter().zip(&e.writes).map(|(c, w)| nanos(c.at_ns) - at(*w))).collect(),
            ),
            send: spread(&|r, e| Some(at(e.arrived) - nanos(r.start_ns))),
            pickup: spread(&|_, e| Some(at(e.received) - at(e.arrived))),
            ttft: spread(&|r, e| Some(nanos(r.chunks.first()?.at_ns) - nanos(r.start_ns) - (at(e.writes[0]) - at(e.arrived)))),
            itl: spread(&|r, e| {
                let (n, last) = (e.writes.len() - 1, r.chunks.last()?);
                let client = nanos(last.at_ns) - nanos(r.chunks.first()?.at_ns);
                (n > 0).then(|| (client - (at(e.writes[n]) - at(e.writes[0]))) / n as f64)
            }),
        }
    }
}

impl EmissionLog {
    /// How late each write was, against the schedule of a stream; nanoseconds. A large one is the server's failing, not the client's.
    #[must_use]
    pub fn lateness(&self, config: &PacedConfig) -> Spread {
        let late = |e: &Emission| {
            let due = e.arrived.0 + config.ttft.0;
            let writes = e.writes.iter().zip(0u64..);
            writes.map(|(w, i)| nanos(w.0.saturating_sub(due + i * config.itl.0))).collect::<Vec<_>>()
        };
        Spread::of(self.emissions.iter().flat_map(late).collect())
    }
}

impl Spread {
    fn of(mut errors: Vec<f64>) -> Self {
        if errors.is_empty() {
            return Self::default();
        }
        errors.sort_by(f64::total_cmp);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into a sample is small and positive")]
        let q = |p: f64| errors[((errors.len() - 1) as f64 * p).round() as usize];
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        Self { mean, min: q(0.0), p50: q(0.5), p99: q(0.99), p999: q(0.999), max: q(1.0) }
    }
}

fn nanos(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_quantiles_at_the_nearest_rank() {
        let spread = Spread::of((0..=1000).rev().map(f64::from).collect());
        assert_eq!(spread, Spread { mean: 500.0, min: 0.0, p50: 500.0, p99: 990.0, p999: 999.0, max: 1000.0 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
