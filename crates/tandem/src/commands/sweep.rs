//! Sweeps: which load points are left to measure, and one deployment after another, here or inside one job.
//!
//! Identity is content: a point is done when a run folder below the sweep's has a result for it that stands, whatever the
//! folder is called and whichever command measured it. Points of one deployment are one run, so the model is loaded once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tandem_launch::EventLog;
use tandem_launch::slurm::Allocation;
use tandem_plan::Plan;

use super::progress::say;
use super::recipe::read_plan;
use super::run::Run;
use super::run_folder::RunFolder;
use crate::cli::RunArgs;
use crate::exit::{Exit, Failure};
use crate::signals::Interrupts;

/// A deployment of a sweep: its number among all of the recipe, from 1, and its plan with the points that are left.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) number: usize,
    pub(crate) plan: Plan,
}

/// Every deployment, or with `--resume` what the runs below `base` leave over; says what is skipped.
pub(crate) fn cases(args: &RunArgs, plans: Vec<Plan>, base: &Path) -> Vec<Case> {
    let done = if args.resume { done(base, args.strict) } else { BTreeSet::new() };
    let n_points: usize = plans.iter().map(|plan| plan.load.points.len()).sum();
    let numbered = plans.into_iter().zip(1..).map(|(plan, number)| Case { number, plan });
    let left: Vec<Case> = numbered.filter_map(|case| left(case, &done)).collect();
    let n_left: usize = left.iter().map(|case| case.plan.load.points.len()).sum();
    if args.resume {
        say(&format!("{} of {n_points} points are done in {}, {n_left} are left", n_points - n_left, base.display()));
    }
    left
}

/// Whether `args` ask for the folders of a sweep: one below the other for each try of each deployment.
pub(crate) fn is_sweep(args: &RunArgs, n_plans: usize) -> bool {
    n_plans > 1 || args.resume || args.retries > 0
}

/// A case without what is done; none when nothing is left.
fn left(mut case: Case, done: &BTreeSet<String>) -> Option<Case> {
    let keep: Vec<bool> = (0..case.plan.load.points.len()).map(|i| !done.contains(&case.plan.point_hash(i))).collect();
    let mut keep = keep.iter();
    case.plan.load.points.retain(|_| keep.next().is_some_and(|keep| *keep));
    (!case.plan.load.points.is_empty()).then_some(case)
}

/// Points that have a result which stands: not invalid, or with `strict` nothing but valid.
fn done(base: &Path, strict: bool) -> BTreeSet<String> {
    let folders = fs::read_dir(base).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    folders.chain([base.to_owned()]).flat_map(|folder| done_in(&folder, strict)).collect()
}

