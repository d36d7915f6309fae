//! Ports of a job: a block of its own, derived from the job id, and really bound before use.
//!
//! Two jobs that share a node start looking at different places; whatever else holds a port is found by binding.

use std::net::TcpListener;

/// First port of the first block: above the well-known services, below Linux's ephemeral ports (32768).
const FIRST: u16 = 20_000;
/// Ports of one block.
pub const BLOCK: u16 = 50;
/// Blocks before the numbers start again.
const N_BLOCKS: u16 = 240;

/// The first port of the block of a job.
#[must_use]
pub fn block_of(job_id: u64) -> u16 {
    FIRST + BLOCK * u16::try_from(job_id % u64::from(N_BLOCKS)).expect("a remainder below the number of blocks")
}

/// Ports that were free on `host` when they were tried, and those that were not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// One a service, in order.
    pub free: Vec<u16>,
    /// In use by somebody else.
    pub busy: Vec<u16>,
}

/// Finds `n` ports in the block of `job_id` that can be bound on `host`; fewer when the block has no more.
///
/// The listeners are closed again: between this and the server's own bind somebody may be faster, and then the
/// server's bind error says so.
#[must_use]
pub fn find(host: &str, job_id: u64, n: usize) -> Found {
    let first = block_of(job_id);
    let (mut found, mut held) = (Found { free: Vec::new(), busy: Vec::new() }, Vec::new());
    for port in first..first + BLOCK {
        if found.free.len() == n {
            break;
        }
        match TcpListener::bind((host, port)) {
            Ok(listener) => {
                held.push(listener);
                found.free.push(port);
            }
            Err(_) => found.busy.push(port),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_stay_below_the_ephemeral_ports() {
        let blocks: Vec<u16> = (1000..1000 + u64::from(N_BLOCKS)).map(block_of).collect();
        let mut sorted = blocks.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), usize::from(N_BLOCKS));
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] == BLOCK));
        assert!(sorted.last().is_some_and(|last| last + BLOCK < 32_768));
    }

    #[test]
    fn a_port_that_is_taken_is_skipped_and_named() {
        // The block of any job does; one whose first port is free makes the test mean something.
        let (job, taken) = (0..u64::from(N_BLOCKS))
            .find_map(|job| TcpListener::bind(("127.0.0.1", block_of(job))).ok().map(|listener| (job, listener)))
            .expect("some block is free");
        let found = find("127.0.0.1", job, 2);
        assert_eq!(found.free.len(), 2);
        assert!(found.busy.contains(&block_of(job)), "{found:?}");
        assert!(!found.free.contains(&block_of(job)));
        drop(taken);
    }
}
