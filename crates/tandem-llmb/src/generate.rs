//! From options to tasks: modes, order, and the reasons when nothing matches.

use crate::LlmbError;
use crate::metadata::{Support, Workload, split_size};

/// One job that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// `TYPE_NAME` of the workload.
    pub workload: String,
    /// Model size.
    pub size: String,
    /// Number format.
    pub dtype: String,
    /// GPUs.
    pub scale: u32,
    /// Whether the run is profiled.
    pub profile: bool,
    /// Whether it stands in for a larger run.
    pub proxy: bool,
    /// Variables of the task.
    pub env: Vec<(String, String)>,
    /// Parameters, which become variables with upper-case names.
    pub params: Vec<(String, String)>,
}

impl Task {
    /// A plain task: neither profiled nor a proxy, nothing overridden.
    #[must_use]
    pub fn new(workload: &str, size: &str, dtype: &str, scale: u32) -> Task {
        Task {
            workload: workload.to_owned(),
            size: size.to_owned(),
            dtype: dtype.to_owned(),
            scale,
            profile: false,
            proxy: false,
            env: Vec::new(),
            params: Vec::new(),
        }
    }
}

/// Tasks, and what was asked for in vain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Generated {
    /// Largest scale first.
    pub tasks: Vec<Task>,
    /// One line for each listed scale or dtype that no task has; the tools drop them without a word.
    pub unmatched: Vec<String>,
}

/// Options of `submit` besides a task file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `-w`, split at commas: KEY or KEY_SIZE.
    pub workloads: Vec<String>,
    /// `-s`.
    pub size: Option<String>,
    /// `-d`, split at commas; empty = all.
    pub dtypes: Vec<String>,
    /// `--scale`, split at commas.
    pub scales: Vec<u32>,
    /// `--max-scale`.
    pub max_scale: Option<u32>,
    /// `--min-scale`.
    pub min_scale: bool,
    /// `--exact-scales`.
    pub exact_scales: bool,
    /// `-r`; 0 is read as 1.
    pub repeats: u32,
    /// `-p`.
    pub profile: bool,
    /// `--proxy`.
    pub proxy: bool,
    /// `--force`: one job, whatever dtype and scale the metadata lists.
    pub force: bool,
}

impl Options {
    fn check(&self) -> Result<(), LlmbError> {
        let fail = |text: &str| Err(LlmbError::new(text));
        let discovers = self.max_scale.is_some() || self.min_scale;
        match (&self.size, self.workloads.len()) {
            (Some(_), 0) => return fail("--model-size requires --workload"),
            (Some(_), 2..) => return fail("Global '--model-size' / '-s' cannot be used with multiple workloads."),
            _ => {}
        }
        let single = [self.workloads.len(), self.dtypes.len(), self.scales.len()].iter().all(|n| *n == 1);
        if self.force && (!single || discovers) {
            return fail("--force takes exactly one job: one -w (with its size, or -s), one -d and one --scale");
        }
        match (self.scales.is_empty(), discovers) {
            (true, false) => fail(
                "Must specify scale parameter\nEither specify exact scale(s): --scale 128,256,512\nOr use discovery: --max-scale 512 or --min-scale",
            ),
            (false, true) => fail("Cannot use --scale with --max-scale or --min-scale"),
            _ => Ok(()),
        }
    }
}

/// Applies to the tasks of a file what the command line says too; the tools ignore that. `-d` and `--scale` keep matching tasks.
///
/// # Errors
/// When nothing is left.
pub fn refine(tasks: Vec<Task>, options: &Options) -> Result<Vec<Task>, LlmbError> {
    let wanted = |task: &Task| {
        (options.dtypes.is_empty() || options.dtypes.contains(&task.dtype))
            && (options.scales.is_empty() || options.scales.contains(&task.scale))
    };
    let n_before = tasks.len();
    let kept = tasks.into_iter().filter(wanted).flat_map(|task| {
        let task = Task { profile: task.profile || options.profile, proxy: task.proxy || options.proxy, ..task };
        std::iter::repeat_n(task, usize::try_from(options.repeats.max(1)).unwrap_or(1))
    });
    let kept: Vec<Task> = kept.collect();
    if kept.is_empty() {
        return Err(LlmbError(format!("None of the {n_before} tasks of the file has the --dtype and --scale of the command line.")));
    }
    Ok(kept)
}

