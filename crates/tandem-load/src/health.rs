//! Whether the client kept up: what a report needs to say that its figures are the server's and not the client's.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use tandem_metrics::{LoadPhase, Reason, RequestRecord, Verdict};
use tandem_plan::Nanos;

/// How the client itself fared in a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientHealth {
    /// What the receive thread counted.
    pub receive: ReceiveHealth,
    /// CPU time of each thread of the run, by name.
    #[serde(deserialize_with = "thread_times")]
    pub cpu: Vec<(&'static str, Duration)>,
    /// From the first request to the end of the last response.
    pub wall: Duration,
    /// Output chunks received.
    pub n_chunks: u64,
    /// Chunks that shared a read with an earlier one, so that their stamps are late by an unknown amount.
    pub n_clumped_chunks: u64,
    /// Requests that the load wanted in flight, if it has a cap.
    pub in_flight_nominal: Option<u32>,
    /// Mean requests in flight between the first and the last start of a measured request.
    pub in_flight_mean: f64,
    /// Requests that were in flight at a time at most.
    pub in_flight_peak: u32,
    /// How late scheduled requests were sent: the mean and the worst. Zero in a closed loop.
    pub schedule_lag: (Nanos, Nanos),
    /// Share of the machine's CPU time that a hypervisor gave to others meanwhile, where the system says.
    pub steal_share: Option<f64>,
}

impl ClientHealth {
    /// Adds how another client of the same load fared: sums, and the worse of what is no count. What records say of the load is not
    /// merged, it follows from all records.
    pub fn merge(&mut self, other: &Self) {
        self.receive = std::mem::take(&mut self.receive).merged(&other.receive);
        self.cpu.extend_from_slice(&other.cpu);
        self.wall = self.wall.max(other.wall);
        self.n_chunks += other.n_chunks;
        self.n_clumped_chunks += other.n_clumped_chunks;
        self.steal_share = self.steal_share.into_iter().chain(other.steal_share).reduce(f64::max);
    }

    /// CPU time of all threads.
    #[must_use]
    pub fn cpu_total(&self) -> Duration {
        self.cpu.iter().map(|(_, time)| *time).sum()
    }

    /// Receive threads of the run.
    #[must_use]
    pub fn n_receive_threads(&self) -> usize {
        self.cpu.iter().filter(|(name, _)| *name == RECEIVE_THREAD).count()
    }

    /// Share of the wall time in which the busiest receive thread was on a CPU; near 1 the client is the bottleneck.
    #[must_use]
    pub fn receive_utilisation(&self) -> f64 {
        let busy = self.cpu.iter().filter(|(name, _)| *name == RECEIVE_THREAD).map(|(_, time)| time.as_secs_f64()).fold(0.0, f64::max);
        if self.wall.is_zero() { 0.0 } else { busy / self.wall.as_secs_f64() }
    }

    /// Microseconds of CPU time a chunk, all threads.
    #[must_use]
    pub fn cpu_us_per_chunk(&self) -> Option<f64> {
        (self.n_chunks > 0).then(|| self.cpu_total().as_secs_f64() * 1e6 / self.n_chunks as f64)
    }

