//! `tandem explore`: which configurations are worth GPU hours.

mod answer;
mod live;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use tandem_explore::{
    Axes, Exploration, Expression, Limits, Measured, Pricer, Screened, Screening, Simulated, Slo, Space, State, band, explored, nearest,
    nearest_simulated, propose, screen,
};
use tandem_plan::Plan;

use super::progress::say;
use super::report::{command_line, pretty};
use super::run_folder::write_whole;
use super::{prediction, recipe, run_reader};
use crate::cli::ExploreArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::Interrupts;

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
    let recipe = recipe::load_on(&args.recipe, &args.model)?;
    let about = about(&args, &axes);
    let mut space = Space::new(&recipe, axes, limits).or_exit(Exit::Usage).map_err(|failure| failure.with_hint(CONDITION_FORM))?;
    if space.len() > MAX_POINTS {
        let message = format!("{} points are more than {MAX_POINTS}", space.len());
        return Err(Failure::message(Exit::Usage, message).with_hint("shorten an axis, or give it a step: --set CONCURRENCY=64..4096:x2"));
    }
    let pricer = pricer(&args, &mut space)?;
    // A port that is taken is told before the search, not after it.
    let listener = if args.serve { Some(live::listen(args.port)?) } else { None };
    let stops = Stops::install()?;
    let began = std::time::Instant::now();
    let n = space.len();
    let screening = screen_all(&space, &pricer, &stops);
    let screen_s = began.elapsed().as_secs_f64();
    if let Some(advice) = nearest(&mut space, &screening) {
        let counts: Vec<String> = screening.refusals.iter().map(|(reason, r)| format!("{} × {reason}", r.n)).collect();
        let message = format!("no point of {} is left: {}", screening.n, counts.join(", "));
        return Err(Failure::message(Exit::Infeasible, message).with_hint(format!("nearest change: {advice}")));
    }
    let mut cut_short: Vec<String> = Vec::new();
    if screening.n < n {
        cut_short.push(format!("interrupted: {} of {n} points were screened, spread over the whole space", screening.n));
        say(&cut_short[0]);
    }
    let mut search = Search { space, pricer, state: None, out: args.out.clone(), n_resumed: 0, stops };
    search.open()?;
    let began = std::time::Instant::now();
    let chosen = band(&screening.points, args.band / 100.0, usize::try_from(args.simulate).unwrap_or(usize::MAX));
    let points: Vec<Screened> = chosen.iter().map(|&i| screening.points[i]).collect();
    let simulated = search.simulate(&points)?;
    if search.stops.is_stopped() && simulated.len() < points.len() {
        cut_short.push(format!("interrupted: {} of {} points were simulated", simulated.len(), points.len()));
        if simulated.is_empty() {
            return Err(interrupted(&args));
        }
    }
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
        cut_short: (!cut_short.is_empty()).then(|| cut_short.join("; ")),
    };
    let timing = format!(
        "screened {} points in {screen_s:.2} s, simulated {} in {simulate_s:.2} s ({} taken from before)",
        result.screening.n,
        result.simulated.len() - search.n_resumed,
        search.n_resumed
    );
    write(&args, &result, &search.space, &timing)?;
    if result.cut_short.is_some() {
        return Err(interrupted(&args));
    }
    let Some(listener) = listener else { return Ok(()) };
    live::serve(listener, answer::Predictor::new(search, args.recipe.recipe.clone(), given(&args, &axes_rest)), &result)
}

/// Ends a search that somebody stopped, after what there was has been written.
fn interrupted(args: &ExploreArgs) -> Failure {
    let hint = match &args.out {
        Some(out) => format!("the same call with --out {} goes on with the simulations that are done", out.display()),
        None => "with --out DIR a later call goes on with the simulations that are done".to_owned(),
    };
    Failure::message(Exit::Interrupted, "interrupted before the search was whole").with_hint(hint)
}

/// Counts ctrl-C and SIGTERM: each ends the part of the search that is under way, which goes on with what it has.
struct Stops {
    count: Arc<AtomicUsize>,
    seen: AtomicUsize,
}

