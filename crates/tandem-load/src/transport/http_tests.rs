//! Tests of the response reader: framing, limits, any split, any garbage.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Seen {
    head: Option<Head>,
    body: Vec<u8>,
    n_ends: u32,
    left: Vec<u8>,
}

fn read(limits: Limits, pieces: &[&[u8]]) -> Result<Seen, HttpError> {
    let (mut reader, mut seen) = (ResponseReader::new(limits), Seen::default());
    for piece in pieces {
        let mut input = *piece;
        loop {
            match reader.next(&mut input)? {
                Piece::Head(head) => assert!(seen.head.replace(head).is_none(), "two heads"),
                Piece::Body(bytes) => {
                    assert!(!bytes.is_empty());
                    seen.body.extend_from_slice(bytes);
                }
                Piece::End => {
                    seen.n_ends = 1;
                    seen.left.extend_from_slice(input);
                    break;
                }
                Piece::NeedMore => {
                    assert!(input.is_empty(), "input left over");
                    break;
                }
            }
        }
    }
    Ok(seen)
}

fn all_splits_agree(response: &[u8]) -> Seen {
    let whole = read(Limits::DEFAULT, &[response]).unwrap();
    for cut in 0..=response.len() {
        assert_eq!(read(Limits::DEFAULT, &[&response[..cut], &response[cut..]]).unwrap(), whole, "cut at {cut}");
    }
    assert_eq!(read(Limits::DEFAULT, &response.chunks(1).collect::<Vec<_>>()).unwrap(), whole);
    whole
}

#[test]
fn a_content_length_body_ends_by_count() {
    let seen = all_splits_agree(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: application/json\r\n\r\nhello");
    assert_eq!((seen.body.as_slice(), seen.n_ends), (b"hello".as_slice(), 1));
    assert_eq!(seen.head, Some(Head { status: 200, kind: BodyKind::Whole }));
}

#[test]
fn an_empty_body_ends_with_the_head() {
    for head in
        ["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 304 X\r\ncontent-length: 7\r\n\r\n"]
    {
        assert_eq!(all_splits_agree(head.as_bytes()).n_ends, 1, "{head}");
    }
}

#[test]
fn a_chunked_body_is_joined_over_extensions_case_zeros_and_trailers() {
    let seen = all_splits_agree(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n\
          5\r\nhello\r\n00A ;name=\"v\"\r\n, wide wor\r\n2;x\r\nld\r\n0\r\nX-Trailer: 1\r\nY: 2\r\n\r\n",
    );
    assert_eq!((seen.body.as_slice(), seen.n_ends), (b"hello, wide world".as_slice(), 1));
    assert_eq!(seen.head.unwrap().kind, BodyKind::EventStream);
}

#[test]
fn interim_responses_are_read_over() {
    let seen = all_splits_agree(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
    );
    assert_eq!((seen.head.unwrap().status, seen.body.as_slice()), (200, b"x".as_slice()));
}

#[test]
fn without_a_length_the_body_lasts_until_the_connection_closes() {
    let mut reader = ResponseReader::new(Limits::DEFAULT);
    let mut input: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nabc";
    assert!(matches!(reader.next(&mut input), Ok(Piece::Head(_))));
    assert_eq!(reader.next(&mut input), Ok(Piece::Body(b"abc")));
    assert_eq!(reader.next(&mut input), Ok(Piece::NeedMore));
    assert!(reader.ends_with_connection() && !reader.keep_alive());
}

#[test]
fn keep_alive_follows_version_and_header() {
    for (version, connection, expected) in [
        ("1.1", "", true),
        ("1.1", "connection: close\r\n", false),
        ("1.1", "Connection: Keep-Alive\r\n", true),
        ("1.1", "connection: upgrade, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "connection: keep-alive\r\n", true),
    ] {
        let response = format!("HTTP/{version} 200 OK\r\ncontent-length: 0\r\n{connection}\r\n");
        let mut reader = ResponseReader::new(Limits::DEFAULT);
        reader.next(&mut response.as_bytes()).unwrap();
        assert_eq!(reader.keep_alive(), expected, "{version} {connection}");
    }
}

#[test]
fn bytes_after_the_end_are_left_for_the_caller_to_notice() {
    let seen = read(Limits::DEFAULT, &[b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1"]).unwrap();
    assert_eq!(seen.left, b"HTTP/1.1");
}

#[test]
fn a_reset_reader_reads_the_next_response() {
    let mut reader = ResponseReader::new(Limits::DEFAULT);
    for _ in 0..2 {
        let mut input: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        assert!(matches!(reader.next(&mut input), Ok(Piece::Head(_))));
        assert_eq!(reader.next(&mut input), Ok(Piece::End));
        reader.reset();
    }
}

#[test]
fn doubtful_framing_is_refused() {
    for (name, response) in [
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"),
        ("length and chunked", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"),
        ("signed length", "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n"),
        ("listed length", "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n"),
        ("gzip transfer", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n"),
        ("gzip content", "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\n"),
        ("upgrade", "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        ("no http", "SSH-2.0-OpenSSH\r\n\r\n"),
        ("no size", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n"),
        ("bad size", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\n"),
        ("signed size", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n"),
        ("huge size", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n"),
        ("bare line feed", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\nhello"),
        ("chunk too long", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n"),
    ] {
        assert!(read(Limits::DEFAULT, &[response.as_bytes()]).is_err(), "{name}");
        assert!(read(Limits::DEFAULT, &response.as_bytes().chunks(1).collect::<Vec<_>>()).is_err(), "{name}, bytewise");
    }
}

#[test]
fn every_size_has_its_limit() {
    let limits = Limits { head_bytes: 60, chunk_bytes: 8, body_bytes: 10 };
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (what, response) in [
        ("response head", format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(60))),
        ("response head", format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(60))),
        ("chunk", format!("{chunked}9\r\n")),
        ("body", format!("{chunked}8\r\n12345678\r\n3\r\n")),
        ("body", "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n".to_owned()),
        ("body", "HTTP/1.1 200 OK\r\n\r\n12345678901".to_owned()),
        ("line of a chunked body", format!("{chunked}1;{}", "x".repeat(MAX_LINE_BYTES))),
    ] {
        let bytewise: Vec<_> = response.as_bytes().chunks(1).collect();
        for pieces in [vec![response.as_bytes()], bytewise] {
            let error = read(limits, &pieces).unwrap_err();
            assert!(matches!(error, HttpError::TooLarge { what: w, .. } if w == what), "{what}: {error:?}");
        }
    }
    let trailers = format!("{chunked}0\r\n{}", "t: 1\r\n".repeat(MAX_TRAILERS as usize + 1));
    assert_eq!(read(Limits::DEFAULT, &[trailers.as_bytes()]), Err(HttpError::Chunk("too many trailers")));
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"transfer-encoding: chunked\r\n".to_vec()),
        Just(b"content-length: 3\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"3\r\nabc\r\n".to_vec()),
        Just(b"0\r\n\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..8),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|p| p.concat())
}

proptest! {
    #[test]
    fn garbage_never_panics_and_any_split_agrees(bytes in bytes(), cut in 0usize..100) {
        let limits = Limits { head_bytes: 200, ..Limits::DEFAULT };
        let whole = read(limits, &[&bytes]);
        let cut = cut.min(bytes.len());
        let split = read(limits, &[&bytes[..cut], &bytes[cut..]]);
        match (&whole, &split) {
            (Ok(whole), Ok(split)) => prop_assert_eq!(whole, split),
            (Err(_), Err(_)) => {}
            _ => prop_assert!(false, "{:?} but {:?}", whole, split),
        }
    }
}
