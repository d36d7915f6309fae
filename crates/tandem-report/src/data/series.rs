//! Bins over a span of time: what turns millions of stamps into a line of fixed size.

/// Equal bins over `from..to`, in the unit of the caller.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bins {
    from: f64,
    width: f64,
    /// Sum of what fell into each.
    pub(crate) sums: Vec<f64>,
}

impl Bins {
    /// `n` empty bins; a span that is empty or not finite is one of length 1.
    pub(crate) fn new(from: f64, to: f64, n: usize) -> Self {
        let span = if (to - from).is_finite() && to > from { to - from } else { 1.0 };
        Bins { from, width: span / n.max(1) as f64, sums: vec![0.0; n.max(1)] }
    }

    pub(crate) fn width(&self) -> f64 {
        self.width
    }

    /// Middle of each bin.
    pub(crate) fn centres(&self) -> Vec<f64> {
        (0..self.sums.len()).map(|i| self.from + (i as f64 + 0.5) * self.width).collect()
    }

    /// Adds `amount` where `at` lies; what lies outside goes to the nearest bin.
    pub(crate) fn add(&mut self, at: f64, amount: f64) {
        let index = self.index(at);
        self.sums[index] += amount;
    }

    /// Each sum divided by the width: a rate.
    pub(crate) fn rates(&self) -> Vec<f64> {
        self.sums.iter().map(|sum| sum / self.width).collect()
    }

    /// Where `at` lies.
    pub(crate) fn index(&self, at: f64) -> usize {
        let position = ((at - self.from) / self.width).floor().clamp(0.0, (self.sums.len() - 1) as f64);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to an index")]
        let index = position as usize;
        index
    }
}

/// Mean number of spans that cover each bin, from their ends alone: two entries a span, however long it is.
#[derive(Debug)]
pub(crate) struct Cover {
    partial: Bins,
    /// Change in the number of spans that cover bins fully, at each bin.
    full: Vec<f64>,
}

impl Cover {
    pub(crate) fn new(from: f64, to: f64, n: usize) -> Self {
        let partial = Bins::new(from, to, n);
        let full = vec![0.0; partial.sums.len() + 1];
        Cover { partial, full }
    }

    /// Counts the span `start..end`.
    pub(crate) fn add(&mut self, start: f64, end: f64) {
        let limit = self.partial.from + self.partial.width * self.partial.sums.len() as f64;
        let (start, end) = (start.max(self.partial.from), end.min(limit));
        if end <= start {
            return;
        }
        let (first, last) = (self.partial.index(start), self.partial.index(end));
        if first == last {
            self.partial.sums[first] += end - start;
            return;
        }
        let edge = |i: usize| self.partial.from + i as f64 * self.partial.width;
        let (head, tail) = (edge(first + 1) - start, end - edge(last));
        self.partial.sums[first] += head;
        self.partial.sums[last] += tail;
        self.full[first + 1] += 1.0;
        self.full[last] -= 1.0;
    }

    /// The mean over each bin.
    pub(crate) fn means(&self) -> Vec<f64> {
        let mut covering = 0.0;
        let mut means = Vec::with_capacity(self.partial.sums.len());
        for (partial, change) in self.partial.sums.iter().zip(&self.full) {
            covering += change;
            means.push(covering + partial / self.partial.width);
        }
        means
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_fall_into_their_bins_and_none_is_lost() {
        let mut bins = Bins::new(0.0, 4.0, 4);
        for at in [-1.0, 0.5, 1.0, 3.999, 4.0, 9.0] {
            bins.add(at, 1.0);
        }
        assert_eq!(bins.sums, [2.0, 1.0, 0.0, 3.0]);
        assert_eq!(bins.centres(), [0.5, 1.5, 2.5, 3.5]);
    }

    #[test]
    fn an_empty_span_is_no_division_by_zero() {
        let mut bins = Bins::new(3.0, 3.0, 0);
        bins.add(3.0, 2.0);
        assert_eq!(bins.rates(), [2.0]);
    }

    #[test]
    fn cover_agrees_with_counting_moments() {
        let spans = [(0.0, 10.0), (0.25, 0.75), (2.5, 7.25), (9.9, 14.0), (5.0, 5.0)];
        let mut cover = Cover::new(0.0, 10.0, 5);
        spans.iter().for_each(|&(start, end)| cover.add(start, end));
        let moments = |bin: usize| {
            let at = |k: usize| bin as f64 * 2.0 + (k as f64 + 0.5) / 1000.0;
            (0..2000).map(|k| spans.iter().filter(|(s, e)| (*s..*e).contains(&at(k))).count() as f64).sum::<f64>() / 2000.0
        };
        for (bin, mean) in cover.means().into_iter().enumerate() {
            assert!((mean - moments(bin)).abs() < 1e-9, "{bin}: {mean} {}", moments(bin));
        }
    }
}
