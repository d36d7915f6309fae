//! What can be wrong with a recipe or a plan, with the knob and the layer to blame, a hint, and the exit code.

use std::fmt;

use tandem_plan::{Bytes, ModelConfigError, Phase};
use thiserror::Error;

use crate::layers::Origin;
use crate::value::{Value, ValueError};

/// Exit code of an invalid recipe.
pub const EXIT_RECIPE_INVALID: u8 = 3;
/// Exit code when no plan can work.
pub const EXIT_NO_FEASIBLE_PLAN: u8 = 4;

/// Why the layers are no recipe.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// No built-in recipe of that name.
    #[error("no built-in recipe is called `{name}`")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// The most similar name.
        nearest: Option<&'static str>,
    },
    /// No knob of that name.
    #[error("{origin}: there is no knob `{name}`")]
    UnknownKnob {
        /// What was written.
        name: String,
        /// Where.
        origin: Origin,
        /// The most similar name.
        nearest: Option<&'static str>,
    },
    /// The value is of another type or out of range.
    #[error("{origin}: {knob}")]
    Value {
        /// The knob.
        knob: &'static str,
        /// Where.
        origin: Origin,
        /// What is wrong.
        #[source]
        problem: ValueError,
    },
    /// A sweep lists a value twice.
    #[error("{origin}: {knob}: {value} is listed twice")]
    Repeated {
        /// The knob.
        knob: &'static str,
        /// Where.
        origin: Origin,
        /// The value.
        value: Value,
    },
    /// `--set` without `=`.
    #[error("command line --set {text}: expected NAME=VALUE")]
    SetWithoutValue {
        /// The argument.
        text: String,
    },
    /// The file is no YAML mapping.
    #[error("{path}:{line}:{column}: {message}")]
    Yaml {
        /// The file as given.
        path: String,
        /// Line from 1.
        line: u64,
        /// Column from 1.
        column: u64,
        /// What the YAML reader says.
        message: String,
    },
    /// A recipe file without `base`.
    #[error("recipe file {path}: `base` is missing")]
    NoBase {
        /// The file as given.
        path: String,
    },
    /// `base` is not a name.
    #[error("recipe file {path}:{line}: `base` is not the name of a built-in recipe")]
    BadBase {
        /// The file as given.
        path: String,
        /// Line from 1.
        line: u64,
    },
    /// The recipe has defaults for several GPU types and none was chosen.
    #[error("recipe {recipe}: GPU_TYPE is not set")]
    NoGpuType {
        /// Name of the recipe.
        recipe: &'static str,
        /// What it has defaults for.
        known: String,
    },
    /// The recipe has no defaults for that GPU type.
    #[error("{origin}: GPU_TYPE: recipe {recipe} has no defaults for {gpu}")]
    WrongGpuType {
        /// Name of the recipe.
        recipe: &'static str,
        /// Where it was chosen.
        origin: Origin,
        /// The choice.
        gpu: String,
        /// What the recipe has defaults for.
        known: String,
    },
    /// The sweep is too large.
    #[error("{n_cases} cases are more than {max}")]
    TooManyCases {
        /// Product of the lists' lengths.
        n_cases: usize,
        /// The most that one recipe may have.
        max: usize,
    },
}

