//! Fetches a text of metrics within bounds.

use std::time::Duration;

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// No server's metrics are larger.
const MAX_BYTES: u64 = 16 << 20;

/// An agent whose connections are kept from scrape to scrape.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).max_redirects(2).proxy(None).build().into()
}

/// The text behind `url`.
pub(crate) fn get(agent: &ureq::Agent, url: &str) -> Result<String, String> {
    let mut response = agent.get(url).call().map_err(|error| error.to_string())?;
    response.body_mut().with_config().limit(MAX_BYTES).read_to_string().map_err(|error| error.to_string())
}

/// `host:port`, `http://host:port` and whole URLs become the URL of a metrics page.
pub(crate) fn metrics_url(url: &str) -> String {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let path_at = url.find("://").map_or(0, |at| at + 3);
    if url[path_at..].trim_end_matches('/').contains('/') { url } else { format!("{}/metrics", url.trim_end_matches('/')) }
}

/// The host of a URL, for telling hosts apart.
pub(crate) fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metrics_url_may_be_short() {
        assert_eq!(metrics_url("n1:9400"), "http://n1:9400/metrics");
        assert_eq!(metrics_url("http://n1:9400/"), "http://n1:9400/metrics");
        assert_eq!(metrics_url("http://n1:8000/prometheus/metrics"), "http://n1:8000/prometheus/metrics");
        assert_eq!((host_of("http://n1:9400/metrics"), host_of("n2")), ("n1", "n2"));
    }
}