/// Makes the tasks, largest scale first; with none, the reasons why.
///
/// # Errors
/// Options that contradict each other, an unknown workload, or the reasons why nothing matched, one a line.
pub fn generate(options: &Options, workloads: &[Workload], gpu: &str) -> Result<Generated, LlmbError> {
    options.check()?;
    if options.force {
        let (workload, size) = targets(options, workloads)?.remove(0);
        let size = size.ok_or_else(|| LlmbError::new("--force needs a model size: -w KEY_SIZE or -s SIZE"))?;
        let (profile, proxy) = (options.profile, options.proxy);
        let task = Task { profile, proxy, ..Task::new(&workload.key, &size, &options.dtypes[0], options.scales[0]) };
        let n_repeats = usize::try_from(options.repeats.max(1)).unwrap_or(1);
        return Ok(Generated { tasks: vec![task; n_repeats], unmatched: Vec::new() });
    }
    let mut reasons = Vec::new();
    let mut tasks = Vec::new();
    for (workload, size) in targets(options, workloads)? {
        let Some(models) = workload.models(gpu) else {
            reasons.push(format!("{} has no configuration for GPU type {gpu}", workload.key));
            continue;
        };
        for model in models.iter().filter(|m| size.as_ref().is_none_or(|s| *s == m.size)) {
            for (dtype, support) in &model.dtypes {
                if !options.dtypes.is_empty() && !options.dtypes.contains(dtype) {
                    reasons.push(format!("{}_{}: dtype {dtype} was not asked for", workload.key, model.size));
                    continue;
                }
                let chosen = scales(options, support);
                if chosen.is_empty() {
                    let listed: Vec<String> = support.scales.iter().map(ToString::to_string).collect();
                    reasons.push(format!(
                        "{}_{} {dtype}: supports scales {}, none was asked for",
                        workload.key,
                        model.size,
                        listed.join(", ")
                    ));
                }
                for scale in chosen {
                    let (profile, proxy) = (options.profile, options.proxy);
                    let task = Task { profile, proxy, ..Task::new(&workload.key, &model.size, dtype, scale) };
                    tasks.extend(std::iter::repeat_n(task, usize::try_from(options.repeats.max(1)).unwrap_or(1)));
                }
            }
        }
        if let Some(size) = size.filter(|size| models.iter().all(|m| m.size != *size)) {
            reasons.push(format!("Model size '{size}' not supported for workload '{}' for GPU type '{gpu}'.", workload.key));
        }
    }
    if tasks.is_empty() {
        return Err(LlmbError(format!("No matching job configurations found.\n{}", reasons.join("\n"))));
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.scale));
    let mut unmatched = Vec::new();
    for scale in options.scales.iter().filter(|scale| tasks.iter().all(|task| task.scale != **scale)) {
        let reasons: Vec<&str> = reasons.iter().filter(|r| r.contains("supports scales")).map(String::as_str).collect();
        let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        unmatched.push(format!("Scale {scale} matches no configuration{why}."));
    }
    for dtype in options.dtypes.iter().filter(|dtype| tasks.iter().all(|task| task.dtype != **dtype)) {
        unmatched.push(format!("Data type '{dtype}' matches no configuration."));
    }
    Ok(Generated { tasks, unmatched })
}

/// The workloads that are asked for, each with a size if one is.
fn targets<'a>(options: &Options, workloads: &'a [Workload]) -> Result<Vec<(&'a Workload, Option<String>)>, LlmbError> {
    if options.workloads.is_empty() {
        let trained = workloads.iter().filter(|w| ["pretrain", "finetune"].contains(&w.workload_type.as_str()));
        return Ok(trained.map(|w| (w, None)).collect());
    }
    let target = |name: &String| {
        let whole = workloads.iter().find(|w| w.key == *name).map(|w| (w, None));
        let (key, size) = split_size(name);
        let found = whole.or_else(|| workloads.iter().find(|w| w.key == key).map(|w| (w, size)));
        let Some((workload, implied)) = found else {
            let known: Vec<&str> = workloads.iter().take(10).map(|w| w.key.as_str()).collect();
            return Err(LlmbError(format!("Workload '{name}' not found.\nAvailable workloads: {}", known.join(", "))));
        };
        let stated = options.size.as_ref().map(|s| s.to_ascii_lowercase());
        match (implied, stated) {
            (Some(implied), Some(stated)) if implied != stated => Err(LlmbError(format!(
                "Workload name implies size '{implied}' but --model-size is '{stated}'.\nUse either: -w {key} -s {stated}\n        or: -w {key}_{implied}"
            ))),
            (implied, stated) => Ok((workload, implied.or(stated))),
        }
    };
    options.workloads.iter().map(target).collect()
}

