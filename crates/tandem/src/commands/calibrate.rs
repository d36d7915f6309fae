//! `tandem calibrate`: constants of the performance model from measured rows, and how well they predict other rows.

use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_sim::evaluate::{Line, Scored, Table, line, mean, render, tables, to_json};
use tandem_sim::fit::{Constants, Options, Split, Target, calibrate as fit, examine, find_prefill, record_provenance, targets};
use tandem_sim::model::Model;
use tandem_sim::rows::{Kind, Row};

use super::evaluate::{print, read_rows, read_tables};
use super::run_folder::write_whole;
use crate::cli::CalibrateArgs;
use crate::exit::{Exit, Failure, OrExit};

pub(crate) fn calibrate(args: &CalibrateArgs) -> Result<(), Failure> {
    let Some(rows) = &args.rows else { return super::calibrate_engine::from_runs(&args.from_run, args.constants.as_deref(), &args.out) };
    let (rows, others) = read_rows(rows)?;
    let base = Model::deepseek_r1(Constants::uncorrected());
    let base = match &args.tables {
        Some(folder) => base.with_tables(read_tables(folder, &rows)?),
        None => base,
    };
    let targets = with_prefill(&base, targets(&rows));
    let options = Options::default();
    let mut constants = fit(&base, &targets.iter().collect::<Vec<_>>(), &options);
    let mut text = format!("{} rows, {} distinct\n\n", rows.len(), targets.len());
    if args.fit_only {
        record_provenance(&mut constants, &args.source, &targets, &[]);
    } else {
        let served: Vec<Row> = rows.iter().filter(|r| r.kind == Kind::Disaggregated).cloned().collect();
        let others_of = (1..args.assignments).map(|seed| (&served, Split::Configuration { seed }));
        let mut jobs = vec![(&rows, Split::Configuration { seed: 0 }), (&served, Split::Gpu), (&served, Split::Stack)];
        jobs.extend(others_of);
        let mut examined = examine_all(&base, &targets, &jobs, &options).into_iter();
        let (Some(unseen), Some(gpus), Some(stacks)) = (examined.next(), examined.next(), examined.next()) else { return Ok(()) };
        record_provenance(&mut constants, &args.source, &targets, &unseen);
        if let Some(path) = &args.unseen {
            let json = serde_json::to_string_pretty(&to_json(&tables(&unseen), &unseen, others)).or_exit(Exit::Bug)?;
            write_whole(path, (json + "\n").as_bytes())?;
        }
        text += &format!("Configurations not fitted (5 folds)\n\n{}\n", render(&tables(&unseen)));
        let known = |scored: &[Scored], name: String| line(name, &scored.iter().filter(|s| s.has_known_knobs()).collect::<Vec<_>>());
        let mut lines = vec![known(&unseen, "0".to_owned())];
        lines.extend((1..args.assignments).zip(examined).map(|(seed, unseen)| known(&unseen, seed.to_string())));
        lines.push(mean("mean", &lines));
        text += &format!("Assignments of configurations to folds\n\n{}\n", render(&[Table { name: "disaggregated, known knobs", lines }]));
        for (title, name, unseen, split) in
            [("GPU not fitted", "left out: gpu", gpus, Split::Gpu), ("Stack not fitted", "left out: stack", stacks, Split::Stack)]
        {
            text += &format!("{title}\n\n{}\n", render(&[left_out(name, &unseen, split)]));
        }
    }
    write_whole(&args.out, constants.to_json().as_bytes())?;
    print(&format!("{text}wrote {}\n", args.out.display()))
}

/// Examinations on all cores, in the order of `jobs`.
fn examine_all(base: &Model, targets: &[Target], jobs: &[(&Vec<Row>, Split)], options: &Options) -> Vec<Vec<Scored>> {
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((i, (rows, split))) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, jobs.get(i)?))) {
            done.push((i, examine(base, targets, rows, *split, options)));
        }
        done
    };
    let mut all: Vec<(usize, Vec<Scored>)> = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..n).map(|_| scope.spawn(work)).collect();
        hands.into_iter().flat_map(|hand| hand.join().expect("an examination does not panic")).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, scored)| scored).collect()
}

/// Finds the prefill factors on all cores: it simulates every row several times.
fn with_prefill(base: &Model, mut targets: Vec<Target>) -> Vec<Target> {
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let mut hands: Vec<Vec<&mut Target>> = (0..n).map(|_| Vec::new()).collect();
    for (i, target) in targets.iter_mut().enumerate() {
        hands[i % n].push(target);
    }
    std::thread::scope(|scope| {
        for hand in hands {
            scope.spawn(move || hand.into_iter().for_each(|target| find_prefill(base, target)));
        }
    });
    targets
}

/// One line for each part that was left out.
fn left_out(name: &'static str, scored: &[Scored], split: Split) -> Table {
    let label = |s: &Scored| if split == Split::Gpu { s.row.hardware.clone() } else { s.row.stack.clone() };
    let mut labels: Vec<String> = scored.iter().map(label).collect();
    labels.sort_unstable();
    labels.dedup();
    let of = |l: &String| -> Line { line(l.clone(), &scored.iter().filter(|s| s.has_known_knobs() && label(s) == *l).collect::<Vec<_>>()) };
    Table { name, lines: labels.iter().map(of).collect() }
}
