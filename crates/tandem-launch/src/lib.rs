//! tandem-launch
