//! One file a command: flags in, work done, a failure with its exit code out.

pub(crate) mod calibrate;
mod calibrate_engine;
pub(crate) mod cancel;
pub(crate) mod compare;
pub(crate) mod evaluate;
pub(crate) mod explore;
pub(crate) mod history;
pub(crate) mod list;
pub(crate) mod load;
pub(crate) mod logs;
pub(crate) mod orchestrate;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod retry;
pub(crate) mod run;
pub(crate) mod selftest;
pub(crate) mod serve;
pub(crate) mod simulate;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod worker;

mod clients;
mod manifest;
mod measure;
mod prediction;
mod progress;
mod recipe;
mod results;
mod run_folder;
mod run_reader;
mod search;
mod selftest_bars;
mod sweep;
mod tokenizer;
