//! What a source of samples is.

use std::time::Duration;

use tandem_metrics::telemetry::Subject;

/// Values of one subject at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    pub(crate) subject: Subject,
    pub(crate) values: Vec<(String, f64)>,
}

impl Reading {
    #[cfg(test)]
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

/// Something that can be asked again and again.
pub(crate) trait Source: Send {
    /// For messages.
    fn name(&self) -> String;

    /// Time between two questions.
    fn interval(&self) -> Duration;

    /// Asks once. Blocks at most a few seconds.
    ///
    /// # Errors
    /// A message, when nothing can be had this time.
    fn sample(&mut self) -> Result<Vec<Reading>, String>;
}
