//! Frames of a KV connection: a fixed header of [`HEADER_BYTES`], then `length` bytes of payload.
//!
//! Pure encoding and decoding. Little-endian:
//! `kind u8, zero [u8; 3], ticket u64, a u32, b u32, c u32, length u32, checksum u64, header_crc u32`.
//! The header has a CRC of its own: a damaged payload costs one transfer, a damaged header
//! means that the stream cannot be cut into frames any more and ends the connection.
//! Both sides open with [`PREAMBLE`], which tells a stranger or another version apart.

use thiserror::Error;

use crate::layout::{Digest, Extent, PiecePlace};

/// First bytes in each direction; the last byte is the version.
pub(crate) const PREAMBLE: [u8; 8] = *b"tandkv\0\x01";

/// Bytes of a frame header.
pub(crate) const HEADER_BYTES: usize = 40;

/// Largest payload of a frame, bytes. Senders cut larger pieces at token boundaries, so this also bounds what one
/// undelivered event costs the receiver.
pub const MAX_PIECE_BYTES: usize = 1 << 20;

/// Longest reason of a refusal, bytes.
pub(crate) const MAX_REASON_BYTES: usize = 512;

/// One frame without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Sender: a transfer begins.
    Open { ticket: u64, extent: Extent },
    /// Sender: `length` bytes with this CRC-32 follow.
    Piece { ticket: u64, place: PiecePlace, length: u32, crc: u32 },
    /// Sender: all pieces are sent.
    Commit { ticket: u64, first_token: u32, digest: Digest },
    /// Sender: nothing more comes for this ticket; never answered.
    Abort { ticket: u64 },
    /// Receiver: committed and accepted.
    Acked { ticket: u64 },
    /// Receiver: the transfer is over; a UTF-8 reason of `length` bytes follows.
    Refused { ticket: u64, length: u32 },
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum WireError {
    #[error("the peer does not speak this version of the KV transfer")]
    Preamble,
    #[error("damaged frame header")]
    HeaderChecksum,
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    #[error("frame with impossible fields")]
    Fields,
    #[error("payload of {0} bytes is over the limit")]
    Length(u32),
}

const OPEN: u8 = 1;
const PIECE: u8 = 2;
const COMMIT: u8 = 3;
const ABORT: u8 = 4;
const ACKED: u8 = 5;
const REFUSED: u8 = 6;

/// The header's fields, before they mean anything.
#[derive(Default)]
struct Fields {
    kind: u8,
    ticket: u64,
    a: u32,
    b: u32,
    c: u32,
    length: u32,
    checksum: u64,
}

