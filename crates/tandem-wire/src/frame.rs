//! Length-prefixed frames: a little-endian `u32` byte count, then one postcard message.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::worker::MAX_FRAME_BYTES;

/// Why a byte stream is not a sequence of frames.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The peer announced a frame over the limit.
    #[error("frame of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLarge(usize),
    /// The frame is not a message of the expected type.
    #[error("frame does not decode")]
    Decode(#[source] postcard::Error),
}

/// Appends `message` as one frame to `out`.
///
/// # Errors
/// [`FrameError::TooLarge`] when the message would be refused by the peer; `out` is unchanged then.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let filled = postcard::to_extend(message, std::mem::take(out)).map_err(FrameError::Decode)?;
    *out = filled;
    let n_bytes = out.len() - start - 4;
    match u32::try_from(n_bytes) {
        Ok(n) if n_bytes <= MAX_FRAME_BYTES => {
            out[start..start + 4].copy_from_slice(&n.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(FrameError::TooLarge(n_bytes))
        }
    }
}

/// Takes one whole frame from the front of `buffer`: the message and the bytes it used, or `None` when more bytes are needed.
///
/// # Errors
/// [`FrameError`] when the stream cannot be continued.
pub fn decode<T: DeserializeOwned>(buffer: &[u8]) -> Result<Option<(T, usize)>, FrameError> {
    let Some((head, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let n_bytes = u32::from_le_bytes(*head) as usize;
    if n_bytes > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge(n_bytes));
    }
    let Some(body) = rest.get(..n_bytes) else { return Ok(None) };
    let message = postcard::from_bytes(body).map_err(FrameError::Decode)?;
    Ok(Some((message, 4 + n_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{RequestId, ToWorker};

    #[test]
    fn frames_are_cut_wherever_the_stream_breaks() {
        let messages = [ToWorker::Cancel { id: RequestId(7) }, ToWorker::Welcome, ToWorker::Cancel { id: RequestId(u64::MAX) }];
        let mut stream = Vec::new();
        for m in &messages {
            encode(m, &mut stream).unwrap();
        }
        for cut in 0..stream.len() {
            let (mut buffer, mut seen) = (stream[..cut].to_vec(), Vec::new());
            let drain = |buffer: &mut Vec<u8>, seen: &mut Vec<ToWorker>| {
                while let Some((m, used)) = decode::<ToWorker>(buffer).unwrap() {
                    buffer.drain(..used);
                    seen.push(m);
                }
            };
            drain(&mut buffer, &mut seen);
            buffer.extend_from_slice(&stream[cut..]);
            drain(&mut buffer, &mut seen);
            assert_eq!(seen, messages);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn an_oversized_announcement_is_refused_before_its_body() {
        assert!(matches!(decode::<ToWorker>(&u32::MAX.to_le_bytes()), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        for byte in 0..=255u8 {
            let mut stream = 5u32.to_le_bytes().to_vec();
            stream.extend_from_slice(&[byte, 255, 255, 255, 255]);
            let _ = decode::<ToWorker>(&stream);
        }
    }
}
