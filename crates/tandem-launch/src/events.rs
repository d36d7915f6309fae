//! `events.jsonl`: what happened in a run, one JSON object a line, in order.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::error::LaunchError;

/// Appends events; clones write to the same file.
///
/// Each line is written with one call and holds `time_ns` (wall clock), `event` and the event's own fields.
#[derive(Debug, Clone)]
pub struct EventLog {
    file: Arc<Mutex<File>>,
}

impl EventLog {
    /// Opens (and creates) the log.
    ///
    /// # Errors
    /// [`LaunchError::Io`] when the file cannot be opened.
    pub fn create(path: &Path) -> Result<Self, LaunchError> {
        let file =
            OpenOptions::new().create(true).append(true).open(path).map_err(|source| LaunchError::Io { path: path.to_owned(), source })?;
        Ok(EventLog { file: Arc::new(Mutex::new(file)) })
    }

    /// Appends one event. `fields` must be a JSON object.
    ///
    /// A full disk must not end a run that is otherwise fine, so a failed write is only logged.
    pub fn emit(&self, event: &str, fields: Value) {
        let time_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        let mut object = Map::new();
        object.insert("time_ns".into(), time_ns.into());
        object.insert("event".into(), event.into());
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::warn!(%error, "events.jsonl cannot be written");
        }
    }
}
