//! The name of the directory that holds the artifacts of one load point.

use crate::artifacts::python;

/// What drives a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stimulus {
    /// That many requests in flight.
    Concurrency(u32),
    /// That many requests a second.
    RequestRate(f64),
    /// The times of a trace.
    FixedSchedule,
}

impl Stimulus {
    /// Key and value as GenAI-Perf's configuration names them.
    pub(crate) fn entry(self) -> (&'static str, serde_json::Value) {
        match self {
            Stimulus::Concurrency(n) => ("concurrency", n.into()),
            Stimulus::RequestRate(rate) => ("request_rate", rate.into()),
            Stimulus::FixedSchedule => ("fixed_schedule", true.into()),
        }
    }
}

/// `<model>-openai-chat-<stimulus>`, with `/` in the model's name replaced by `_`.
#[must_use]
pub fn name(model: &str, stimulus: Stimulus) -> String {
    let stimulus = match stimulus {
        Stimulus::Concurrency(n) => format!("concurrency{n}"),
        Stimulus::RequestRate(rate) => format!("request_rate{}", python::repr(rate)),
        Stimulus::FixedSchedule => "fixed_schedule".to_owned(),
    };
    format!("{}-openai-chat-{stimulus}", model.replace('/', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_after_model_and_stimulus() {
        assert_eq!(name("deepseek-r1-dynamo", Stimulus::Concurrency(2048)), "deepseek-r1-dynamo-openai-chat-concurrency2048");
        assert_eq!(name("deepseek-ai/DeepSeek-R1", Stimulus::RequestRate(10.0)), "deepseek-ai_DeepSeek-R1-openai-chat-request_rate10.0");
        assert_eq!(name("m", Stimulus::FixedSchedule), "m-openai-chat-fixed_schedule");
    }
}
