//! What belongs into a file of a run: bytes, or the lines of records.
//!
//! The lines of a run are several times as large as its records, so they are made while they are written.

use std::borrow::Cow;
use std::sync::Arc;

use crate::artifacts::profile_export;
use crate::record::{LoadPhase, RequestRecord, RunClock};

/// A path relative to the run folder and what belongs there.
pub type File = (String, Content);

/// The content of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// As it is.
    Bytes(Vec<u8>),
    /// `profile_export.jsonl` of one phase.
    Records(RecordLines),
}

/// Records that become a line each; see [`profile_export`].
#[derive(Debug, Clone, PartialEq)]
pub struct RecordLines {
    /// All records of a load point.
    pub records: Arc<Vec<RequestRecord>>,
    /// Those of this phase are meant.
    pub phase: LoadPhase,
    /// Ties their times to the wall clock.
    pub clock: RunClock,
    /// Whether responses were streamed.
    pub streaming: bool,
}

impl Content {
    /// The bytes in order, a piece at a time; each piece is made when it is asked for.
    pub fn pieces(&self) -> Box<dyn Iterator<Item = Cow<'_, [u8]>> + '_> {
        match self {
            Content::Bytes(bytes) => Box::new(std::iter::once(Cow::Borrowed(bytes.as_slice()))),
            Content::Records(RecordLines { records, phase, clock, streaming }) => Box::new(
                records
                    .iter()
                    .filter(|record| record.phase == *phase)
                    .map(|record| Cow::Owned(profile_export::render([record], *clock, *streaming).into_bytes())),
            ),
        }
    }

    /// The whole content.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces().fold(Vec::new(), |mut all, piece| {
            all.extend_from_slice(&piece);
            all
        })
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Content::Bytes(text.into_bytes())
    }
}
