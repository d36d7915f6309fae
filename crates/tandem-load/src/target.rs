//! Where the load goes: an `http://` URL taken apart, and resolved to an address that answers.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::error::LoadError;

/// Path of the endpoint below a server's root.
const CHAT_PATH: &str = "/v1/chat/completions";

/// A server and the path of its chat endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    path: String,
}

impl Target {
    /// Parses `http://host[:port][/path]`; the scheme may be left out. A path that does not end in `/chat/completions`
    /// is a prefix: `/v1/chat/completions` is added, or what of it is missing.
    ///
    /// # Errors
    /// [`LoadError::Url`] naming what is wrong; `https` is refused.
    pub fn parse(url: &str) -> Result<Self, LoadError> {
        let bad = |reason: &str| LoadError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err(bad("TLS is not supported; use http:// or put a local TLS-terminating proxy in front"));
            }
            Some((scheme, _)) => return Err(bad(&format!("unknown scheme `{scheme}`, expected http"))),
            None => url,
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        if authority.contains('@') {
            return Err(bad("credentials in the URL are not supported; use the API key or a header"));
        }
        if path.bytes().any(|b| b <= b' ' || b == 0x7F || b == b'#') {
            return Err(bad("the path holds blanks, control characters or a fragment"));
        }
        let (host, port) = split_port(authority).ok_or_else(|| bad("expected host or host:port"))?;
        if host.is_empty() || host.bytes().any(|b| b <= b' ' || b == 0x7F) {
            return Err(bad("the host is empty or holds blanks"));
        }
        Ok(Self { host: host.to_owned(), port, path: chat_path(path) })
    }

    /// Value of the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 80 { host } else { format!("{host}:{}", self.port) }
    }

    /// Path of the chat endpoint.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Resolves the host and returns the first address that accepts a connection, trying each for at most `timeout`.
    ///
    /// # Errors
    /// [`LoadError::Resolve`] or [`LoadError::Unreachable`] with the last address's error.
    pub fn reachable_address(&self, timeout: Duration) -> Result<SocketAddr, LoadError> {
        let resolve_failed = |source| LoadError::Resolve { host: self.host.clone(), source };
        let addresses: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs().map_err(resolve_failed)?.collect();
        let mut last = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(_) => return Ok(address),
                Err(source) => last = Some(LoadError::Unreachable { address, source }),
            }
        }
        Err(last.unwrap_or_else(|| resolve_failed(std::io::Error::new(std::io::ErrorKind::NotFound, "no address"))))
    }
}

fn split_port(authority: &str) -> Option<(&str, u16)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host, port.parse().ok()?)),
            None if after.is_empty() => Some((host, 80)),
            None => None,
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host, port.parse().ok()?)),
        None => Some((authority, 80)),
    }
}

fn chat_path(path: &str) -> String {
    let path = path.trim_end_matches('/');
    if path.ends_with("/chat/completions") {
        path.to_owned()
    } else if let Some(prefix) = path.strip_suffix("/v1") {
        format!("{prefix}{CHAT_PATH}")
    } else {
        format!("{path}{CHAT_PATH}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_port_and_the_chat_path_once() {
        for (url, authority, path) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "/v1/chat/completions"),
            ("localhost:8000/", "localhost:8000", "/v1/chat/completions"),
            ("HTTP://h/v1/", "h", "/v1/chat/completions"),
            ("http://h:81/api/v1", "h:81", "/api/v1/chat/completions"),
            ("http://[::1]:9/openai", "[::1]:9", "/openai/v1/chat/completions"),
            ("http://[::1]", "[::1]", "/v1/chat/completions"),
            ("http://h/x/chat/completions", "h", "/x/chat/completions"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.authority().as_str(), target.path()), (authority, path), "{url}");
        }
    }

    #[test]
    fn urls_that_cannot_be_honoured_are_refused() {
        for url in [
            "https://h",
            "ftp://h",
            "http://",
            "http://:80",
            "http://h:port",
            "http://u:p@h",
            "http://h/a b",
            "http://h\r\nX: y",
            "http://[::1",
        ] {
            assert!(matches!(Target::parse(url), Err(LoadError::Url { .. })), "{url}");
        }
    }

    #[test]
    fn a_port_that_nobody_listens_on_is_unreachable() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target = Target::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        assert!(matches!(target.reachable_address(Duration::from_secs(5)), Err(LoadError::Unreachable { .. })));
    }
}
