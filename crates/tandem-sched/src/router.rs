//! Which worker of a phase gets the next request: policies without IO.
//!
//! A policy sees the workers that could take the request now, each with its load, and
//! names one of them. What the load counts is the caller's choice: outstanding prompt
//! tokens for prefill, sequences for decode.

use tandem_plan::Routing;

/// One worker that could take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the worker within its phase; stays the same while it comes and goes.
    pub index: u32,
    /// What it has outstanding.
    pub load: u64,
    /// Whether it has just failed this very request: picked only when there is no other.
    pub avoid: bool,
}

/// A policy and its memory.
#[derive(Debug, Clone)]
pub struct Router {
    routing: Routing,
    /// Index after the last one picked.
    next: u32,
}

impl Router {
    /// A router that has picked nobody yet.
    #[must_use]
    pub fn new(routing: Routing) -> Self {
        Router { routing, next: 0 }
    }

    /// The position in `candidates` of the worker to use; `None` when there is none.
    pub fn pick(&mut self, candidates: &[Candidate]) -> Option<usize> {
        // Distance from where the turn is: breaks ties, so that equal loads are served in turn.
        let turn = |c: &Candidate| c.index.wrapping_sub(self.next);
        let (position, chosen) = match self.routing {
            Routing::RoundRobin => candidates.iter().enumerate().min_by_key(|(_, c)| (c.avoid, turn(c))),
            Routing::LeastLoaded => candidates.iter().enumerate().min_by_key(|(_, c)| (c.avoid, c.load, turn(c))),
        }?;
        self.next = chosen.index.wrapping_add(1);
        Some(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(loads: &[(u32, u64)]) -> Vec<Candidate> {
        loads.iter().map(|&(index, load)| Candidate { index, load, avoid: false }).collect()
    }

    fn picks(routing: Routing, loads: &[(u32, u64)], n: usize) -> Vec<u32> {
        let (mut router, candidates) = (Router::new(routing), candidates(loads));
        (0..n).map(|_| candidates[router.pick(&candidates).unwrap()].index).collect()
    }

    #[test]
    fn round_robin_takes_turns_whatever_the_load() {
        assert_eq!(picks(Routing::RoundRobin, &[(0, 9), (1, 0), (2, 5)], 7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn round_robin_skips_a_worker_that_is_gone() {
        let mut router = Router::new(Routing::RoundRobin);
        assert_eq!(router.pick(&candidates(&[(0, 0), (1, 0), (2, 0)])), Some(0));
        assert_eq!(router.pick(&candidates(&[(0, 0), (2, 0)])), Some(1));
        assert_eq!(router.pick(&candidates(&[(0, 0), (1, 0), (2, 0)])), Some(0));
    }

    #[test]
    fn least_loaded_takes_the_smallest_and_ties_in_turn() {
        assert_eq!(picks(Routing::LeastLoaded, &[(0, 3), (1, 1), (2, 2)], 2), [1, 1]);
        assert_eq!(picks(Routing::LeastLoaded, &[(0, 1), (1, 1), (2, 7)], 4), [0, 1, 0, 1]);
    }

    #[test]
    fn a_worker_to_avoid_is_the_last_resort() {
        for routing in [Routing::RoundRobin, Routing::LeastLoaded] {
            let mut two = candidates(&[(0, 0), (1, 100)]);
            two[0].avoid = true;
            assert_eq!(Router::new(routing).pick(&two), Some(1));
            assert_eq!(Router::new(routing).pick(&two[..1]), Some(0));
        }
    }

    #[test]
    fn nobody_is_picked_from_nobody() {
        assert_eq!(Router::new(Routing::LeastLoaded).pick(&[]), None);
    }
}
