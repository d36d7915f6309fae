//! How the ranks of one worker combine partial results.
//!
//! A rank computes its share of the heads and experts; sums of partial outputs go through a
//! [`Communicator`] at the two places a decoder block needs them: after the attention output
//! projection and after the feed-forward. One rank runs with [`SingleRank`]; layouts with more
//! are refused when an engine is built.

/// A group of ranks that compute one step together.
pub trait Communicator: Send {
    /// Ranks of the group.
    fn world_size(&self) -> usize;

    /// Replaces `partial` by its sum over all ranks.
    fn all_reduce_sum(&mut self, partial: &mut [f32]);
}

/// A group of one.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleRank;

impl Communicator for SingleRank {
    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _partial: &mut [f32]) {}
}
