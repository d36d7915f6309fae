//! `tandem explore`: which configurations are worth GPU hours.

mod answer;
mod live;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use tandem_explore::{
    Axes, Exploration, Expression, Limits, Measured, Pricer, Screened, Screening, Simulated, Slo, Space, State, band, explored, nearest,
    nearest_simulated, propose, screen,
};
use tandem_plan::Plan;

use super::report::{command_line, pretty};
use super::run_folder::write_whole;
use super::{prediction, recipe, run_reader};
use crate::cli::ExploreArgs;
use crate::exit::{Exit, Failure, OrExit};

/// Points of a space, at most: some minutes of screening.
const MAX_POINTS: usize = 20_000_000;
/// How a condition looks.
const CONDITION_FORM: &str = "for example --where \"GEN_GPUS<=32 && NCTX>=NGEN\"; `tandem list` and docs/reference/knobs.md name the knobs";
/// Points that a core screens at a time.
const STRETCH: usize = 2048;
/// What can be varied how.
const AXIS_FORMS: &str = "an axis is --set NAME=A,B,C, NAME=LO..HI, NAME=LO..HI:STEP or NAME=LO..HI:xFACTOR; a knob that follows from others is \
                          --set NAME=OTHER*2; `tandem plan --explain NAME` tells a knob's values";
/// Predictions from before, below the output folder.
const STATE: &str = "state.jsonl";

pub(crate) fn explore(mut args: ExploreArgs) -> Result<(), Failure> {
    let axes = Axes::parse(&args.recipe.sets).or_exit(Exit::Usage).map_err(|failure| failure.with_hint(AXIS_FORMS))?;
    args.recipe.sets.clone_from(&axes.rest);
    let axes_rest = axes.rest.clone();
    let limits = limits(&args)?;
    let recipe = recipe::load(&args.recipe)?;
    let about = about(&args, &axes);
    let mut space = Space::new(&recipe, axes, limits).or_exit(Exit::Usage).map_err(|failure| failure.with_hint(CONDITION_FORM))?;
    if space.len() > MAX_POINTS {
        let message = format!("{} points are more than {MAX_POINTS}", space.len());
        return Err(Failure::message(Exit::Usage, message).with_hint("shorten an axis, or give it a step: --set CONCURRENCY=64..4096:x2"));
    }
    let pricer = pricer(&args, &mut space)?;
    let began = std::time::Instant::now();
    let screening = screen_all(&space, &pricer);
    let screen_s = began.elapsed().as_secs_f64();
    if let Some(advice) = nearest(&mut space, &screening) {
        let counts: Vec<String> = screening.refusals.iter().map(|(reason, r)| format!("{} × {reason}", r.n)).collect();
        let message = format!("no point of {} is left: {}", screening.n, counts.join(", "));
        return Err(Failure::message(Exit::Infeasible, message).with_hint(format!("nearest change: {advice}")));
    }
    let mut search = Search { space, pricer, state: None, out: args.out.clone(), n_resumed: 0 };
    search.open()?;
    let began = std::time::Instant::now();
    let chosen = band(&screening.points, args.band / 100.0, usize::try_from(args.simulate).unwrap_or(usize::MAX));
    let points: Vec<Screened> = chosen.iter().map(|&i| screening.points[i]).collect();
    let simulated = search.simulate(&points)?;
    let simulate_s = began.elapsed().as_secs_f64();
    let measured = if args.measured.is_empty() { Vec::new() } else { measured(&args.measured)? };
    let simulated = explored(simulated, &search.space.limits);
    if let Some(advice) = nearest_simulated(&simulated, &search.space.limits.slos) {
        let message = format!(
            "{} points passed the screen, but none of the {} simulated ones meets the SLOs",
            screening.points.len(),
            simulated.len()
        );
        return Err(Failure::message(Exit::Infeasible, message)
            .with_hint(format!("nearest change: {advice}; or more points with --simulate and --band")));
    }
    let proposals = propose(&simulated, &measured, args.propose);
    let result = Exploration {
        recipe: recipe.name.clone(),
        about,
        slos: search.space.limits.slos.clone(),
        screening,
        simulated,
        measured,
        proposals,
    };
    let timing = format!(
        "screened {} points in {screen_s:.2} s, simulated {} in {simulate_s:.2} s ({} taken from before)",
        result.screening.n,
        result.simulated.len() - search.n_resumed,
        search.n_resumed
    );
    write(&args, &result, &search.space, &timing)?;
    if !args.serve {
        return Ok(());
    }
    live::serve(args.port, answer::Predictor::new(search, args.recipe.recipe.clone(), given(&args, &axes_rest)), &result)
}

