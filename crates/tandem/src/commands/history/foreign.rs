//! llmb-run's own history, `$LLMB_INSTALL/.llmb/jobs.sqlite3`: read, never written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::store::{Entry, Seen, WorkloadJob};

/// The newest schema that is known.
const MAX_SCHEMA: u32 = 2;

/// Its jobs, newest first; none when there is no such file.
pub(crate) fn read(install: &Path) -> Result<Vec<(Entry, Seen)>, String> {
    let path = install.join(".llmb/jobs.sqlite3");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let fail = |e: rusqlite::Error| format!("{}: {e}", path.display());
    let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(fail)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(fail)?;
    let version: Option<String> = db
        .query_row("SELECT CAST(value AS TEXT) FROM metadata WHERE key = 'schema_version'", [], |row| row.get(0))
        .optional()
        .map_err(fail)?;
    let version = version.unwrap_or_else(|| "1".to_owned());
    if version.parse::<u32>().map_or(true, |version| version > MAX_SCHEMA) {
        return Err(format!("{} has schema {version}, this program reads up to {MAX_SCHEMA}", path.display()));
    }
    // Columns are taken by name, and an old schema may lack some.
    let mut statement = db.prepare("SELECT * FROM jobs").map_err(fail)?;
    let rows = statement.query_map([], |row| Ok(job(row))).map_err(fail)?;
    let mut jobs: Vec<(Entry, Seen)> = rows.collect::<Result<_, _>>().map_err(fail)?;
    jobs.sort_by_key(|(entry, _)| std::cmp::Reverse((entry.submitted_ns, entry.job_id)));
    Ok(jobs)
}

fn job(row: &Row<'_>) -> (Entry, Seen) {
    use rusqlite::types::ValueRef;
    let text = |name: &str| match row.get_ref(name) {
        Ok(ValueRef::Text(text)) => String::from_utf8_lossy(text).into_owned(),
        Ok(ValueRef::Integer(n)) => n.to_string(),
        Ok(ValueRef::Real(n)) => n.to_string(),
        _ => String::new(),
    };
    let truth = |name: &str| matches!(text(name).as_str(), "1" | "true" | "True");
    let config = text("llmb_config_path");
    let entry = Entry {
        folder: PathBuf::from(text("log_dir")),
        job_id: text("job_id").parse().ok(),
        recipe: text("model_name"),
        plan_hash: String::new(),
        submitted_ns: time_ns(&text("submit_time")).or_else(|| time_ns(&text("created_at"))).unwrap_or(0),
        workload: Some(WorkloadJob {
            key: text("workload_key"),
            model_size: text("model_size"),
            dtype: text("dtype"),
            scale: text("scale").parse().unwrap_or(0),
            profile: truth("profile_enabled"),
            proxy: truth("proxy"),
            launcher: text("launcher_type"),
            log_dir: PathBuf::from(text("log_dir")),
            config: Some(PathBuf::from(&config)).filter(|_| !config.is_empty()),
        }),
    };
    let seen = Seen { state: text("slurm_state"), elapsed: text("elapsed"), nodes: text("node_list"), exit_code: text("exit_code") };
    (entry, seen)
}

/// A time with or without a zone; without one it is the local one, as Slurm and Python write it.
fn time_ns(text: &str) -> Option<u64> {
    let zoned = || text.parse::<jiff::Timestamp>().ok();
    let local = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::system()).ok().map(|z| z.timestamp());
    u64::try_from(zoned().or_else(local)?.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn database(dir: &Path, version: u32) {
        fs::create_dir_all(dir.join(".llmb")).unwrap();
        let db = Connection::open(dir.join(".llmb/jobs.sqlite3")).unwrap();
        db.execute_batch(&format!(
            "CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT); INSERT INTO metadata VALUES ('schema_version', '{version}');
             CREATE TABLE jobs (job_id INTEGER PRIMARY KEY, launcher_type TEXT NOT NULL, workload_key TEXT, model_name TEXT,
                model_size TEXT, dtype TEXT, scale INTEGER, profile_enabled INTEGER, proxy INTEGER, log_dir TEXT, llmb_config_path TEXT,
                created_at TEXT, updated_at TEXT, slurm_state TEXT, elapsed TEXT, submit_time TEXT, node_list TEXT, exit_code TEXT);
             INSERT INTO jobs VALUES (7, 'nemo', 'pretrain_llama', 'llama', '70b', 'fp8', 64, 1, 0, '/log', '/log/llmb-config_7.yaml',
                '2026-07-01T10:00:00+00:00', NULL, 'COMPLETED', '00:10:00', NULL, 'n[1-8]', '0:0');
             INSERT INTO jobs VALUES (9, 'configured_sbatch', 'inference_x', 'x', '1t', 'nvfp4', 8, 0, 0, NULL, NULL,
                '2026-07-02T10:00:00', NULL, NULL, NULL, NULL, NULL, NULL);"
        ))
        .unwrap();
    }

    #[test]
    fn its_jobs_are_read_and_the_folder_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        database(dir.path(), 2);
        let before = fs::read(dir.path().join(".llmb/jobs.sqlite3")).unwrap();
        let jobs = read(dir.path()).unwrap();
        assert_eq!(jobs.iter().map(|(entry, _)| entry.job_id).collect::<Vec<_>>(), [Some(9), Some(7)]);
        let (entry, seen) = &jobs[1];
        let workload = entry.workload.as_ref().unwrap();
        assert_eq!((workload.key.as_str(), workload.scale, workload.profile), ("pretrain_llama", 64, true));
        assert_eq!((seen.state.as_str(), seen.nodes.as_str()), ("COMPLETED", "n[1-8]"));
        assert_eq!(entry.submitted_ns, 1_782_900_000_000_000_000);
        assert_eq!(fs::read(dir.path().join(".llmb/jobs.sqlite3")).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path().join(".llmb")).unwrap().count(), 1);
    }

    #[test]
    fn a_newer_one_is_refused_and_a_missing_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
        database(dir.path(), 3);
        assert!(read(dir.path()).unwrap_err().contains("has schema 3"));
    }
}
