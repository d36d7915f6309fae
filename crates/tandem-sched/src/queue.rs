//! A first-in-first-out queue of sequences that may be cancelled anywhere in it.
//!
//! Cancelling does not search: the entry stays until it reaches the front, or until dead
//! entries outnumber the live ones and are swept out together.

use std::collections::VecDeque;

use crate::slab::{Key, Slab};

/// Waiting sequences in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    keys: VecDeque<Key>,
    n_live: usize,
}

impl Queue {
    /// Sequences that wait.
    pub(crate) fn len(&self) -> usize {
        self.n_live
    }

    pub(crate) fn push(&mut self, key: Key) {
        self.keys.push_back(key);
        self.n_live += 1;
    }

    /// The longest waiting sequence.
    pub(crate) fn front(&mut self, slab: &Slab) -> Option<Key> {
        while let Some(&key) = self.keys.front() {
            if slab.get(key).is_some() {
                return Some(key);
            }
            self.keys.pop_front();
        }
        None
    }

    /// Removes what [`Self::front`] returned.
    pub(crate) fn pop(&mut self) {
        if self.keys.pop_front().is_some() {
            self.n_live -= 1;
        }
    }

    /// Notes that a sequence of this queue has been removed from the slab.
    pub(crate) fn forget_one(&mut self, slab: &Slab) {
        self.n_live -= 1;
        if self.keys.len() > 2 * self.n_live + 64 {
            self.keys.retain(|&key| slab.get(key).is_some());
        }
    }
}