impl RecipeError {
    /// Advice, apart from the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            RecipeError::UnknownRecipe { nearest: Some(name), .. } | RecipeError::UnknownKnob { nearest: Some(name), .. } => {
                Some(format!("did you mean {name}?"))
            }
            RecipeError::UnknownRecipe { .. } | RecipeError::BadBase { .. } => {
                Some(format!("built-in recipes: {}; a path to a recipe file contains a `/` or ends in .yaml", names()))
            }
            RecipeError::UnknownKnob { .. } => Some("`tandem plan --explain all` lists every knob".to_owned()),
            RecipeError::SetWithoutValue { text } => Some(format!("write --set {text}=VALUE")),
            RecipeError::NoBase { .. } => Some(format!("start the file with the recipe that it changes, e.g. `base: nano` ({})", names())),
            RecipeError::NoGpuType { known, .. } => Some(format!("give --gpu-type or set GPU_TYPE to one of {known}")),
            RecipeError::WrongGpuType { known, .. } => Some(format!("it has defaults for {known}")),
            RecipeError::Value { problem: ValueError::Shape { .. }, .. } => {
                Some("write one value, or a list such as [1, 8, 64]".to_owned())
            }
            RecipeError::Value { .. } | RecipeError::Repeated { .. } | RecipeError::Yaml { .. } => None,
            RecipeError::TooManyCases { .. } => Some("shorten the lists, or explore a part at a time".to_owned()),
        }
    }

    /// Exit code of a process that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        EXIT_RECIPE_INVALID
    }
}

fn names() -> String {
    crate::builtin::BUILTINS.iter().map(|b| b.name).collect::<Vec<_>>().join(", ")
}

/// The knob that has to change, its value, and the layer that set it.
#[derive(Debug, Clone, PartialEq)]
pub struct Blame {
    /// Name of the knob.
    pub knob: &'static str,
    /// Its value in the case that fails.
    pub value: Value,
    /// Where that value came from.
    pub origin: Origin,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} = {}", self.origin, self.knob, self.value)
    }
}

/// Why a case has no plan.
#[derive(Debug, Error)]
#[error("{blame}")]
pub struct PlanError {
    /// What to change.
    pub blame: Box<Blame>,
    /// Why.
    #[source]
    pub problem: Problem,
}