    /// What of this makes the figures of a run doubtful, for the run's verdict.
    #[must_use]
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut reason = |verdict, code, message| reasons.push(Reason { verdict, code, message });
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let busy = self.receive_utilisation();
        if busy > SATURATED {
            let message = format!("client-bound: the client's receive thread was busy {} of the time, so it set the pace", percent(busy));
            reason(Verdict::Invalid, "client_bound", message);
        } else if busy > MAX_UTILISATION {
            let message = format!("the client's receive thread was busy {} of the time: it may limit what was measured", percent(busy));
            reason(Verdict::Suspect, "client_bound", message);
        }
        let mut doubt = |code, message| reason(Verdict::Suspect, code, message);
        if let Some(stolen) = self.steal_share.filter(|s| *s > MAX_STEAL_SHARE) {
            doubt("cpu_steal", format!("the hypervisor gave {} of the client's CPU time to others", percent(stolen)));
        }
        // With a cap, lateness is what the cap is for.
        let late = self.schedule_lag.0;
        if self.in_flight_nominal.is_none() && late > MAX_SCHEDULE_LAG {
            doubt("late_sends", format!("requests were sent {:.1} ms after they were due, on average", late.as_secs_f64() * 1e3));
        }
        let waited = self.cpu_wait_share();
        if waited > MAX_CPU_WAIT_SHARE {
            doubt(
                "client_starved",
                format!("the client's receive thread waited for a CPU {} of the time: something else ran in its place", percent(waited)),
            );
        }
        if self.clumped_share() > MAX_CLUMPED_SHARE {
            let share = percent(self.clumped_share());
            doubt(
                "clumped_reads",
                format!(
                    "{share} of chunks were read together with an earlier one: their stamps are late, unless the server sent them together"
                ),
            );
        }
        if self.receive.n_decoder_waits > 0 {
            doubt("decoder_behind", format!("the receive thread waited {} times for the decode thread", self.receive.n_decoder_waits));
        }
        reasons
    }

    /// Share of the wall time in which the receive thread could have run but had no CPU; zero when the system does not say.
    #[must_use]
    pub fn cpu_wait_share(&self) -> f64 {
        let waited = self.receive.cpu_wait.unwrap_or_default().as_secs_f64();
        if self.wall.is_zero() { 0.0 } else { waited / self.wall.as_secs_f64() }
    }

    /// Share of chunks that shared a read with an earlier one.
    #[must_use]
    pub fn clumped_share(&self) -> f64 {
        if self.n_chunks == 0 { 0.0 } else { self.n_clumped_chunks as f64 / self.n_chunks as f64 }
    }
}

/// A receive thread that is busier than this may be what limits the load.
const MAX_UTILISATION: f64 = 0.9;
/// A receive thread that is busier than this has nothing left: the load cannot have been larger, whatever the server did.
const SATURATED: f64 = 0.98;
/// More stolen CPU time than this delays whatever runs.
const MAX_STEAL_SHARE: f64 = 0.05;
/// Requests of an uncapped schedule that leave later than this on average make another load.
const MAX_SCHEDULE_LAG: Nanos = Nanos::from_millis(5);
/// A receive thread that waits longer than this for a CPU reads late.
const MAX_CPU_WAIT_SHARE: f64 = 0.1;
/// More clumped chunks than this are more than bad luck.
const MAX_CLUMPED_SHARE: f64 = 0.05;

/// Name of the receive thread.
pub(crate) const RECEIVE_THREAD: &str = "load-receive";
/// Name of the decode thread.
pub(crate) const DECODE_THREAD: &str = "load-decode";
/// Name of the prompt thread.
pub(crate) const PROMPT_THREAD: &str = "load-prompts";

/// Names of threads are those of this crate.
fn thread_times<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(&'static str, Duration)>, D::Error> {
    let times = Vec::<(String, Duration)>::deserialize(from)?;
    let name = |name: &str| [RECEIVE_THREAD, DECODE_THREAD].into_iter().find(|n| *n == name).unwrap_or(PROMPT_THREAD);
    Ok(times.iter().map(|(thread, time)| (name(thread), *time)).collect())
}

