//! One load from several clients: processes of this host or of others, merged record by record.
//!
//! An [`agent`] waits for a coordinator; a [`Fleet`] is the coordinator's side. For each load point the coordinator has every
//! client prepare its [`Share`], checks that all would send the same prompts, names one time at which all begin, and gets their
//! records back. They are put on one clock and into one list as if one client had made them: every figure is computed
//! from all records, and no percentile is ever averaged. A client that is lost makes the point invalid, by name.
//!
//! Reading order: `token` (who may give orders), `wire` (messages), `agent`, `fleet`.

pub mod agent;
pub mod fleet;
#[cfg(test)]
mod skew_tests;
pub mod token;
mod wire;

pub use agent::{Prepared, serve_one};
pub use fleet::{Fleet, FleetReport};
pub use token::Token;

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::LoadError;
use crate::prompts::requests::payloads;
use crate::prompts::texts::Texts;
use crate::spec::{LoadSpec, Share};

/// Bodies that tell whether two clients would send the same.
const N_COMPARED: usize = 4;

/// What the whole load sends, in short: equal for clients that read the same files in the same way.
fn digest(spec: &LoadSpec, texts: &Arc<dyn Texts>) -> Result<String, LoadError> {
    let whole = LoadSpec { share: Share::WHOLE, ..spec.clone() };
    let mut hash = Sha256::new();
    for body in payloads(&whole, texts.clone(), N_COMPARED)? {
        hash.update(body.to_string());
        hash.update([0]);
    }
    hash.update(format!("{} {:?} {:?}", spec.target.label(), spec.load, spec.streaming));
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
