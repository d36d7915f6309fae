//! Reads measured operators from a folder: AIConfigurator's parquet files, or CSV with the same columns.
//!
//! GPU, software and version are named by the folders (`gb200/gemm/trtllm/1.3.0rc20/gemm_perf.parquet`); where those say nothing, by the
//! columns `device`, `framework` and `version`. What the columns mean is `tandem_sim::tables`.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use tandem_sim::hardware::{self, GpuSpec};
use tandem_sim::tables::{Column, OperatorTables, Table};

use crate::exit::{Exit, Failure, OrExit};

/// How tables say what they are of.
const NAMES: &str = "folders are named <gpu>/<operator>/<software>/<version>, or the tables have a column `device`";
/// Folders below a folder of tables, at most: a link back up would never end.
const MAX_DEPTH: usize = 8;

type Columns = BTreeMap<String, Column>;

/// The tables below `folder` for these GPUs; without a name, for all.
pub(super) fn read(folder: &Path, gpus: &[&str]) -> Result<OperatorTables, Failure> {
    let mut files = Vec::new();
    find(folder, 0, &mut files).with_context(|| format!("cannot read {}", folder.display())).or_exit(Exit::Artifact)?;
    files.sort();
    let mut tables = Vec::new();
    for path in &files {
        let place = Place::of(path);
        if place.gpu.as_deref().is_some_and(|gpu| !wanted(gpu, gpus)) {
            continue;
        }
        let read = if ends_with(path, "csv") { read_csv(path) } else { read_parquet(path) };
        let (n_rows, columns) = read.with_context(|| format!("cannot use {}", path.display())).or_exit(Exit::Artifact)?;
        if let Some(table) = place.table(path, n_rows, columns).filter(|table| wanted(&table.gpu, gpus)) {
            tables.push(table);
        }
    }
    let nothing = tables.is_empty();
    let all = OperatorTables::new(tables).with_context(|| format!("cannot use {}", folder.display())).or_exit(Exit::Artifact);
    all.map_err(|failure| if nothing { failure.with_hint(NAMES) } else { failure })
}

fn wanted(gpu: &str, gpus: &[&str]) -> bool {
    gpus.is_empty() || gpus.iter().any(|name| name.eq_ignore_ascii_case(gpu))
}

fn ends_with(path: &Path, ending: &str) -> bool {
    path.extension().and_then(OsStr::to_str).is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

/// Tables below a folder whose names are those of known operators.
fn find(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if depth < MAX_DEPTH {
                find(&path, depth + 1, files)?;
            }
        } else if (ends_with(&path, "csv") || ends_with(&path, "parquet"))
            && path.file_stem().and_then(OsStr::to_str).is_some_and(OperatorTables::knows)
        {
            files.push(path);
        }
    }
    Ok(())
}

/// What the folders of a table say.
struct Place {
    gpu: Option<String>,
    backend: Option<String>,
    version: Option<String>,
}

impl Place {
    fn of(path: &Path) -> Self {
        let folders: Vec<&str> = path.parent().into_iter().flat_map(Path::components).filter_map(|c| c.as_os_str().to_str()).collect();
        let shipped = hardware::shipped();
        let gpu = |folder: &str| {
            let name = folder.to_ascii_lowercase();
            let name = name.strip_suffix("_sxm").unwrap_or(&name);
            hardware::find(&shipped, name).map(|gpu| gpu.name.clone())
        };
        let backend = folders.iter().rposition(|folder| OperatorTables::BACKENDS.contains(folder));
        Place {
            gpu: folders.iter().rev().find_map(|folder| gpu(folder)),
            backend: backend.map(|i| folders[i].to_owned()),
            version: backend.and_then(|i| folders.get(i + 1)).map(|v| (*v).to_owned()),
        }
    }

    /// The table with what its own columns add; none for a GPU that nothing names.
    fn table(self, path: &Path, n_rows: usize, columns: Columns) -> Option<Table> {
        let first = |column: &str| match columns.get(column) {
            Some(Column::Texts(values)) => values.first().map(|v| v.to_string()),
            _ => None,
        };
        let software = || first("framework").map(|f| f.to_ascii_lowercase()).filter(|f| OperatorTables::BACKENDS.contains(&f.as_str()));
        Some(Table {
            name: path.file_stem()?.to_str()?.to_owned(),
            gpu: self.gpu.or_else(|| Some(gpu_of_device(&first("device")?)?.name))?,
            backend: self.backend.or_else(software).unwrap_or_else(|| OperatorTables::OWN.to_owned()),
            version: self.version.or_else(|| first("version")).unwrap_or_default(),
            n_rows,
            columns,
        })
    }
}

/// The GPU of a driver's name, e.g. `NVIDIA H100 80GB HBM3`.
pub(super) fn gpu_of_device(name: &str) -> Option<GpuSpec> {
    let words: Vec<String> = name.split_whitespace().map(str::to_ascii_lowercase).collect();
    hardware::shipped().into_iter().find(|gpu| words.contains(&gpu.name))
}

fn read_csv(path: &Path) -> anyhow::Result<(usize, Columns)> {
    Ok(Table::from_csv(&fs::read_to_string(path)?)?)
}

