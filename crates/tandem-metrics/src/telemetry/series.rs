//! Samples of one GPU, host or server, in bounded memory.

/// What a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SubjectKind {
    /// A GPU; its id is the UUID.
    Gpu,
    /// A machine; its id is the host name.
    Host,
    /// A server's metrics; its id is the URL.
    Server,
}

impl SubjectKind {
    /// The name in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            SubjectKind::Gpu => "gpu",
            SubjectKind::Host => "host",
            SubjectKind::Server => "server",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [SubjectKind::Gpu, SubjectKind::Host, SubjectKind::Server].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// What was sampled. Host and id together are its identity: an index says nothing across hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// GPU, host or server.
    pub kind: SubjectKind,
    /// The host it belongs to.
    pub host: String,
    /// UUID, host name or URL.
    pub id: String,
    /// Number of a GPU within its host.
    pub index: Option<u32>,
    /// Product name of a GPU, kind of a server (`vllm`, `tandem` …), kernel of a host; may be empty.
    pub name: String,
    /// What it does in the deployment: `prefill`, `decode`, `prefill+decode`; none if unknown.
    pub role: Option<String>,
}

impl Subject {
    /// Whether both name the same thing.
    #[must_use]
    pub fn is_same(&self, other: &Subject) -> bool {
        self.kind == other.kind && self.host == other.host && self.id == other.id
    }
}

/// Samples that a series holds at most; beyond that every second one is dropped, again and again.
pub const MAX_SAMPLES: usize = 16_384;

/// Samples of one subject in order of time: each a row of values, NaN where one was not offered.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Whose they are.
    pub subject: Subject,
    columns: Vec<String>,
    rows: Vec<(u64, Box<[f64]>)>,
    /// One of so many samples is kept.
    stride: u64,
    n_pushed: u64,
}

impl Series {
    /// A series without samples.
    #[must_use]
    pub fn new(subject: Subject) -> Self {
        Series { subject, columns: Vec::new(), rows: Vec::new(), stride: 1, n_pushed: 0 }
    }

    /// Appends a sample of time `at_ns`; one that is not later than the last is dropped.
    pub fn push<S: AsRef<str>>(&mut self, at_ns: u64, values: &[(S, f64)]) {
        if self.rows.last().is_some_and(|(last, _)| *last >= at_ns) {
            return;
        }
        self.n_pushed += 1;
        if !(self.n_pushed - 1).is_multiple_of(self.stride) {
            return;
        }
        let mut row = vec![f64::NAN; self.columns.len()];
        for (name, value) in values {
            let name = name.as_ref();
            // Sources name their values in the same order each time, so the search is short.
            let column = self.columns.iter().position(|known| known == name).unwrap_or_else(|| {
                self.columns.push(name.to_owned());
                row.push(f64::NAN);
                self.columns.len() - 1
            });
            row[column] = *value;
        }
        self.rows.push((at_ns, row.into_boxed_slice()));
        if self.rows.len() >= MAX_SAMPLES {
            let mut index = 0;
            self.rows.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Time of the last sample.
    #[must_use]
    pub fn last_ns(&self) -> Option<u64> {
        self.rows.last().map(|(at, _)| *at)
    }

    /// Names of what was sampled.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(String::as_str)
    }

    /// Time and value of each sample that has the quantity.
    pub fn values(&self, name: &str) -> impl Iterator<Item = (u64, f64)> + Clone + '_ {
        let column = self.columns.iter().position(|known| known == name);
        let of = move |(at, row): &(u64, Box<[f64]>)| {
            let value = row.get(column?).copied().filter(|value| value.is_finite())?;
            Some((*at, value))
        };
        self.rows.iter().filter_map(of)
    }

    /// The samples of `from_ns..=to_ns` alone.
    #[must_use]
    pub fn clipped(&self, from_ns: u64, to_ns: u64) -> Series {
        let rows = self.rows.iter().filter(|(at, _)| (from_ns..=to_ns).contains(at)).cloned().collect();
        Series { rows, subject: self.subject.clone(), columns: self.columns.clone(), stride: self.stride, n_pushed: self.n_pushed }
    }

    /// Values sampled within `from_ns..=to_ns`.
    #[must_use]
    pub fn within(&self, name: &str, from_ns: u64, to_ns: u64) -> Vec<f64> {
        self.values(name).filter(|(at, _)| (from_ns..=to_ns).contains(at)).map(|(_, value)| value).collect()
    }

    /// The value at a moment, interpolated between the samples around it; that of the nearest sample outside of them.
    #[must_use]
    pub fn at(&self, name: &str, at_ns: u64) -> Option<f64> {
        let mut before = None;
        for (at, value) in self.values(name) {
            if at <= at_ns {
                before = Some((at, value));
                continue;
            }
            let Some((earlier, from)) = before else { return Some(value) };
            return Some(from + (value - from) * ((at_ns - earlier) as f64 / (at - earlier) as f64));
        }
        before.map(|(_, value)| value)
    }

