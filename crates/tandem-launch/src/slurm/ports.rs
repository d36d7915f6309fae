//! Ports of a job: a block of its own, derived from the job id, and really bound before use, on the node that will use them.
//!
//! Two jobs that share a node start looking at different places; whatever else holds a port is found by binding.

use std::collections::BTreeMap;
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

/// Ports of the block that begins at `first` which cannot be bound on `host` now.
///
/// A port that is free here may be taken before its server binds it; then the server's bind error says so.
#[must_use]
pub fn busy(host: &str, first: u16) -> Vec<u16> {
    (first..first + BLOCK).filter(|&port| TcpListener::bind((host, port)).is_err()).collect()
}

/// Hands out the ports of one block to the nodes of a job.
#[derive(Debug)]
pub struct Pool {
    first: u16,
    /// Ports that cannot be had, by node index. Nodes that were not tried are absent.
    busy: BTreeMap<u32, Vec<u16>>,
    given: Vec<(u32, u16)>,
}

impl Pool {
    /// The block of `job_id`, without what is `busy` on each node.
    #[must_use]
    pub fn new(job_id: u64, busy: BTreeMap<u32, Vec<u16>>) -> Self {
        Pool { first: block_of(job_id), busy, given: Vec::new() }
    }

    /// A port that is free on `node`; one that no other node of the job has, while there are any. None when the block is exhausted.
    pub fn take(&mut self, node: u32) -> Option<u16> {
        let is_free = |port: &u16| !self.busy.get(&node).is_some_and(|busy| busy.contains(port));
        let block = || (self.first..self.first + BLOCK).filter(is_free);
        // A server that binds all addresses of a machine would meet one of another virtual node there.
        let alone = block().find(|port| self.given.iter().all(|(_, given)| given != port));
        let port = alone.or_else(|| block().find(|port| !self.given.contains(&(node, *port))))?;
        self.given.push((node, port));
        Some(port)
    }

    /// Every port that was found busy, on any node.
    #[must_use]
    pub fn busy(&self) -> Vec<u16> {
        let mut all: Vec<u16> = self.busy.values().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
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
    fn a_port_that_is_taken_is_found_by_binding() {
        // The block of any job does; one whose first port is free makes the test mean something.
        let (job, taken) = (0..u64::from(N_BLOCKS))
            .find_map(|job| TcpListener::bind(("127.0.0.1", block_of(job))).ok().map(|listener| (job, listener)))
            .expect("some block is free");
        assert!(busy("127.0.0.1", block_of(job)).contains(&block_of(job)));
        drop(taken);
    }

    #[test]
    fn each_node_gets_what_is_free_there_and_nodes_share_numbers_only_when_they_must() {
        let mut pool = Pool::new(1, BTreeMap::from([(0, vec![20_050]), (1, vec![20_052])]));
        assert_eq!((pool.take(0), pool.take(1), pool.take(2)), (Some(20_051), Some(20_050), Some(20_052)));
        assert_eq!(pool.busy(), [20_050, 20_052]);
        // Node 2 was not tried: all that nobody has, then what the others have.
        let more: Vec<u16> = std::iter::from_fn(|| pool.take(2)).collect();
        assert_eq!(more.len(), usize::from(BLOCK) - 1);
        assert!(more.ends_with(&[20_050, 20_051]), "{more:?}");
    }
}
