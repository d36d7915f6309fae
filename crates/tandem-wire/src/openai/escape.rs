//! Text as the inside of a JSON string.

use bytes::BytesMut;

/// Appends `text` to `out`, escaped as JSON requires, without the quotes.
///
/// Runs of plain text are copied whole, so the usual token costs one scan and one copy.
pub fn escape_into(text: &str, out: &mut BytesMut) {
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..at]);
        plain_from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_control_character_reads_back() {
        let text: String = (0..0x80u8).map(char::from).chain("é\u{2028}語😀".chars()).collect();
        let mut out = BytesMut::from(&b"\""[..]);
        escape_into(&text, &mut out);
        out.extend_from_slice(b"\"");
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text in "\\PC*|[\\x00-\\x7f]*") {
            let mut out = BytesMut::from(&b"\""[..]);
            escape_into(&text, &mut out);
            out.extend_from_slice(b"\"");
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
