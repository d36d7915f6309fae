//! `requests.parquet` and `chunks.parquet`: tables for pandas, DuckDB and Polars.
//!
//! The subset of Apache Parquet 2 that a flat table needs, written by hand, because the format's own crate brings
//! far more than that: PLAIN values, data pages of version 1, no compression, no nesting, optional columns by
//! definition levels (RLE). Row groups hold `ROWS_PER_GROUP` rows. Metadata is Thrift's compact protocol, of which `Thrift`
//! has what is used. Specification: <https://parquet.apache.org/docs/file-format/>.

use crate::metrics::{Kind, Load, request_latency, tpot, ttft};
use crate::record::{ChunkKind, LoadPhase, RequestRecord, RunClock};

/// Rows of a row group: large enough for scans, small enough for memory.
const ROWS_PER_GROUP: usize = 1 << 20;
const MAGIC: &[u8; 4] = b"PAR1";

/// `Type` of parquet.thrift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Physical {
    Boolean = 0,
    Int64 = 2,
    Double = 5,
    ByteArray = 6,
}

/// Values of a column; none is null.
enum Values<'a> {
    Int(Vec<Option<i64>>),
    Float(Vec<Option<f64>>),
    Text(Vec<Option<&'a str>>),
    Bool(Vec<Option<bool>>),
}

struct Column<'a> {
    name: &'static str,
    values: Values<'a>,
}

/// One row a request, measured and warm-up, in the order given. Times are wall-clock nanoseconds, latencies ms.
#[must_use]
pub fn requests(records: &[RequestRecord], clock: RunClock, load: &Load) -> Vec<u8> {
    let int = |name, of: &dyn Fn(&RequestRecord) -> Option<u64>| Column {
        name,
        values: Values::Int(records.iter().map(|r| of(r).and_then(|n| i64::try_from(n).ok())).collect()),
    };
    let float = |name, of: &dyn Fn(&RequestRecord) -> Option<f64>| Column { name, values: Values::Float(records.iter().map(of).collect()) };
    let metric = |name, metric: &crate::metrics::Metric| {
        let Kind::Record(value) = metric.kind else { return float(name, &|_| None) };
        let applies = load.streaming || !metric.streaming_only;
        float(name, &move |r: &RequestRecord| value(r).filter(|_| applies && r.is_kept()).map(|raw| raw * metric.unit.scale()))
    };
    let columns = [
        int("point", &|r| Some(u64::from(r.point))),
        Column { name: "phase", values: Values::Text(records.iter().map(|r| Some(r.phase.as_str())).collect()) },
        int("request", &|r| Some(r.index)),
        Column { name: "x_request_id", values: Values::Text(records.iter().map(|r| Some(r.x_request_id.as_str())).collect()) },
        int("session", &|r| Some(r.session)),
        int("turn", &|r| Some(u64::from(r.turn))),
        Column { name: "outcome", values: Values::Text(records.iter().map(|r| Some(r.outcome.as_str())).collect()) },
        int("http_status", &|r| r.http_status.map(u64::from)),
        Column { name: "finish_reason", values: Values::Text(records.iter().map(|r| r.finish_reason.as_deref()).collect()) },
        int("scheduled_ns", &|r| Some(clock.wall_ns(r.scheduled_ns))),
        int("start_ns", &|r| Some(clock.wall_ns(r.start_ns))),
        int("ack_ns", &|r| r.ack_ns.map(|at| clock.wall_ns(at))),
        int("end_ns", &|r| Some(clock.wall_ns(r.end_ns))),
        int("n_chunks", &|r| Some(r.chunks.len() as u64)),
        int("isl", &|r| r.isl_tokens().map(u64::from)),
        int("osl", &|r| r.osl_tokens().map(u64::from)),
        metric("ttft_ms", &ttft::METRIC),
        metric("tpot_ms", &tpot::METRIC),
        metric("request_latency_ms", &request_latency::METRIC),
    ];
    write(&columns, records.len())
}