/// The header of `frame`.
pub(crate) fn encode(frame: Frame) -> [u8; HEADER_BYTES] {
    let f = match frame {
        Frame::Open { ticket, extent } => {
            Fields { kind: OPEN, ticket, a: extent.n_layers, b: extent.n_tokens, c: extent.bytes_per_token_layer, ..Fields::default() }
        }
        Frame::Piece { ticket, place, length, crc } => {
            Fields { kind: PIECE, ticket, a: place.layer, b: place.start, c: place.end, length, checksum: u64::from(crc) }
        }
        Frame::Commit { ticket, first_token, digest } => {
            Fields { kind: COMMIT, ticket, a: first_token, b: digest.n_pieces, checksum: digest.sum, ..Fields::default() }
        }
        Frame::Abort { ticket } => Fields { kind: ABORT, ticket, ..Fields::default() },
        Frame::Acked { ticket } => Fields { kind: ACKED, ticket, ..Fields::default() },
        Frame::Refused { ticket, length } => Fields { kind: REFUSED, ticket, length, ..Fields::default() },
    };
    let mut out = [0; HEADER_BYTES];
    out[0] = f.kind;
    out[4..12].copy_from_slice(&f.ticket.to_le_bytes());
    out[12..16].copy_from_slice(&f.a.to_le_bytes());
    out[16..20].copy_from_slice(&f.b.to_le_bytes());
    out[20..24].copy_from_slice(&f.c.to_le_bytes());
    out[24..28].copy_from_slice(&f.length.to_le_bytes());
    out[28..36].copy_from_slice(&f.checksum.to_le_bytes());
    let crc = crc32fast::hash(&out[..36]);
    out[36..40].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Reads a header; lengths are within their limits afterwards, so a buffer may be allocated for the payload.
///
/// # Errors
/// [`WireError`]; the stream cannot be continued after any of them.
pub(crate) fn decode(header: &[u8; HEADER_BYTES]) -> Result<Frame, WireError> {
    if crc32fast::hash(&header[..36]) != u32_at(header, 36) {
        return Err(WireError::HeaderChecksum);
    }
    if header[1..4] != [0; 3] {
        return Err(WireError::Fields);
    }
    let f = Fields {
        kind: header[0],
        ticket: u64_at(header, 4),
        a: u32_at(header, 12),
        b: u32_at(header, 16),
        c: u32_at(header, 20),
        length: u32_at(header, 24),
        checksum: u64_at(header, 28),
    };
    let max_length = match f.kind {
        PIECE => MAX_PIECE_BYTES,
        REFUSED => MAX_REASON_BYTES,
        _ => 0,
    };
    if f.length as usize > max_length {
        return Err(WireError::Length(f.length));
    }
    interpret(&f)
}

fn interpret(f: &Fields) -> Result<Frame, WireError> {
    let ticket = f.ticket;
    Ok(match f.kind {
        OPEN => {
            let shape = crate::KvShape { n_layers: f.a as usize, bytes_per_token_layer: f.c as usize };
            Frame::Open { ticket, extent: Extent::new(shape, f.b as usize).map_err(|_| WireError::Fields)? }
        }
        PIECE => {
            let crc = u32::try_from(f.checksum).map_err(|_| WireError::Fields)?;
            Frame::Piece { ticket, place: PiecePlace { layer: f.a, start: f.b, end: f.c }, length: f.length, crc }
        }
        COMMIT => Frame::Commit { ticket, first_token: f.a, digest: Digest { n_pieces: f.b, sum: f.checksum } },
        ABORT => Frame::Abort { ticket },
        ACKED => Frame::Acked { ticket },
        REFUSED => Frame::Refused { ticket, length: f.length },
        kind => return Err(WireError::Kind(kind)),
    })
}

/// A reason cut to what a refusal may carry, at a character boundary.
pub(crate) fn clip_reason(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let extent = (1u32..4096, 1u32..1 << 20, 1u32..1 << 26).prop_map(|(n_layers, b, n_tokens)| Extent {
            n_layers,
            bytes_per_token_layer: b,
            n_tokens,
        });
        let place = any::<(u32, u32, u32)>().prop_map(|(layer, start, end)| PiecePlace { layer, start, end });
        prop_oneof![
            (any::<u64>(), extent).prop_map(|(ticket, extent)| Frame::Open { ticket, extent }),
            (any::<u64>(), place, 0u32..=1 << 20, any::<u32>()).prop_map(|(ticket, place, length, crc)| Frame::Piece {
                ticket,
                place,
                length,
                crc
            }),
            any::<(u64, u32, u32, u64)>().prop_map(|(ticket, first_token, n_pieces, sum)| Frame::Commit {
                ticket,
                first_token,
                digest: Digest { n_pieces, sum }
            }),
            any::<u64>().prop_map(|ticket| Frame::Abort { ticket }),
            any::<u64>().prop_map(|ticket| Frame::Acked { ticket }),
            (any::<u64>(), 0u32..=512).prop_map(|(ticket, length)| Frame::Refused { ticket, length }),
        ]
    }

    /// A header with this kind and length and a right CRC, as a hostile peer could send.
    fn forged(kind: u8, length: u32) -> [u8; HEADER_BYTES] {
        let mut header = encode(Frame::Abort { ticket: 1 });
        header[0] = kind;
        header[24..28].copy_from_slice(&length.to_le_bytes());
        let crc = crc32fast::hash(&header[..36]);
        header[36..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(frame in any_frame()) {
            prop_assert_eq!(decode(&encode(frame)), Ok(frame));
        }

        #[test]
        fn one_flipped_bit_is_always_noticed(frame in any_frame(), bit in 0usize..HEADER_BYTES * 8) {
            let mut header = encode(frame);
            header[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&header), Err(WireError::HeaderChecksum));
        }

        #[test]
        fn garbage_is_an_error(bytes in prop::array::uniform32(any::<u8>()), tail in any::<u64>()) {
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&bytes);
            header[32..].copy_from_slice(&tail.to_le_bytes());
            // A random CRC is right once in four billion.
            prop_assert!(decode(&header).is_err());
        }

        #[test]
        fn whatever_has_a_right_checksum_decodes_within_the_limits(bytes in prop::collection::vec(any::<u8>(), 36), kind in 0u8..8) {
            let mut header = [0; HEADER_BYTES];
            header[..36].copy_from_slice(&bytes);
            header[0] = kind;
            header[1..4].fill(0);
            let crc = crc32fast::hash(&header[..36]);
            header[36..].copy_from_slice(&crc.to_le_bytes());
            if let Ok(Frame::Piece { length, .. }) = decode(&header) {
                prop_assert!(length as usize <= MAX_PIECE_BYTES);
            }
        }
    }

    #[test]
    fn announced_lengths_are_checked_before_anything_is_allocated() {
        assert_eq!(decode(&forged(PIECE, u32::MAX)), Err(WireError::Length(u32::MAX)));
        assert_eq!(decode(&forged(REFUSED, 513)), Err(WireError::Length(513)));
        assert_eq!(decode(&forged(COMMIT, 1)), Err(WireError::Length(1)));
        assert_eq!(decode(&forged(77, 0)), Err(WireError::Kind(77)));
        assert_eq!(decode(&forged(OPEN, 0)), Err(WireError::Fields));
    }

    #[test]
    fn reasons_are_clipped_between_characters() {
        assert_eq!(clip_reason("short"), "short");
        let long = "é".repeat(400);
        assert_eq!(clip_reason(&long).len(), 512);
        let odd = format!("x{long}");
        assert_eq!(clip_reason(&odd).len(), 511);
    }
}