    /// By how much a counter grew over a window. A counter that fell (a restart) began anew at zero.
    #[must_use]
    pub fn growth(&self, name: &str, from_ns: u64, to_ns: u64) -> Option<f64> {
        let (first, last) = (self.at(name, from_ns)?, self.at(name, to_ns)?);
        let inside = self.values(name).filter(|(at, _)| *at > from_ns && *at < to_ns).map(|(_, value)| value);
        let mut growth = 0.0;
        let mut before = first;
        for value in inside.chain([last]) {
            growth += if value >= before { value - before } else { value };
            before = value;
        }
        Some(growth)
    }

    /// The integral of a gauge over a window, in its unit times seconds: trapezoids between samples.
    #[must_use]
    pub fn integral(&self, name: &str, from_ns: u64, to_ns: u64) -> Option<f64> {
        let mut before = (from_ns, self.at(name, from_ns)?);
        let last = (to_ns, self.at(name, to_ns)?);
        let mut sum = 0.0;
        for (at, value) in self.values(name).filter(|(at, _)| *at > from_ns && *at < to_ns).chain([last]) {
            sum += (value + before.1) / 2.0 * (at.saturating_sub(before.0) as f64 / 1e9);
            before = (at, value);
        }
        Some(sum)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn gpu(host: &str, uuid: &str, role: Option<&str>) -> Subject {
        Subject {
            kind: SubjectKind::Gpu,
            host: host.to_owned(),
            id: uuid.to_owned(),
            index: Some(0),
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            role: role.map(str::to_owned),
        }
    }

    #[test]
    fn values_come_back_by_name_and_missing_ones_do_not() {
        let mut series = Series::new(gpu("a", "GPU-1", None));
        series.push(10, &[("power_w", 100.0)]);
        series.push(20, &[("temperature_c", 40.0)]);
        series.push(20, &[("power_w", 999.0)]);
        series.push(30, &[("power_w", 300.0), ("temperature_c", 50.0)]);
        assert_eq!(series.values("power_w").collect::<Vec<_>>(), [(10, 100.0), (30, 300.0)]);
        assert_eq!(series.within("temperature_c", 15, 30), [40.0, 50.0]);
        assert_eq!((series.at("power_w", 20), series.at("power_w", 1), series.at("power_w", 99)), (Some(200.0), Some(100.0), Some(300.0)));
        assert_eq!(series.at("nothing", 20), None);
    }

    #[test]
    fn counters_are_clipped_to_the_window_and_survive_a_restart() {
        let mut series = Series::new(gpu("a", "GPU-1", None));
        for (second, value) in [(0, 1000.0), (1, 1100.0), (2, 1200.0), (3, 50.0), (4, 150.0)] {
            series.push(second * 1_000_000_000, &[("energy_j", value)]);
        }
        let grew = |from_ms: u64, to_ms: u64| series.growth("energy_j", from_ms * 1_000_000, to_ms * 1_000_000).unwrap();
        assert_eq!(grew(500, 1_500), 100.0);
        assert_eq!(grew(0, 2_000), 200.0);
        assert_eq!(grew(0, 4_000), 200.0 + 50.0 + 100.0);
    }

    #[test]
    fn integrals_follow_the_gauge() {
        let mut series = Series::new(gpu("a", "GPU-1", None));
        for (second, value) in [(0, 0.0), (2, 200.0), (4, 200.0)] {
            series.push(second * 1_000_000_000, &[("power_w", value)]);
        }
        assert_eq!(series.integral("power_w", 0, 4_000_000_000), Some(200.0 + 400.0));
        assert_eq!(series.integral("power_w", 1_000_000_000, 3_000_000_000), Some(150.0 + 200.0));
    }

    #[test]
    fn memory_is_bounded_and_what_remains_is_spread_over_the_whole_time() {
        let mut series = Series::new(gpu("a", "GPU-1", None));
        let n = 5 * MAX_SAMPLES as u64;
        (0..n).for_each(|i| series.push(i + 1, &[("energy_j", i as f64)]));
        assert!(series.len() < MAX_SAMPLES && series.len() > MAX_SAMPLES / 4);
        let gaps: Vec<u64> = series.values("energy_j").zip(series.values("energy_j").skip(1)).map(|(a, b)| b.0 - a.0).collect();
        assert!(gaps.windows(2).all(|pair| pair[0] == pair[1]), "evenly spaced");
        assert_eq!(series.values("energy_j").next(), Some((1, 0.0)));
        assert!(series.last_ns().unwrap() > n - 20);
    }
}