fn read_parquet(path: &Path) -> anyhow::Result<(usize, Columns)> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let (mut n_rows, mut columns) = (0, Columns::new());
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        let n = usize::try_from(group.metadata().num_rows())?;
        n_rows += n;
        for i in 0..group.num_columns() {
            let name = group.metadata().column(i).column_path().string();
            let more = column(group.get_column_reader(i)?, n).with_context(|| format!("column `{name}`"))?;
            match (columns.get_mut(&name), more) {
                (None, more) => {
                    columns.insert(name, more);
                }
                (Some(Column::Numbers(all)), Column::Numbers(more)) => all.extend(more),
                (Some(Column::Texts(all)), Column::Texts(more)) => all.extend(more),
                _ => return Err(anyhow!("column `{name}` changes its type")),
            }
        }
    }
    Ok((n_rows, columns))
}

/// The values of a column chunk with `n` rows.
fn column(reader: ColumnReader, n: usize) -> anyhow::Result<Column> {
    let numbers = |values: Vec<Option<f64>>| Column::Numbers(values.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect());
    Ok(match reader {
        ColumnReader::Int32ColumnReader(r) => numbers(values(r, n, |v| f64::from(*v))?),
        #[expect(clippy::cast_precision_loss, reason = "sizes of operators are far below 2^52")]
        ColumnReader::Int64ColumnReader(r) => numbers(values(r, n, |v| *v as f64)?),
        ColumnReader::FloatColumnReader(r) => numbers(values(r, n, |v| f64::from(*v))?),
        ColumnReader::DoubleColumnReader(r) => numbers(values(r, n, |v| *v)?),
        ColumnReader::BoolColumnReader(r) => numbers(values(r, n, |v| f64::from(u8::from(*v)))?),
        ColumnReader::ByteArrayColumnReader(r) => {
            // A column of words repeats a handful of them.
            let mut known: HashSet<Arc<str>> = HashSet::new();
            let word = |bytes: &ByteArray| {
                let text = String::from_utf8_lossy(bytes.data());
                if let Some(word) = known.get(text.as_ref()) {
                    return Arc::clone(word);
                }
                let word: Arc<str> = Arc::from(text.as_ref());
                known.insert(Arc::clone(&word));
                word
            };
            let words = values(r, n, word)?;
            Column::Texts(words.into_iter().map(|w| w.unwrap_or_else(|| Arc::from(""))).collect())
        }
        _ => return Err(anyhow!("neither numbers nor words")),
    })
}

/// The values of `n` rows, none where they are null.
fn values<T: DataType, V>(mut reader: ColumnReaderImpl<T>, n: usize, mut of: impl FnMut(&T::T) -> V) -> anyhow::Result<Vec<Option<V>>> {
    let (mut found, mut levels) = (Vec::new(), Vec::new());
    loop {
        let (rows, ..) = reader.read_records(n, Some(&mut levels), None, &mut found)?;
        if rows == 0 {
            break;
        }
    }
    let mut next = found.iter();
    if levels.is_empty() {
        // The column cannot be null, so it has no levels.
        return Ok(next.map(|v| Some(of(v))).collect());
    }
    Ok(levels.iter().map(|level| if *level > 0 { next.next().map(&mut of) } else { None }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{ByteArrayType, DoubleType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    fn write_parquet(path: &Path) {
        let schema = "message t { optional int64 m; optional double latency; required binary gemm_dtype (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
        for group in 0..2_i64 {
            let mut rows = writer.next_row_group().unwrap();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&[group * 10 + 1, group * 10 + 2], Some(&[1, 1]), None).unwrap();
            column.close().unwrap();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<DoubleType>().write_batch(&[0.5], Some(&[0, 1]), None).unwrap();
            column.close().unwrap();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&["fp8".into(), "nvfp4".into()], None, None).unwrap();
            column.close().unwrap();
            rows.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn parquet_columns_are_read_over_row_groups_and_nulls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gemm_perf.parquet");
        write_parquet(&path);
        let (n_rows, columns) = read_parquet(&path).unwrap();
        assert_eq!(n_rows, 4);
        assert_eq!(columns["m"], Column::Numbers(vec![1.0, 2.0, 11.0, 12.0]));
        let Column::Numbers(latency) = &columns["latency"] else { panic!("latencies are numbers") };
        assert!(latency[0].is_nan() && latency[2].is_nan());
        assert_eq!((latency[1], latency[3]), (0.5, 0.5));
        assert_eq!(columns["gemm_dtype"], Column::Texts(["fp8", "nvfp4", "fp8", "nvfp4"].map(Arc::from).to_vec()));
    }

    #[test]
    fn folders_name_gpu_software_and_version_and_else_columns_do() {
        let place = Place::of(Path::new("/x/systems/data/h100_sxm/gemm/trtllm/1.3.0rc20/gemm_perf.parquet"));
        assert_eq!(
            (place.gpu.as_deref(), place.backend.as_deref(), place.version.as_deref()),
            (Some("h100"), Some("trtllm"), Some("1.3.0rc20"))
        );
        let words = |word: &str| Column::Texts(vec![Arc::from(word)]);
        let columns = Columns::from([("device".to_owned(), words("NVIDIA GB200")), ("framework".to_owned(), words("SGLang"))]);
        let path = Path::new("mine/gemm_perf.csv");
        let table = Place::of(path).table(path, 1, columns).unwrap();
        assert_eq!((table.gpu.as_str(), table.backend.as_str()), ("gb200", "sglang"));
        let columns = Columns::from([("device".to_owned(), words("NVIDIA H100 80GB HBM3"))]);
        assert_eq!(Place::of(path).table(path, 1, columns).unwrap().backend, OperatorTables::OWN);
        assert!(Place::of(path).table(path, 1, Columns::new()).is_none());
    }
}
