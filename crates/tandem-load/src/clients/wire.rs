//! Messages between a coordinator and an agent: JSON in frames of four bytes of length (big endian) and that many bytes.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::health::ClientHealth;
use crate::progress::Snapshot;
use crate::spec::Share;

/// Version of the messages; both sides must have the same program anyway.
pub(super) const PROTOCOL: u32 = 1;
/// A frame from a peer that has proven itself is no longer than this.
pub(super) const MAX_FRAME: usize = 64 << 20;
/// A frame from one that has not.
pub(super) const MAX_FIRST_FRAME: usize = 4 << 10;

/// From the coordinator.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToAgent {
    /// That it has the token.
    Proof { nonce: String, proof: String },
    /// What o'clock is it?
    Ping,
    /// Get ready to drive a part of a point. What `setup` and `point` mean is between those who use this crate.
    Prepare { setup: Value, point: Value, share: Share },
    /// Begin at this time of the agent's monotonic clock, nanoseconds.
    Start { at_ns: u64 },
    /// Send nothing more, or cut what is in flight too.
    Stop { now: bool },
}

/// From an agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum FromAgent {
    /// The first message of a connection.
    Challenge { protocol: u32, nonce: String },
    /// That it has the token too; who it is.
    Welcome { proof: String, version: String, boot_id: String },
    /// Its monotonic clock, nanoseconds.
    Pong { monotonic_ns: u64 },
    /// Connections are open, the first requests are made; `digest` says what the whole load would send.
    Ready { digest: String },
    /// How far it is.
    Progress { snapshot: Snapshot },
    /// Records as lines of `profile_export.jsonl`, times on its monotonic clock.
    Records { lines: String },
    /// All records have been sent.
    Done { health: Box<ClientHealth>, n_repeated_prompts: u32, n_isl_mismatches: u32, n_osl_mismatches: u32 },
    /// The point cannot be driven.
    Failed { message: String },
}

/// Writes one message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|n| *n as usize <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    to.write_all(&frame)
}

/// Reads one message of at most `limit` bytes.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read, limit: usize) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes is too long")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// This host's monotonic clock, nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}

/// Names this boot of this host, which has one monotonic clock; empty where the system does not say.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_long_ones_are_refused_before_they_are_read() {
        let mut bytes = Vec::new();
        send(&mut bytes, &ToAgent::Start { at_ns: 7 }).unwrap();
        send(&mut bytes, &ToAgent::Ping).unwrap();
        let mut from = bytes.as_slice();
        assert!(matches!(receive(&mut from, MAX_FRAME).unwrap(), ToAgent::Start { at_ns: 7 }));
        assert!(matches!(receive(&mut from, MAX_FRAME).unwrap(), ToAgent::Ping));
        assert!(receive::<ToAgent>(&mut from, MAX_FRAME).is_err());
        assert_eq!(receive::<ToAgent>(&mut [0xFF; 8].as_slice(), MAX_FRAME).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(receive::<ToAgent>(&mut [0, 0, 0, 2, b'{', b'}'].as_slice(), MAX_FRAME).is_err());
    }

    #[test]
    fn a_clients_health_survives_the_wire() {
        let mut health = ClientHealth { n_chunks: 3, steal_share: Some(0.5), ..ClientHealth::default() };
        health.cpu = vec![(crate::health::RECEIVE_THREAD, std::time::Duration::from_millis(5))];
        health.receive.read_lag.add(tandem_plan::Nanos(900));
        let text = serde_json::to_string(&health).unwrap();
        assert_eq!(serde_json::from_str::<ClientHealth>(&text).unwrap(), health);
    }
}
