//! Reads the logs of a run: the last lines of one, and the per-iteration lines of many.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes at the end of a log in which the tail is looked for.
const TAIL_BYTES: u64 = 16 * 1024;

/// What a line of the iteration log contains, in every engine that the recipe knows.
const ITERATION_MARKS: [&str; 2] = ["num_ctx_tokens", "num_generation_tokens"];

/// The last `n_lines` lines of a log; empty when it cannot be read.
#[must_use]
pub fn tail(path: &Path, n_lines: usize) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(n_lines)..].iter().map(ToString::to_string).collect()
}

/// Copies the per-iteration lines of `sources` to `target`, source after source; returns how many there were.
///
/// # Errors
/// When the target cannot be written or a source exists and cannot be read.
pub fn cut_iterations<P: AsRef<Path>>(sources: &[P], target: &Path) -> io::Result<usize> {
    let mut out = BufWriter::new(File::create(target)?);
    let mut n_lines = 0;
    for source in sources {
        let file = match File::open(source) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            let text = String::from_utf8_lossy(&line);
            if ITERATION_MARKS.iter().any(|mark| text.contains(mark)) {
                out.write_all(&line)?;
                out.write_all(b"\n")?;
                n_lines += 1;
            }
        }
    }
    out.flush()?;
    Ok(n_lines)
}

/// Prompt tokens that the iteration lines of `sources` count together; none when there are no such lines.
#[must_use]
pub fn prompt_tokens<P: AsRef<Path>>(sources: &[P]) -> Option<u64> {
    const KEY: &str = "'num_ctx_tokens': ";
    let of_line = |line: &[u8]| -> Option<u64> {
        let text = String::from_utf8_lossy(line);
        let digits = text.split_once(KEY)?.1;
        digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
    };
    let of_file = |path: &P| {
        let lines = BufReader::new(File::open(path).ok()?).split(b'\n');
        lines.map_while(Result::ok).filter_map(|line| of_line(&line)).fold(None, |sum, n| Some(sum.unwrap_or(0) + n))
    };
    sources.iter().filter_map(of_file).fold(None, |sum, n| Some(sum.unwrap_or(0) + n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_non_empty_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let text: String = (0..10_000).map(|i| format!("line {i}\n\n")).collect();
        std::fs::write(&path, text).unwrap();
        assert_eq!(tail(&path, 2), ["line 9998", "line 9999"]);
        assert!(tail(&dir.path().join("absent"), 3).is_empty());
    }

    #[test]
    fn only_iteration_lines_are_cut_and_absent_logs_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, out) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("out"));
        std::fs::write(&a, "started\niter = 1, states = {'num_ctx_tokens': 3}\n").unwrap();
        std::fs::write(&b, "iter = 7, states = {'num_ctx_tokens': 0, 'num_generation_tokens': 4}").unwrap();
        let n = cut_iterations(&[a, dir.path().join("absent"), b], &out).unwrap();
        assert_eq!(n, 2);
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!((prompt_tokens(&[&a, &b]), prompt_tokens(&[&b]), prompt_tokens(&[&out.with_extension("x")])), (Some(3), Some(0), None));
        let text = std::fs::read_to_string(&out).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("iter = 1") && text.ends_with("4}\n"));
    }
}
