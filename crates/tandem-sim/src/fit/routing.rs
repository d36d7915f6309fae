//! How measured deployments chose the decode worker of a request, as far as rows tell.
//!
//! Where slots are scarce (a batch limit of 1 and as many requests as workers), a request that is sent to a busy worker waits for a whole
//! output, so the tail of TTFT and the throughput of such a row tell the routing. No row names it; it is chosen for a GPU, a stack and a
//! class of prompt lengths, where rows are clearly better explained by it than by the least loaded worker.

use std::collections::BTreeMap;

use super::targets::Target;
use crate::des::WorkerChoice;
use crate::rows::Scenario;

/// Prompts from here on are long, tokens.
const LONG: f64 = 4096.0;
/// Share of the decode slots that the requests of a load have to fill; with more room than that, measured TPOT are those of an even
/// spread, whatever the group.
const SCARCE: f64 = 0.5;
/// How much smaller the mean misfit has to be.
const CLEARLY: f64 = 0.1;
/// Configurations below which a group has no routing of its own.
const MIN_TARGETS: usize = 3;

/// The group of a scenario.
fn group(s: &Scenario) -> String {
    format!("{} {} {}", s.hardware, s.stack, if s.load.isl.mean() < LONG { "short" } else { "long" })
}

/// Whether slots of decode are so scarce that routing matters.
fn matters(s: &Scenario) -> bool {
    let slots = s.decode.attention_ranks() * f64::from(s.decode.max_batch);
    s.decode.workers > 1 && f64::from(s.load.concurrency) >= SCARCE * slots
}

/// The routing of a scenario.
pub(super) fn routing_of(routings: &BTreeMap<String, WorkerChoice>, s: &Scenario) -> WorkerChoice {
    if matters(s) { routings.get(&group(s)).copied().unwrap_or_default() } else { WorkerChoice::LeastLoaded }
}

/// The routing of each group that does not go to the least loaded worker.
pub(super) fn routings(targets: &[&Target]) -> BTreeMap<String, WorkerChoice> {
    let mut groups: BTreeMap<String, Vec<[f64; 3]>> = BTreeMap::new();
    for t in targets.iter().filter(|t| matters(&t.scenario)) {
        let [Some(a), Some(b), Some(c)] = t.prefill else { continue };
        groups.entry(group(&t.scenario)).or_default().push([a.misfit, b.misfit, c.misfit]);
    }
    groups.retain(|_, misfits| misfits.len() >= MIN_TARGETS);
    let chosen = |misfits: Vec<[f64; 3]>| {
        #[expect(clippy::cast_precision_loss, reason = "a count of targets")]
        let mean = |i: usize| misfits.iter().map(|m| m[i]).sum::<f64>() / misfits.len() as f64;
        let best = (1..3).min_by(|&a, &b| mean(a).total_cmp(&mean(b)))?;
        (mean(best) < mean(0) - CLEARLY).then(|| WorkerChoice::ALL[best])
    };
    groups.into_iter().filter_map(|(group, misfits)| Some((group, chosen(misfits)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::targets::{PrefillTarget, targets};
    use super::*;
    use crate::rows::parse;

    /// As many targets as `misfits`, on two workers with eight slots each, under a load that `concurrency` is.
    fn told(concurrency: u32, misfits: &[[f64; 3]]) -> BTreeMap<String, WorkerChoice> {
        let head =
            "id,kind,hardware,framework,precision,isl,osl,concurrency,n_gen,gen_world_size,gen_tp,gen_max_batch_size,ctx_max_batch_size\n";
        // Another prefill limit makes another configuration.
        let line = |i: usize| format!("{i},disagg,gb200,dynamo-trt,fp8,1024,1024,{concurrency},2,8,8,8,{}\n", i + 1);
        let table = head.to_owned() + &(0..misfits.len()).map(line).collect::<String>();
        let mut all = targets(&parse(&table).unwrap().0);
        for (t, misfits) in all.iter_mut().zip(misfits) {
            t.prefill = misfits.map(|misfit| Some(PrefillTarget { ln: 0.0, weight: 1.0, misfit, tpot: 0.0 }));
        }
        let found = routings(&all.iter().collect::<Vec<_>>());
        if let Some(routing) = found.values().next() {
            assert_eq!(routing_of(&found, &all[0].scenario), *routing);
            let mut roomy = all[0].scenario.clone();
            roomy.load.concurrency = 2;
            assert_eq!(routing_of(&found, &roomy), WorkerChoice::LeastLoaded, "with room to spare routing is even");
        }
        found
    }

    #[test]
    fn a_group_has_the_routing_that_clearly_explains_its_rows_best() {
        let random = [[0.9, 0.8, 0.2]; 3];
        assert_eq!(told(16, &random), BTreeMap::from([("gb200 trt short".to_owned(), WorkerChoice::Random)]));
        assert_eq!(told(16, &[[0.9, 0.1, 0.2]; 4]), BTreeMap::from([("gb200 trt short".to_owned(), WorkerChoice::RoundRobin)]));
        assert!(told(16, &[[0.3, 0.25, 0.25]; 9]).is_empty(), "hardly better is not clearly better");
        assert!(told(16, &random[..2]).is_empty(), "two configurations tell little");
        assert!(told(4, &random).is_empty(), "where slots are plenty rows tell nothing of it");
    }
}