fn done_in(folder: &Path, strict: bool) -> Vec<String> {
    let read = || Some((read_plan(&folder.join("plan.json")).ok()?, fs::read_to_string(folder.join("result.json")).ok()?));
    let Some((plan, text)) = read() else { return Vec::new() };
    let result: Value = serde_json::from_str(&text).unwrap_or_default();
    let stands = |point: &Value| match point["validity"].as_str() {
        Some("valid") => true,
        Some("suspect") => !strict,
        _ => false,
    };
    let points = result["points"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Only measurements count, whatever else has the form of a run.
    let measured = result["kind"] == "measured";
    let standing = points.iter().take(plan.load.points.len()).enumerate().filter(|(_, point)| measured && stands(point));
    standing.map(|(index, _)| plan.point_hash(index)).collect()
}

/// A folder for the next try of a case: `case-3`, then `case-3-2` …
fn fresh(base: &Path, number: usize) -> PathBuf {
    let first = base.join(format!("case-{number}"));
    let more = (2..).map(|n| base.join(format!("case-{number}-{n}")));
    std::iter::once(first.clone()).chain(more).find(|path| !path.exists()).unwrap_or(first)
}

/// Where the folder of a job that runs a sweep has the plan of case `number`.
pub(crate) fn plan_name(number: usize) -> String {
    format!("plans/case-{number}.json")
}

/// The first of `job-1`, `job-2` … below `base` that does not exist: the folder of a job that runs a sweep.
pub(crate) fn fresh_job(base: &Path) -> PathBuf {
    (1..).map(|n| base.join(format!("job-{n}"))).find(|path| !path.exists()).unwrap_or_else(|| base.join("job"))
}

/// Runs one case after the other, each failed one again up to `--retries` times, and goes on when one cannot be had.
///
/// `bind` gives a case its place in the job. What happens is noted in `events` as well.
pub(crate) async fn drive(
    args: &RunArgs,
    base: &Path,
    cases: Vec<Case>,
    interrupts: &mut Interrupts,
    events: Option<&EventLog>,
    bind: impl Fn(&Plan) -> Result<Option<Allocation>, Failure>,
) -> Result<(), Failure> {
    let note = |event: &str, fields: Value| events.iter().for_each(|events| events.emit(event, fields.clone()));
    let (n_cases, mut failures) = (cases.len(), Vec::new());
    for (i, case) in cases.into_iter().enumerate() {
        let number = case.number;
        let mut left_over = Some(case);
        let mut n_tries = 0;
        while let Some(case) = left_over.take() {
            n_tries += 1;
            let folder = RunFolder::create(&fresh(base, number))?;
            let name = folder.root().file_name().unwrap_or_default().to_string_lossy().into_owned();
            say(&format!("deployment {} of {n_cases}, try {n_tries}: {name}", i + 1));
            note("case_started", json!({"name": name, "try": n_tries, "n_points": case.plan.load.points.len()}));
            let outcome = match bind(&case.plan) {
                Ok(allocation) => match Run::begin(args, case.plan.clone(), folder, allocation) {
                    Ok(run) => run.drive(interrupts).await,
                    Err(failure) => Err(failure),
                },
                Err(failure) => Err(failure),
            };
            let code = outcome.as_ref().err().map_or(0, |failure| failure.exit as u8);
            note("case_ended", json!({"name": name, "exit_code": code}));
            let Err(failure) = outcome else { break };
            if interrupts.told_to_end() {
                return Err(failure);
            }
            if n_tries <= args.retries && is_worth_a_retry(&failure) {
                say(&format!("{name} failed and is tried again: {:#}", failure.error));
                // What it had measured before it failed is not measured again.
                left_over = left(case, &done(base, args.strict));
                continue;
            }
            say(&failure.to_string());
            failures.push((name, failure));
        }
    }
    summarise(failures, n_cases)
}

/// The first failure stands for all; alone it is what it is.
fn summarise(failures: Vec<(String, Failure)>, n_cases: usize) -> Result<(), Failure> {
    let n_failed = failures.len();
    let names: Vec<String> = failures.iter().map(|(name, _)| name.clone()).collect();
    match failures.into_iter().next() {
        None => Ok(()),
        Some((_, failure)) if n_cases == 1 => Err(failure),
        Some((name, failure)) => {
            let message = format!("{n_failed} of {n_cases} deployments failed: {}; {name}: {:#}", names.join(", "), failure.error);
            Err(Failure::message(failure.exit, message).with_hint("the same command with --resume measures what is missing"))
        }
    }
}

/// Whether another try may go better: a death, a slow start, requests that failed, or a check on noisy figures.
fn is_worth_a_retry(failure: &Failure) -> bool {
    matches!(failure.exit, Exit::Died | Exit::NotReady | Exit::Incomplete | Exit::CheckFailed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sets: &[&str]) -> Plan {
        let inputs = tandem_recipe::Inputs {
            recipe: Some(tandem_recipe::RecipeSource::Builtin("tiny".into())),
            sets: sets.iter().map(ToString::to_string).collect(),
            ..tandem_recipe::Inputs::default()
        };
        let recipe = tandem_recipe::load_recipe(&inputs).unwrap();
        tandem_recipe::plans(&recipe, &|_| Err(std::io::ErrorKind::NotFound.into())).unwrap().remove(0)
    }

    fn write_run(folder: &Path, plan: &Plan, kind: &str, validities: &[&str]) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("plan.json"), serde_json::to_string(plan).unwrap()).unwrap();
        let points: Vec<Value> = validities.iter().map(|validity| json!({"validity": validity})).collect();
        fs::write(folder.join("result.json"), json!({"kind": kind, "points": points}).to_string()).unwrap();
    }

    fn concurrencies(case: Option<Case>) -> Vec<u32> {
        case.into_iter().flat_map(|case| case.plan.load.points).map(|point| point.concurrency).collect()
    }

    #[test]
    fn what_stands_is_skipped_and_what_fell_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let all = plan(&["CONCURRENCY=1,2,4"]);
        let case = || Case { number: 1, plan: all.clone() };
        let left_with = |strict| concurrencies(left(case(), &done(dir.path(), strict)));
        assert_eq!(left_with(false), [1, 2, 4]);
        write_run(&dir.path().join("case-1"), &all, "measured", &["valid", "suspect", "invalid"]);
        assert_eq!((left_with(false), left_with(true)), (vec![4], vec![2, 4]));
        // Another name, another order, other places of the same values: the same points.
        write_run(&dir.path().join("x"), &plan(&["CONCURRENCY=4,2", "ISL=32"]), "measured", &["valid"]);
        assert!(left_with(false).is_empty());
        // Another deployment, another number of requests, and a simulation are not the same.
        let other = tempfile::tempdir().unwrap();
        write_run(&other.path().join("a"), &plan(&["CONCURRENCY=1,2,4", "OSL=9"]), "measured", &["valid"; 3]);
        write_run(&other.path().join("b"), &plan(&["CONCURRENCY=1,2,4", "MULTI_ROUND=9"]), "measured", &["valid"; 3]);
        write_run(&other.path().join("c"), &all, "simulated", &["valid"; 3]);
        assert_eq!(concurrencies(left(case(), &done(other.path(), false))), [1, 2, 4]);
    }

    #[test]
    fn each_try_has_a_folder_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let name = || fresh(dir.path(), 3).file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name(), "case-3");
        fs::create_dir(dir.path().join("case-3")).unwrap();
        assert_eq!(name(), "case-3-2");
    }

    #[test]
    fn the_first_failure_stands_for_a_sweep_and_is_itself_alone() {
        let failed = |exit| ("case-1".to_owned(), Failure::message(exit, "boom"));
        assert!(summarise(Vec::new(), 3).is_ok());
        assert_eq!(summarise(vec![failed(Exit::Died)], 1).unwrap_err().error.to_string(), "boom");
        let many = summarise(vec![failed(Exit::Died), failed(Exit::NotReady)], 3).unwrap_err();
        assert_eq!(many.exit, Exit::Died);
        assert!(many.error.to_string().starts_with("2 of 3 deployments failed: case-1, case-1; case-1: boom"), "{}", many.error);
    }
}
