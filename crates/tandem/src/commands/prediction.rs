//! The performance model of a plan's architecture, and predictions beside the figures of runs.

use std::fs;
use std::path::Path;

use anyhow::Context;
use tandem_explore::Pricer;
use tandem_metrics::metrics::{output_throughput_per_gpu, tpot, ttft};
use tandem_plan::{Bytes, EngineKind, ModelConfig};
use tandem_recipe::recipe::NodeFacts;
use tandem_report::{Predicted, PredictedFigure, Run};
use tandem_sim::fit::Constants;
use tandem_sim::hardware::{self, GpuSpec};
use tandem_sim::model::Model;
use tandem_sim::predict::{Interval, Prediction};

use super::operator_tables;
use super::recipe::read_plan;
use super::simulate::read_calibration;
use crate::cli::ModelArgs;
use crate::exit::{Exit, Failure, OrExit};

/// The user's hardware table with the GPUs that ship, or those alone.
pub(super) fn gpus(args: &ModelArgs) -> Result<Vec<GpuSpec>, Failure> {
    let Some(path) = &args.hardware else { return Ok(hardware::shipped()) };
    hardware::with_own(&read(path)?).with_context(|| format!("cannot use {}", path.display())).or_exit(Exit::Artifact)
}

/// What the user's hardware table says of nodes.
pub(super) fn nodes(args: &ModelArgs) -> Result<Vec<NodeFacts>, Failure> {
    let Some(path) = &args.hardware else { return Ok(Vec::new()) };
    let own = hardware::parse(&read(path)?).with_context(|| format!("cannot use {}", path.display())).or_exit(Exit::Artifact)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a device, positive and far below 2^64")]
    let facts = |gpu: GpuSpec| NodeFacts {
        path: path.display().to_string(),
        device_memory: Bytes(gpu.memory as u64),
        devices_per_node: gpu.gpus_per_node,
        name: gpu.name,
    };
    Ok(own.into_iter().map(facts).collect())
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Artifact)
}

/// The model of `config` on the shipped GPUs, with constants of a file or those that ship.
pub(super) fn model_of(config: ModelConfig, constants: Option<&Path>) -> Result<Model, Failure> {
    model_on(config, constants, hardware::shipped())
}

fn model_on(config: ModelConfig, constants: Option<&Path>, gpus: Vec<GpuSpec>) -> Result<Model, Failure> {
    let constants = match constants {
        None => Constants::shipped(),
        Some(path) => Constants::from_json(&read(path)?).with_context(|| path.display().to_string()).or_exit(Exit::Artifact)?,
    };
    Ok(Model::new(config, gpus, constants))
}

/// The same as the command line wants it, for predictions of these GPUs.
pub(super) fn model_for(config: ModelConfig, args: &ModelArgs, gpus: &[&str]) -> Result<Model, Failure> {
    let model = model_on(config, args.constants.as_deref(), self::gpus(args)?)?;
    match &args.tables {
        Some(folder) => Ok(model.with_tables(operator_tables::read(folder, gpus)?)),
        None => Ok(model),
    }
}

/// Predicts the closed-loop points of runs that have a plan, from that plan alone.
pub(super) fn add(runs: &mut [Run], args: &ModelArgs, calibration: Option<&Path>) -> Result<(), Failure> {
    let calibration = calibration.map(read_calibration).transpose()?;
    for run in runs {
        let Ok(plan) = read_plan(&Path::new(&run.path).join("plan.json")) else { continue };
        let model = model_for(plan.model.config.clone(), args, &[plan.hardware.gpu_type.table_name()])?;
        let pricer = Pricer { model, calibration: calibration.clone() };
        let predictions = pricer.predict(&plan);
        if predictions.is_empty() {
            run.add_prediction_remark(match plan.engine {
                EngineKind::Cpu => {
                    "not predicted: the CPU engine has no costs until a run of it was calibrated (tandem calibrate --from-run RUN --out FILE, \
                     then --calibration FILE)"
                }
                _ => "not predicted: costs are known of dynamo-trtllm, modeled, and cpu with --calibration",
            });
        }
        for index in 0..run.n_points() {
            let Some(concurrency) = run.concurrency(index) else {
                run.add_prediction_remark("a load that is no closed loop is not predicted");
                continue;
            };
            if let Some(prediction) = predictions.iter().find(|p| p.concurrency == concurrency) {
                run.set_prediction(index, predicted(prediction));
            }
        }
    }
    Ok(())
}

fn predicted(p: &Prediction) -> Predicted {
    let scaled = |i: &Interval, scale: f64| [i.value, i.low, i.high].map(|x| x * scale);
    let inverse = |x: f64| if x > 0.0 { 1.0 / x } else { 0.0 };
    let figures = [
        (&output_throughput_per_gpu::METRIC, "avg", &p.tokens_per_gpu, 1.0),
        (&tpot::METRIC, "p50", &p.tpot, 1e3),
        (&ttft::METRIC, "p50", &p.ttft_median, 1e3),
        (&ttft::METRIC, "p99", &p.ttft_p99, 1e3),
    ];
    Predicted {
        figures: figures.map(|(metric, stat, interval, scale)| PredictedFigure { metric, stat, range: scaled(interval, scale) }).into(),
        per_user: [inverse(p.tpot.value), inverse(p.tpot.high), inverse(p.tpot.low)],
        per_gpu: scaled(&p.tokens_per_gpu, 1.0),
        extrapolates: p.extrapolates.clone(),
    }
}
