//! `tandem compare`: two runs side by side, and conditions that fail a build.

use std::path::Path;

use tandem_report::{Gate, Judgement, compare as compared, comparison_markdown, json};

use super::progress::say;
use super::report::{names, pretty, put};
use super::run_reader;
use crate::cli::CompareArgs;
use crate::exit::{Exit, Failure, OrExit};

/// What a condition can be about.
const GATE_FORM: &str = "for example --fail-if \"tokens_per_gpu<-3%\" or \"ttft.p99>10%\"; metrics are tokens_per_gpu, tokens_per_user, tokens_per_second, \
                         requests_per_second, latency, ttft, tpot, and every other name in result.json";

pub(crate) fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let gates: Vec<Gate> = args
        .fail_if
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .or_exit(Exit::Usage)
        .map_err(|failure| failure.with_hint(GATE_FORM))?;
    let runs = run_reader::read_all(&[args.baseline.clone(), args.candidate.clone()])?;
    let [baseline, candidate] = runs.as_slice() else {
        return Err(Failure::message(Exit::Usage, format!("these are {} runs, two can be compared: {}", runs.len(), names(&runs)))
            .with_hint("name the folder of one run each; `tandem report` takes any number"));
    };
    let comparison = compared(baseline, candidate);
    let judgements: Vec<Judgement> = gates.iter().map(|gate| gate.judge(baseline, candidate, &comparison)).collect();
    let text = if args.json { pretty(&json(&runs, &[comparison]))? } else { comparison_markdown(&comparison) };
    put(Path::new("-"), text.as_bytes())?;
    judgements.iter().flat_map(|judgement| &judgement.passes).for_each(|message| say(message));
    let failures: Vec<&str> = judgements.iter().flat_map(|judgement| &judgement.failures).map(String::as_str).collect();
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failure::message(Exit::CheckFailed, failures.join("\n  ")))
}