/// One row a chunk of every request; `request` and `phase` join it with the requests.
#[must_use]
pub fn chunks(records: &[RequestRecord], clock: RunClock) -> Vec<u8> {
    let n = records.iter().map(|record| record.chunks.len()).sum();
    let all = || records.iter().flat_map(|record| record.chunks.iter().enumerate().map(move |(i, chunk)| (record, i, chunk)));
    let signed = |n: u64| i64::try_from(n).ok();
    let columns = [
        Column { name: "phase", values: Values::Text(all().map(|(r, ..)| Some(r.phase.as_str())).collect()) },
        Column { name: "request", values: Values::Int(all().map(|(r, ..)| signed(r.index)).collect()) },
        Column { name: "chunk", values: Values::Int(all().map(|(_, i, _)| signed(i as u64)).collect()) },
        Column { name: "at_ns", values: Values::Int(all().map(|(_, _, c)| signed(clock.wall_ns(c.at_ns))).collect()) },
        Column { name: "n_tokens", values: Values::Int(all().map(|(_, _, c)| c.n_tokens.map(i64::from)).collect()) },
        Column { name: "is_reasoning", values: Values::Bool(all().map(|(_, _, c)| Some(c.kind == ChunkKind::Reasoning)).collect()) },
        Column { name: "is_clumped", values: Values::Bool(all().map(|(_, _, c)| Some(c.clumped)).collect()) },
    ];
    debug_assert!(LoadPhase::from_name("warmup").is_some(), "phases are told by name");
    write(&columns, n)
}

/// Where a column chunk lies and how large it is.
struct Place {
    offset: usize,
    n_bytes: usize,
    n_values: usize,
}

