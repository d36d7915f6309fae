//! This host, from `/proc`: CPU (steal apart), memory, network, and what this process itself takes.
//!
//! Shares of CPU are of all cores together since the sample before. On a system without `/proc` there is no source.

use std::fs;
use std::time::Duration;

use tandem_metrics::telemetry::{Subject, SubjectKind};

use crate::source::{Reading, Source};

const INTERVAL: Duration = Duration::from_millis(500);

/// Times of `/proc/stat`, ticks of all cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cpu {
    total: u64,
    idle: u64,
    iowait: u64,
    steal: u64,
    n_cores: u32,
}

/// The host that this process runs on.
pub(crate) struct Host {
    subject: Subject,
    before: Cpu,
    page_bytes: f64,
    ticks_per_s: f64,
}

impl Host {
    /// None without `/proc`.
    pub(crate) fn new(host: &str) -> Option<Host> {
        let before = cpu(&fs::read_to_string("/proc/stat").ok()?)?;
        let name = rustix::system::uname().release().to_string_lossy().into_owned();
        let subject = Subject { kind: SubjectKind::Host, host: host.to_owned(), id: host.to_owned(), index: None, name, role: None };
        Some(Host {
            subject,
            before,
            page_bytes: rustix::param::page_size() as f64,
            ticks_per_s: rustix::param::clock_ticks_per_second() as f64,
        })
    }
}

impl Source for Host {
    fn name(&self) -> String {
        "/proc".to_owned()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }

    fn sample(&mut self) -> Result<Vec<Reading>, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let now = cpu(&read("/proc/stat")?).ok_or("/proc/stat has another form")?;
        let mut values = cpu_values(self.before, now);
        self.before = now;
        // What one kernel does not have is left out; the rest is still worth having.
        values.extend(read("/proc/meminfo").map(|text| memory_values(&text)).unwrap_or_default());
        values.extend(read("/proc/net/dev").map(|text| network_values(&text)).unwrap_or_default());
        let load = read("/proc/loadavg").ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
        values.extend(load.map(|load| ("load_1min", load)));
        values.extend(read("/proc/self/stat").map(|text| self.process_values(&text)).unwrap_or_default());
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(vec![Reading { subject: self.subject.clone(), values }])
    }
}

type Values = Vec<(&'static str, f64)>;

impl Host {
    /// CPU time and memory of this process, from `/proc/self/stat`: fields 14, 15 and 24, counted after the name in brackets.
    fn process_values(&self, stat: &str) -> Values {
        let fields: Vec<f64> = match stat.rsplit_once(')') {
            Some((_, rest)) => rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect(),
            None => return Vec::new(),
        };
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        vec![("client_cpu_s", (field(14) + field(15)) / self.ticks_per_s), ("client_rss_bytes", field(24) * self.page_bytes)]
    }
}

fn cpu(stat: &str) -> Option<Cpu> {
    let fields: Vec<u64> = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let at = |i: usize| fields.get(i).copied().unwrap_or(0);
    let is_core = |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    Some(Cpu {
        // user nice system idle iowait irq softirq steal; guest times are in user already.
        total: fields.iter().take(8).sum(),
        idle: at(3),
        iowait: at(4),
        steal: at(7),
        n_cores: u32::try_from(stat.lines().filter(is_core).count()).ok()?,
    })
}

fn cpu_values(before: Cpu, now: Cpu) -> Values {
    let total = now.total.saturating_sub(before.total);
    let mut values = vec![("cpu_count", f64::from(now.n_cores))];
    if total > 0 {
        let share = |now: u64, before: u64| now.saturating_sub(before) as f64 * 100.0 / total as f64;
        let (iowait, steal) = (share(now.iowait, before.iowait), share(now.steal, before.steal));
        let busy = (100.0 - share(now.idle, before.idle) - iowait - steal).max(0.0);
        values.extend([("cpu_percent", busy), ("cpu_steal_percent", steal), ("cpu_iowait_percent", iowait)]);
    }
    values
}

fn memory_values(meminfo: &str) -> Values {
    let kib = |key: &str| -> Option<f64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(free)) => vec![("host_memory_total_bytes", total * 1024.0), ("host_memory_used_bytes", (total - free) * 1024.0)],
        _ => Vec::new(),
    }
}

fn network_values(dev: &str) -> Values {
    let (mut rx, mut tx, mut loopback) = (0.0, 0.0, 0.0);
    for line in dev.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let fields: Vec<f64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        let (Some(received), Some(sent)) = (fields.first(), fields.get(8)) else { continue };
        if name.trim() == "lo" {
            loopback += received;
        } else {
            rx += received;
            tx += sent;
        }
    }
    vec![("net_rx_bytes", rx), ("net_tx_bytes", tx), ("loopback_rx_bytes", loopback)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(values: &Values, name: &str) -> f64 {
        values.iter().find(|(known, _)| *known == name).unwrap().1
    }

    #[test]
    fn steal_is_no_work_of_ours() {
        let stat = |fields: &str| cpu(&format!("cpu  {fields}\ncpu0 1 2\ncpu1 1 2\nintr 7\n")).unwrap();
        let values = cpu_values(stat("100 0 100 800 0 0 0 0 0 0"), stat("150 0 120 880 10 0 0 40 0 0"));
        let shares = ["cpu_percent", "cpu_steal_percent", "cpu_iowait_percent"].map(|name| value(&values, name));
        assert_eq!(shares, [35.0, 20.0, 5.0]);
        assert_eq!(value(&values, "cpu_count"), 2.0);
    }

    #[test]
    fn memory_and_network_are_read() {
        let values = memory_values("MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    400 kB\n");
        assert_eq!(value(&values, "host_memory_used_bytes"), 600.0 * 1024.0);
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 500 1 0 0 0 0 0 0 500 1 0 0 0 0 0 0\n  eth0: 7000 1 0 0 0 0 0 0 90 1 0 0 0 0 0 0\n ib0:30 1 0 0 0 0 0 0 40 1 0 0 0 0 0 0\n";
        let values = network_values(dev);
        assert_eq!(["net_rx_bytes", "net_tx_bytes", "loopback_rx_bytes"].map(|name| value(&values, name)), [7030.0, 130.0, 500.0]);
    }

    #[test]
    fn this_host_can_be_sampled() {
        let Some(mut host) = Host::new("h") else { return tandem_testkit::not_run("host telemetry", "no /proc here") };
        let reading = host.sample().unwrap().remove(0);
        assert!(reading.value("host_memory_used_bytes").unwrap() > 1e6);
        assert!(reading.value("client_rss_bytes").unwrap() > 1e5, "{reading:?}");
    }
}
