//! Where the load goes: a URL taken apart, and the proxy on the way. Names and text only; connections are `transport::route`'s.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::LoadError;

/// Path of the endpoint below a server's root.
const CHAT_PATH: &str = "/v1/chat/completions";

/// A server, how it is reached, and the path of its chat endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    place: Place,
    path: String,
    proxy: Option<Proxy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Host { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl Target {
    /// Parses `http[s]://host[:port][/path]` or `unix:/path/of/socket`; `http://` may be left out. A path of a URL that does not end in
    /// `/chat/completions` is a prefix: `/v1/chat/completions` is added, or what of it is missing.
    ///
    /// # Errors
    /// [`LoadError::Url`] naming what is wrong.
    pub fn parse(url: &str) -> Result<Self, LoadError> {
        let bad = |reason: &str| LoadError::Url { url: url.to_owned(), reason: reason.to_owned() };
        if let Some(socket) = url.strip_prefix("unix:") {
            let socket = socket.strip_prefix("//").unwrap_or(socket);
            if !socket.starts_with('/') || socket.ends_with('/') {
                return Err(bad("expected unix:/path/of/socket"));
            }
            return Ok(Self { place: Place::Unix(socket.into()), path: CHAT_PATH.to_owned(), proxy: None });
        }
        let (tls, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, _)) => return Err(bad(&format!("unknown scheme `{scheme}`, expected http, https or unix"))),
            None => (false, url),
        };
        if tls && !cfg!(feature = "tls") {
            return Err(bad("this build has no TLS (feature `tls`)"));
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        if authority.contains('@') {
            return Err(LoadError::Url {
                url: "…".to_owned(),
                reason: "credentials in the URL are not supported; use the API key or a header".to_owned(),
            });
        }
        if path.bytes().any(|b| b <= b' ' || b == 0x7F || b == b'#') {
            return Err(bad("the path holds blanks, control characters or a fragment"));
        }
        let (host, port) = split_host(authority, default_port(tls)).ok_or_else(|| bad("expected host or host:port"))?;
        Ok(Self { place: Place::Host { host, port, tls }, path: chat_path(path), proxy: None })
    }

    /// The same server, reached through `proxy`.
    ///
    /// # Errors
    /// [`LoadError::Spec`] for a unix socket, which no proxy reaches.
    pub fn through(self, proxy: Proxy) -> Result<Self, LoadError> {
        match self.place {
            Place::Unix(_) => Err(LoadError::Spec { field: "proxy", reason: "a unix socket is reached without one".into() }),
            Place::Host { .. } => Ok(Self { proxy: Some(proxy), ..self }),
        }
    }

    /// Value of the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        match &self.place {
            Place::Unix(_) => "localhost".to_owned(),
            Place::Host { host, port, tls } if *port == default_port(*tls) => bracketed(host),
            Place::Host { host, port, .. } => format!("{}:{port}", bracketed(host)),
        }
    }

    /// What a report names: the `Host` header's value, with `https://` if it is that, or the socket.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.place {
            Place::Unix(socket) => format!("unix:{}", socket.display()),
            Place::Host { tls: true, .. } => format!("https://{}", self.authority()),
            Place::Host { .. } => self.authority(),
        }
    }

    /// Path of the chat endpoint.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the request line names: the path, or for a proxy that reads the request the whole URL.
    #[must_use]
    pub(crate) fn request_target(&self) -> String {
        match (&self.place, &self.proxy) {
            (Place::Host { tls: false, .. }, Some(_)) => format!("http://{}{}", self.authority(), self.path),
            _ => self.path.clone(),
        }
    }

    /// `Proxy-Authorization` of each request, for a proxy that reads it.
    pub(crate) fn proxy_authorization(&self) -> Option<&str> {
        let Place::Host { tls: false, .. } = self.place else { return None };
        self.proxy.as_ref()?.authorization.as_deref()
    }

    /// Host and port to connect to: the server's or its proxy's.
    pub(crate) fn first_hop(&self) -> Hop<'_> {
        match (&self.proxy, &self.place) {
            (_, Place::Unix(path)) => Hop::Unix(path),
            (Some(proxy), _) => Hop::Tcp(&proxy.host, proxy.port),
            (None, Place::Host { host, port, .. }) => Hop::Tcp(host, *port),
        }
    }

    /// The request that has a proxy open a tunnel, where one is needed.
    pub(crate) fn tunnel_request(&self) -> Option<Vec<u8>> {
        let (Place::Host { host, port, tls: true }, Some(proxy)) = (&self.place, &self.proxy) else { return None };
        let to = format!("{}:{port}", bracketed(host));
        let authorization = proxy.authorization.as_ref().map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
        Some(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n").into_bytes())
    }

    /// The name that the server's certificate has to be for, if it speaks TLS.
    #[must_use]
    pub fn tls_name(&self) -> Option<&str> {
        match &self.place {
            Place::Host { host, tls: true, .. } => Some(host),
            _ => None,
        }
    }
}

