//! The recipes that ship: `nano` (the default), `tiny` (for tests), `mocker` (Dynamo without a GPU) and `deepseek-r1` (the published configurations).

use std::borrow::Cow;

use tandem_plan::GpuType;

use crate::knobs::Knob;

/// A recipe that ships.
#[derive(Debug, PartialEq)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub about: &'static str,
    /// The GPU types that it has defaults for; the first is taken when there is only one.
    pub gpu_types: &'static [GpuType],
    /// Defaults on every GPU type, where they differ from the knob table's.
    common: &'static [(&'static str, &'static str)],
    /// Defaults of one GPU type each.
    by_gpu: &'static [(GpuType, &'static [(&'static str, &'static str)])],
}

/// Name of the recipe that runs when none is given.
pub const DEFAULT_RECIPE: &str = "nano";

/// Every recipe, the default first.
pub const BUILTINS: &[Builtin] = &[NANO, TINY, MOCKER, DEEPSEEK_R1];

/// The trained DeepSeek-V3-architecture model that ships with the binary, disaggregated on two cores.
const NANO: Builtin = Builtin {
    name: "nano",
    about: "a small trained DeepSeek-V3-architecture model on this machine: two prefill servers, one decode server, no GPU",
    gpu_types: &[GpuType::Cpu],
    common: &[
        ("MODEL", "nano"),
        // Sized for well under a minute on two cores; each prompt takes two prefill steps.
        ("ISL", "512"),
        ("OSL", "128"),
        ("NCTX", "2"),
        ("CTX_MAX_BATCH_SIZE", "4"),
        ("CTX_MAX_NUM_TOKENS", "256"),
        ("GEN_MAX_BATCH_SIZE", "8"),
        ("GEN_MAX_NUM_TOKENS", "8"),
    ],
    by_gpu: &[],
};

/// Random weights of the smallest model, for tests.
const TINY: Builtin = Builtin {
    name: "tiny",
    about: "random weights of a two-layer model: the fastest way through every part",
    gpu_types: &[GpuType::Cpu],
    common: &[
        ("MODEL", "tiny"),
        ("LOAD_FORMAT", "dummy"),
        ("ISL", "32"),
        ("OSL", "8"),
        ("CTX_MAX_BATCH_SIZE", "4"),
        ("CTX_MAX_NUM_TOKENS", "128"),
        ("GEN_MAX_BATCH_SIZE", "4"),
        ("GEN_MAX_NUM_TOKENS", "4"),
        ("DEVICE_MEMORY", "64MiB"),
        ("CONCURRENCY", "2"),
        ("MULTI_ROUND", "4"),
        ("REQUEST_TIMEOUT_S", "60"),
    ],
    by_gpu: &[],
};

/// NVIDIA Dynamo without a GPU: its real frontend and router before mock workers.
const MOCKER: Builtin = Builtin {
    name: "mocker",
    about: "NVIDIA Dynamo's frontend and mock workers on this machine, disaggregated, no GPU; needs ENGINE_PYTHON and MODEL",
    gpu_types: &[GpuType::Cpu],
    common: &[
        ("ENGINE", "dynamo-mocker"),
        ("MODEL", "deepseek-r1"),
        ("SERVED_MODEL_NAME", "deepseek-r1"),
        ("OSL", "32"),
        ("CTX_MAX_BATCH_SIZE", "16"),
        ("CTX_MAX_NUM_TOKENS", "8192"),
        ("GEN_MAX_BATCH_SIZE", "64"),
        ("GEN_MAX_NUM_TOKENS", "64"),
        ("DEVICE_MEMORY", "16GiB"),
        ("KV_DTYPE", "bf16"),
        ("ROUTING", "round-robin"),
    ],
    by_gpu: &[],
};

