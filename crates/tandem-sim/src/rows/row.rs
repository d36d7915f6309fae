//! One measured row: what was deployed, how it was driven, what came out. A column that is missing, empty or unreadable is none.
//!
//! No line that measures serving is refused: what a prediction cannot do without gets a default, which the row names.

use std::collections::HashMap;

use thiserror::Error;

use super::csv::records;

/// Whether phases had servers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Separate prefill and decode servers.
    Disaggregated,
    /// One kind of server for both.
    Aggregated,
}

/// One pool of servers, as far as the row says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Side {
    /// Servers.
    pub workers: Option<u32>,
    /// GPUs of one server.
    pub world: Option<u32>,
    /// Tensor-parallel degree.
    pub tp: Option<u32>,
    /// Pipeline-parallel degree.
    pub pp: Option<u32>,
    /// Expert-parallel degree.
    pub ep: Option<u32>,
    /// Attention data parallelism.
    pub attention_dp: Option<bool>,
    /// Batch limit as the engine's configuration states it.
    pub max_batch: Option<u32>,
    /// Token limit as the engine's configuration states it.
    pub max_tokens: Option<u32>,
    /// Fraction of the free memory for the KV cache.
    pub memory_fraction: Option<f64>,
}

/// What was measured; seconds and output tokens per second and GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Output tokens per second over all GPUs.
    pub tokens_per_gpu: Option<f64>,
    /// Time per output token, median or (where only that is known) mean.
    pub tpot: Option<f64>,
    /// Median time to first token.
    pub ttft_median: Option<f64>,
    /// Mean time to first token.
    pub ttft_mean: Option<f64>,
    /// 99th percentile of the time to first token.
    pub ttft_p99: Option<f64>,
}

/// One row of a table of measurements.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name.
    pub id: String,
    /// Whether phases were separate.
    pub kind: Kind,
    /// GPU name.
    pub hardware: String,
    /// GPUs in all.
    pub gpus: Option<f64>,
    /// `trt` or `sglang` (whatever else is written is kept).
    pub stack: String,
    /// `fp8`, `fp4` or `bf16`.
    pub precision: String,
    /// Nominal prompt length.
    pub isl: f64,
    /// Nominal output length.
    pub osl: f64,
    /// Lengths as fractions of nominal, if uniform.
    pub length_range: Option<(f64, f64)>,
    /// Requests in the system.
    pub concurrency: u32,
    /// Requests in all as a multiple of the concurrency.
    pub rounds: f64,
    /// Months since January 2026.
    pub months: f64,
    /// Prefill servers (unused in aggregated rows).
    pub prefill: Side,
    /// Decode servers, or all of them in aggregated rows.
    pub decode: Side,
    /// Expert slots of the decode servers.
    pub eplb_slots: Option<u32>,
    /// Drafted tokens: a number, `>=1`, or unknown.
    pub mtp: String,
    /// How surely the knobs are those of the run.
    pub knob_match: String,
    /// The results.
    pub measured: Measured,
    /// Everything that defines the configuration but the concurrency.
    pub config_key: String,
    /// What was not in the row and what was taken instead.
    pub assumed: Vec<&'static str>,
}

/// Why a table cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RowsError {
    /// No header line.
    #[error("the table is empty")]
    Empty,
    /// A column without which no row means anything.
    #[error("the table has no column `{0}`")]
    NoColumn(&'static str),
}

/// Most requests in the system, and most tokens of a prompt or output, that a row may state.
const MOST: f64 = 1e6;
/// Most workers, and most ranks of one.
const MOST_RANKS: u32 = 4096;

/// Serving rows of a table, and the number of rows that measure something else (kernels).
///
/// # Errors
/// [`RowsError`] when the header is not that of such a table.
pub fn parse(text: &str) -> Result<(Vec<Row>, usize), RowsError> {
    let mut lines = records(text.trim_start_matches('\u{feff}')).into_iter();
    let header = lines.next().ok_or(RowsError::Empty)?;
    let columns: HashMap<String, usize> = header.iter().enumerate().map(|(i, name)| (name.trim().to_ascii_lowercase(), i)).collect();
    for needed in ["hardware", "concurrency"] {
        if !columns.contains_key(needed) {
            return Err(RowsError::NoColumn(needed));
        }
    }
    let (mut rows, mut others) = (Vec::new(), 0);
    for (index, fields) in lines.enumerate() {
        match row(&Cells { columns: &columns, fields: &fields }, index + 1) {
            Some(row) => rows.push(row),
            None => others += 1,
        }
    }
    Ok((rows, others))
}

