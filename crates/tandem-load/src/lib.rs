//! Load generator for OpenAI-compatible chat endpoints: from a [`LoadSpec`] to [`RequestRecord`](tandem_metrics::RequestRecord)s.
//!
//! Four parts that do not know each other's business: `pacing` (of `tandem-sched`) decides when to send, `prompts`
//! makes what is sent, `transport` sends and stamps what comes back, `decode` turns stamped bytes into
//! records. `run` joins them: a receive thread that only moves bytes, a decode thread and a prompt thread
//! behind it. A request's failure is its record's outcome; nothing is dropped.
//!
//! Reading order: `spec`, `run`, `pacing`, `transport`, `decode`, `prompts`, `health`, `paced` (a server
//! that logs when it really sent, to measure this crate against), `selftest` (what a host can measure), `clients` (one load
//! from several processes or hosts).
//! Not here: statistics, files, reports (`tandem-metrics`), and anything about how a server was deployed.

pub mod clients;
pub mod clock;
pub mod decode;
pub mod error;
pub mod gate;
pub mod health;
pub mod paced;
pub mod progress;
pub mod prompts;
pub mod run;
pub mod selftest;
pub mod spec;
pub mod stop;
pub mod target;
pub mod transport;

pub use tandem_sched::pacing;

pub use error::LoadError;
pub use health::ClientHealth;
pub use progress::{NoProgress, Progress, Snapshot};
pub use prompts::lengths::Lengths;
pub use prompts::requests::payloads;
pub use prompts::texts::{ByteTexts, Texts};
pub use run::{LoadReport, run, run_from};
pub use spec::{Keep, LoadSpec, Prefix, Prompts, Share, Timeouts, Turns};
pub use stop::{Stop, StopSignal};
pub use target::{Proxy, Target};
pub use transport::request::ApiKey;
pub use transport::tls::TlsOptions;
