//! The search for the highest load that meets a goal: doubling until one fails, then bisection. Pure: measurements come in.
//!
//! A share of good requests near the wanted one says little, so such a load is measured again, until two measurements
//! agree or the majority of three decides. The load that is found has been measured at least twice.

use std::collections::BTreeMap;

/// A share of good requests within this of the wanted one is near the border.
const MARGIN: f64 = 0.05;
/// The search ends when the border is known to this, relative to the load (a concurrency: to 1 at least).
const PRECISION: f64 = 0.05;

/// A search under way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Search {
    from: f64,
    to: f64,
    wanted: f64,
    /// Whether loads are whole numbers.
    whole: bool,
    /// Shares of good requests by the bits of the load, which sort as the (positive) loads do.
    shares: BTreeMap<u64, Vec<f64>>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step {
    /// Measure this load.
    Measure(f64),
    /// This is the highest load that meets the goal; none does where it is none.
    Found(Option<f64>),
}

impl Search {
    /// A search between two loads for a share of good requests.
    pub(crate) fn new(from: f64, to: f64, wanted: f64, whole: bool) -> Self {
        let fit = |x: f64| if whole { x.round().max(1.0) } else { x };
        Search { from: fit(from), to: fit(to), wanted, whole, shares: BTreeMap::new() }
    }

    /// A measurement.
    pub(crate) fn add(&mut self, load: f64, share: f64) {
        self.shares.entry(load.to_bits()).or_default().push(share);
    }

    /// Whether a load meets the goal; none when that is not decided.
    pub(crate) fn meets(&self, load: f64) -> Option<bool> {
        let shares = self.shares.get(&load.to_bits())?;
        let n_met = shares.iter().filter(|share| **share >= self.wanted).count();
        let n_missed = shares.len() - n_met;
        match (shares.as_slice(), n_met.max(n_missed)) {
            ([share], _) if (share - self.wanted).abs() > MARGIN => Some(n_met == 1),
            (_, 2..) => Some(n_met > n_missed),
            _ => None,
        }
    }

    /// What to do next.
    pub(crate) fn next(&self) -> Step {
        let loads = || self.shares.keys().map(|bits| f64::from_bits(*bits));
        if let Some(open) = loads().find(|load| self.meets(*load).is_none()) {
            return Step::Measure(open);
        }
        let failing = loads().find(|load| self.meets(*load) == Some(false));
        // A load above one that fails is not believed.
        let passing = loads().rfind(|load| self.meets(*load) == Some(true) && failing.is_none_or(|f| *load < f));
        match (passing, failing) {
            (None, None) => Step::Measure(self.from),
            (None, Some(load)) if load <= self.from => Step::Found(None),
            (None, Some(_)) => Step::Measure(self.from),
            (Some(load), None) if load >= self.to => self.confirm(load),
            (Some(load), None) => Step::Measure((load * 2.0).min(self.to)),
            (Some(low), Some(high)) => {
                let middle = if self.whole { ((low + high) / 2.0).floor() } else { (low * high).sqrt() };
                let is_narrow = high - low <= PRECISION * low || (self.whole && high - low <= 1.0);
                if is_narrow || middle <= low || middle >= high { self.confirm(low) } else { Step::Measure(middle) }
            }
        }
    }

    fn confirm(&self, load: f64) -> Step {
        let n = self.shares.get(&load.to_bits()).map_or(0, Vec::len);
        if n < 2 { Step::Measure(load) } else { Step::Found(Some(load)) }
    }

    /// Every load that was measured: its shares of good requests and whether it meets the goal, ascending.
    pub(crate) fn table(&self) -> impl Iterator<Item = (f64, &[f64], bool)> {
        self.shares.iter().map(|(bits, shares)| {
            let load = f64::from_bits(*bits);
            (load, shares.as_slice(), self.meets(load).unwrap_or(false))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search on a server whose share of good requests is `share(load, n)` at its `n`th measurement.
    fn search(mut search: Search, share: impl Fn(f64, usize) -> f64) -> (Option<f64>, Vec<f64>) {
        let mut measured = Vec::new();
        loop {
            match search.next() {
                Step::Found(load) => return (load, measured),
                Step::Measure(load) => {
                    let n = measured.iter().filter(|l| **l == load).count();
                    measured.push(load);
                    assert!(measured.len() < 60, "{measured:?}");
                    search.add(load, share(load, n));
                }
            }
        }
    }

    fn step(border: f64) -> impl Fn(f64, usize) -> f64 {
        move |load, _| if load <= border { 1.0 } else { 0.2 }
    }

    #[test]
    fn the_border_is_found_wherever_it_is() {
        for border in 1..300 {
            let (found, measured) = search(Search::new(1.0, 4096.0, 0.9, true), step(f64::from(border)));
            let found = found.unwrap();
            assert!(found <= f64::from(border) && found >= f64::from(border) * 0.95 - 1.0, "{border}: {found}");
            assert!(measured.len() <= 20, "{measured:?}");
            assert_eq!(measured.iter().filter(|l| **l == found).count(), 2, "confirmed once");
        }
        let (found, _) = search(Search::new(0.5, 100.0, 0.9, false), step(7.3));
        assert!((6.9..=7.3).contains(&found.unwrap()), "{found:?}");
    }

    #[test]
    fn a_goal_that_nothing_or_everything_meets_ends_at_once() {
        assert_eq!(search(Search::new(2.0, 64.0, 0.9, true), step(1.0)), (None, vec![2.0]));
        assert_eq!(search(Search::new(16.0, 40.0, 0.9, true), step(1e9)), (Some(40.0), vec![16.0, 32.0, 40.0, 40.0]));
    }

    #[test]
    fn near_the_border_the_majority_decides() {
        let shaky = |load: f64, n: usize| match load {
            x if x < 8.0 => 1.0,
            8.0 => [0.91, 0.88, 0.92][n],
            _ => 0.1,
        };
        let (found, measured) = search(Search::new(1.0, 4096.0, 0.9, true), shaky);
        assert_eq!((found, measured.iter().filter(|l| **l == 8.0).count()), (Some(8.0), 3));
        let unlucky = |load: f64, n: usize| match load {
            x if x < 8.0 => 1.0,
            8.0 => [1.0, 0.5, 0.5][n],
            _ => 0.1,
        };
        assert_eq!(search(Search::new(1.0, 4096.0, 0.9, true), unlucky).0, Some(7.0), "one good measurement is not believed");
    }
}