/// What the receive thread counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveHealth {
    /// Reads that returned bytes.
    pub n_reads: u64,
    /// Reads without a kernel stamp, which got the clock's.
    pub n_unstamped_reads: u64,
    /// Requests that left whole.
    pub n_sends: u64,
    /// Of these, requests without a kernel stamp, which got the time after their last write.
    pub n_unstamped_sends: u64,
    /// Time from a request's start (before its first write) to its last byte's leaving this host.
    pub send_time: LagHistogram,
    /// Bytes read.
    pub n_bytes: u64,
    /// Pauses in which the receive thread let stamped bytes gather, to wake up less often.
    pub n_pauses: u64,
    /// Time from the kernel's stamp to the end of the read: how far the receive thread is behind, its pauses included.
    pub read_lag: LagHistogram,
    /// Largest change of the wall clock against the monotonic one between two comparisons, 250 ms apart.
    pub wall_drift_max: Nanos,
    /// Connections begun.
    pub n_connects: u64,
    /// Requests that the kernel did not take whole at once: their sending took as long as the network needed.
    pub n_partial_writes: u64,
    /// Requests sent again because the server had closed an idle connection.
    pub n_resent: u64,
    /// Times that a server sent bytes beyond its response.
    pub n_unasked: u64,
    /// Times that a request was due before it had been made.
    pub n_supply_waits: u64,
    /// Times that the receive thread had to wait for the decode thread.
    pub n_decoder_waits: u64,
    /// Requests that were never sent.
    pub n_not_sent: u32,
    /// Time in which the receive thread could have run but had no CPU, where the system says.
    pub cpu_wait: Option<Duration>,
    /// Whether the system let the receive thread run before others; if not, a busy machine delays its reads.
    pub priority_raised: bool,
    /// Whether the run was stopped from outside.
    pub stopped: bool,
}

impl ReceiveHealth {
    /// The counts of two receive threads of a run together: sums, and the worse of what is no count.
    #[must_use]
    pub fn merged(mut self, other: &Self) -> Self {
        self.n_reads += other.n_reads;
        self.n_unstamped_reads += other.n_unstamped_reads;
        self.n_sends += other.n_sends;
        self.n_unstamped_sends += other.n_unstamped_sends;
        self.send_time.merge(&other.send_time);
        self.n_bytes += other.n_bytes;
        self.n_pauses += other.n_pauses;
        self.read_lag.merge(&other.read_lag);
        self.wall_drift_max = self.wall_drift_max.max(other.wall_drift_max);
        self.n_connects += other.n_connects;
        self.n_partial_writes += other.n_partial_writes;
        self.n_resent += other.n_resent;
        self.n_unasked += other.n_unasked;
        self.n_supply_waits += other.n_supply_waits;
        self.n_decoder_waits += other.n_decoder_waits;
        self.n_not_sent += other.n_not_sent;
        self.cpu_wait = self.cpu_wait.max(other.cpu_wait);
        self.priority_raised &= other.priority_raised;
        self.stopped |= other.stopped;
        self
    }

    /// Where the stamps came from: `kernel`, `clock`, or `mixed`.
    #[must_use]
    pub fn stamp_source(&self) -> &'static str {
        source(self.n_reads, self.n_unstamped_reads)
    }

    /// Where the send stamps came from: `kernel`, `clock` (the time after a request's last write), or `mixed`.
    #[must_use]
    pub fn send_stamp_source(&self) -> &'static str {
        source(self.n_sends, self.n_unstamped_sends)
    }
}

fn source(n: u64, n_unstamped: u64) -> &'static str {
    match n_unstamped {
        0 if n > 0 => "kernel",
        unstamped if unstamped < n => "mixed",
        _ => "clock",
    }
}

/// A histogram of waits: eight buckets to each power of two, so a bucket is 12 % wide at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LagHistogram {
    counts: Vec<u64>,
    n: u64,
}

impl Default for LagHistogram {
    fn default() -> Self {
        Self { counts: vec![0; 64 * 8], n: 0 }
    }
}

impl LagHistogram {
    /// Adds one.
    pub fn add(&mut self, lag: Nanos) {
        self.counts[bucket(lag.0)] += 1;
        self.n += 1;
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.n += other.n;
    }

    /// How many were added.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Upper edge of the bucket that holds the quantile `q` of 0..=1; zero when empty.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Nanos {
        let wanted = (q * self.n as f64).ceil().max(1.0);
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if *n > 0 && seen as f64 >= wanted {
                return Nanos(upper_edge(i));
            }
        }
        Nanos::ZERO
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < 8 {
        return usize::try_from(nanos).expect("less than 8");
    }
    let power = 63 - nanos.leading_zeros();
    let eighth = (nanos >> (power - 3)) & 7;
    (power as usize - 2) * 8 + usize::try_from(eighth).expect("less than 8")
}

