//! The response reader: any bytes, cut anywhere, give the same head and body or an error, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_load::transport::http::{Head, Limits, Piece, ResponseReader};

const LIMITS: Limits = Limits { head_bytes: 1 << 10, chunk_bytes: 1 << 10, body_bytes: 1 << 12 };

/// Head, body and whether the response ended; `None` when it is refused.
fn read(pieces: &[&[u8]]) -> Option<(Option<Head>, Vec<u8>, bool)> {
    let mut reader = ResponseReader::new(LIMITS);
    let (mut head, mut body) = (None, Vec::new());
    for piece in pieces {
        let mut input = *piece;
        loop {
            match reader.next(&mut input).ok()? {
                Piece::Head(h) => head = Some(h),
                Piece::Body(bytes) => body.extend_from_slice(bytes),
                Piece::End => return Some((head, body, true)),
                Piece::NeedMore => break,
            }
        }
        assert!(input.is_empty());
    }
    assert!(body.len() as u64 <= LIMITS.body_bytes);
    Some((head, body, false))
}

fuzz_target!(|input: (usize, &[u8])| {
    let (cut, bytes) = input;
    let cut = cut.min(bytes.len());
    assert_eq!(read(&[bytes]), read(&[&bytes[..cut], &bytes[cut..]]));
});