struct Cells<'a> {
    columns: &'a HashMap<String, usize>,
    fields: &'a [String],
}

impl Cells<'_> {
    fn text(&self, name: &str) -> &str {
        self.columns.get(name).and_then(|&i| self.fields.get(i)).map_or("", |f| f.trim())
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.text(name).parse::<f64>().ok().filter(|v| v.is_finite())
    }

    fn count(&self, name: &str) -> Option<u32> {
        let value = self.number(name).filter(|v| *v >= 1.0 && *v < 4e9)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        let count = value.round() as u32;
        Some(count)
    }

    /// A count of ranks or workers; one that no machine has is unreadable.
    fn ranks(&self, name: &str) -> Option<u32> {
        self.count(name).filter(|n| *n <= MOST_RANKS)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.text(name).to_ascii_lowercase().as_str() {
            "true" | "1" | "1.0" | "yes" => Some(true),
            "false" | "0" | "0.0" | "no" => Some(false),
            _ => None,
        }
    }

    fn side(&self, prefix: &str) -> Side {
        let column = |name: &str| format!("{prefix}_{name}");
        Side {
            workers: self.ranks(if prefix == "ctx" { "n_ctx" } else { "n_gen" }),
            world: self.ranks(&column("world_size")),
            tp: self.ranks(&column("tp")),
            pp: self.ranks(&column("pp")),
            ep: self.ranks(&column("ep")),
            attention_dp: self.flag(&column("attn_dp")),
            max_batch: self.count(&column("max_batch_size")),
            max_tokens: self.count(&column("max_num_tokens")),
            memory_fraction: self.number(&column("gpu_memory_fraction")).filter(|f| *f > 0.0 && *f <= 1.0),
        }
    }

    fn measured(&self) -> Measured {
        let positive = |name: &str| self.number(name).filter(|v| *v > 0.0);
        let ms = |name: &str| positive(name).map(|v| v / 1e3);
        Measured {
            tokens_per_gpu: positive("out_tps_per_gpu"),
            tpot: ms("tpot_ms_median").or(ms("tpot_ms_mean")),
            ttft_median: ms("ttft_ms_median"),
            ttft_mean: ms("ttft_ms_mean"),
            ttft_p99: ms("ttft_ms_p99"),
        }
    }
}

/// Columns that together name a configuration.
const CONFIG: [&str; 26] = [
    "kind",
    "hardware",
    "framework",
    "precision",
    "isl",
    "osl",
    "n_ctx",
    "ctx_world_size",
    "ctx_tp",
    "ctx_pp",
    "ctx_ep",
    "ctx_attn_dp",
    "ctx_max_batch_size",
    "ctx_max_num_tokens",
    "n_gen",
    "gen_world_size",
    "gen_tp",
    "gen_pp",
    "gen_ep",
    "gen_attn_dp",
    "gen_max_batch_size",
    "gen_max_num_tokens",
    "gen_eplb_num_slots",
    "gen_mtp_size",
    "length_dist",
    "gpus_total",
];

