//! How a connection of the load reaches its server: the address of the first hop, a proxy's tunnel, TLS.
//!
//! Resolved and tried once before a run, so that a wrong name, port, proxy or certificate is an error then and
//! not the failure of every request.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::socket::Socket;
use super::tls::{TlsOptions, TlsSetup};
use crate::error::LoadError;
use crate::target::{Hop, Target};

/// What every connection of a run does.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// Where it connects to.
    pub(crate) address: Address,
    /// What it asks of a proxy first.
    pub(crate) tunnel: Option<Arc<[u8]>>,
    /// How it is encrypted.
    pub(crate) tls: Option<TlsSetup>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Of a TCP port.
    Tcp(SocketAddr),
    /// Of a unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Route {
    /// Resolves the first hop and takes the first address over which the server can be reached, trying each for at most `timeout`.
    ///
    /// # Errors
    /// [`LoadError::Resolve`], [`LoadError::Unreachable`] with the last address's error, or [`LoadError::Spec`] for certificates that cannot be used.
    pub(crate) fn find(target: &Target, tls: &TlsOptions, timeout: Duration) -> Result<Self, LoadError> {
        let tls = target.tls_name().map(|name| TlsSetup::new(name, tls)).transpose()?;
        let tunnel: Option<Arc<[u8]>> = target.tunnel_request().map(Into::into);
        let addresses = match target.first_hop() {
            Hop::Unix(path) => vec![Address::Unix(path.to_owned())],
            Hop::Tcp(host, port) => {
                let failed = |source| LoadError::Resolve { host: host.to_owned(), source };
                let found: Vec<_> = (host, port).to_socket_addrs().map_err(failed)?.map(Address::Tcp).collect();
                if found.is_empty() {
                    return Err(failed(io::Error::new(io::ErrorKind::NotFound, "no address")));
                }
                found
            }
        };
        let mut last = None;
        for address in addresses {
            let route = Self { address, tunnel: tunnel.clone(), tls: tls.clone() };
            match route.try_once(timeout) {
                Ok(()) => return Ok(route),
                Err(source) => last = Some(LoadError::Unreachable { address: route.address.to_string(), source }),
            }
        }
        Err(last.expect("there is at least one address"))
    }

    /// Opens one connection and closes it.
    fn try_once(&self, timeout: Duration) -> io::Result<()> {
        let mut poll = Poll::new()?;
        let mut socket = Socket::connect(self, poll.registry(), Token(0), false)?;
        let (mut events, until) = (Events::with_capacity(4), Instant::now() + timeout);
        let mut buffer = vec![0; 16 << 10];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {:.1} s", timeout.as_secs_f64())));
            }
            match poll.poll(&mut events, Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            if !events.is_empty() && socket.continue_opening(&mut buffer)? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_nobody_listens_on_is_unreachable() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target = Target::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        let found = Route::find(&target, &TlsOptions::default(), Duration::from_secs(5));
        assert!(matches!(found, Err(LoadError::Unreachable { .. })));
    }
}
