//! What is known of a run, read from the texts of its files.

mod digest;
pub(crate) mod error;
pub(crate) mod gpus;
pub(crate) mod iterations;
pub(crate) mod plan_facts;
pub(crate) mod prediction;
pub(crate) mod result_file;
pub(crate) mod run;
mod series;

pub(crate) use digest::{Digest, RequestMetric, TokenStamps, WaterfallRow};
pub(crate) use series::Bins;