fn write(columns: &[Column<'_>], n_rows: usize) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mut groups: Vec<(usize, Vec<Place>)> = Vec::new();
    let mut from = 0;
    while from < n_rows {
        let to = (from + ROWS_PER_GROUP).min(n_rows);
        let places = columns.iter().map(|column| column.write_page(from, to, &mut out)).collect();
        groups.push((to - from, places));
        from = to;
    }
    let footer_at = out.len();
    write_footer(columns, &groups, n_rows, &mut out);
    let footer_len = u32::try_from(out.len() - footer_at).unwrap_or(u32::MAX);
    out.extend_from_slice(&footer_len.to_le_bytes());
    out.extend_from_slice(MAGIC);
    out
}

impl Column<'_> {
    const fn physical(&self) -> Physical {
        match self.values {
            Values::Int(_) => Physical::Int64,
            Values::Float(_) => Physical::Double,
            Values::Text(_) => Physical::ByteArray,
            Values::Bool(_) => Physical::Boolean,
        }
    }

    /// One page: definition levels (1 present, 0 null) and then the values that are present.
    fn write_page(&self, from: usize, to: usize, out: &mut Vec<u8>) -> Place {
        let mut levels = Levels::default();
        let mut plain = Vec::new();
        match &self.values {
            Values::Int(all) => {
                for value in &all[from..to] {
                    levels.push(value.is_some());
                    plain.extend(value.iter().flat_map(|v| v.to_le_bytes()));
                }
            }
            Values::Float(all) => {
                for value in &all[from..to] {
                    levels.push(value.is_some());
                    plain.extend(value.iter().flat_map(|v| v.to_le_bytes()));
                }
            }
            Values::Text(all) => {
                for value in &all[from..to] {
                    levels.push(value.is_some());
                    if let Some(text) = value {
                        plain.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                        plain.extend_from_slice(text.as_bytes());
                    }
                }
            }
            Values::Bool(all) => {
                let mut n_bits = 0;
                for value in &all[from..to] {
                    levels.push(value.is_some());
                    if let Some(bit) = value {
                        if n_bits % 8 == 0 {
                            plain.push(0);
                        }
                        *plain.last_mut().expect("a byte was pushed for its first bit") |= u8::from(*bit) << (n_bits % 8);
                        n_bits += 1;
                    }
                }
            }
        }
        let levels = levels.finish();
        let page_bytes = 4 + levels.len() + plain.len();
        let offset = out.len();
        let mut header = Thrift::new(out);
        header.int(1, 0, 5); // DATA_PAGE
        header.int(2, signed(page_bytes), 5);
        header.int(3, signed(page_bytes), 5);
        header.begin_struct(5);
        header.int(1, signed(to - from), 5);
        header.int(2, 0, 5); // PLAIN
        header.int(3, 3, 5); // RLE
        header.int(4, 3, 5);
        header.end_struct();
        header.stop();
        out.extend_from_slice(&u32::try_from(levels.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&levels);
        out.extend_from_slice(&plain);
        Place { offset, n_bytes: out.len() - offset, n_values: to - from }
    }
}

/// Definition levels of one bit in the RLE half of Parquet's hybrid encoding: runs of equal levels.
#[derive(Default)]
struct Levels {
    out: Vec<u8>,
    level: bool,
    run: u64,
}

impl Levels {
    fn push(&mut self, present: bool) {
        if self.run > 0 && self.level != present {
            self.flush();
        }
        self.level = present;
        self.run += 1;
    }

    fn flush(&mut self) {
        if self.run > 0 {
            varint(self.run << 1, &mut self.out);
            self.out.push(u8::from(self.level));
            self.run = 0;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.flush();
        self.out
    }
}

fn write_footer(columns: &[Column<'_>], groups: &[(usize, Vec<Place>)], n_rows: usize, out: &mut Vec<u8>) {
    let mut meta = Thrift::new(out);
    meta.int(1, 2, 5); // version
    meta.begin_list(2, columns.len() + 1);
    meta.begin_element();
    meta.text(4, "requests");
    meta.int(5, signed(columns.len()), 5);
    meta.end_struct();
    for column in columns {
        meta.begin_element();
        meta.int(1, column.physical() as i64, 5);
        meta.int(3, 1, 5); // OPTIONAL
        meta.text(4, column.name);
        if column.physical() == Physical::ByteArray {
            meta.int(6, 0, 5); // UTF8
        }
        meta.end_struct();
    }
    meta.int(3, signed(n_rows), 6);
    meta.begin_list(4, groups.len());
    for (n_rows, places) in groups {
        meta.begin_element();
        meta.begin_list(1, places.len());
        for (column, place) in columns.iter().zip(places) {
            meta.begin_element();
            meta.int(2, signed(place.offset), 6);
            meta.begin_struct(3);
            meta.int(1, column.physical() as i64, 5);
            meta.int_list(2, &[0, 3]);
            meta.text_list(3, &[column.name]);
            meta.int(4, 0, 5); // UNCOMPRESSED
            meta.int(5, signed(place.n_values), 6);
            meta.int(6, signed(place.n_bytes), 6);
            meta.int(7, signed(place.n_bytes), 6);
            meta.int(9, signed(place.offset), 6);
            meta.end_struct();
            meta.end_struct();
        }
        meta.int(2, signed(places.iter().map(|place| place.n_bytes).sum()), 6);
        meta.int(3, signed(*n_rows), 6);
        meta.end_struct();
    }
    meta.text(6, concat!("tandem ", env!("CARGO_PKG_VERSION")));
    meta.stop();
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Thrift's compact protocol: structs of integers, texts and lists.
struct Thrift<'a> {
    out: &'a mut Vec<u8>,
    /// Last field of each open struct.
    last: Vec<i16>,
}

const TYPE_BINARY: u8 = 8;
const TYPE_LIST: u8 = 9;
const TYPE_STRUCT: u8 = 12;

impl<'a> Thrift<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Thrift { out, last: vec![0] }
    }

    /// Field ids here ascend by less than 16, so that the short form does.
    fn field(&mut self, id: i16, kind: u8) {
        let last = self.last.last_mut().expect("a struct is open");
        let delta = u8::try_from(id - *last).expect("fields ascend");
        debug_assert!((1..16).contains(&delta), "short form");
        *last = id;
        self.out.push(delta << 4 | kind);
    }

    fn zigzag(&mut self, value: i64) {
        varint(((value << 1) ^ (value >> 63)).cast_unsigned(), self.out);
    }

    /// An integer; `kind` is 5 for i32, 6 for i64.
    fn int(&mut self, id: i16, value: i64, kind: u8) {
        self.field(id, kind);
        self.zigzag(value);
    }

    fn bytes(&mut self, text: &str) {
        varint(text.len() as u64, self.out);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn text(&mut self, id: i16, text: &str) {
        self.field(id, TYPE_BINARY);
        self.bytes(text);
    }

    fn list_head(&mut self, id: i16, n: usize, kind: u8) {
        self.field(id, TYPE_LIST);
        match u8::try_from(n) {
            Ok(n) if n < 15 => self.out.push(n << 4 | kind),
            _ => {
                self.out.push(0xf0 | kind);
                varint(n as u64, self.out);
            }
        }
    }

    fn int_list(&mut self, id: i16, values: &[i64]) {
        self.list_head(id, values.len(), 5);
        values.iter().for_each(|value| self.zigzag(*value));
    }

    fn text_list(&mut self, id: i16, values: &[&str]) {
        self.list_head(id, values.len(), TYPE_BINARY);
        values.iter().for_each(|value| self.bytes(value));
    }

    fn begin_list(&mut self, id: i16, n: usize) {
        self.list_head(id, n, TYPE_STRUCT);
    }

    /// A struct within a list, which has no field of its own.
    fn begin_element(&mut self) {
        self.last.push(0);
    }

    fn begin_struct(&mut self, id: i16) {
        self.field(id, TYPE_STRUCT);
        self.last.push(0);
    }

    fn end_struct(&mut self) {
        self.stop();
        self.last.pop();
    }

    fn stop(&mut self) {
        self.out.push(0);
    }
}