/// Flags that make the recipe what it is, besides axes and GPU type.
fn given(args: &ExploreArgs, rest: &[String]) -> Vec<String> {
    let r = &args.recipe;
    let site = r.site.as_ref().map(|path| path.display().to_string());
    let flags = [("--site", &site), ("--model", &r.model), ("--load-format", &r.load_format), ("--device-memory", &r.device_memory)];
    let flags = flags.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value.clone()?])).flatten();
    flags.chain(rest.iter().flat_map(|set| ["--set".to_owned(), set.clone()])).collect()
}

fn limits(args: &ExploreArgs) -> Result<Limits, Failure> {
    if !args.band.is_finite() || args.band < 0.0 {
        return Err(Failure::message(Exit::Usage, "--band is a share of the frontier in percent, 0 or more").with_hint("--band 15"));
    }
    let conditions = args.conditions.iter().map(|text| Expression::parse(text)).collect::<Result<_, _>>();
    let conditions = conditions.or_exit(Exit::Usage).map_err(|failure| failure.with_hint(CONDITION_FORM))?;
    let slos = args.slo.iter().map(|text| text.parse::<Slo>()).collect::<Result<_, _>>();
    let slos = slos.or_exit(Exit::Usage).map_err(|failure| failure.with_hint("for example --slo tpot:30,ttft:5000"))?;
    Ok(Limits { max_gpus: args.max_gpus, conditions, slos })
}

/// What prices the points: the architecture is that of the recipe.
fn pricer(args: &ExploreArgs, space: &mut Space) -> Result<Pricer, Failure> {
    if space.axes.iter().any(|(knob, _)| knob.name == "DUMMY_LAYERS") {
        return Err(Failure::message(Exit::Usage, "all points of a search serve one model: DUMMY_LAYERS cannot vary")
            .with_hint("explore each number of layers by itself"));
    }
    let config = space.architecture(&read).map_err(recipe::plan_failure)?;
    let gpus: Vec<&str> = args.recipe.gpu_type.iter().map(|gpu| gpu.name()).collect();
    Ok(Pricer {
        model: prediction::model_for(config, &args.model, &gpus)?,
        calibration: args.calibration.as_deref().map(super::simulate::read_calibration).transpose()?,
    })
}

/// A thread for each core, as far as there is work.
fn n_threads(n_pieces: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(n_pieces)
}

