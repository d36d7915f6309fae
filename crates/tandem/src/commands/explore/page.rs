//! From a search to its page.

use std::fmt::Write as _;

use tandem_explore::{Exploration, Measured, Simulated, Space};
use tandem_recipe::KNOBS;
use tandem_report::{ExplorePage, ExplorePoint, ExplorePoints, ExploreTable};
use tandem_sim::predict::Interval;

pub(super) fn page(e: &Exploration, space: &Space, command: &str) -> ExplorePage {
    let base = space.original();
    let frontier = e.frontier();
    let proposed: Vec<&Simulated> = e.proposals.iter().map(|p| &e.simulated[p.simulated]).collect();
    let mut groups = vec![
        group("frontier, simulated", frontier.iter().map(|p| point(p, ""))),
        group("measure next", proposed.iter().enumerate().map(|(i, p)| point(p, &(i + 1).to_string()))),
    ];
    for (name, is_simulated) in [("measured", false), ("simulated runs", true)] {
        let of_kind = e.measured.iter().filter(|m| m.is_simulated == is_simulated);
        groups.push(group(name, of_kind.map(measured_point)));
    }
    groups.retain(|g| !g.points.is_empty());
    let mut tables = vec![table("Frontier", "Sorted by tokens/s/user; ranges hold 8 of 10 errors.", &frontier, &[])];
    if !proposed.is_empty() {
        let note = "By the expected growth of the area under the frontier, of what is measured so far.";
        tables.push(table("Measure next", note, &proposed, &e.gains()));
    }
    if !e.measured.is_empty() {
        tables.push(measured_table(e));
    }
    tables.push(refusals(e));
    ExplorePage {
        title: format!("{}: {} points", e.recipe, e.screening.n),
        command: command.to_owned(),
        about: e.about.clone(),
        remarks: e.remarks(),
        base: KNOBS.iter().map(|knob| (knob.name.to_owned(), base.value(knob.name).to_string())).collect(),
        cloud: e.screening.points.iter().map(|p| (p.per_user, p.per_gpu)).collect(),
        frontier: frontier.iter().map(|p| (p.corner().x, p.corner().y)).collect(),
        groups,
        tables,
    }
}

fn group(name: &str, points: impl Iterator<Item = ExplorePoint>) -> ExplorePoints {
    ExplorePoints { name: name.to_owned(), points: points.collect() }
}

fn point(p: &Simulated, label: &str) -> ExplorePoint {
    let (user, gpu) = (p.per_user(), p.prediction.tokens_per_gpu);
    let mut tip = format!("{} tokens/s/GPU\n{} tokens/s/user", range(&gpu), range(&user));
    let _ = write!(tip, "\nTTFT {:.2} s, p99 {:.1} s", p.prediction.ttft_median.value, p.prediction.ttft_p99.value);
    let _ = write!(tip, "\n{} GPUs, limited by {}", p.screened.gpus, p.screened.bound.name());
    for reason in &p.prediction.extrapolates {
        let _ = write!(tip, "\nextrapolated: {reason}");
    }
    ExplorePoint {
        x: user.value,
        y: gpu.value,
        x_range: Some((user.low, user.high)),
        y_range: Some((gpu.low, gpu.high)),
        label: label.to_owned(),
        tip,
        knobs: p.knobs.clone(),
    }
}

fn measured_point(m: &Measured) -> ExplorePoint {
    let mut tip = format!("{}\n{:.0} tokens/s/GPU\n{:.1} tokens/s/user\n{} GPUs", m.name, m.corner.y, m.corner.x, m.gpus);
    if let Some(ttft) = m.ttft_s {
        let _ = write!(tip, "\nTTFT {ttft:.2} s");
    }
    ExplorePoint { x: m.corner.x, y: m.corner.y, tip, ..ExplorePoint::default() }
}

fn range(i: &Interval) -> String {
    format!("{:.0} ({:.0} to {:.0})", i.value, i.low, i.high)
}

fn table(title: &str, note: &str, points: &[&Simulated], gains: &[String]) -> ExploreTable {
    let mut head: Vec<String> =
        ["tokens/s/GPU", "tokens/s/user", "TPOT ms", "TTFT s", "TTFT p99 s", "GPUs", "limited by"].map(str::to_owned).into();
    if !gains.is_empty() {
        head.insert(0, "gain".to_owned());
    }
    head.extend(points.first().iter().flat_map(|p| p.knobs.iter().map(|(name, _)| name.clone())));
    let row = |(i, p): (usize, &&Simulated)| {
        let mut row = vec![
            range(&p.prediction.tokens_per_gpu),
            range(&p.per_user()),
            format!("{:.1}", p.prediction.tpot.value * 1e3),
            format!("{:.2}", p.prediction.ttft_median.value),
            format!("{:.1}", p.prediction.ttft_p99.value),
            p.screened.gpus.to_string(),
            p.screened.bound.name().to_owned(),
        ];
        if let Some(gain) = gains.get(i) {
            row.insert(0, gain.clone());
        }
        row.extend(p.knobs.iter().map(|(_, value)| value.clone()));
        row
    };
    ExploreTable { title: title.to_owned(), note: note.to_owned(), head, rows: points.iter().enumerate().map(row).collect() }
}

/// Measurements, and beside them what was predicted for the same plan.
fn measured_table(e: &Exploration) -> ExploreTable {
    let row = |m: &Measured| {
        let predicted = e.simulated.iter().find(|p| m.key.as_deref() == Some(&p.key));
        let beside = |value: Option<String>| value.unwrap_or_else(|| "not simulated".to_owned());
        vec![
            m.name.clone(),
            if m.is_simulated { "simulated" } else { "measured" }.to_owned(),
            format!("{:.0}", m.corner.y),
            beside(predicted.map(|p| range(&p.prediction.tokens_per_gpu))),
            format!("{:.1}", m.corner.x),
            beside(predicted.map(|p| range(&p.per_user()))),
        ]
    };
    ExploreTable {
        title: "Measured".to_owned(),
        note: "Predictions stand beside the runs whose very plan was simulated here.".to_owned(),
        head: ["run", "kind", "tokens/s/GPU", "predicted", "tokens/s/user", "predicted"].map(str::to_owned).into(),
        rows: e.measured.iter().map(row).collect(),
    }
}

fn refusals(e: &Exploration) -> ExploreTable {
    let mut rows = vec![vec!["passed".to_owned(), e.screening.points.len().to_string(), String::new()]];
    rows.extend(e.screening.refusals.iter().map(|(reason, r)| vec![reason.clone(), r.n.to_string(), r.example.clone()]));
    ExploreTable {
        title: "What became of the points".to_owned(),
        note: String::new(),
        head: ["what", "points", "the first of them"].map(str::to_owned).into(),
        rows,
    }
}
