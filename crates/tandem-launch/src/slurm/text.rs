//! Reads what Slurm's programs print. Text, because their JSON changed its shape three times in three years.

use std::collections::BTreeMap;

/// Reads `sbatch --parsable`: `JOBID` or `JOBID;CLUSTER`.
#[must_use]
pub fn job_id(text: &str) -> Option<u64> {
    // Sites print greetings before it; the answer is the last line.
    text.trim().lines().last()?.split(';').next()?.trim().parse().ok()
}

/// Reads one object of `scontrol -o show …`: `Key=Value` pairs; a value may hold spaces.
#[must_use]
pub fn fields(line: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut last: Option<String> = None;
    for word in line.split_whitespace() {
        let is_key = |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_:/".contains(c));
        match word.split_once('=').filter(|(key, _)| is_key(key)) {
            Some((key, value)) => {
                fields.insert(key.to_owned(), value.to_owned());
                last = Some(key.to_owned());
            }
            None => {
                if let Some(value) = last.as_ref().and_then(|key| fields.get_mut(key)) {
                    value.push(' ');
                    value.push_str(word);
                }
            }
        }
    }
    fields
}

/// First word of a job state: `CANCELLED by 1000` and `CANCELLED+` are `CANCELLED`.
#[must_use]
pub fn state_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().trim_end_matches('+').to_owned()
}

/// Which task of a step ended first and how, as `srun` reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// Node name.
    pub node: String,
    /// `task 5`, `tasks 8-15`, or nothing when the node itself failed.
    pub tasks: Option<String>,
    /// `Exited with exit code 7`, `Killed`, `Node failure` …
    pub how: String,
}

/// Finds the culprit in the lines of a step's log. Tasks that died because a peer did come last.
#[must_use]
pub fn culprit<S: AsRef<str>>(lines: &[S]) -> Option<Culprit> {
    let found: Vec<Culprit> = lines.iter().filter_map(|line| culprit_of(line.as_ref())).collect();
    let is_consequence = |how: &str| ["Killed", "Terminated", "exit code 137", "exit code 143"].iter().any(|end| how.ends_with(end));
    let node_failure = found.iter().find(|c| c.tasks.is_none());
    node_failure.or_else(|| found.iter().find(|c| !is_consequence(&c.how))).or(found.first()).cloned()
}

fn culprit_of(line: &str) -> Option<Culprit> {
    let said = line.strip_prefix("srun: error: ")?;
    if let Some(node) = said.strip_prefix("Node failure on ") {
        return Some(Culprit { node: node.trim().to_owned(), tasks: None, how: "Node failure".into() });
    }
    let mut parts = said.splitn(3, ": ");
    let (node, tasks, how) = (parts.next()?, parts.next()?, parts.next()?);
    let is_task = tasks.starts_with("task ") || tasks.starts_with("tasks ");
    is_task.then(|| Culprit { node: node.to_owned(), tasks: Some(tasks.to_owned()), how: how.trim().to_owned() })
}

/// Why Slurm itself ended a step, as `slurmstepd` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// Somebody used `scancel`.
    ByUser,
    /// The time limit.
    TimeLimit,
    /// A node failed.
    NodeFailure,
}

/// Finds Slurm's note on the end of a step in the lines of its log.
#[must_use]
pub fn cancelled<S: AsRef<str>>(lines: &[S]) -> Option<Cancelled> {
    lines.iter().map(AsRef::as_ref).find_map(|line| {
        if line.contains("Node failure on") || line.contains("DUE TO NODE FAILURE") {
            Some(Cancelled::NodeFailure)
        } else if line.contains("DUE TO TIME LIMIT") {
            Some(Cancelled::TimeLimit)
        } else {
            (line.contains("CANCELLED AT") || line.contains("srun: Force Terminated")).then_some(Cancelled::ByUser)
        }
    })
}

/// Whether a line is Slurm's own, not the server's.
#[must_use]
pub fn is_slurms(line: &str) -> bool {
    line.starts_with("srun: ") || line.starts_with("slurmstepd: ") || line.starts_with("slurmstepd-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_id_is_the_last_line_with_or_without_a_cluster() {
        assert_eq!(job_id("42\n"), Some(42));
        assert_eq!(job_id("welcome to the cluster\n42;lab\n"), Some(42));
        assert_eq!(job_id("sbatch: error"), None);
    }

    #[test]
    fn scontrol_values_may_hold_spaces() {
        let job = fields("JobId=7 JobName=x y JobState=RUNNING Reason=None NodeList=n[1-2] Comment=a=b TRES=cpu=4,gres/gpu=8");
        assert_eq!((job["JobName"].as_str(), job["JobState"].as_str()), ("x y", "RUNNING"));
        assert_eq!((job["NodeList"].as_str(), job["Comment"].as_str(), job["TRES"].as_str()), ("n[1-2]", "a=b", "cpu=4,gres/gpu=8"));
        assert_eq!(state_word("CANCELLED by 0"), "CANCELLED");
    }

    #[test]
    fn the_culprit_is_who_died_first_not_who_was_killed_for_it() {
        let log = [
            "engine: something",
            "srun: error: n2: tasks 8-15: Killed",
            "srun: error: n1: task 5: Exited with exit code 7",
            "srun: error: n1: tasks 0-4: Exited with exit code 143",
        ];
        let found = culprit(&log).unwrap();
        assert_eq!((found.node.as_str(), found.tasks.as_deref(), found.how.as_str()), ("n1", Some("task 5"), "Exited with exit code 7"));
        assert_eq!(culprit(&["srun: error: Node failure on n4", log[1]]).unwrap().how, "Node failure");
        assert_eq!(culprit(&["nothing", "srun: error: Unable to create step"]), None);
    }

    #[test]
    fn slurms_own_reasons_are_told_apart() {
        let line = |why: &str| [format!("slurmstepd: error: *** STEP 5.1 ON n1 CANCELLED AT 2026-01-01T00:00:00{why} ***")];
        assert_eq!(cancelled(&line("")), Some(Cancelled::ByUser));
        assert_eq!(cancelled(&line(" DUE TO TIME LIMIT")), Some(Cancelled::TimeLimit));
        assert_eq!(cancelled(&line(" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS")), Some(Cancelled::NodeFailure));
        assert_eq!(cancelled(&["fine"]), None);
    }
}
