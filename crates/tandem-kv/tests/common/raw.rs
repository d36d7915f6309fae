//! A peer that speaks the protocol byte by byte, so that tests can damage, cut and forge what it sends.
//!
//! It encodes frames on its own, from the layout that the crate documents, and so also pins the format.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use tandem_kv::KvShape;

use super::{Cache, PATIENCE};

pub(crate) const PREAMBLE: &[u8] = b"tandkv\0\x01";

pub(crate) fn header(kind: u8, ticket: u64, fields: [u32; 3], length: usize, checksum: u64) -> Vec<u8> {
    let mut out = vec![kind, 0, 0, 0];
    out.extend(ticket.to_le_bytes());
    fields.iter().for_each(|f| out.extend(f.to_le_bytes()));
    out.extend(u32::try_from(length).expect("short").to_le_bytes());
    out.extend(checksum.to_le_bytes());
    let crc = crc32fast::hash(&out);
    out.extend(crc.to_le_bytes());
    out
}

fn n32(value: usize) -> u32 {
    u32::try_from(value).expect("small")
}

pub(crate) fn open(ticket: u64, shape: KvShape, n_tokens: usize) -> Vec<u8> {
    header(1, ticket, [n32(shape.n_layers), n32(n_tokens), n32(shape.bytes_per_token_layer)], 0, 0)
}

pub(crate) fn piece(ticket: u64, layer: usize, tokens: std::ops::Range<usize>, bytes: &[u8]) -> Vec<u8> {
    let crc = u64::from(crc32fast::hash(bytes));
    let mut out = header(2, ticket, [n32(layer), n32(tokens.start), n32(tokens.end)], bytes.len(), crc);
    out.extend(bytes);
    out
}

/// `pieces`: layer, first token, one past the last, content.
pub(crate) fn commit(ticket: u64, first_token: u32, pieces: &[(u32, u32, u32, Vec<u8>)]) -> Vec<u8> {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let sum = pieces.iter().fold(0u64, |sum, (layer, start, end, bytes)| {
        let content = (u64::from(*layer) << 32) | u64::from(crc32fast::hash(bytes));
        sum.wrapping_add(mix(((u64::from(*start) << 32) | u64::from(*end)) ^ mix(content)))
    });
    header(3, ticket, [first_token, n32(pieces.len()), 0], 0, sum)
}

/// All frames of an honest transfer, one piece a layer: open, pieces, commit.
pub(crate) fn transfer(ticket: u64, cache: &Cache) -> Vec<Vec<u8>> {
    let n = cache.n_tokens;
    let mut frames = vec![open(ticket, cache.shape, n)];
    let mut sent = Vec::new();
    for layer in 0..cache.shape.n_layers {
        let bytes = cache.slice(layer, 0..n);
        frames.push(piece(ticket, layer, 0..n, &bytes));
        sent.push((n32(layer), 0, n32(n), bytes.to_vec()));
    }
    frames.push(commit(ticket, 5, &sent));
    frames
}

/// A connection to a receiver.
pub(crate) struct RawSender {
    stream: TcpStream,
}

/// What a receiver answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Acked(u64),
    Refused(u64, String),
}

impl RawSender {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the receiver listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Self { stream }
    }

    /// Connected and introduced, the receiver's preamble read.
    pub(crate) fn introduced(address: &str) -> Self {
        let mut raw = Self::connect(address);
        raw.send(PREAMBLE);
        let mut preamble = [0; 8];
        raw.stream.read_exact(&mut preamble).expect("a preamble");
        assert_eq!(preamble, PREAMBLE);
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the receiver reads");
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let mut header = [0; 40];
        self.stream.read_exact(&mut header).expect("an answer");
        let ticket = u64::from_le_bytes(header[4..12].try_into().expect("eight bytes"));
        let length = u32::from_le_bytes(header[24..28].try_into().expect("four bytes"));
        let mut reason = vec![0; length as usize];
        self.stream.read_exact(&mut reason).expect("a reason");
        match header[0] {
            5 => Answer::Acked(ticket),
            6 => Answer::Refused(ticket, String::from_utf8(reason).expect("text")),
            kind => panic!("answer of kind {kind}"),
        }
    }

    /// Waits until the receiver has closed the connection.
    pub(crate) fn wait_closed(mut self) {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the receiver kept the connection"),
        }
    }

    pub(crate) fn close(self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }
}
