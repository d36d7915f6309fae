//! Server-sent events: an incremental parser and the writer of data lines.
