//! The KV blocks of one rank: which are free, and the tables of those that are not.
//!
//! A [`BlockTable`] is handed out by [`BlockManager::allocate`] and comes back by value, so no
//! block can be given back twice or used by two sequences without the compiler's objection.

/// The blocks of one sequence in token order: token `t` is in `blocks[t / block_size]`.
///
/// Not `Clone`: holding it is owning its blocks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<u32>,
}

impl BlockTable {
    /// Block numbers in token order.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.blocks
    }
}

/// Free blocks, and the bookkeeping that catches a block with two owners.
#[derive(Debug)]
pub struct BlockManager {
    block_size: u32,
    free: Vec<u32>,
    /// For each block whether a table holds it.
    held: Vec<bool>,
}

impl BlockManager {
    /// All of `n_blocks` blocks of `block_size` tokens are free.
    ///
    /// # Panics
    /// When `block_size` is 0.
    #[must_use]
    pub fn new(n_blocks: u32, block_size: u32) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        Self { block_size, free: (0..n_blocks).rev().collect(), held: vec![false; n_blocks as usize] }
    }

    /// Blocks in all.
    #[must_use]
    pub fn n_blocks(&self) -> u32 {
        u32::try_from(self.held.len()).expect("built from a u32")
    }

    /// Blocks that nobody holds.
    #[must_use]
    pub fn n_free(&self) -> u32 {
        u32::try_from(self.free.len()).expect("at most n_blocks")
    }

    /// Blocks that some table holds.
    #[must_use]
    pub fn n_used(&self) -> u32 {
        self.n_blocks() - self.n_free()
    }

    /// Blocks that `n_tokens` tokens need.
    #[must_use]
    pub fn blocks_for(&self, n_tokens: u32) -> u32 {
        n_tokens.div_ceil(self.block_size)
    }

    /// Takes the blocks for `n_tokens` tokens, or none at all when there are too few.
    #[must_use]
    pub fn allocate(&mut self, n_tokens: u32) -> Option<BlockTable> {
        let n = self.blocks_for(n_tokens) as usize;
        let rest = self.free.len().checked_sub(n)?;
        // From the end backwards, so that a fresh cache hands out ascending numbers.
        let blocks: Vec<u32> = self.free.drain(rest..).rev().collect();
        for &b in &blocks {
            debug_assert!(!self.held[b as usize], "block {b} was free and held");
            self.held[b as usize] = true;
        }
        Some(BlockTable { blocks })
    }

    /// Takes a table back.
    pub fn free(&mut self, table: BlockTable) {
        for &b in &table.blocks {
            debug_assert!(self.held[b as usize], "block {b} is given back twice");
            self.held[b as usize] = false;
        }
        self.free.extend(table.blocks.into_iter().rev());
    }

    /// Whether every block is either free or in exactly one of `tables`.
    ///
    /// # Errors
    /// Which block is not.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut owners = vec![0u32; self.held.len()];
        for &b in &self.free {
            owners[b as usize] += 1;
            if self.held[b as usize] {
                return Err(format!("block {b} is free and marked as held"));
            }
        }
        for &b in tables.flat_map(BlockTable::as_slice) {
            owners[b as usize] += 1;
            if !self.held[b as usize] {
                return Err(format!("block {b} is in a table and marked as free"));
            }
        }
        match owners.iter().position(|&n| n != 1) {
            None => Ok(()),
            Some(b) => Err(format!("block {b} has {} owners", owners[b])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_is_all_or_nothing_and_ascending_at_first() {
        let mut m = BlockManager::new(5, 4);
        let a = m.allocate(9).unwrap();
        assert_eq!(a.as_slice(), [0, 1, 2]);
        assert_eq!(m.allocate(9), None);
        assert_eq!(m.n_free(), 2);
        let b = m.allocate(8).unwrap();
        assert_eq!((b.as_slice(), m.n_free(), m.n_used()), (&[3, 4][..], 0, 5));
        m.check([&a, &b].into_iter()).unwrap();
        m.free(a);
        m.check([&b].into_iter()).unwrap();
        assert_eq!(m.n_free(), 3);
    }

    #[test]
    fn a_leaked_table_is_found() {
        let mut m = BlockManager::new(3, 1);
        let a = m.allocate(2).unwrap();
        assert!(m.check(std::iter::empty()).is_err());
        assert!(m.check([&a, &a].into_iter()).is_err());
    }
}
