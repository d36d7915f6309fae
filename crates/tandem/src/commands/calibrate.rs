//! `tandem calibrate`: constants of the performance model from measured rows, and how well they predict other rows.

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
        let unseen = examine(&base, &targets, &rows, Split::Configuration { seed: 0 }, &options);
        record_provenance(&mut constants, &args.source, &targets, &unseen);
        if let Some(path) = &args.unseen {
            let json = serde_json::to_string_pretty(&to_json(&tables(&unseen), &unseen, others)).or_exit(Exit::Bug)?;
            write_whole(path, (json + "\n").as_bytes())?;
        }
        text += &format!("Configurations not fitted (5 folds)\n\n{}\n", render(&tables(&unseen)));
        let served: Vec<Row> = rows.into_iter().filter(|r| r.kind == Kind::Disaggregated).collect();
        let known = |scored: &[Scored], name: String| line(name, &scored.iter().filter(|s| s.has_known_knobs()).collect::<Vec<_>>());
        let mut lines = vec![known(&unseen, "0".to_owned())];
        for seed in 1..args.assignments {
            lines.push(known(&examine(&base, &targets, &served, Split::Configuration { seed }, &options), seed.to_string()));
        }
        lines.push(mean("mean", &lines));
        text += &format!("Assignments of configurations to folds\n\n{}\n", render(&[Table { name: "disaggregated, known knobs", lines }]));
        for (title, name, split) in [("GPU not fitted", "left out: gpu", Split::Gpu), ("Stack not fitted", "left out: stack", Split::Stack)]
        {
            let unseen = examine(&base, &targets, &served, split, &options);
            text += &format!("{title}\n\n{}\n", render(&[left_out(name, &unseen, split)]));
        }
    }
    write_whole(&args.out, constants.to_json().as_bytes())?;
    print(&format!("{text}wrote {}\n", args.out.display()))
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