fn row(cells: &Cells<'_>, line: usize) -> Option<Row> {
    let mut assumed = Vec::new();
    let (prefill, decode) = (cells.side("ctx"), cells.side("gen"));
    let kind = match cells.text("kind").to_ascii_lowercase() {
        k if k.starts_with("disagg") => Kind::Disaggregated,
        k if k.starts_with("agg") => Kind::Aggregated,
        k if k.is_empty() && (cells.count("concurrency").is_some() || cells.measured() != Measured::default()) => {
            assumed.push("kind: disaggregated where a prefill server is described");
            if prefill == Side::default() { Kind::Aggregated } else { Kind::Disaggregated }
        }
        _ => return None,
    };
    let mut length = |name: &str, note: &'static str| {
        cells.number(name).filter(|v| *v >= 1.0).map(|v| v.min(MOST)).unwrap_or_else(|| {
            assumed.push(note);
            1024.0
        })
    };
    let (isl, osl) = (length("isl", "prompt length: 1024"), length("osl", "output length: 1024"));
    let concurrency = cells.number("concurrency").filter(|v| *v >= 1.0).map(|v| v.min(MOST)).unwrap_or_else(|| {
        assumed.push("concurrency: the batch limit of one decode rank, or 1");
        f64::from(decode.max_batch.unwrap_or(1)).min(MOST)
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a million")]
    let concurrency = concurrency.round() as u32;
    let stack = cells.text("framework").to_ascii_lowercase();
    let stack = stack.trim_start_matches("dynamo-");
    Some(Row {
        id: Some(cells.text("id")).filter(|id| !id.is_empty()).map_or_else(|| format!("row {line}"), str::to_owned),
        kind,
        hardware: cells.text("hardware").to_ascii_lowercase(),
        gpus: cells.number("gpus_total").filter(|g| *g > 0.0),
        stack: if stack.starts_with("tensorrt") || stack == "trtllm" { "trt" } else { stack }.to_owned(),
        precision: cells.text("precision").to_ascii_lowercase(),
        isl,
        osl,
        length_range: range(cells.text("length_dist")),
        concurrency,
        rounds: rounds(cells.text("num_requests_hint")),
        months: months(cells.text("date")).unwrap_or(1.0),
        prefill,
        decode,
        eplb_slots: cells.count("gen_eplb_num_slots"),
        mtp: cells.text("gen_mtp_size").to_owned(),
        knob_match: cells.text("knob_match").to_owned(),
        measured: cells.measured(),
        config_key: CONFIG.map(|c| cells.text(c)).join("|"),
        assumed,
    })
}

/// `uniform[0.8,1.0]` to its bounds.
fn range(text: &str) -> Option<(f64, f64)> {
    let inner = text.strip_prefix("uniform[")?.strip_suffix(']')?;
    let (a, b) = inner.split_once(',')?;
    let fraction = |text: &str| text.trim().parse().ok().filter(|f: &f64| *f > 0.0 && *f <= 16.0);
    let (a, b) = (fraction(a)?, fraction(b)?);
    Some((a.min(b), a.max(b)))
}

/// `10x concurrency` to 10.
fn rounds(text: &str) -> f64 {
    text.split('x').next().and_then(|n| n.trim().parse().ok()).filter(|n: &f64| *n >= 1.0 && n.is_finite()).unwrap_or(10.0)
}

/// `2026-03-23` to 2 and a fraction.
fn months(date: &str) -> Option<f64> {
    let mut parts = date.split('-').map(|p| p.parse::<f64>().ok());
    let (year, month) = (parts.next()??, parts.next()??);
    if !(2020.0..2100.0).contains(&year) || !(1.0..13.0).contains(&month) {
        return None;
    }
    let day = parts.next().flatten().unwrap_or(15.0);
    Some((year - 2026.0) * 12.0 + month - 1.0 + day / 31.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "id,kind,hardware,framework,precision,isl,osl,length_dist,concurrency,date,n_ctx,gen_attn_dp,tpot_ms_median\n\
        a,disagg,GB200,dynamo-trt,fp4,8192.0,1024.0,\"uniform[0.8,1.0]\",2150,2025-12-19,5,True,52.1\n\
        k,kernel,h800,,,,,,,,,,\n";

    #[test]
    fn columns_get_their_types_and_other_rows_are_counted() {
        let (rows, others) = parse(TABLE).unwrap();
        assert_eq!((rows.len(), others), (1, 1));
        let row = &rows[0];
        assert_eq!((row.hardware.as_str(), row.stack.as_str(), row.concurrency), ("gb200", "trt", 2150));
        assert_eq!(row.length_range, Some((0.8, 1.0)));
        assert_eq!(row.decode.attention_dp, Some(true));
        assert!((row.measured.tpot.unwrap() - 0.0521).abs() < 1e-12);
        assert!((row.months + 0.387).abs() < 1e-2);
    }

    #[test]
    fn a_table_of_something_else_is_refused_by_the_missing_column() {
        assert_eq!(parse("a,b\n1,2\n"), Err(RowsError::NoColumn("hardware")));
        assert_eq!(parse(""), Err(RowsError::Empty));
    }
}
