//! The history as a SQLite database, one for an installation.
//!
//! It stays in the default journal mode: installations lie on shared file systems, where write-ahead logging does not work. A process
//! that finds it locked waits; each submission is one transaction.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use serde_json::Value;

/// One submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) folder: PathBuf,
    pub(crate) job_id: Option<u64>,
    pub(crate) recipe: String,
    pub(crate) plan_hash: String,
    pub(crate) submitted_ns: u64,
    /// What llmb's tools would call it, when it was submitted as one of their workloads.
    pub(crate) workload: Option<WorkloadJob>,
}

/// A job as llmb's tools list it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WorkloadJob {
    pub(crate) key: String,
    pub(crate) model_size: String,
    pub(crate) dtype: String,
    pub(crate) scale: u32,
    pub(crate) profile: bool,
    pub(crate) proxy: bool,
    /// `tandem`, or the launcher type of a script.
    pub(crate) launcher: String,
    pub(crate) log_dir: PathBuf,
    pub(crate) config: Option<PathBuf>,
}

/// What Slurm said last about a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: String,
    pub(crate) elapsed: String,
    pub(crate) nodes: String,
    pub(crate) exit_code: String,
}

const SCHEMA_VERSION: u32 = 1;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    folder TEXT NOT NULL UNIQUE,
    job_id INTEGER,
    recipe TEXT NOT NULL,
    plan_hash TEXT NOT NULL,
    submitted_ns INTEGER NOT NULL,
    workload_key TEXT, model_size TEXT, dtype TEXT, scale INTEGER, profile INTEGER, proxy INTEGER,
    launcher TEXT, log_dir TEXT, config TEXT,
    slurm_state TEXT, elapsed TEXT, node_list TEXT, exit_code TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_job_id ON jobs (job_id);
";

const COLUMNS: &str = "folder, job_id, recipe, plan_hash, submitted_ns, workload_key, model_size, dtype, scale, profile, proxy, \
                       launcher, log_dir, config, slurm_state, elapsed, node_list, exit_code";

/// An open history.
#[derive(Debug)]
pub(crate) struct Store {
    db: Connection,
}

impl Store {
    /// Opens or creates the database at `path`, and takes in the JSON lines beside it that earlier versions wrote.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
        let fail = |e: rusqlite::Error| format!("{}: {e}", path.display());
        let mut db = Connection::open(path).map_err(fail)?;
        db.busy_timeout(Duration::from_secs(20)).map_err(fail)?;
        // Who comes first makes the tables; the others wait for the lock and find them.
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        transaction.execute_batch(SCHEMA).map_err(fail)?;
        let version: Option<String> = transaction
            .query_row("SELECT value FROM metadata WHERE key = 'schema_version'", [], |row| row.get(0))
            .optional()
            .map_err(fail)?;
        match version.as_deref().map(str::parse::<u32>) {
            None => drop(
                transaction.execute("INSERT INTO metadata VALUES ('schema_version', ?1)", [SCHEMA_VERSION.to_string()]).map_err(fail)?,
            ),
            Some(Ok(SCHEMA_VERSION)) => {}
            Some(_) => {
                let version = version.unwrap_or_default();
                return Err(format!("{} has history schema {version}, this program knows {SCHEMA_VERSION}: upgrade it", path.display()));
            }
        }
        let old = dir.join("history.jsonl");
        if let Ok(text) = fs::read_to_string(&old) {
            for entry in text.lines().filter_map(parse_line) {
                insert(&transaction, &entry).map_err(fail)?;
            }
        }
        transaction.commit().map_err(fail)?;
        // Renamed only now: a crash before this repeats the import, which finds its rows there.
        let _ = fs::rename(&old, dir.join("history.jsonl.imported"));
        Ok(Store { db })
    }

    /// Adds a submission; one that is there stays as it is.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<(), String> {
        insert(&self.db, entry).map_err(|e| e.to_string())
    }

    /// The newest `n`, newest first.
    pub(crate) fn newest(&self, n: usize) -> Result<Vec<(Entry, Seen)>, String> {
        let query = || -> rusqlite::Result<Vec<(Entry, Seen)>> {
            let mut statement = self.db.prepare(&format!("SELECT {COLUMNS} FROM jobs ORDER BY submitted_ns DESC, id DESC LIMIT ?1"))?;
            let rows = statement.query_map([i64::try_from(n).unwrap_or(i64::MAX)], read)?;
            rows.collect()
        };
        query().map_err(|e| e.to_string())
    }

    /// Notes what Slurm said, and the number if only now it is known.
    pub(crate) fn note(&mut self, folder: &Path, job_id: Option<u64>, seen: &Seen) -> Result<(), String> {
        let sql = "UPDATE jobs SET job_id = coalesce(?2, job_id), slurm_state = ?3, elapsed = ?4, node_list = ?5, exit_code = ?6 \
                   WHERE folder = ?1";
        let values = params![folder.display().to_string(), job_id.map(to_db), seen.state, seen.elapsed, seen.nodes, seen.exit_code];
        self.db.execute(sql, values).map(drop).map_err(|e| e.to_string())
    }
}