/// The numbers of GPUs that options choose of what is supported.
fn scales(options: &Options, support: &Support) -> Vec<u32> {
    let listed = if options.proxy { &support.proxy } else { &support.scales };
    let exact = options.proxy || options.exact_scales || support.exact;
    let largest = listed.last().copied();
    if !options.scales.is_empty() {
        let above = |scale: u32| !exact && largest.is_some_and(|largest| scale > largest);
        return options.scales.iter().copied().filter(|&scale| listed.contains(&scale) || above(scale)).collect();
    }
    let within = |scale: &u32| options.max_scale.is_none_or(|max| *scale <= max);
    if options.min_scale {
        return listed.first().copied().filter(within).into_iter().collect();
    }
    let mut chosen: Vec<u32> = listed.iter().copied().filter(within).collect();
    if let (false, Some(largest), Some(max)) = (exact, largest, options.max_scale) {
        let powers = std::iter::successors(Some(1u32), |n| n.checked_mul(2));
        chosen.extend(powers.filter(|&n| n > largest && n <= max));
    }
    chosen
}

/// What is wrong with a task, in the tools' order and words; none when it may run.
#[must_use]
pub fn validate(task: &Task, workloads: &[Workload], installed: &[String], gpu: &str, force: bool) -> Option<LlmbError> {
    let name = format!("{}_{}", task.workload, task.size);
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    let fail = |text: String| Some(LlmbError(text));
    let Some(workload) = workloads.iter().find(|w| w.key == task.workload) else {
        let known = list(&mut workloads.iter().take(10).map(|w| w.key.clone()));
        return fail(format!("Workload '{}' not found.\nAvailable workloads: {known}", task.workload));
    };
    if !installed.is_empty() && !installed.contains(&task.workload) {
        let there = list(&mut installed.iter().cloned());
        return fail(format!("Workload '{}' is not installed on this cluster.\nInstalled workloads: {there}", task.workload));
    }
    let Some(models) = workload.models(gpu) else {
        let known = list(&mut workload.gpus.iter().map(|(gpu, _)| gpu.clone()));
        return fail(format!("GPU type '{gpu}' not supported for workload '{}'.\nSupported GPU types: {known}", task.workload));
    };
    let Some(model) = models.iter().find(|m| m.size == task.size) else {
        let known = list(&mut models.iter().map(|m| m.size.clone()));
        return fail(format!(
            "Model size '{}' not supported for workload '{}' for GPU type '{gpu}'.\nAvailable model sizes: {known}",
            task.size, task.workload
        ));
    };
    if force {
        return None;
    }
    let Some((_, support)) = model.dtypes.iter().find(|(dtype, _)| *dtype == task.dtype) else {
        let known = list(&mut model.dtypes.iter().map(|(dtype, _)| dtype.clone()));
        return fail(format!("Data type '{}' not supported for {name}.\nSupported data types: {known}", task.dtype));
    };
    let listed = if task.proxy { &support.proxy } else { &support.scales };
    let known = list(&mut listed.iter().map(ToString::to_string));
    match (listed.first(), listed.last()) {
        (None, _) if task.proxy => fail(format!("No proxy scales defined for {name}.")),
        _ if listed.contains(&task.scale) => None,
        (_, Some(last)) if !(support.exact || task.proxy) && task.scale > *last => None,
        (Some(first), _) if !(support.exact || task.proxy) && task.scale < *first => {
            fail(format!("Scale {} is below minimum supported scale for {name}.\nSupported scales: {known}", task.scale))
        }
        _ => fail(format!("Scale {} not supported for {name}.\nSupported scales: {known}", task.scale)),
    }
}

/// A warning on a task that may run although nobody has tried it.
#[must_use]
pub fn warning(task: &Task, workloads: &[Workload], gpu: &str) -> Option<String> {
    let workload = workloads.iter().find(|w| w.key == task.workload)?;
    let largest = *workload.support(gpu, &task.size, &task.dtype)?.scales.last()?;
    (task.scale > largest).then(|| {
        format!(
            "Scale {} for {}_{} exceeds maximum tested scale of {largest}. This configuration has not been validated.",
            task.scale, task.workload, task.size
        )
    })
}
