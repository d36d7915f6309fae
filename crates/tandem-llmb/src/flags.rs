//! Options of one submission that are checked and passed on: `--env`, `--slurm-arg`, and Slurm's own with a flag of their own.

use crate::LlmbError;

/// Options for `sbatch`, in the tools' order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlurmFlags {
    /// `--nodelist`.
    pub nodelist: Option<String>,
    /// `--exclude`.
    pub exclude: Option<String>,
    /// `--reservation`.
    pub reservation: Option<String>,
    /// `--segment`.
    pub segment: Option<u32>,
    /// `--nice`.
    pub nice: Option<i64>,
    /// `--slurm-arg`, as [`slurm_args`] read them: a name, and a value unless it is a bare flag.
    pub passthrough: Vec<(String, Option<String>)>,
}

impl SlurmFlags {
    /// As `sbatch` takes them.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let own = [
            ("nodelist", self.nodelist.clone()),
            ("exclude", self.exclude.clone()),
            ("reservation", self.reservation.clone()),
            ("segment", self.segment.map(|n| n.to_string())),
            ("nice", self.nice.map(|n| n.to_string())),
        ];
        let own = own.into_iter().filter_map(|(name, value)| value.map(|value| format!("--{name}={value}")));
        let passed = self.passthrough.iter().map(|(name, value)| match value {
            Some(value) => format!("--{name}={value}"),
            None => format!("--{name}"),
        });
        own.chain(passed).collect()
    }
}

/// Reads `--slurm-arg` values: `key=value`, or a bare flag, without dashes.
///
/// # Errors
/// A name with dashes, an empty name or value, one that has a flag of its own, or one that comes twice.
pub fn slurm_args(given: &[String]) -> Result<Vec<(String, Option<String>)>, LlmbError> {
    let mut all: Vec<(String, Option<String>)> = Vec::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text.as_str(), None),
        };
        if name.starts_with("--") {
            return Err(LlmbError(format!("`--slurm-arg {text}`: leave the leading \"--\" away")));
        }
        if name.is_empty() || value == Some("") {
            return Err(LlmbError(format!("`--slurm-arg {text}`: key and value must not be empty")));
        }
        if ["nodelist", "exclude", "reservation", "segment", "nice"].contains(&name) {
            return Err(LlmbError(format!("`{name}` has a dedicated flag. Use `--{name}` instead of `--slurm-arg {text}`.")));
        }
        if all.iter().any(|(known, _)| known == name) {
            return Err(LlmbError(format!("`--slurm-arg {name}` is given twice")));
        }
        all.push((name.to_owned(), value.map(str::to_owned)));
    }
    Ok(all)
}

/// Reads `--env` values. Unlike the tools' own, a value may hold spaces and quotes: nothing here passes through a shell.
///
/// # Errors
/// One that is not `KEY=value`, is no name of a variable, comes twice, or holds a line break.
pub fn env_args(given: &[String]) -> Result<Vec<(String, String)>, LlmbError> {
    let mut all: Vec<(String, String)> = Vec::new();
    for text in given {
        let Some((name, value)) = text.split_once('=') else {
            return Err(LlmbError(format!("`--env` must be in `KEY=value` form. Got: {text}")));
        };
        check_variable("`--env`", name, value)?;
        if all.iter().any(|(known, _)| known == name) {
            return Err(LlmbError(format!("`--env {name}` is given twice")));
        }
        all.push((name.to_owned(), value.to_owned()));
    }
    Ok(all)
}

/// Checks one variable that a user states.
pub(crate) fn check_variable(whose: &str, name: &str, value: &str) -> Result<(), LlmbError> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(LlmbError(format!("{whose} variable name '{name}' must match [A-Za-z_][A-Za-z0-9_]*")));
    }
    if value.contains(['\n', '\0']) {
        return Err(LlmbError(format!("{whose} {name}: the value holds a line break or a zero byte")));
    }
    Ok(())
}
