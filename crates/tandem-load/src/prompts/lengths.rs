//! Lengths that vary from request to request: normal, uniform, log-normal, or drawn from a list.

use std::sync::Arc;

use rand::Rng;
use rand_distr::{Distribution, LogNormal, Normal};
use rand_xoshiro::Xoshiro256PlusPlus;

/// How a length (tokens of a prompt or an output, milliseconds of a pause) comes about.
#[derive(Debug, Clone, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(u32),
    /// Normal, rounded; a draw below the least possible length is raised to it.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Each from the first to the second with equal probability, both included.
    Uniform(u32, u32),
    /// Log-normal, given by the mean and standard deviation of the lengths themselves, not of their logarithms.
    LogNormal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// One of the list, with equal probability.
    Empirical(Arc<[u32]>),
}

impl Lengths {
    /// Reads `normal:MEAN,STD`, `uniform:FROM,TO`, `lognormal:MEAN,STD` or a plain number.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(n) = text.parse() {
            return Ok(Lengths::Fixed(n));
        }
        let wrong = || format!("`{text}` is not normal:MEAN,STD, uniform:FROM,TO, lognormal:MEAN,STD or file:PATH");
        let (name, numbers) = text.split_once(':').ok_or_else(wrong)?;
        let (a, b) = numbers.split_once(',').ok_or_else(wrong)?;
        let real = |s: &str| s.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0).ok_or_else(wrong);
        let whole = |s: &str| s.trim().parse::<u32>().map_err(|_| wrong());
        let lengths = match name {
            "normal" => Lengths::Normal { mean: real(a)?, std: real(b)? },
            "lognormal" => Lengths::LogNormal { mean: real(a)?, std: real(b)? },
            "uniform" => Lengths::Uniform(whole(a)?, whole(b)?),
            _ => return Err(wrong()),
        };
        lengths.check()?;
        Ok(lengths)
    }

    /// Reads a list: one number a line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The first line that is no number, or that there is none.
    pub fn from_list(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let number = |(i, line): (usize, &str)| line.parse::<u32>().map_err(|_| format!("line {}: `{line}` is not a length", i + 1));
        let list: Arc<[u32]> = lines.map(number).collect::<Result<_, _>>()?;
        if list.is_empty() { Err("holds no length".to_owned()) } else { Ok(Lengths::Empirical(list)) }
    }

    /// Checks what its parts are.
    ///
    /// # Errors
    /// What is impossible.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Lengths::Fixed(0) => Err("must be at least 1".to_owned()),
            Lengths::Uniform(a, b) if a > b => Err(format!("uniform:{a},{b}: the first must not be above the second")),
            Lengths::Normal { mean, std } | Lengths::LogNormal { mean, std }
                if !(mean.is_finite() && *mean > 0.0 && std.is_finite() && *std >= 0.0) =>
            {
                Err("the mean must be positive, the standard deviation at least 0".to_owned())
            }
            Lengths::Empirical(list) if list.is_empty() => Err("holds no length".to_owned()),
            _ => Ok(()),
        }
    }

    /// One length, at least `least`.
    pub fn draw(&self, rng: &mut Xoshiro256PlusPlus, least: u32) -> u32 {
        let length = match self {
            Lengths::Fixed(n) => *n,
            Lengths::Uniform(a, b) => rng.random_range(*a..=*b),
            Lengths::Empirical(list) => list[rng.random_range(0..list.len())],
            Lengths::Normal { mean, std } => round(Normal::new(*mean, *std).map_or(*mean, |d| d.sample(rng))),
            Lengths::LogNormal { mean, std } => {
                let variance = (1.0 + (std / mean).powi(2)).ln();
                let logs = LogNormal::new(mean.ln() - variance / 2.0, variance.sqrt());
                round(logs.map_or(*mean, |d| d.sample(rng)))
            }
        };
        length.max(least)
    }

    /// The one length, if it is always the same.
    #[must_use]
    pub fn fixed(&self) -> Option<u32> {
        match self {
            Lengths::Fixed(n) => Some(*n),
            _ => None,
        }
    }

    /// A length that is typical: the fixed one or the mean.
    #[must_use]
    pub fn typical(&self) -> u32 {
        match self {
            Lengths::Fixed(n) => *n,
            Lengths::Normal { mean, .. } | Lengths::LogNormal { mean, .. } => round(*mean),
            Lengths::Uniform(a, b) => a / 2 + b / 2 + (a & b & 1),
            Lengths::Empirical(list) => {
                let sum: u64 = list.iter().copied().map(u64::from).sum();
                u32::try_from(sum / (list.len() as u64).max(1)).unwrap_or(u32::MAX)
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
fn round(x: f64) -> u32 {
    x.round() as u32
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn moments(lengths: &Lengths) -> (f64, f64) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let draws: Vec<f64> = (0..40_000).map(|_| f64::from(lengths.draw(&mut rng, 1))).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        (mean, (draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64).sqrt())
    }

    #[test]
    fn draws_have_the_asked_mean_and_spread() {
        for text in ["normal:1000,100", "lognormal:1000,500"] {
            let lengths = Lengths::parse(text).unwrap();
            let (mean, std) = moments(&lengths);
            let wanted = if text.starts_with("log") { 500.0 } else { 100.0 };
            assert!((mean - 1000.0).abs() < 15.0 && (std / wanted - 1.0).abs() < 0.05, "{text}: {mean} {std}");
            assert_eq!(lengths.typical(), 1000);
        }
        let (mean, std) = moments(&Lengths::parse("uniform:100,300").unwrap());
        assert!((mean - 200.0).abs() < 2.0 && (std - 58.0).abs() < 1.5, "{mean} {std}");
        assert_eq!(moments(&Lengths::from_list("# lengths\n7\n\n9\n").unwrap()).0.round(), 8.0);
        assert_eq!(moments(&Lengths::Fixed(5)), (5.0, 0.0));
    }

    #[test]
    fn no_draw_is_below_the_least_length() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let lengths = Lengths::parse("normal:10,30").unwrap();
        assert!((0..1000).all(|_| lengths.draw(&mut rng, 4) >= 4));
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for text in ["normal", "normal:1", "normal:a,b", "zipf:1,2", "uniform:5,4", "normal:0,1", "normal:1,nan", "0"] {
            assert!(Lengths::parse(text).and_then(|l| l.check()).is_err(), "{text}");
        }
        assert!(Lengths::from_list("x").unwrap_err().contains("line 1"));
        assert!(Lengths::from_list("").is_err());
    }
}