/// What is impossible about a case.
#[derive(Debug, Error)]
pub enum Problem {
    /// World size and TP do not go together.
    #[error("{world} devices of a {phase} server are not divisible by tensor parallelism {tp}")]
    WorldNotDivisible {
        /// The servers' phase.
        phase: Phase,
        /// Devices of one server.
        world: u32,
        /// Tensor parallelism.
        tp: u32,
    },
    /// TP and EP do not go together.
    #[error("tensor parallelism {tp} of a {phase} server is not divisible by expert parallelism {ep}")]
    EpNotDivisible {
        /// The servers' phase.
        phase: Phase,
        /// Tensor parallelism.
        tp: u32,
        /// Expert parallelism.
        ep: u32,
    },
    /// More pipeline stages than layers.
    #[error("{pp} pipeline stages of a {phase} server for {layers} layers")]
    TooManyStages {
        /// The servers' phase.
        phase: Phase,
        /// Pipeline parallelism.
        pp: u32,
        /// Decoder layers.
        layers: u32,
    },
    /// A server that spans nodes must fill them.
    #[error("a {phase} server of {world} devices spans nodes of {devices_per_node} without filling them")]
    SpansNodes {
        /// The servers' phase.
        phase: Phase,
        /// Devices of one server.
        world: u32,
        /// Devices of one node.
        devices_per_node: u32,
    },
    /// EP may not span nodes on this GPU type.
    #[error("expert parallelism {ep} of a {phase} server would span nodes of {devices_per_node} devices, which {gpu} does not allow")]
    EpSpansNodes {
        /// The servers' phase.
        phase: Phase,
        /// Expert parallelism.
        ep: u32,
        /// Devices of one node.
        devices_per_node: u32,
        /// GPU type.
        gpu: String,
    },
    /// Heads cannot be split.
    #[error("{heads} attention heads are not divisible by tensor parallelism {tp}")]
    HeadsNotDivisible {
        /// Attention heads.
        heads: u32,
        /// Tensor parallelism.
        tp: u32,
    },
    /// Experts cannot be split.
    #[error("{experts} experts are not divisible by expert parallelism {ep}")]
    ExpertsNotDivisible {
        /// Routed experts.
        experts: u32,
        /// Expert parallelism.
        ep: u32,
    },
    /// Fewer slots than experts.
    #[error("{slots} expert slots are fewer than the model's {experts} experts")]
    TooFewSlots {
        /// Slots.
        slots: u32,
        /// Routed experts.
        experts: u32,
    },
    /// Slots cannot be split.
    #[error("{slots} expert slots are not divisible by expert parallelism {ep}")]
    SlotsNotDivisible {
        /// Slots.
        slots: u32,
        /// Expert parallelism.
        ep: u32,
    },
    /// Nothing to draft with.
    #[error("the model has no MTP layer to draft {size} tokens with")]
    NoMtpLayer {
        /// Tokens to draft.
        size: u32,
    },
    /// A chunk that does not fill a block.
    #[error("{tokens} tokens a {phase} step are fewer than one KV block of {block_size}")]
    ChunkBelowBlock {
        /// The servers' phase.
        phase: Phase,
        /// Tokens of a step.
        tokens: u32,
        /// Tokens of a block.
        block_size: u32,
    },
    /// Whole prompts only, and they do not fit.
    #[error("a prompt of {isl} tokens does not fit in a step of {tokens} and chunked prefill is off")]
    PromptAboveStep {
        /// Input tokens.
        isl: u32,
        /// Tokens of a step.
        tokens: u32,
    },
    /// A batch that a step can never hold.
    #[error("a step of {tokens} tokens cannot hold even one sequence that drafts {mtp} tokens")]
    StepBelowSequence {
        /// Tokens of a step.
        tokens: u32,
        /// Drafted tokens.
        mtp: u32,
    },
    /// The model cannot reach that far.
    #[error("sequences of {max_seq_len} tokens are longer than the model's {max_position}")]
    TooLong {
        /// Longest sequence.
        max_seq_len: u32,
        /// Longest position.
        max_position: u32,
    },
    /// Out of memory before the KV cache.
    #[error("weights {weights} and workspace {workspace} of a {phase} rank exceed its {device} by {missing}")]
    OutOfMemory {
        /// The servers' phase.
        phase: Phase,
        /// Weights of the fullest rank.
        weights: Bytes,
        /// Workspace.
        workspace: Bytes,
        /// The device.
        device: Bytes,
        /// What is missing.
        missing: Bytes,
        /// What would help.
        advice: String,
    },
    /// The KV cache is smaller than the batch.
    #[error("the KV cache of a {phase} rank ({kv}) holds {sequences} sequences of {tokens} tokens, its batch is {batch}")]
    KvStarved {
        /// The servers' phase.
        phase: Phase,
        /// Size of the cache.
        kv: Bytes,
        /// Sequences that it holds.
        sequences: u32,
        /// Tokens of one sequence of this load.
        tokens: u32,
        /// Sequences of a step.
        batch: u32,
        /// What would help.
        advice: String,
    },
    /// The engine does not run on that GPU type.
    #[error("engine {engine} does not run on {gpu}")]
    EngineOnGpu {
        /// The engine.
        engine: &'static str,
        /// The GPU type.
        gpu: String,
        /// What would help.
        advice: &'static str,
    },
    /// A number format or a feature that the engine lacks.
    #[error("engine {engine} has no {what}")]
    EngineLacks {
        /// The engine.
        engine: &'static str,
        /// What it lacks.
        what: String,
        /// What would help.
        advice: &'static str,
    },
    /// Two servers on one port.
    #[error("port {port} is also {other}")]
    PortTwice {
        /// The port.
        port: u16,
        /// The other knob.
        other: &'static str,
    },
    /// Layers of a checkpoint cannot be left out.
    #[error("DUMMY_LAYERS applies to dummy weights only")]
    NotDummy,
    /// More load than the frontend takes.
    #[error("{concurrency} concurrent requests are more than the {max_inflight} that the frontend takes")]
    TooMuchLoad {
        /// Concurrent requests in all.
        concurrency: u64,
        /// The frontend's limit.
        max_inflight: u32,
    },
    /// A product that no counter holds.
    #[error("{what} = {value} is too large")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The product.
        value: u64,
    },
    /// The model's description cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The model's description is wrong.
    #[error("cannot serve the model in {path}")]
    Model {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: ModelConfigError,
    },
}

