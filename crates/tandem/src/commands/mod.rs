//! One file a command: flags in, work done, a failure with its exit code out.

pub(crate) mod calibrate;
pub(crate) mod compare;
pub(crate) mod evaluate;
pub(crate) mod list;
pub(crate) mod load;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod selftest;
pub(crate) mod serve;
pub(crate) mod worker;

mod measure;
mod progress;
mod recipe;
mod results;
mod run_folder;
mod run_reader;
mod search;
mod tokenizer;