/// Screens every point, a stretch of the space at a time on each core.
fn screen_all(space: &Space, pricer: &Pricer) -> Screening {
    let n = space.len();
    let n_threads = n_threads(n.div_ceil(STRETCH));
    let next = AtomicUsize::new(0);
    let mut tick = progress("screened", n);
    let mut stretches: BTreeMap<usize, Screening> = BTreeMap::new();
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        for _ in 0..n_threads {
            let (sender, next, mut space) = (sender.clone(), &next, space.clone());
            scope.spawn(move || {
                loop {
                    let from = next.fetch_add(STRETCH, Ordering::Relaxed);
                    if from >= n || sender.send((from, screen(&mut space, pricer, &read, from..n.min(from + STRETCH)))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (from, stretch) in receiver {
            stretches.insert(from, stretch);
            tick(stretches.len() * STRETCH);
        }
    });
    stretches.into_values().fold(Screening::default(), |mut all, stretch| {
        all.merge(stretch);
        all
    })
}

/// The space in words.
fn about(args: &ExploreArgs, axes: &Axes) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (knob, values) in &axes.axes {
        let shown: Vec<String> = values.iter().take(24).map(ToString::to_string).collect();
        let more = if values.len() > 24 { format!(", … ({} values)", values.len()) } else { String::new() };
        lines.push(format!("{} = {}{more}", knob.name, shown.join(", ")));
    }
    lines.extend(axes.derived.iter().map(|(knob, e)| format!("{} = {}", knob.name, e.text)));
    lines.extend(axes.rest.iter().cloned());
    lines.extend(args.recipe.gpu_type.map(|gpu| format!("GPU_TYPE = {gpu}")));
    lines.extend(args.max_gpus.map(|n| format!("at most {n} GPUs")));
    lines.extend(args.conditions.iter().map(|c| format!("where {c}")));
    lines.extend(args.slo.iter().map(|s| format!("SLO {s}")));
    lines
}

fn read(path: &str) -> std::io::Result<String> {
    fs::read_to_string(path)
}

/// Shows how far a long search is, where somebody looks.
fn progress(what: &'static str, n: usize) -> impl FnMut(usize) {
    let is_shown = n > 50_000 && std::io::stderr().is_terminal();
    move |done| {
        if is_shown {
            let _ = write!(std::io::stderr(), "\r{what} {} of {n}{}", done.min(n), if done >= n { "\n" } else { "" });
        }
    }
}

/// A space, what prices it, and the predictions that are kept.
pub(super) struct Search {
    pub(super) space: Space,
    pub(super) pricer: Pricer,
    state: Option<State>,
    out: Option<PathBuf>,
    n_resumed: usize,
}

impl Search {
    /// Takes up the state of an earlier search in the same folder.
    fn open(&mut self) -> Result<(), Failure> {
        let mut state = State::new(&self.pricer);
        if let Some(out) = &self.out {
            fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display())).or_exit(Exit::Artifact)?;
            let path = out.join(STATE);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    state.read(&text);
                    // A line that was cut off must not swallow the next one.
                    if !text.is_empty() && !text.ends_with('\n') {
                        append(&path, "\n")?;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact),
            }
        }
        self.state = Some(state);
        Ok(())
    }

    /// Simulates the points that were not simulated before; each is kept as soon as it is there.
    fn simulate(&mut self, points: &[Screened]) -> Result<Vec<Simulated>, Failure> {
        let mut found = Vec::with_capacity(points.len());
        for point in points {
            let variant = self.space.variant(point.index).map_err(|why| Failure::message(Exit::Bug, why))?;
            let plan: Plan = variant.plan(&read).or_exit(Exit::Bug)?;
            let variant = variant.clone();
            found.push((*point, self.space.knobs(&variant), State::key(&plan), plan));
        }
        let mut state = self.state.take().unwrap_or_else(|| State::new(&self.pricer));
        let open: Vec<(&str, &Plan)> =
            found.iter().filter(|(.., key, _)| state.get(key).is_none()).map(|(.., key, plan)| (key.as_str(), plan)).collect();
        self.n_resumed = found.len() - open.len();
        let (n_threads, next, pricer) = (n_threads(open.len()), AtomicUsize::new(0), &self.pricer);
        let kept = std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            for _ in 0..n_threads {
                let (sender, next, open) = (sender.clone(), &next, &open);
                scope.spawn(move || {
                    while let Some((key, plan)) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let Some(prediction) = pricer.predict(plan).into_iter().next() else { continue };
                        if sender.send((*key, prediction)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            // Kept one by one, so that whoever stops this loses little.
            receiver.into_iter().try_for_each(|(key, prediction)| {
                let line = state.put(key, prediction);
                self.out.as_ref().map_or(Ok(()), |out| append(&out.join(STATE), &line))
            })
        });
        let simulated = found.into_iter().filter_map(|(screened, knobs, key, _)| {
            let prediction = state.get(&key)?.clone();
            Some(Simulated { screened, knobs, key, prediction, meets: true, on_frontier: false })
        });
        let simulated = simulated.collect();
        self.state = Some(state);
        kept.map(|()| simulated)
    }
}

fn append(path: &Path, text: &str) -> Result<(), Failure> {
    let append = || fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes());
    append().with_context(|| format!("cannot write {}", path.display())).or_exit(Exit::Artifact)
}

/// The load points of run folders that have both figures.
fn measured(paths: &[PathBuf]) -> Result<Vec<Measured>, Failure> {
    let runs = run_reader::read_all(paths)?;
    let mut measured = Vec::new();
    for run in &runs {
        let plan = recipe::read_plan(&Path::new(&run.path).join("plan.json")).ok();
        for spot in run.spots() {
            // The plan of a point that was explored has that point alone.
            let key = plan.as_ref().and_then(|plan| {
                let point = *plan.load.points.get(spot.point)?;
                let mut plan = plan.clone();
                plan.load.points = vec![point];
                Some(State::key(&plan))
            });
            measured.push(Measured {
                name: format!("{} at {}", run.name, spot.label),
                corner: tandem_explore::Corner { x: spot.per_user, y: spot.per_gpu },
                ttft_s: spot.ttft_median_ms.map(|ms| ms / 1e3),
                gpus: spot.n_gpus,
                is_simulated: spot.is_simulated,
                key,
            });
        }
    }
    if measured.is_empty() {
        return Err(Failure::message(Exit::Artifact, "none of the runs has both throughput per GPU and per user"));
    }
    Ok(measured)
}

fn write(args: &ExploreArgs, result: &Exploration, space: &Space, timing: &str) -> Result<(), Failure> {
    if let Some(out) = &args.out {
        write_whole(&out.join("explore.json"), pretty(&tandem_explore::json(result))?.as_bytes())?;
        write_whole(&out.join("explore.csv"), tandem_explore::csv(result).as_bytes())?;
        let html = tandem_report::explore_html(&page::page(result, space, &command_line()));
        write_whole(&out.join("explore.html"), html.as_bytes())?;
    }
    let mut text = if args.json { pretty(&tandem_explore::json(result))? } else { tandem_explore::terminal(result) };
    if !args.json {
        text += &format!("\n{timing}\n");
        if let Some(out) = &args.out {
            text += &format!("written: {0}/explore.json, {0}/explore.csv, {0}/explore.html\n", out.display());
        }
    }
    super::report::put(Path::new("-"), text.as_bytes())
}
