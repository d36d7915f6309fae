//! One file of measurements: columns by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use crate::rows::records;

/// The values of a column, one a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Numbers; what is missing is not a number.
    Numbers(Vec<f64>),
    /// Words.
    Texts(Vec<Arc<str>>),
}

/// One file of measurements.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What is measured: the file's name without its ending, e.g. `gemm_perf`.
    pub name: String,
    /// GPU, as in the hardware table, e.g. `gb200`.
    pub gpu: String,
    /// Software whose kernels were measured: `trtllm`, `sglang`, `vllm`, `nccl`.
    pub backend: String,
    /// Its version.
    pub version: String,
    /// Number of rows.
    pub n_rows: usize,
    /// Columns by name, each with `n_rows` values.
    pub columns: BTreeMap<String, Column>,
}

/// Why a table cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TableError {
    /// No header line.
    #[error("the table is empty")]
    Empty,
    /// A line of another length than the header.
    #[error("line {line} has {found} fields, the header {wanted}")]
    Ragged {
        /// Line, the header being 1.
        line: usize,
        /// Its fields.
        found: usize,
        /// Those of the header.
        wanted: usize,
    },
    /// A column without which its rows mean nothing.
    #[error("{table} has no column `{column}` of {kind}")]
    NoColumn {
        /// The table.
        table: String,
        /// The column.
        column: &'static str,
        /// `numbers` or `words`.
        kind: &'static str,
    },
    /// Not one table of an operator that the model has.
    #[error("no table of a known operator for any GPU that is asked about")]
    NoOperator,
}

impl Table {
    /// Reads a CSV; a column whose every cell is a number (or empty) is one of numbers.
    ///
    /// # Errors
    /// [`TableError::Empty`] and [`TableError::Ragged`].
    pub fn from_csv(text: &str) -> Result<(usize, BTreeMap<String, Column>), TableError> {
        let mut lines = records(text).into_iter();
        let header = lines.next().ok_or(TableError::Empty)?;
        let rows: Vec<Vec<String>> = lines.collect();
        if let Some((i, row)) = rows.iter().enumerate().find(|(_, row)| row.len() != header.len()) {
            return Err(TableError::Ragged { line: i + 2, found: row.len(), wanted: header.len() });
        }
        let column = |i: usize| {
            let cells = || rows.iter().map(|row| row[i].trim());
            let number = |cell: &str| if cell.is_empty() { Some(f64::NAN) } else { cell.parse::<f64>().ok() };
            let numbers: Option<Vec<f64>> = cells().map(number).collect();
            numbers.map_or_else(|| Column::Texts(cells().map(Arc::from).collect()), Column::Numbers)
        };
        Ok((rows.len(), header.iter().enumerate().map(|(i, name)| (name.trim().to_owned(), column(i))).collect()))
    }

    /// The numbers of a column.
    pub(super) fn numbers(&self, column: &'static str) -> Result<&[f64], TableError> {
        match self.columns.get(column) {
            Some(Column::Numbers(values)) => Ok(values),
            _ => Err(TableError::NoColumn { table: self.name.clone(), column, kind: "numbers" }),
        }
    }

    /// The words of a column.
    pub(super) fn texts(&self, column: &'static str) -> Result<&[Arc<str>], TableError> {
        match self.columns.get(column) {
            Some(Column::Texts(values)) => Ok(values),
            _ => Err(TableError::NoColumn { table: self.name.clone(), column, kind: "words" }),
        }
    }
}
