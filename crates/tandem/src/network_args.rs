//! Flags that say how the load generator reaches its endpoint, apart from what it asks there.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tandem_load::{LoadSpec, Proxy, TlsOptions};

use crate::exit::{Exit, Failure, OrExit};

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
    /// Certificates (PEM) of the authorities to trust for https, instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Accept any certificate: for tests on networks that you trust
    #[arg(long)]
    pub(crate) insecure: bool,
    /// HTTP proxy, `http://[user:password@]host:port`; https goes through its CONNECT. `env` takes HTTPS_PROXY, HTTP_PROXY or ALL_PROXY
    /// from the environment, unless NO_PROXY names the host; without this flag the environment is not asked. Credentials are better kept
    /// there than on a command line
    #[arg(long, value_name = "URL")]
    pub(crate) proxy: Option<String>,
    /// Who stamps what arrives and what leaves
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
        if let Some(proxy) = self.proxy(spec)? {
            spec.target = spec.target.clone().through(proxy).or_exit(Exit::Usage)?;
        }
        spec.tls = TlsOptions { ca_file: self.ca_file.clone(), insecure: self.insecure };
        spec.receive_threads = self.receive_threads;
        spec.kernel_stamps = self.stamps == Stamps::Kernel;
        Ok(())
    }

    fn proxy(&self, spec: &LoadSpec) -> Result<Option<Proxy>, Failure> {
        let url = match self.proxy.as_deref() {
            Some("env") => {
                let host = spec.target.authority();
                let host = host.rsplit_once(':').map_or(host.as_str(), |(host, _)| host);
                proxy_of_environment(host, spec.target.tls_name().is_some(), |name| std::env::var(name).ok())
            }
            given => given.map(str::to_owned),
        };
        url.map(|url| Proxy::parse(&url).or_exit(Exit::Usage)).transpose()
    }
}

/// The proxy that the environment names for `host`: the variable for the scheme, else the one for all; small letters first, as in `curl`.
fn proxy_of_environment(host: &str, tls: bool, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let either = |name: &str| variable(name).or_else(|| variable(&name.to_uppercase())).filter(|value| !value.is_empty());
    let spared = either("no_proxy").is_some_and(|names| {
        names.split(',').map(|name| name.trim().trim_start_matches('.')).any(|name| {
            name == "*" || (!name.is_empty() && (host == name || host.strip_suffix(name).is_some_and(|front| front.ends_with('.'))))
        })
    });
    if spared {
        return None;
    }
    either(if tls { "https_proxy" } else { "http_proxy" }).or_else(|| either("all_proxy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_reach_the_specification() {
        let mut spec = LoadSpec::closed_loop("h", "m", 4, 1, 1, 1).unwrap();
        let args = NetworkArgs {
            headers: vec!["X-Team: a:b".into()],
            receive_threads: Some(2),
            stamps: Stamps::Clock,
            ca_file: Some("ca.pem".into()),
            insecure: false,
            proxy: Some("http://u:p@proxy:3128".into()),
        };
        args.apply(&mut spec).unwrap();
        assert_eq!(spec.tls, TlsOptions { ca_file: Some("ca.pem".into()), insecure: false });
        assert_ne!(spec.target, LoadSpec::closed_loop("h", "m", 4, 1, 1, 1).unwrap().target, "there is a proxy on the way");
        assert_eq!(spec.headers, [("X-Team".to_owned(), "a:b".to_owned())]);
        assert_eq!((spec.n_receive_threads(), spec.kernel_stamps), (2, false));
        let bad = NetworkArgs { headers: vec!["novalue".into()], ..NetworkArgs::default() };
        assert!(bad.apply(&mut spec).is_err());
    }

    #[test]
    fn the_environments_proxy_is_that_of_the_scheme_unless_the_host_is_spared() {
        let of = |pairs: &'static [(&str, &str)], host: &str, tls| {
            proxy_of_environment(host, tls, |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        let both = &[("HTTPS_PROXY", "s:1"), ("http_proxy", "p:1"), ("NO_PROXY", "localhost,.corp.example")];
        assert_eq!(of(both, "h", true).as_deref(), Some("s:1"));
        assert_eq!(of(both, "h", false).as_deref(), Some("p:1"));
        assert_eq!(of(&[("ALL_PROXY", "a:1")], "h", true).as_deref(), Some("a:1"));
        for spared in ["localhost", "corp.example", "a.corp.example"] {
            assert_eq!(of(both, spared, false), None, "{spared}");
        }
        assert_eq!(of(both, "notcorp.example", false).as_deref(), Some("p:1"));
    }
}