impl PlanError {
    /// Advice, apart from the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.problem {
            Problem::WorldNotDivisible { world, .. } => {
                format!("set tensor parallelism to one of {} or change the world size", divisors(*world))
            }
            Problem::EpNotDivisible { tp, .. } => format!("choose one of {}", divisors(*tp)),
            Problem::TooManyStages { layers, .. } => format!("at most {layers} stages: raise tensor parallelism or use fewer devices"),
            Problem::SpansNodes { world, devices_per_node, .. } => {
                format!(
                    "use {} or {} devices",
                    world / devices_per_node * devices_per_node,
                    world.div_ceil(*devices_per_node) * devices_per_node
                )
            }
            Problem::EpSpansNodes { devices_per_node, .. } => format!("use tensor and expert parallelism of at most {devices_per_node}"),
            Problem::HeadsNotDivisible { .. } => "turn attention DP on or choose another tensor parallelism".to_owned(),
            Problem::ExpertsNotDivisible { experts, .. } => format!("choose one of {}", divisors(*experts)),
            Problem::TooFewSlots { experts, .. } => format!("use 0 (off) or at least {experts} slots"),
            Problem::SlotsNotDivisible { slots, ep } => format!("use {} or {} slots", slots / ep * ep, slots.div_ceil(*ep) * ep),
            Problem::NoMtpLayer { .. } => "use 0 or a checkpoint with num_nextn_predict_layers above 0".to_owned(),
            Problem::ChunkBelowBlock { block_size, .. } => format!("use at least {block_size} tokens, or a smaller KV_BLOCK_SIZE"),
            Problem::PromptAboveStep { isl, .. } => format!("use at least {isl} tokens, or CTX_CHUNKED_PREFILL=true"),
            Problem::StepBelowSequence { mtp, .. } => format!("use at least {} tokens", mtp + 1),
            Problem::TooLong { .. } => "lower ISL or OSL".to_owned(),
            Problem::OutOfMemory { advice, .. } | Problem::KvStarved { advice, .. } => advice.clone(),
            Problem::EngineOnGpu { advice, .. } | Problem::EngineLacks { advice, .. } => (*advice).to_owned(),
            Problem::TooMuchLoad { concurrency, .. } => format!("lower CONCURRENCY or set MAX_INFLIGHT to {concurrency}"),
            Problem::PortTwice { .. } => "use another port, or 0 for a free one chosen at launch where that is allowed".to_owned(),
            Problem::NotDummy => "set LOAD_FORMAT=dummy, or DUMMY_LAYERS=0".to_owned(),
            Problem::TooMany { .. } => return None,
            Problem::Unreadable { .. } => {
                format!("MODEL is one of {} or a directory that holds config.json", crate::builtin::MODELS.join(", "))
            }
            Problem::Model { .. } => return None,
        };
        Some(hint)
    }

    /// Exit code of a process that ends with this error: 3 when the recipe contradicts itself, 4 when it asks for what the
    /// hardware or the model cannot give.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self.problem {
            Problem::ChunkBelowBlock { .. }
            | Problem::PromptAboveStep { .. }
            | Problem::StepBelowSequence { .. }
            | Problem::PortTwice { .. }
            | Problem::NotDummy
            | Problem::TooMuchLoad { .. }
            | Problem::TooMany { .. }
            | Problem::Unreadable { .. }
            | Problem::Model { .. } => EXIT_RECIPE_INVALID,
            _ => EXIT_NO_FEASIBLE_PLAN,
        }
    }
}

fn divisors(n: u32) -> String {
    (1..=n).filter(|d| n.is_multiple_of(*d)).map(|d| d.to_string()).collect::<Vec<_>>().join(", ")
}
