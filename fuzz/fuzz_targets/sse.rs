//! Server-sent events: any bytes, cut anywhere, give the same events or the same error, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_wire::sse::{SseError, SseParser};

fn parse(pieces: &[&[u8]]) -> (Vec<(Vec<u8>, Vec<u8>)>, Option<SseError>) {
    let (mut parser, mut events) = (SseParser::new(256), Vec::new());
    for piece in pieces {
        if let Err(error) = parser.feed(piece, &mut |e| events.push((e.kind.to_vec(), e.data.to_vec()))) {
            return (events, Some(error));
        }
    }
    (events, None)
}

fuzz_target!(|input: (usize, &[u8])| {
    let (cut, stream) = input;
    let cut = cut.min(stream.len());
    assert_eq!(parse(&[stream]), parse(&[&stream[..cut], &stream[cut..]]));
});
