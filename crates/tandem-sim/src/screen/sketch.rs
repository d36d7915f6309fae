//! From a variant of a recipe to an estimate, with the same assumptions as the prediction of its plan.

use tandem_plan::EngineKind;
use tandem_recipe::{Sketch, SketchSide};

use super::{Estimate, screen};
use crate::des::{Lengths, Load};
use crate::model::Model;
use crate::predict::ASSUMED_MONTH;
use crate::rows::{Kind, Pool, Scenario};

/// A screened variant.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketched {
    /// What was screened.
    pub scenario: Scenario,
    /// The result.
    pub estimate: Estimate,
}

/// Screens a sketch; none for engines whose costs are not known.
#[must_use]
pub fn screen_sketch(model: &Model, sketch: &Sketch) -> Option<Sketched> {
    let scenario = scenario(sketch)?;
    let mut deployment = model.deployment_holding(&scenario, model.factors(&scenario), sketch.decode.kv_tokens);
    deployment.prefill.chunked = true;
    let estimate = screen(&deployment, &scenario.load, sketch.point.n_warmup);
    Some(Sketched { scenario, estimate })
}

/// As `predict::scenario` makes it of the sketch's plan; a test compares the two.
fn scenario(sketch: &Sketch) -> Option<Scenario> {
    if sketch.engine != EngineKind::DynamoTrtllm {
        return None;
    }
    let pool = |side: &SketchSide| Pool {
        workers: side.n_servers,
        layout: side.layout,
        max_batch: side.limits.max_batch_size,
        max_tokens: side.limits.max_num_tokens,
        memory_fraction: side.memory_fraction,
    };
    Some(Scenario {
        kind: Kind::Disaggregated,
        hardware: sketch.gpu.table_name().to_owned(),
        stack: "trt".to_owned(),
        months: ASSUMED_MONTH,
        weights: sketch.weight_dtype,
        prefill: pool(&sketch.prefill),
        decode: pool(&sketch.decode),
        mtp: sketch.mtp_size,
        eplb_slots: sketch.eplb_slots,
        gpus: f64::from(sketch.gpus()),
        load: Load {
            concurrency: sketch.point.concurrency,
            requests: sketch.point.n_requests + sketch.point.n_warmup,
            isl: Lengths::Fixed(sketch.isl),
            osl: Lengths::Fixed(sketch.osl),
            seed: sketch.seed,
            stream_interval: sketch.stream_interval,
        },
        assumed: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tandem_recipe::layers::Origin;
    use tandem_recipe::{Inputs, Knob, RecipeSource, Value, Variant, load_recipe};

    use super::*;

    #[test]
    fn a_sketch_is_simulated_as_its_plan_is() {
        let recipe = load_recipe(&Inputs {
            recipe: Some(RecipeSource::Builtin("deepseek-r1".to_owned())),
            gpu_type: Some("h100,gb200".to_owned()),
            env: BTreeMap::new(),
            ..Inputs::default()
        })
        .unwrap();
        let no_file = |_: &str| -> std::io::Result<String> { unreachable!("the model ships") };
        for &gpu in recipe.gpu_types() {
            let mut variant = Variant::new(&recipe, gpu, Origin::CommandLine { flag: "test".to_owned() });
            for ngen in [1, 2] {
                variant.set(Knob::find("NGEN").unwrap(), Value::Int(ngen));
                let (sketch, plan) = (variant.sketch(&no_file).unwrap(), variant.plan(&no_file).unwrap());
                let point = plan.load.points[0];
                assert_eq!(sketch.point, point);
                assert_eq!(scenario(&sketch), crate::predict::scenario(&plan, &point));
                let decode = plan.worker("decode-0").unwrap();
                assert_eq!(sketch.decode.kv_tokens, u64::from(decode.kv.n_blocks) * u64::from(decode.kv.block_size));
                assert_eq!(plan.n_devices(), sketch.gpus());
            }
        }
    }
}
