//! `tandem plan`: what would run where, and why.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Context;
use tandem_plan::Plan;
use tandem_recipe::{explain, plan_table, render_configs};
use tandem_sim::predict::{Interval, predict};

use super::facts;
use super::prediction::model_for;
use super::recipe::{load_on, plans_of, recipe_failure};
use super::report::pretty;
use super::run_folder::write_whole;
use crate::cli::{ModelArgs, PlanArgs};
use crate::exit::{Exit, Failure, OrExit};

pub(crate) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let recipe = load_on(&args.recipe, &args.model)?;
    let plans = plans_of(&recipe);
    if let Some(name) = &args.explain {
        // A knob can be explained although the plan that it leads to is impossible.
        let first = plans.as_ref().ok().and_then(|plans| plans.first());
        let text = explain(&recipe, first, name).map_err(recipe_failure)?;
        return print(&text);
    }
    let plans = plans?;
    if let Some(dir) = &args.render {
        for (i, plan) in plans.iter().enumerate() {
            let folder = if plans.len() == 1 { dir.clone() } else { dir.join(format!("case-{}", i + 1)) };
            for (name, text) in render_configs(plan, &planned_machines(plan)) {
                write_whole(&folder.join(name), text.as_bytes())?;
            }
        }
        return Ok(());
    }
    if args.facts {
        return match (args.json, plans.as_slice()) {
            (true, [plan]) => print(&pretty(&facts::json(plan))?),
            (true, many) => print(&pretty(&many.iter().map(facts::json).collect())?),
            (false, many) => print(&many.iter().map(facts::text).collect::<Vec<_>>().join("\n")),
        };
    }
    if args.json {
        print(&json(&plans)?)
    } else {
        let shown = |plan: &Plan| Ok(plan_table(plan) + &predicted(plan, &args.model)?);
        print(&plans.iter().map(shown).collect::<Result<Vec<_>, Failure>>()?.join("\n"))
    }
}

/// What each load point will do, where the performance model has costs of the engine; else nothing.
fn predicted(plan: &Plan, args: &ModelArgs) -> Result<String, Failure> {
    let model = model_for(plan.model.config.clone(), args, &[plan.hardware.gpu_type.table_name()])?;
    let mut out = String::new();
    for point in predict(&model, plan) {
        let range = |interval: &Interval, scale: f64, digits: usize| {
            let [value, low, high] = [interval.value, interval.low, interval.high].map(|x| x * scale);
            format!("{value:.digits$} ({low:.digits$} to {high:.digits$})")
        };
        let _ = writeln!(
            out,
            "predicted at concurrency {} (with the range that holds 8 of 10 errors): {} tokens/s/GPU, TPOT {} ms, TTFT median {} s, p99 {} s",
            point.concurrency,
            range(&point.tokens_per_gpu, 1.0, 0),
            range(&point.tpot, 1e3, 1),
            range(&point.ttft_median, 1.0, 2),
            range(&point.ttft_p99, 1.0, 1),
        );
        for operator in &point.operators {
            let _ = writeln!(out, "  {operator}");
        }
        for reason in &point.extrapolates {
            let _ = writeln!(out, "  extrapolated: {reason}");
        }
    }
    Ok(out)
}

fn json(plans: &[Plan]) -> Result<String, Failure> {
    let text = match plans {
        [one] => serde_json::to_string_pretty(one),
        many => serde_json::to_string_pretty(many),
    };
    text.map(|text| text + "\n").or_exit(Exit::Bug)
}

/// Stand-ins for the names that an allocation will have.
fn planned_machines(plan: &Plan) -> Vec<String> {
    (0..plan.n_nodes).map(|node| format!("node-{node}")).collect()
}

fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader such as `head` that has seen enough is not an error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write the plan").or_exit(Exit::Artifact),
        _ => Ok(()),
    }
}
