//! One case of a recipe whose knobs change one by one: for exploring far more configurations than could all become plans.
//!
//! A [`Sketch`] is what decides performance and memory, without names, ranks, ports and provenance. It passes the same checks as a
//! plan, in a few microseconds, because the model's architecture is read once.

use tandem_plan::{EngineKind, EngineLimits, GpuType, LoadPoint, ModelConfig, ParallelLayout, Plan, WeightDtype};

use crate::error::PlanError;
use crate::knobs::Knob;
use crate::layers::Origin;
use crate::planner::{ReadFile, draft, load_point, model_config};
use crate::recipe::{Case, Recipe};
use crate::value::Value;

/// Knobs that decide which architecture is served.
const MODEL_KNOBS: [&str; 3] = ["MODEL", "LOAD_FORMAT", "DUMMY_LAYERS"];

/// A case under change.
#[derive(Debug, Clone)]
pub struct Variant {
    case: Case,
    origin: Origin,
    model: Option<(ModelConfig, WeightDtype)>,
}

/// The servers of one phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SketchSide {
    /// Servers.
    pub n_servers: u32,
    /// Parallel degrees of one.
    pub layout: ParallelLayout,
    /// Limits of one step, per attention-DP rank.
    pub limits: EngineLimits,
    /// Fraction of the free memory for the KV cache.
    pub memory_fraction: f64,
    /// Tokens that the KV cache of one rank holds.
    pub kv_tokens: u64,
}

/// What decides performance, of one case with one load point that has passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    /// GPU type.
    pub gpu: GpuType,
    /// What computes a step.
    pub engine: EngineKind,
    /// Prefill servers.
    pub prefill: SketchSide,
    /// Decode servers.
    pub decode: SketchSide,
    /// Tokens drafted per decode step.
    pub mtp_size: u32,
    /// Expert slots; 0 = off.
    pub eplb_slots: u32,
    /// Number format of the weights in memory.
    pub weight_dtype: WeightDtype,
    /// Input tokens.
    pub isl: u32,
    /// Output tokens.
    pub osl: u32,
    /// Tokens between two token events.
    pub stream_interval: u32,
    /// Seed of the load.
    pub seed: u64,
    /// The load point.
    pub point: LoadPoint,
}

impl Sketch {
    /// GPUs of all servers.
    #[must_use]
    pub fn gpus(&self) -> u32 {
        [&self.prefill, &self.decode].iter().map(|side| side.n_servers * side.layout.world_size()).sum()
    }
}

impl Variant {
    /// The case with the first value of each list of `recipe`; values that are set later have the origin `origin`.
    #[must_use]
    pub fn new(recipe: &Recipe, gpu: GpuType, origin: Origin) -> Self {
        Variant { case: recipe.first_case(gpu), origin, model: None }
    }

    /// The GPU type, whose defaults it has.
    #[must_use]
    pub const fn gpu(&self) -> GpuType {
        self.case.gpu
    }

    /// Sets a knob other than `GPU_TYPE`, whose defaults are another variant's.
    ///
    /// # Panics
    /// For `GPU_TYPE`, and for a value that the knob's kind did not parse.
    pub fn set(&mut self, knob: &'static Knob, value: Value) {
        assert!(knob.name != "GPU_TYPE", "a variant is of one GPU type");
        if MODEL_KNOBS.contains(&knob.name) && *self.case.value(knob.name) != value {
            self.model = None;
        }
        self.case.set(knob, value, &self.origin);
    }

    /// The value of a knob.
    ///
    /// # Panics
    /// When there is no such knob.
    #[must_use]
    pub fn value(&self, name: &str) -> &Value {
        self.case.value(name)
    }

    /// The architecture that it serves.
    ///
    /// # Errors
    /// [`PlanError`] when there is no readable `config.json`.
    pub fn architecture(&mut self, read: ReadFile<'_>) -> Result<&ModelConfig, PlanError> {
        self.read_model(read).map(|(config, _)| config)
    }

    fn read_model(&mut self, read: ReadFile<'_>) -> Result<&(ModelConfig, WeightDtype), PlanError> {
        if self.model.is_none() {
            self.model = Some(model_config(&self.case, &self.case.settings(), read)?);
        }
        Ok(self.model.as_ref().expect("it was read above"))
    }

    /// Checks it as a plan is checked, and says what decides its performance.
    ///
    /// # Errors
    /// [`PlanError`] when no plan can work.
    pub fn sketch(&mut self, read: ReadFile<'_>) -> Result<Sketch, PlanError> {
        let model = self.read_model(read)?.clone();
        let draft = draft(&self.case, self.case.settings(), model);
        let answers = draft.check()?;
        let s = &draft.settings;
        let side = |i: usize| SketchSide {
            n_servers: draft.servers[i].n_servers,
            layout: draft.servers[i].layout,
            limits: draft.servers[i].limits,
            memory_fraction: draft.servers[i].memory_fraction,
            kv_tokens: u64::from(answers[i].n_blocks) * u64::from(s.kv_block_size),
        };
        Ok(Sketch {
            gpu: self.case.gpu,
            engine: s.engine,
            prefill: side(0),
            decode: side(1),
            mtp_size: s.gen_mtp_size,
            eplb_slots: s.gen_eplb_num_slots,
            weight_dtype: draft.weight_dtype,
            isl: s.isl,
            osl: s.osl,
            stream_interval: s.stream_interval,
            seed: s.seed,
            point: load_point(&draft, s)?,
        })
    }

    /// The plan.
    ///
    /// # Errors
    /// [`PlanError`] when it is impossible.
    pub fn plan(&self, read: ReadFile<'_>) -> Result<Plan, PlanError> {
        let settings = self.case.settings();
        let model = model_config(&self.case, &settings, read)?;
        draft(&self.case, settings, model).plan()
    }
}
