//! What happened in equal spans of time: tokens by when they arrived, requests in flight by when they were.

use crate::record::RequestRecord;

/// Equal bins over a span.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bins {
    /// Output tokens that arrived in each bin, of failed requests too.
    pub(super) tokens: Vec<f64>,
    /// Time-weighted mean of requests in flight.
    pub(super) in_flight: Vec<f64>,
}

impl Bins {
    /// `n` bins of `width_ns` from `from_ns` on; what lies outside is left out.
    pub(super) fn of<'a>(records: impl Iterator<Item = &'a RequestRecord>, from_ns: u64, width_ns: u64, n: usize) -> Bins {
        let width_ns = width_ns.max(1);
        let index = |at_ns: u64| at_ns.checked_sub(from_ns).and_then(|offset| usize::try_from(offset / width_ns).ok()).filter(|i| *i < n);
        let (mut tokens, mut busy, mut full) = (vec![0.0; n], vec![0u64; n], vec![0i64; n + 1]);
        let end_ns = from_ns + width_ns * n as u64;
        for record in records {
            for (at_ns, n_tokens) in tokens_over_time(record) {
                if let Some(bin) = index(at_ns) {
                    tokens[bin] += n_tokens;
                }
            }
            let (start, end) = (record.start_ns.max(from_ns), record.end_ns.min(end_ns));
            if end <= start {
                continue;
            }
            // `end - 1`, so that an end at an edge belongs to the bin before it.
            let (Some(first), Some(last)) = (index(start), index(end - 1)) else { continue };
            let edge = |bin: usize| from_ns + width_ns * bin as u64;
            if first == last {
                busy[first] += end - start;
                continue;
            }
            busy[first] += edge(first + 1) - start;
            busy[last] += end - edge(last);
            full[first + 1] += 1;
            full[last] -= 1;
        }
        let mut covering = 0i64;
        let in_flight = busy
            .iter()
            .zip(&full)
            .map(|(busy, change)| {
                covering += change;
                covering as f64 + *busy as f64 / width_ns as f64
            })
            .collect();
        Bins { tokens, in_flight }
    }
}

/// When the tokens of a request arrived: as its chunks say, else its output length spread evenly over them, else one a chunk.
pub(super) fn tokens_over_time(record: &RequestRecord) -> impl Iterator<Item = (u64, f64)> + '_ {
    let chunks = &record.chunks;
    let counted = chunks.iter().all(|chunk| chunk.n_tokens.is_some());
    let share = record.osl_tokens().filter(|_| !counted).map_or(1.0, |osl| f64::from(osl) / chunks.len().max(1) as f64);
    chunks.iter().map(move |chunk| (chunk.at_ns, chunk.n_tokens.filter(|_| counted).map_or(share, f64::from)))
}
