//! Ready-made requests for the receive thread, in the order in which they are sent.
//!
//! A prompt thread makes them ahead of time. They cross in groups because a wake-up per request would
//! cost more than making the request.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Requests in one group at most.
const GROUP_REQUESTS: usize = 64;
/// Bytes in one group after which it is handed over.
const GROUP_BYTES: usize = 1 << 20;
/// Groups between the threads at most, beyond those that the start needs.
const MAX_GROUPS: usize = 4;

/// The receive thread's end.
#[derive(Debug)]
pub(crate) struct Supply {
    groups: Receiver<Vec<Vec<u8>>>,
    front: VecDeque<Vec<u8>>,
    /// How often a request was due and not made yet.
    pub(crate) n_waits: u64,
}

/// The prompt thread's end.
#[derive(Debug)]
pub(crate) struct Maker {
    groups: SyncSender<Vec<Vec<u8>>>,
}

/// A connected pair.
pub(crate) fn supply() -> (Supply, Maker) {
    let (sender, receiver) = sync_channel(MAX_GROUPS);
    (Supply { groups: receiver, front: VecDeque::new(), n_waits: 0 }, Maker { groups: sender })
}

impl Supply {
    /// Waits until `n` requests are there, or all that will ever be.
    pub(crate) fn fill(&mut self, n: usize) {
        while self.front.len() < n {
            match self.groups.recv() {
                Ok(group) => self.front.extend(group),
                Err(_) => return,
            }
        }
    }

    /// The next request; `None` when the maker has ended.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        if self.front.is_empty() {
            match self.groups.try_recv() {
                Ok(group) => self.front.extend(group),
                Err(TryRecvError::Empty) => {
                    self.n_waits += 1;
                    self.front.extend(self.groups.recv().ok()?);
                }
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        self.front.pop_front()
    }
}

impl Maker {
    /// Hands over all requests of `source`, blocking while the receive thread has enough. Ends early when that is gone.
    pub(crate) fn run(&self, source: impl Iterator<Item = Vec<u8>>) {
        let (mut group, mut n_bytes) = (Vec::new(), 0);
        for request in source {
            n_bytes += request.len();
            group.push(request);
            if group.len() >= GROUP_REQUESTS || n_bytes >= GROUP_BYTES {
                n_bytes = 0;
                if self.groups.send(std::mem::take(&mut group)).is_err() {
                    return;
                }
            }
        }
        if !group.is_empty() {
            // The receive thread may have been stopped; then nobody needs them.
            let _ = self.groups.send(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_out_in_the_order_in_which_they_were_made() {
        let (mut supply, maker) = supply();
        let thread = std::thread::spawn(move || maker.run((0..1000u32).map(|i| i.to_le_bytes().to_vec())));
        supply.fill(130);
        assert!(supply.front.len() >= 130);
        for i in 0..1000u32 {
            assert_eq!(supply.next(), Some(i.to_le_bytes().to_vec()));
        }
        assert_eq!(supply.next(), None);
        thread.join().unwrap();
    }

    #[test]
    fn a_maker_whose_requests_nobody_wants_ends() {
        let (supply, maker) = supply();
        drop(supply);
        maker.run(std::iter::repeat_with(|| vec![0; 100_000]));
    }
}