fn upper_edge(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (power, eighth) = (bucket / 8 + 2, bucket % 8);
    let width = 1u64 << (power - 3);
    (8 + eighth as u64) * width + (width - 1)
}

/// Mean (between the first and the last start of a measured request) and peak of requests in flight, from the records of a run.
#[must_use]
pub fn in_flight(records: &[RequestRecord]) -> (f64, u32) {
    let measured = || records.iter().filter(|r| r.phase == LoadPhase::Profiling).map(|r| r.start_ns);
    let (Some(from), Some(to)) = (measured().min(), measured().max()) else { return (0.0, 0) };
    let mut edges: Vec<(u64, i32)> = records.iter().flat_map(|r| [(r.start_ns, 1), (r.end_ns.max(r.start_ns), -1)]).collect();
    // Ends before starts at the same time, as in the loop itself.
    edges.sort_unstable();
    let (mut n, mut peak, mut area, mut last) = (0i64, 0i64, 0.0, from);
    for (at, change) in edges {
        let clipped = at.clamp(from, to);
        area += n as f64 * (clipped.saturating_sub(last)) as f64;
        last = last.max(clipped);
        n += i64::from(change);
        peak = peak.max(n);
    }
    let mean = if to > from { area / (to - from) as f64 } else { peak as f64 };
    (mean, u32::try_from(peak).unwrap_or(0))
}

/// CPU time of this process, all threads.
#[cfg(unix)]
#[must_use]
pub fn process_cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;

    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// CPU time of this process: not known here.
#[cfg(not(unix))]
#[must_use]
pub fn process_cpu() -> Duration {
    Duration::ZERO
}

/// CPU time of the calling thread.
#[cfg(target_os = "linux")]
pub(crate) fn thread_cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;

    let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Duration::ZERO };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// CPU time of the calling thread: not known here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_cpu() -> Duration {
    Duration::ZERO
}

/// Time in which the calling thread could have run but had no CPU, since it began.
pub(crate) fn thread_cpu_wait() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// CPU time of the machine since it started, as the kernel counts it: all of it, and what a hypervisor took (clock ticks).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MachineCpu {
    total: u64,
    stolen: u64,
}

impl MachineCpu {
    /// As it stands; `None` where the system does not say.
    pub(crate) fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// From `/proc/stat`, whose first line is user, nice, system, idle, iowait, irq, softirq, steal, and guests, which user holds too.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_ascii_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
        Some(Self { total: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// Share that was stolen since `before`.
    pub(crate) fn steal_since(self, before: Self) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|n| *n > 0)?;
        Some(self.stolen.saturating_sub(before.stolen) as f64 / total as f64)
    }
}

/// Lets the calling thread run before others, if the system permits; true when it does.
#[cfg(target_os = "linux")]
pub(crate) fn raise_thread_priority() -> bool {
    // On Linux the niceness is a thread's own.
    rustix::process::nice(-10).is_ok()
}

