//! Flags that say how the load generator reaches its endpoint, apart from what it asks there.

use clap::{Args, ValueEnum};
use tandem_load::LoadSpec;

use crate::exit::{Exit, Failure};

/// Who stamps what arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Stamps {
    /// The kernel, when a segment arrives, where it offers that
    #[default]
    Kernel,
    /// The load generator's own clock, after each read
    Clock,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// A header of each request; may be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    /// Threads that own the connections and read from them (default: one for each 1,024 requests in flight, at most a quarter of
    /// the cores)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) receive_threads: Option<u32>,
    /// Who stamps what arrives
    #[arg(long, value_name = "WHO", default_value = "kernel")]
    pub(crate) stamps: Stamps,
}

impl NetworkArgs {
    /// Writes them into `spec`.
    pub(crate) fn apply(&self, spec: &mut LoadSpec) -> Result<(), Failure> {
        for header in &self.headers {
            let Some((name, value)) = header.split_once(':') else {
                return Err(Failure::message(Exit::Usage, format!("--header `{header}`: expected `name: value`")));
            };
            spec.headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        spec.receive_threads = self.receive_threads;
        spec.kernel_stamps = self.stamps == Stamps::Kernel;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_reach_the_specification() {
        let mut spec = LoadSpec::closed_loop("h", "m", 4, 1, 1, 1).unwrap();
        let args = NetworkArgs { headers: vec!["X-Team: a:b".into()], receive_threads: Some(2), stamps: Stamps::Clock };
        args.apply(&mut spec).unwrap();
        assert_eq!(spec.headers, [("X-Team".to_owned(), "a:b".to_owned())]);
        assert_eq!((spec.n_receive_threads(), spec.kernel_stamps), (2, false));
        let bad = NetworkArgs { headers: vec!["novalue".into()], ..NetworkArgs::default() };
        assert!(bad.apply(&mut spec).is_err());
    }
}
