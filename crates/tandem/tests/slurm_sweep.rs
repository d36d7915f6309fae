//! Sweeps on a real Slurm: one model load for each deployment, a failed one tried again, what is done skipped, the result explored.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Output;

use common::slurm_lab::Lab;
use common::{events, read_json, stderr, stdout};

/// Submits the sweep of one or two prefill servers over `concurrencies` into the folder `sweep` and waits.
fn submit(lab: &Lab, concurrencies: &str, more: &[&str]) -> Output {
    let out = lab.path("sweep").display().to_string();
    let tokenizer = concat!("TOKENIZER=", env!("CARGO_MANIFEST_DIR"), "/../../models/nano");
    let load = format!("CONCURRENCY={concurrencies}");
    let mut args = vec!["submit", "deepseek-r1", "--gpu-type", "h100", "--out", &out, "--wait", "--time", "5"];
    let sets =
        ["ENGINE=modeled", "LOAD_FORMAT=dummy", tokenizer, "NCTX=1,2", "CTX_WORLD_SIZE=8", "GEN_WORLD_SIZE=8", "DEVICE_MEMORY=400GiB"];
    let sets = sets.into_iter().chain(["ISL=64", "OSL=8", "MULTI_ROUND=2", "MODELED_STEP_US=500", load.as_str()]);
    args.extend(sets.flat_map(|set| ["--set", set]));
    args.extend_from_slice(more);
    lab.tandem(&args).output().expect("tandem starts")
}

/// The runs of the sweep: name, prefill servers, concurrency of each point that was measured, and how often a model was loaded.
fn runs(lab: &Lab) -> BTreeMap<String, (u64, Vec<u64>, usize)> {
    let folders = fs::read_dir(lab.path("sweep")).expect("the sweep").map(|entry| entry.expect("an entry").path());
    let runs = folders.filter(|folder| folder.join("result.json").exists()).map(|folder| {
        let (plan, result) = (read_json(&folder.join("plan.json")), read_json(&folder.join("result.json")));
        let points = result["points"].as_array().expect("points").len();
        let planned = plan["load"]["points"].as_array().expect("points");
        let measured = planned.iter().take(points).map(|point| point["concurrency"].as_u64().expect("a number")).collect();
        let ready = events(&folder).iter().filter(|event| event["event"] == "ready").count();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        (name, (plan["knobs"]["NCTX"]["value"].as_u64().expect("a number"), measured, ready))
    });
    runs.collect()
}

#[test]
fn a_sweep_in_one_job_loads_each_model_once_retries_resumes_and_is_explored() {
    let Some(lab) = Lab::start("slurm: a sweep in one job", 3) else { return };
    // The first start of a decode server fails; a marker makes it the only one.
    let marker = lab.path("failed-once").display().to_string();
    lab.shim(
        "srun",
        &format!(
            "case \"$*\" in *--job-name=decode-0*) [ -e {marker} ] || {{ touch {marker}; exec $REAL -N1 -n1 --overlap -w n1 sh -c 'exit 7'; }};; esac\nexec $REAL \"$@\""
        ),
    );
    let output = submit(&lab, "2,4", &["--jobs", "one", "--retries", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let found = runs(&lab);
    let expected = [("case-1", (1, vec![], 0)), ("case-1-2", (1, vec![2, 4], 1)), ("case-2", (2, vec![2, 4], 1))];
    assert_eq!(found, expected.map(|(name, run)| (name.to_owned(), run)).into());
    let script = fs::read_to_string(lab.path("sweep/job-1/job/job.sbatch")).expect("the script");
    assert!(script.contains("--nodes=3"), "{script}");
    let ended: Vec<_> = events(&lab.path("sweep/job-1")).into_iter().filter(|event| event["event"] == "case_ended").collect();
    let codes: Vec<_> = ended.iter().map(|event| event["exit_code"].as_u64().expect("a code")).collect();
    assert_eq!(codes, [6, 0, 0]);

    // One more concurrency: only its points are measured, and then nothing is left.
    let output = submit(&lab, "2,4,8", &["--jobs", "one", "--resume"]);
    assert!(output.status.success() && stderr(&output).contains("4 of 6 points are done"), "{}", stderr(&output));
    let found = runs(&lab);
    assert_eq!((found.len(), &found["case-1-3"], &found["case-2-2"]), (5, &(1, vec![8], 1), &(2, vec![8], 1)));
    let output = submit(&lab, "2,4,8", &["--resume"]);
    assert!(output.status.success() && stderr(&output).contains("0 are left"), "{}", stderr(&output));
    assert!(!lab.path("sweep/job-3").exists());

    // The explorer reads the sweep as it is.
    let sweep = lab.path("sweep").display().to_string();
    let explored = lab
        .tandem(&["explore", "deepseek-r1", "--gpu-type", "h100", "--set", "NCTX=1,2", "--simulate", "2", "--measured", &sweep, "--json"])
        .output()
        .expect("tandem starts");
    let text = stdout(&explored);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}\n{}", stderr(&explored)));
    assert_eq!(json["measured"].as_array().map(Vec::len), Some(6), "{text}");
}

#[test]
fn a_sweep_of_many_jobs_measures_each_deployment_in_its_own() {
    let Some(lab) = Lab::start("slurm: a sweep of many jobs", 5) else { return };
    let output = submit(&lab, "2", &["--jobs", "each"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(runs(&lab), [("case-1", (1, vec![2], 1)), ("case-2", (2, vec![2], 1))].map(|(name, run)| (name.to_owned(), run)).into());
    for (job, nodes) in [("job-1", "--nodes=2"), ("job-2", "--nodes=3")] {
        let script = fs::read_to_string(lab.path("sweep").join(job).join("job/job.sbatch")).expect("the script");
        assert!(script.contains(nodes), "{script}");
    }
    // A job that could not be had does not hide the others, and says how to go on.
    let job = lab.path("sweep/job-1").display().to_string();
    let retry = lab.tandem(&["retry", &job, "--force"]).output().expect("tandem starts");
    assert!(stderr(&retry).contains("--resume"), "{}", stderr(&retry));
}
