//! Times launches without the time it takes to launch them.

use crate::error::CudaError;
use crate::gpu::{Event, Gpu};

/// Seconds that a graph should last at least, so that its start does not count.
const LEAST: f64 = 500e-6;
/// Launches in a graph, at most.
const MOST_LAUNCHES: usize = 256;

/// Median and spread of one launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timing {
    pub(super) seconds: f64,
    pub(super) spread: f64,
    pub(super) launches: usize,
}

#[derive(Debug)]
pub(super) struct Timer {
    gpu: Gpu,
    repeats: usize,
    start: Event,
    stop: Event,
}

impl Timer {
    pub(super) fn new(gpu: &Gpu, repeats: usize) -> Result<Self, CudaError> {
        Ok(Timer { gpu: gpu.clone(), repeats: repeats.max(1), start: gpu.event()?, stop: gpu.event()? })
    }

    /// `launch(i)` puts the operator on the stream with copy `i` of its data, of which there are `copies`.
    pub(super) fn time(&self, copies: usize, launch: impl FnMut(usize) -> Result<(), CudaError>) -> Result<Timing, CudaError> {
        self.repeated(copies, self.repeats, launch)
    }

    /// A first impression: one graph.
    pub(super) fn once(&self, copies: usize, launch: impl FnMut(usize) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        Ok(self.repeated(copies, 1, launch)?.seconds)
    }

    fn repeated(&self, copies: usize, repeats: usize, mut launch: impl FnMut(usize) -> Result<(), CudaError>) -> Result<Timing, CudaError> {
        launch(0)?;
        self.gpu.synchronize()?;
        self.start.record()?;
        launch(copies - 1)?;
        self.stop.record()?;
        // Holds the launch too, so it is rather too long; the graph is then a bit shorter.
        let about = self.start.seconds_to(&self.stop)?.max(1e-6);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
        let enough = (LEAST / about).ceil() as usize;
        let launches = enough.max(copies).clamp(1, MOST_LAUNCHES);
        let graph = self.gpu.capture(|| (0..launches).try_for_each(|i| launch(i % copies)))?;
        graph.launch()?;
        let mut all = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            self.start.record()?;
            graph.launch()?;
            self.stop.record()?;
            all.push(self.start.seconds_to(&self.stop)? / super::real(launches));
        }
        all.sort_by(f64::total_cmp);
        let at = |share: usize| all[(all.len() - 1) * share / 4];
        Ok(Timing { seconds: at(2), spread: (at(3) - at(1)) / at(2), launches })
    }
}

/// Copies of data of so many bytes that together are larger than the L2 cache, twice over.
pub(super) fn copies_beyond(l2: usize, bytes: usize, most: usize) -> usize {
    (2 * l2).div_ceil(bytes.max(1)).clamp(1, most.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_data_is_copied_until_it_exceeds_the_cache() {
        assert_eq!(copies_beyond(50 << 20, 1 << 20, 160), 100);
        assert_eq!(copies_beyond(50 << 20, 1 << 10, 160), 160);
        assert_eq!(copies_beyond(50 << 20, 1 << 30, 160), 1);
    }
}
