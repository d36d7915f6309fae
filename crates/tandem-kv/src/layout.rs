//! Shapes, pieces and coverage: which part of a KV cache a piece is and what is still missing.
//!
//! Pure arithmetic. A cache of `n_tokens` tokens is `n_layers` planes; a piece is a range of
//! tokens in one plane, `tokens.len() * bytes_per_token_layer` bytes, token-major.

use std::ops::Range;

use thiserror::Error;

use crate::wire::MAX_PIECE_BYTES;

/// Size of the KV cache per token; equal on both sides of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Layers that hold a cache (an MTP layer counts).
    pub n_layers: usize,
    /// Bytes of one token in one layer, e.g. 1152 for R1's latent in BF16.
    pub bytes_per_token_layer: usize,
}

/// A shape or length that no transfer can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} of {value} is outside 1..={max}")]
pub struct ShapeError {
    what: &'static str,
    value: usize,
    max: usize,
}

/// A [`KvShape`] and token count that were checked: no zero, and everything fits the wire's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) n_layers: u32,
    pub(crate) bytes_per_token_layer: u32,
    pub(crate) n_tokens: u32,
}

impl Extent {
    /// Checks that a shape can travel.
    ///
    /// # Errors
    /// [`ShapeError`] naming the first number that is zero or too large.
    pub(crate) fn new(shape: KvShape, n_tokens: usize) -> Result<Self, ShapeError> {
        let within = |what, value: usize, max: usize| match u32::try_from(value) {
            Ok(v) if (1..=max).contains(&value) => Ok(v),
            _ => Err(ShapeError { what, value, max }),
        };
        Ok(Self {
            n_layers: within("number of layers", shape.n_layers, MAX_LAYERS)?,
            bytes_per_token_layer: within("bytes per token and layer", shape.bytes_per_token_layer, MAX_PIECE_BYTES)?,
            n_tokens: within("number of tokens", n_tokens, MAX_TOKENS)?,
        })
    }

    /// Bytes of the whole cache.
    pub(crate) fn total_bytes(self) -> u64 {
        u64::from(self.n_layers) * u64::from(self.n_tokens) * u64::from(self.bytes_per_token_layer)
    }
}

impl std::fmt::Display for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} layers x {} tokens x {} bytes", self.n_layers, self.n_tokens, self.bytes_per_token_layer)
    }
}

/// More layers than any model has; bounds what a reservation costs.
const MAX_LAYERS: usize = 4096;
/// More tokens than any context has.
const MAX_TOKENS: usize = 1 << 26;

/// Where a piece belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PiecePlace {
    pub(crate) layer: u32,
    /// First token.
    pub(crate) start: u32,
    /// One past the last token.
    pub(crate) end: u32,
}

impl PiecePlace {
    /// Why this place does not lie inside `extent`, or does not hold `n_bytes`; `None` when it does.
    pub(crate) fn misfit(&self, extent: Extent, n_bytes: usize) -> Option<String> {
        let Self { layer, start, end } = *self;
        if layer >= extent.n_layers || start >= end || end > extent.n_tokens {
            return Some(format!("piece of layer {layer}, tokens {start}..{end} lies outside {extent}"));
        }
        let expected = u64::from(end - start) * u64::from(extent.bytes_per_token_layer);
        (expected != n_bytes as u64).then(|| format!("piece of layer {layer}, tokens {start}..{end} has {n_bytes} bytes, not {expected}"))
    }

    /// What a piece adds to its transfer's checksum, see [`Digest`].
    fn contribution(self, crc: u32) -> u64 {
        let place = (u64::from(self.start) << 32) | u64::from(self.end);
        let content = (u64::from(self.layer) << 32) | u64::from(crc);
        mix(place ^ mix(content))
    }
}

/// A bijective scrambler of 64 bits (the finaliser of the SplitMix64 generator), so that sums of contributions do not cancel.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Checksum over all pieces of a transfer: their number and the sum of a hash of each one's place and CRC.
///
/// A sum does not depend on the order of arrival, so it stays right for transports that
/// reorder, and costs nothing beside the CRCs that each piece needs anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) n_pieces: u32,
    pub(crate) sum: u64,
}

impl Digest {
    pub(crate) fn add(&mut self, place: PiecePlace, crc: u32) {
        self.n_pieces = self.n_pieces.wrapping_add(1);
        self.sum = self.sum.wrapping_add(place.contribution(crc));
    }
}

/// Which tokens of which layers have arrived.
///
/// Per layer the sorted, disjoint, non-adjacent ranges seen so far. Chunked prefill sends a
/// layer's tokens in order, so a layer has one range and an insert is a comparison.
#[derive(Debug)]
pub(crate) struct Coverage {
    layers: Vec<Vec<Range<u32>>>,
    n_tokens: u32,
    /// Layers whose only range is everything.
    n_complete: usize,
}

impl Coverage {
    pub(crate) fn new(extent: Extent) -> Self {
        Self { layers: vec![Vec::new(); extent.n_layers as usize], n_tokens: extent.n_tokens, n_complete: 0 }
    }

