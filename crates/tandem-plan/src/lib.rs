//! The nouns of Tandem: what a deployment is made of, decided once and then only read.
//!
//! A [`Plan`] is the immutable, hashable document from which every process of a run
//! starts. This crate holds plain data and pure arithmetic on it; it parses no recipe
//! (`tandem-recipe`), starts nothing (`tandem-launch`) and reads no clock.
//!
//! Reading order: `units`, `model` (what is served), `hardware` (on what), `layout`
//! (how one worker is spread over ranks), `facts` (weights and KV bytes of a rank), `memory` (what fits),
//! `plan` (everything together).

pub mod facts;
pub mod hardware;
pub mod layout;
pub mod memory;
pub mod model;
pub mod plan;
pub mod units;
pub mod work;
pub mod workspace;

pub use facts::WeightDtype;
pub use hardware::{GpuType, Hardware};
pub use layout::ParallelLayout;
pub use model::{ModelConfig, ModelConfigError, RopeScaling};
pub use plan::{
    Address, EngineKind, EngineLimits, FrontendPlan, KnobRecord, KvDtype, KvPlan, LoadPlan, LoadPoint, MemoryBudget, ModelPlan,
    ModelSource, ModeledCosts, Phase, Plan, RankPlan, Routing, WorkerPlan,
};
pub use units::{Bytes, Nanos};
