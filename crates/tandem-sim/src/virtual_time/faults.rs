//! What may go wrong in a simulated deployment, as words: `worker-lost:decode-0@30s`, `slow-rank:prefill-0x1.5`, `slow-link:x4`.

use std::str::FromStr;

use thiserror::Error;

/// One fault.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// A worker dies.
    WorkerLost {
        /// Its name.
        worker: String,
        /// Seconds after the begin of the load.
        at_s: f64,
    },
    /// A rank computes more slowly, and its worker waits for it.
    SlowRank {
        /// The worker's name.
        worker: String,
        /// Factor on its step times.
        factor: f64,
    },
    /// KV transfers take longer.
    SlowLink {
        /// Factor on their times.
        factor: f64,
    },
}

/// Why words are no fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FaultError {
    /// Not one of the forms.
    #[error("'{0}' is no fault: worker-lost:NAME@SECONDSs, slow-rank:NAMExFACTOR or slow-link:xFACTOR")]
    Form(String),
    /// A number that cannot be.
    #[error("'{0}' has a number that is not positive and finite")]
    Number(String),
    /// The plan has no such worker.
    #[error("the plan has no worker called '{0}'")]
    Worker(String),
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let form = || FaultError::Form(text.to_owned());
        let number = |s: &str| -> Result<f64, FaultError> {
            let value: f64 = s.parse().map_err(|_| form())?;
            if value.is_finite() && value > 0.0 { Ok(value) } else { Err(FaultError::Number(text.to_owned())) }
        };
        let (kind, rest) = text.split_once(':').ok_or_else(form)?;
        match kind {
            "worker-lost" => {
                let (worker, at) = rest.split_once('@').ok_or_else(form)?;
                let at_s = number(at.strip_suffix('s').unwrap_or(at))?;
                Ok(Fault::WorkerLost { worker: worker.to_owned(), at_s })
            }
            "slow-rank" => {
                let (worker, factor) = rest.rsplit_once('x').ok_or_else(form)?;
                Ok(Fault::SlowRank { worker: worker.to_owned(), factor: number(factor)? })
            }
            "slow-link" => Ok(Fault::SlowLink { factor: number(rest.strip_prefix('x').ok_or_else(form)?)? }),
            _ => Err(form()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_others_are_refused() {
        let lost = Fault::WorkerLost { worker: "decode-0".into(), at_s: 30.0 };
        assert_eq!("worker-lost:decode-0@30s".parse(), Ok(lost));
        assert_eq!("slow-rank:prefill-0x1.5".parse(), Ok(Fault::SlowRank { worker: "prefill-0".into(), factor: 1.5 }));
        assert_eq!("slow-link:x4".parse(), Ok(Fault::SlowLink { factor: 4.0 }));
        for bad in ["", "slow-link:4", "slow-rank:prefill-0", "worker-lost:decode-0", "flood:x2"] {
            assert!(matches!(bad.parse::<Fault>(), Err(FaultError::Form(_))), "{bad}");
        }
        assert!(matches!("slow-link:x0".parse::<Fault>(), Err(FaultError::Number(_))));
    }
}