impl Stops {
    fn install() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
        let mut interrupts = {
            let _inside = runtime.enter();
            Interrupts::install()?
        };
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        // Left behind at the end: it only waits for signals.
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    interrupts.next().await;
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        Ok(Stops { count, seen: AtomicUsize::new(0) })
    }

    /// Whether somebody wants the part that is under way to end.
    fn is_stopped(&self) -> bool {
        self.count.load(Ordering::Relaxed) > self.seen.load(Ordering::Relaxed)
    }

    /// Begins the next part.
    fn next_part(&self) {
        self.seen.store(self.count.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Flags that make the recipe what it is, besides axes and GPU type.
fn given(args: &ExploreArgs, rest: &[String]) -> Vec<String> {
    let r = &args.recipe;
    let site = r.site.as_ref().map(|path| path.display().to_string());
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let [hardware, constants, tables] = [&args.model.hardware, &args.model.constants, &args.model.tables].map(path);
    let flags = [
        ("--site", &site),
        ("--model", &r.model),
        ("--load-format", &r.load_format),
        ("--device-memory", &r.device_memory),
        ("--hardware", &hardware),
        ("--constants", &constants),
        ("--tables", &tables),
    ];
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
    let gpus: Vec<&str> = args.recipe.gpu_type.iter().map(|gpu| gpu.table_name()).collect();
    Ok(Pricer {
        model: prediction::model_for(config, &args.model, &gpus)?,
        calibration: args.calibration.as_deref().map(super::simulate::read_calibration).transpose()?,
    })
}

/// A thread for each core, as far as there is work.
fn n_threads(n_pieces: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(n_pieces)
}

/// Screens every point, a stretch of the space at a time on each core. Stretches that follow each other lie far apart, so that what is
/// there when somebody stops it says something about the whole space.
fn screen_all(space: &Space, pricer: &Pricer, stops: &Stops) -> Screening {
    let n = space.len();
    let n_stretches = n.div_ceil(STRETCH);
    let n_threads = n_threads(n_stretches);
    let stride = stride(n_stretches);
    let next = AtomicUsize::new(0);
    let mut tick = progress("screened", n);
    let mut stretches: BTreeMap<usize, Screening> = BTreeMap::new();
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        for _ in 0..n_threads {
            let (sender, next, mut space) = (sender.clone(), &next, space.clone());
            scope.spawn(move || {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let from = turn.wrapping_mul(stride) % n_stretches.max(1) * STRETCH;
                    if turn >= n_stretches
                        || stops.is_stopped()
                        || sender.send((from, screen(&mut space, pricer, &read, from..n.min(from + STRETCH)))).is_err()
                    {
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
    stops.next_part();
    stretches.into_values().fold(Screening::default(), |mut all, stretch| {
        all.merge(stretch);
        all
    })
}

/// A step through `n` places that visits each once and leaves those visited so far evenly spread: about the golden ratio of `n`,
/// without a common factor.
fn stride(n: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (n * 618 / 1000..).find(|&step| step > 0 && gcd(step, n.max(1)) == 1).unwrap_or(1)
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
    lines.extend((!args.recipe.gpu_type.is_empty()).then(|| format!("GPU_TYPE = {}", recipe::gpu_types(&args.recipe))));
    lines.extend(args.max_gpus.map(|n| format!("at most {n} GPUs")));
    lines.extend(args.conditions.iter().map(|c| format!("where {c}")));
    lines.extend(args.slo.iter().map(|s| format!("SLO {s}")));
    lines
}

fn read(path: &str) -> std::io::Result<String> {
    fs::read_to_string(path)
}

/// Shows how far a long search is and how long it will take; where nobody looks, once.
fn progress(what: &'static str, n: usize) -> impl FnMut(usize) {
    let is_terminal = std::io::stderr().is_terminal();
    let began = std::time::Instant::now();
    let mut is_told = false;
    move |done| {
        let (done, passed) = (done.min(n), began.elapsed().as_secs_f64());
        // The first second tells the rate.
        if n <= 50_000 || (passed < 1.0 && !is_told) || (!is_terminal && is_told) {
            return;
        }
        is_told = true;
        #[expect(clippy::cast_precision_loss, reason = "a guess")]
        let left_s = passed * (n - done) as f64 / done.max(1) as f64;
        let text = format!("{what} {done} of {n} points, about {left_s:.0} s left (ctrl-C goes on with those)");
        let (before, after) = if is_terminal { ("\r", if done >= n { "\n" } else { "" }) } else { ("", "\n") };
        let _ = write!(std::io::stderr(), "{before}{text:<90}{after}");
    }
}

/// A space, what prices it, and the predictions that are kept.
pub(super) struct Search {
    pub(super) space: Space,
    pub(super) pricer: Pricer,
    state: Option<State>,
    out: Option<PathBuf>,
    n_resumed: usize,
    stops: Stops,
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
        let (n_threads, next, pricer, stops) = (n_threads(open.len()), AtomicUsize::new(0), &self.pricer, &self.stops);
        let kept = std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            for _ in 0..n_threads {
                let (sender, next, open) = (sender.clone(), &next, &open);
                scope.spawn(move || {
                    while let Some((key, plan)) = open.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stops.is_stopped()) {
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn the_command_of_the_live_page_has_what_the_search_was_given() {
        let words = ["tandem", "explore", "deepseek-r1", "--gpu-type", "mine:gb200", "--hardware", "my gpus.json", "--constants", "c.json"];
        let Command::Explore(args) = Cli::parse_from(words).command else { panic!("it is a search") };
        let given = given(&args, &["OSL=512".to_owned()]);
        assert_eq!(given, ["--hardware", "my gpus.json", "--constants", "c.json", "--set", "OSL=512"]);
    }

    #[test]
    fn every_place_is_visited_once_and_early_ones_are_spread() {
        for n in [1, 2, 3, 7, 16, 97, 1000, 9766] {
            let places: Vec<usize> = (0..n).map(|turn| turn * stride(n) % n).collect();
            let mut sorted = places.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            if n >= 97 {
                // The first tenth leaves no hole of more than a fifth.
                let mut early: Vec<usize> = places[..n / 10].to_vec();
                early.sort_unstable();
                assert!(early.windows(2).all(|w| w[1] - w[0] <= n / 5), "{n}: {early:?}");
            }
        }
    }
}