/// SQLite's integers are signed; no time or job number reaches their end.
fn to_db(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn insert(db: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    let path = |path: &Path| path.display().to_string();
    let w = entry.workload.as_ref();
    let values = params![
        path(&entry.folder),
        entry.job_id.map(to_db),
        entry.recipe,
        entry.plan_hash,
        to_db(entry.submitted_ns),
        w.map(|w| &w.key),
        w.map(|w| &w.model_size),
        w.map(|w| &w.dtype),
        w.map(|w| w.scale),
        w.map(|w| w.profile),
        w.map(|w| w.proxy),
        w.map(|w| &w.launcher),
        w.map(|w| path(&w.log_dir)),
        w.and_then(|w| w.config.as_deref().map(path)),
    ];
    let sql = "INSERT OR IGNORE INTO jobs (folder, job_id, recipe, plan_hash, submitted_ns, workload_key, model_size, dtype, scale, \
               profile, proxy, launcher, log_dir, config) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    db.execute(sql, values).map(drop)
}

fn read(row: &Row<'_>) -> rusqlite::Result<(Entry, Seen)> {
    let text = |index: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(index)?.unwrap_or_default());
    let number = |index: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(index)?.and_then(|n| u64::try_from(n).ok()));
    let workload = match row.get::<_, Option<String>>("workload_key")? {
        None => None,
        Some(key) => Some(WorkloadJob {
            key,
            model_size: text("model_size")?,
            dtype: text("dtype")?,
            scale: number("scale")?.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            profile: row.get::<_, Option<bool>>("profile")?.unwrap_or(false),
            proxy: row.get::<_, Option<bool>>("proxy")?.unwrap_or(false),
            launcher: text("launcher")?,
            log_dir: PathBuf::from(text("log_dir")?),
            config: row.get::<_, Option<String>>("config")?.map(PathBuf::from),
        }),
    };
    let entry = Entry {
        folder: PathBuf::from(text("folder")?),
        job_id: number("job_id")?,
        recipe: text("recipe")?,
        plan_hash: text("plan_hash")?,
        submitted_ns: number("submitted_ns")?.unwrap_or(0),
        workload,
    };
    let seen = Seen { state: text("slurm_state")?, elapsed: text("elapsed")?, nodes: text("node_list")?, exit_code: text("exit_code")? };
    Ok((entry, seen))
}

/// A line of the history that earlier versions kept; one that a crash cut short is none.
fn parse_line(line: &str) -> Option<Entry> {
    let value: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    Some(Entry {
        folder: PathBuf::from(text("folder")?),
        job_id: value["job_id"].as_u64(),
        recipe: text("recipe")?,
        plan_hash: text("plan_hash")?,
        submitted_ns: value["submitted_ns"].as_u64()?,
        workload: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        let workload = WorkloadJob {
            key: "inference_x".into(),
            model_size: "7b".into(),
            dtype: "fp8".into(),
            scale: 8,
            launcher: "sbatch".into(),
            log_dir: "/log".into(),
            ..WorkloadJob::default()
        };
        Entry {
            folder: format!("/r{n}").into(),
            job_id: Some(n),
            recipe: "x".into(),
            plan_hash: "ab".into(),
            submitted_ns: n,
            workload: Some(workload).filter(|_| n.is_multiple_of(2)),
        }
    }

    #[test]
    fn what_was_added_is_found_newest_first_and_may_be_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/history.sqlite3");
        let mut store = Store::open(&path).unwrap();
        for n in [2, 3, 1] {
            store.add(&entry(n)).unwrap();
        }
        let all: Vec<Entry> = store.newest(2).unwrap().into_iter().map(|(entry, _)| entry).collect();
        assert_eq!(all, [entry(3), entry(2)]);
        let seen = Seen { state: "COMPLETED".into(), elapsed: "00:01:00".into(), nodes: "n[1-2]".into(), exit_code: "0:0".into() };
        store.note(Path::new("/r2"), None, &seen).unwrap();
        assert_eq!(Store::open(&path).unwrap().newest(2).unwrap()[1], (entry(2), seen));
    }

    #[test]
    fn json_lines_of_earlier_versions_are_taken_in_once() {
        let dir = tempfile::tempdir().unwrap();
        let good = r#"{"folder":"/r","job_id":7,"recipe":"nano","plan_hash":"ab","submitted_ns":5}"#;
        fs::write(dir.path().join("history.jsonl"), format!("{good}\n{}\n", &good[..40])).unwrap();
        let path = dir.path().join("history.sqlite3");
        for _ in 0..2 {
            let all = Store::open(&path).unwrap().newest(10).unwrap();
            assert_eq!(all.len(), 1);
            assert_eq!((all[0].0.job_id, all[0].0.recipe.as_str()), (Some(7), "nano"));
        }
        assert!(!dir.path().join("history.jsonl").exists() && dir.path().join("history.jsonl.imported").exists());
    }

    #[test]
    fn many_submissions_at_once_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.sqlite3");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for n in 0..10 {
                        Store::open(path).unwrap().add(&entry(thread * 100 + n)).unwrap();
                    }
                });
            }
        });
        assert_eq!(Store::open(&path).unwrap().newest(1000).unwrap().len(), 40);
    }

    #[test]
    fn a_newer_schema_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.sqlite3");
        let store = Store::open(&path).unwrap();
        store.db.execute("UPDATE metadata SET value = '9'", []).unwrap();
        assert!(Store::open(&path).unwrap_err().contains("history schema 9"));
    }
}