/// The published maximum-throughput configurations.
const DEEPSEEK_R1: Builtin = Builtin {
    name: "deepseek-r1",
    about: "DeepSeek-R1 671B with Dynamo and TensorRT-LLM: the published maximum-throughput configurations",
    gpu_types: &[GpuType::Gb200, GpuType::B200, GpuType::H100, GpuType::H200, GpuType::B300, GpuType::Gb300],
    common: &[
        ("MODEL", "deepseek-r1"),
        ("ENGINE", "dynamo-trtllm"),
        ("ISL", "8150"),
        ("OSL", "1024"),
        ("CTX_MAX_BATCH_SIZE", "1"),
        ("CTX_GPU_MEMORY_FRACTION", "0.75"),
        ("CTX_ATTENTION_DP", "true"),
        ("NGEN", "1"),
        ("GEN_GPU_MEMORY_FRACTION", "0.8"),
        ("GEN_ATTENTION_DP", "true"),
        ("GEN_EPLB_NUM_SLOTS", "0"),
        ("GEN_MTP_SIZE", "0"),
        ("MULTI_ROUND", "8"),
        ("STREAMING", "true"),
        ("SEED", "100"),
        ("WARMUP_ROUNDS", "2"),
        ("REQUEST_TIMEOUT_S", "1800"),
        ("KV_DTYPE", "fp8"),
        ("STREAM_INTERVAL", "20"),
        ("FRONTEND_HOST", "0.0.0.0"),
        ("DYNAMO_FRONTEND_PORT", "8000"),
    ],
    by_gpu: &[
        (
            GpuType::Gb200,
            &[
                ("NCTX", "6"),
                ("CTX_WORLD_SIZE", "4"),
                ("CTX_MAX_NUM_TOKENS", "4096"),
                ("GEN_WORLD_SIZE", "8"),
                ("GEN_MAX_BATCH_SIZE", "256"),
                ("GEN_MAX_NUM_TOKENS", "256"),
                ("CONCURRENCY", "2048"),
                ("WEIGHT_DTYPE", "nvfp4"),
                ("DEVICE_MEMORY", "189471MiB"),
            ],
        ),
        (
            GpuType::B200,
            &[
                ("NCTX", "3"),
                ("CTX_WORLD_SIZE", "8"),
                ("CTX_MAX_NUM_TOKENS", "4096"),
                ("GEN_WORLD_SIZE", "8"),
                ("GEN_MAX_BATCH_SIZE", "256"),
                ("GEN_MAX_NUM_TOKENS", "256"),
                ("CONCURRENCY", "2048"),
                ("WEIGHT_DTYPE", "nvfp4"),
                ("DEVICE_MEMORY", "180GiB"),
            ],
        ),
        (
            GpuType::H100,
            &[
                ("NCTX", "2"),
                ("CTX_WORLD_SIZE", "16"),
                ("CTX_MAX_NUM_TOKENS", "2048"),
                ("GEN_WORLD_SIZE", "16"),
                ("GEN_MAX_BATCH_SIZE", "128"),
                ("GEN_MAX_NUM_TOKENS", "128"),
                ("CONCURRENCY", "1024"),
                ("WEIGHT_DTYPE", "fp8"),
                ("DEVICE_MEMORY", "80GiB"),
            ],
        ),
        // Nothing is published for these: the configuration of their kin, as far as memory allows.
        (
            GpuType::H200,
            &[
                ("NCTX", "3"),
                ("CTX_WORLD_SIZE", "8"),
                ("CTX_MAX_NUM_TOKENS", "2048"),
                ("GEN_WORLD_SIZE", "8"),
                ("GEN_MAX_BATCH_SIZE", "96"),
                ("GEN_MAX_NUM_TOKENS", "96"),
                ("CONCURRENCY", "768"),
                ("WEIGHT_DTYPE", "fp8"),
                ("DEVICE_MEMORY", "143771MiB"),
            ],
        ),
        (
            GpuType::B300,
            &[
                ("NCTX", "3"),
                ("CTX_WORLD_SIZE", "8"),
                ("CTX_MAX_NUM_TOKENS", "4096"),
                ("GEN_WORLD_SIZE", "8"),
                ("GEN_MAX_BATCH_SIZE", "256"),
                ("GEN_MAX_NUM_TOKENS", "256"),
                ("CONCURRENCY", "2048"),
                ("WEIGHT_DTYPE", "nvfp4"),
                ("DEVICE_MEMORY", "275040MiB"),
            ],
        ),
        (
            GpuType::Gb300,
            &[
                ("NCTX", "6"),
                ("CTX_WORLD_SIZE", "4"),
                ("CTX_MAX_NUM_TOKENS", "4096"),
                ("GEN_WORLD_SIZE", "8"),
                ("GEN_MAX_BATCH_SIZE", "256"),
                ("GEN_MAX_NUM_TOKENS", "256"),
                ("CONCURRENCY", "2048"),
                ("WEIGHT_DTYPE", "nvfp4"),
                ("DEVICE_MEMORY", "284208MiB"),
            ],
        ),
    ],
};

/// The recipe called `name`; case does not matter.
#[must_use]
pub fn find(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().find(|b| b.name.eq_ignore_ascii_case(name))
}

impl Builtin {
    /// The default of `knob` on `gpu`, as text.
    #[must_use]
    pub fn default_of(&self, knob: &Knob, gpu: GpuType) -> Cow<'static, str> {
        if knob.name == "GPU_TYPE" {
            return gpu.name().to_owned().into();
        }
        let of_gpu = self.by_gpu.iter().filter(|(g, _)| *g == gpu.like()).flat_map(|(_, values)| values.iter());
        of_gpu.chain(self.common).find(|(name, _)| *name == knob.name).map_or(knob.default, |(_, text)| text).into()
    }

    /// Whether it has defaults for `gpu`.
    #[must_use]
    pub fn is_for(&self, gpu: GpuType) -> bool {
        self.gpu_types.contains(&gpu.like())
    }
}

/// The `config.json` of a model that ships, if `name` is one.
#[must_use]
pub fn model_config(name: &str) -> Option<&'static str> {
    match name {
        "nano" => Some(include_str!("../../../models/nano/config.json")),
        "tiny" => Some(include_str!("../data/tiny.json")),
        "deepseek-r1" => Some(include_str!("../data/deepseek-r1.json")),
        _ => None,
    }
}

/// Names of the models that ship.
pub const MODELS: [&str; 3] = ["nano", "tiny", "deepseek-r1"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knobs::KNOBS;

    #[test]
    fn every_default_is_a_valid_value_of_a_knob() {
        for builtin in BUILTINS {
            for &gpu in builtin.gpu_types {
                for knob in KNOBS {
                    let text = builtin.default_of(knob, gpu);
                    assert!(knob.kind.parse(&text).is_ok(), "{} {gpu}: {} = {text}", builtin.name, knob.name);
                }
            }
            let named = builtin.common.iter().chain(builtin.by_gpu.iter().flat_map(|(_, v)| v.iter()));
            for (name, _) in named {
                assert!(Knob::find(name).is_some(), "{}: {name} is no knob", builtin.name);
            }
        }
    }

    #[test]
    fn device_memory_defaults_are_the_hardware_facts() {
        let knob = Knob::find("DEVICE_MEMORY").unwrap();
        for &gpu in DEEPSEEK_R1.gpu_types {
            let value = knob.kind.parse(&DEEPSEEK_R1.default_of(knob, gpu)).unwrap();
            assert_eq!(value, crate::Value::Size(gpu.hardware().unwrap().device_memory));
        }
    }
}