    /// Adds a piece that lies inside the extent; false, and nothing changes, when a token was there already.
    #[must_use]
    pub(crate) fn insert(&mut self, place: PiecePlace) -> bool {
        let PiecePlace { layer, start, end } = place;
        let ranges = &mut self.layers[layer as usize];
        // The first range that ends after our start: the only one that can hold our first token.
        let at = ranges.partition_point(|r| r.end <= start);
        if ranges.get(at).is_some_and(|r| r.start < end) {
            return false;
        }
        let joins_left = at > 0 && ranges[at - 1].end == start;
        let joins_right = ranges.get(at).is_some_and(|r| r.start == end);
        match (joins_left, joins_right) {
            (true, true) => {
                ranges[at - 1].end = ranges[at].end;
                ranges.remove(at);
            }
            (true, false) => ranges[at - 1].end = end,
            (false, true) => ranges[at].start = start,
            (false, false) => ranges.insert(at, start..end),
        }
        if ranges[0] == (0..self.n_tokens) {
            self.n_complete += 1;
        }
        true
    }

    /// Whether every token of every layer has arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.n_complete == self.layers.len()
    }

    /// Tokens times layers that have not arrived, for messages.
    pub(crate) fn n_missing(&self) -> u64 {
        let seen: u64 = self.layers.iter().flatten().map(|r| u64::from(r.end - r.start)).sum();
        u64::from(self.n_tokens) * self.layers.len() as u64 - seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(n_layers: usize, n_tokens: usize) -> Extent {
        Extent::new(KvShape { n_layers, bytes_per_token_layer: 4 }, n_tokens).unwrap()
    }

    #[test]
    fn impossible_shapes_are_named() {
        let ok = KvShape { n_layers: 61, bytes_per_token_layer: 1152 };
        assert!(Extent::new(ok, 8150).is_ok());
        let message = |shape, n| Extent::new(shape, n).unwrap_err().to_string();
        assert!(message(ok, 0).contains("number of tokens of 0"));
        assert!(message(KvShape { n_layers: 0, ..ok }, 1).contains("number of layers"));
        assert!(message(KvShape { bytes_per_token_layer: MAX_PIECE_BYTES + 1, ..ok }, 1).contains("bytes per token"));
        assert!(message(ok, usize::MAX).contains("number of tokens"));
    }

    #[test]
    fn pieces_outside_or_of_the_wrong_length_do_not_fit() {
        let e = extent(2, 10);
        assert_eq!(PiecePlace { layer: 1, start: 4, end: 10 }.misfit(e, 24), None);
        for (place, n) in [
            (PiecePlace { layer: 2, start: 0, end: 1 }, 4),
            (PiecePlace { layer: 0, start: 9, end: 11 }, 8),
            (PiecePlace { layer: 0, start: 5, end: 5 }, 0),
            (PiecePlace { layer: 0, start: 6, end: 5 }, 0),
            (PiecePlace { layer: 0, start: 0, end: 1 }, 5),
        ] {
            assert!(place.misfit(e, n).is_some(), "{place:?} of {n} bytes");
        }
    }

    #[test]
    fn the_digest_ignores_order_and_sees_place_and_content() {
        let pieces = [(0, 0, 4, 11), (1, 0, 4, 22), (0, 4, 9, 11)].map(|(layer, start, end, crc)| (PiecePlace { layer, start, end }, crc));
        let digest = |order: &[usize]| {
            let mut d = Digest::default();
            order.iter().for_each(|&i| d.add(pieces[i].0, pieces[i].1));
            d
        };
        assert_eq!(digest(&[0, 1, 2]), digest(&[2, 0, 1]));
        assert_ne!(digest(&[0, 1]), digest(&[0, 2]));
        let mut swapped = Digest::default();
        swapped.add(pieces[0].0, 22);
        swapped.add(pieces[1].0, 11);
        assert_ne!(swapped, digest(&[0, 1]));
    }

    proptest! {
        #[test]
        fn coverage_equals_a_bitmap(n_tokens in 1usize..40, pieces in prop::collection::vec((0u32..3, 0u32..40, 1u32..12), 0..120)) {
            let mut coverage = Coverage::new(extent(3, n_tokens));
            let mut bitmap = vec![vec![false; n_tokens]; 3];
            for (layer, start, len) in pieces {
                let end = start + len;
                if end as usize > n_tokens {
                    continue;
                }
                let cells = &mut bitmap[layer as usize][start as usize..end as usize];
                let free = cells.iter().all(|seen| !seen);
                prop_assert_eq!(coverage.insert(PiecePlace { layer, start, end }), free);
                if free {
                    cells.fill(true);
                }
                let missing = bitmap.iter().flatten().filter(|seen| !**seen).count();
                prop_assert_eq!(coverage.n_missing(), missing as u64);
                prop_assert_eq!(coverage.is_complete(), missing == 0);
            }
        }
    }
}