/// Lets the calling thread run before others: not done here, where niceness is the whole process's.
#[cfg(not(target_os = "linux"))]
pub(crate) fn raise_thread_priority() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_lies_in_a_bucket_whose_edge_is_close_above_it() {
        let mut previous = 0;
        for nanos in (0..20_000).chain([1 << 40, u64::MAX / 2, u64::MAX]) {
            let i = bucket(nanos);
            assert!(upper_edge(i) >= nanos && upper_edge(i) - nanos <= nanos / 8, "{nanos}: {}", upper_edge(i));
            assert!(i >= previous);
            previous = i;
        }
    }

    #[test]
    fn a_client_that_did_not_keep_up_says_why() {
        let good = ClientHealth {
            receive: ReceiveHealth::default(),
            cpu: vec![(RECEIVE_THREAD, Duration::from_millis(100))],
            wall: Duration::from_secs(1),
            n_chunks: 1000,
            n_clumped_chunks: 10,
            in_flight_nominal: Some(1),
            in_flight_mean: 1.0,
            in_flight_peak: 1,
            schedule_lag: (Nanos::ZERO, Nanos::ZERO),
            steal_share: Some(0.0),
        };
        let codes = |h: ClientHealth| h.reasons().into_iter().map(|r| r.code).collect::<Vec<_>>();
        assert_eq!(codes(good.clone()), [""; 0]);
        assert_eq!(codes(ClientHealth { cpu: vec![(RECEIVE_THREAD, Duration::from_millis(950))], ..good.clone() }), ["client_bound"]);
        let saturated = ClientHealth { cpu: vec![(RECEIVE_THREAD, Duration::from_millis(990))], ..good.clone() };
        assert_eq!(saturated.reasons()[0].verdict, Verdict::Invalid);
        assert!(saturated.reasons()[0].message.starts_with("client-bound"));
        let two = vec![(RECEIVE_THREAD, Duration::from_millis(100)), (RECEIVE_THREAD, Duration::from_millis(950))];
        assert_eq!(codes(ClientHealth { cpu: two, ..good.clone() }), ["client_bound"], "the busier of two counts");
        assert_eq!(codes(ClientHealth { steal_share: Some(0.06), ..good.clone() }), ["cpu_steal"]);
        let late = ClientHealth { schedule_lag: (Nanos::from_millis(6), Nanos::from_millis(9)), ..good.clone() };
        assert_eq!(codes(late.clone()), [""; 0], "a cap may hold requests back");
        assert_eq!(codes(ClientHealth { in_flight_nominal: None, ..late }), ["late_sends"]);
        assert_eq!(codes(ClientHealth { n_clumped_chunks: 60, ..good.clone() }), ["clumped_reads"]);
        let receive = |change: fn(&mut ReceiveHealth)| {
            let mut h = good.clone();
            change(&mut h.receive);
            codes(h)
        };
        assert_eq!(receive(|r| r.cpu_wait = Some(Duration::from_millis(200))), ["client_starved"]);
        assert_eq!(receive(|r| r.n_decoder_waits = 1), ["decoder_behind"]);
    }

    #[test]
    fn stolen_time_is_a_share_of_all_time_between_two_readings() {
        let at = |line: &str| MachineCpu::parse(line).unwrap();
        let (before, after) = (at("cpu  10 0 10 70 0 0 0 10 5 5\ncpu0 1"), at("cpu  20 0 20 140 0 0 0 20 9 9\n"));
        assert_eq!(after.steal_since(before), Some(0.1));
        assert_eq!(before.steal_since(before), None);
        assert_eq!(MachineCpu::parse("cpu  1 2 3\n"), None);
        assert_eq!(MachineCpu::parse("intr 1\n"), None);
    }

    #[test]
    fn quantiles_follow_the_counts() {
        let mut lags = LagHistogram::default();
        assert_eq!(lags.quantile(0.5), Nanos::ZERO);
        (0..99).for_each(|_| lags.add(Nanos(5)));
        lags.add(Nanos(1_000_000));
        assert_eq!(lags.quantile(0.5), Nanos(5));
        assert_eq!(lags.quantile(0.99), Nanos(5));
        assert!(lags.quantile(1.0).0 >= 1_000_000);
    }

    #[test]
    fn requests_in_flight_are_averaged_between_the_first_and_last_measured_start() {
        let record = |phase, start, end| {
            let mut r = RequestRecord::issued(0, "x", 0, phase, start);
            (r.start_ns, r.end_ns) = (start, end);
            r
        };
        let records = [
            record(LoadPhase::Warmup, 0, 150),
            record(LoadPhase::Profiling, 100, 200),
            record(LoadPhase::Profiling, 150, 250),
            record(LoadPhase::Profiling, 200, 300),
        ];
        assert_eq!(in_flight(&records), (2.0, 2));
        assert_eq!(in_flight(&records[..1]), (0.0, 0));
    }
}
