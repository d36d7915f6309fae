//! tandem-metrics
