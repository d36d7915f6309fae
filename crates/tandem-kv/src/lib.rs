//! tandem-kv
