//! `tandem evaluate`: predictions beside measurements.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use tandem_recipe::builtin::model_config;
use tandem_sim::evaluate::{Scored, render, score, tables, to_json};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::rows::{self, Row};
use tandem_sim::tables::OperatorTables;

use super::operator_tables;
use crate::cli::EvaluateArgs;
use crate::exit::{Exit, Failure, OrExit};

pub(crate) fn evaluate(args: &EvaluateArgs) -> Result<(), Failure> {
    let (rows, others) = read_rows(&args.rows)?;
    let constants = match &args.model.constants {
        Some(path) => {
            Constants::from_json(&read(path)?).with_context(|| format!("cannot use {}", path.display())).or_exit(Exit::Artifact)?
        }
        None => Constants::shipped(),
    };
    let text = model_config("deepseek-r1").context("the model does not ship").or_exit(Exit::Bug)?;
    let config = tandem_plan::ModelConfig::from_json(text).context("the shipped model is invalid").or_exit(Exit::Bug)?;
    let model = Model::new(config, super::prediction::gpus(&args.model)?, constants);
    let model = match &args.model.tables {
        Some(folder) => model.with_tables(read_tables(folder, &rows)?),
        None => model,
    };
    let scored = score_all(&model, &rows);
    let tables = tables(&scored);
    if args.json {
        let json = serde_json::to_string_pretty(&to_json(&tables, &scored, others)).or_exit(Exit::Bug)?;
        return print(&(json + "\n"));
    }
    print(&format!("{} rows predicted, 0 refused, {others} lines measure no serving\n\n{}", rows.len(), render(&tables)))
}

/// Predicts rows on all cores: each takes nine simulations.
fn score_all(model: &Model, rows: &[Row]) -> Vec<Scored> {
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = rows.chunks(rows.len().div_ceil(n).max(1));
    std::thread::scope(|scope| {
        let hands: Vec<_> = parts.map(|part| scope.spawn(move || score(model, part))).collect();
        hands.into_iter().flat_map(|hand| hand.join().expect("a prediction does not panic")).collect()
    })
}

/// Measured operators of the GPUs that occur in rows.
pub(super) fn read_tables(folder: &Path, rows: &[Row]) -> Result<OperatorTables, Failure> {
    let mut gpus: Vec<&str> = rows.iter().map(|row| row.hardware.as_str()).collect();
    gpus.sort_unstable();
    gpus.dedup();
    operator_tables::read(folder, &gpus)
}

/// The rows of a table, and the number of lines that are none.
pub(super) fn read_rows(path: &Path) -> Result<(Vec<Row>, usize), Failure> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)?;
    // A name in another encoding is no reason to refuse a table of numbers.
    rows::parse(&String::from_utf8_lossy(&bytes)).with_context(|| format!("cannot use {}", path.display())).or_exit(Exit::Artifact)
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)
}

pub(super) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader such as `head` that has seen enough is not an error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the tables").or_exit(Exit::Artifact)
        }
        _ => Ok(()),
    }
}
