//! What somebody predicted for a load point, beside what was measured. Who predicts is not known here.

use tandem_metrics::Metric;

use super::result_file::SavedPoint;

/// A prediction for one load point.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// Figures.
    pub figures: Vec<PredictedFigure>,
    /// Tokens/s/user with its range.
    pub per_user: [f64; 3],
    /// Tokens/s/GPU with its range.
    pub per_gpu: [f64; 3],
    /// Why it may be further off than its ranges say.
    pub extrapolates: Vec<String>,
}

/// One predicted figure, in the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredictedFigure {
    /// The metric.
    pub metric: &'static Metric,
    /// Its statistic, as `result.json` names it.
    pub stat: &'static str,
    /// Value, lower and upper end of the range in which 8 of 10 measurements are expected.
    pub range: [f64; 3],
}

/// A predicted figure beside the measured one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Beside {
    pub(crate) predicted: PredictedFigure,
    pub(crate) measured: f64,
}

impl Beside {
    /// The prediction over the measurement, minus one.
    pub(crate) fn off(&self) -> Option<f64> {
        (self.measured != 0.0).then(|| self.predicted.range[0] / self.measured - 1.0)
    }

    pub(crate) fn is_inside(&self) -> bool {
        let [_, low, high] = self.predicted.range;
        (low..=high).contains(&self.measured)
    }
}

impl Predicted {
    /// The figures that were measured too.
    pub(crate) fn beside(&self, point: &SavedPoint) -> Vec<Beside> {
        let beside = |figure: &PredictedFigure| {
            Some(Beside { predicted: *figure, measured: point.stat(figure.metric, figure.stat).filter(|value| value.is_finite())? })
        };
        self.figures.iter().filter_map(beside).collect()
    }
}