/// Where a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop<'a> {
    /// A host and a port.
    Tcp(&'a str, u16),
    /// A unix socket.
    Unix(&'a Path),
}

/// An HTTP proxy. Its credentials never show.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    authorization: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Parses `http://[user:password@]host[:port]`; `http://` may be left out, the port is 80 where none is given.
    ///
    /// # Errors
    /// [`LoadError::Spec`], which does not repeat what was given: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, LoadError> {
        let bad = |reason: &str| LoadError::Spec { field: "proxy", reason: reason.to_owned() };
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(bad("expected http://: other kinds of proxies are not supported")),
            None => url,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, authority) = rest.rsplit_once('@').map_or((None, rest), |(c, a)| (Some(c), a));
        let (host, port) = split_host(authority, 80).ok_or_else(|| bad("expected http://host:port"))?;
        if host.contains('/') {
            return Err(bad("expected http://host:port"));
        }
        let authorization = match credentials.map(percent_decoded) {
            None => None,
            Some(Some(plain)) => Some(format!("Basic {}", base64(&plain))),
            Some(None) => return Err(bad("its credentials are not percent-encoded as a URL has them")),
        };
        Ok(Self { host, port, authorization })
    }
}

const fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn split_host(authority: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else {
        authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)))
    };
    let port = port.map_or(Some(default), |port| port.parse().ok())?;
    let is_name = !host.is_empty() && host.bytes().all(|b| b > b' ' && b != 0x7F);
    is_name.then(|| (host.to_owned(), port))
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

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// Base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().chain([0, 0].iter()).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for i in 0..4 {
            let sextet = (word >> (18 - 6 * i) & 63) as usize;
            out.push(if i <= group.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    out
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
            ("unix:/run/x.sock", "localhost", "/v1/chat/completions"),
            ("unix:///run/x.sock", "localhost", "/v1/chat/completions"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.authority().as_str(), target.path()), (authority, path), "{url}");
            assert_eq!(target.tls_name(), None);
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn https_has_its_own_port_and_a_name_to_check() {
        let target = Target::parse("https://h/v1").unwrap();
        assert_eq!((target.authority().as_str(), target.tls_name(), target.first_hop()), ("h", Some("h"), Hop::Tcp("h", 443)));
        assert_eq!(Target::parse("https://h:80").unwrap().authority(), "h:80");
    }

    #[test]
    fn urls_that_cannot_be_honoured_are_refused() {
        for url in [
            "ftp://h",
            "http://",
            "http://:80",
            "http://h:port",
            "http://u:p@h",
            "http://h/a b",
            "http://h\r\nX: y",
            "http://[::1",
            "unix:relative",
            "unix:/",
        ] {
            let error = Target::parse(url).unwrap_err();
            assert!(matches!(error, LoadError::Url { .. }) && !error.to_string().contains("u:p"), "{url}");
        }
    }

    #[test]
    fn a_proxy_is_the_first_hop_and_reads_plain_requests_whole() {
        let proxy = || Proxy::parse("http://user:p%40ss@proxy:3128").unwrap();
        let plain = Target::parse("http://h:81/v1").unwrap().through(proxy()).unwrap();
        assert_eq!((plain.first_hop(), plain.tunnel_request()), (Hop::Tcp("proxy", 3128), None));
        assert_eq!(plain.request_target(), "http://h:81/v1/chat/completions");
        // printf 'user:p@ss' | base64
        assert_eq!(plain.proxy_authorization(), Some("Basic dXNlcjpwQHNz"));
        assert!(!format!("{plain:?}").contains("dXNl"));
    }

    #[test]
    #[cfg(feature = "tls")]
    fn a_proxy_only_tunnels_what_is_encrypted() {
        let tls = Target::parse("https://h").unwrap().through(Proxy::parse("user:pass@proxy:3128").unwrap()).unwrap();
        assert_eq!((tls.request_target().as_str(), tls.proxy_authorization()), ("/v1/chat/completions", None));
        let tunnel = String::from_utf8(tls.tunnel_request().unwrap()).unwrap();
        assert_eq!(tunnel, "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n");
    }

    #[test]
    fn proxies_that_cannot_be_used_are_refused_without_their_password() {
        for url in ["socks5://u:secret@h:1", "http://u:secret@", "http://u:%zz@h", "http://h:1/path"] {
            assert!(!Proxy::parse(url).unwrap_err().to_string().contains("secret"), "{url}");
        }
        let unix = Target::parse("unix:/x").unwrap();
        assert!(unix.through(Proxy::parse("h:1").unwrap()).is_err());
    }

    #[test]
    fn base64_pads() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
