//! TLS on a connection of the load (rustls): the settings of a run, and one connection's session.
//!
//! A session sees what its socket read and gives what the socket has to write; the socket keeps reading and
//! stamping as it does without. A stamp is therefore that of the encrypted bytes' arrival. Without the feature
//! `tls` these types have no values.

use std::path::PathBuf;

/// Whom a TLS client trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates (PEM) of authorities to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether any certificate is accepted: for tests on networks that one trusts.
    pub insecure: bool,
}

#[cfg(feature = "tls")]
pub(crate) use with_tls::{TlsSession, TlsSetup};
#[cfg(not(feature = "tls"))]
pub(crate) use without_tls::{TlsSession, TlsSetup};

#[cfg(feature = "tls")]
mod with_tls {
    use std::fmt;
    use std::io::{self, Read, Write};
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

    use super::TlsOptions;
    use crate::error::LoadError;

    /// What all sessions of a run have in common.
    #[derive(Clone)]
    pub(crate) struct TlsSetup {
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    }

    impl fmt::Debug for TlsSetup {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("TlsSetup").field("name", &self.name).finish_non_exhaustive()
        }
    }

    impl TlsSetup {
        /// Trusts what `options` say, for a server called `name`.
        ///
        /// # Errors
        /// [`LoadError::Spec`] when there is nothing to trust, or `name` cannot be in a certificate.
        pub(crate) fn new(name: &str, options: &TlsOptions) -> Result<Self, LoadError> {
            let bad = |field, reason: String| LoadError::Spec { field, reason };
            let provider = Arc::new(ring::default_provider());
            let name = ServerName::try_from(name.to_owned()).map_err(|e| bad("url", format!("no certificate can be for `{name}`: {e}")))?;
            let builder = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map_err(|e| bad("tls", e.to_string()))?;
            let mut config = if options.insecure {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth()
            } else {
                builder.with_root_certificates(roots(options)?).with_no_client_auth()
            };
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(Self { config: Arc::new(config), name })
        }

        /// A session that has not begun.
        pub(crate) fn session(&self) -> io::Result<Box<TlsSession>> {
            let mut connection = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
            // A request is encrypted whole; the socket takes it as the network lets it.
            connection.set_buffer_limit(None);
            Ok(Box::new(TlsSession { connection, closed: false }))
        }
    }

    fn roots(options: &TlsOptions) -> Result<RootCertStore, LoadError> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &options.ca_file else {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
                let reason = format!("this system has no certificates of authorities{why}: name a file of them, or accept any certificate");
                return Err(LoadError::Spec { field: "ca_file", reason });
            }
            return Ok(roots);
        };
        let bad = |reason: String| LoadError::Spec { field: "ca_file", reason: format!("{}: {reason}", path.display()) };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
        for certificate in certificates {
            roots.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
        }
        if roots.is_empty() { Err(bad("holds no certificate".into())) } else { Ok(roots) }
    }

    /// One connection's.
    pub(crate) struct TlsSession {
        connection: ClientConnection,
        /// The server has said that it sends nothing more.
        closed: bool,
    }

    impl fmt::Debug for TlsSession {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("TlsSession").finish_non_exhaustive()
        }
    }

    impl TlsSession {
        /// Whether requests cannot be encrypted yet.
        pub(crate) fn is_handshaking(&self) -> bool {
            self.connection.is_handshaking()
        }

        /// Whether there is something for the socket to write.
        pub(crate) fn wants_write(&self) -> bool {
            self.connection.wants_write()
        }

        /// Whether the server has ended the session properly.
        pub(crate) fn is_closed(&self) -> bool {
            self.closed
        }

        /// Encrypts `bytes`; [`Self::write_to`] sends them.
        pub(crate) fn encrypt(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.connection.writer().write(bytes)
        }

        /// Hands encrypted bytes to the socket: as many as it takes at once.
        pub(crate) fn write_to(&mut self, socket: &mut dyn Write) -> io::Result<usize> {
            self.connection.write_tls(socket)
        }

        /// Decrypts what was read into `out`, which has room for as much and 32 KiB more; returns the bytes written there.
        pub(crate) fn decrypt(&mut self, mut raw: &[u8], out: &mut [u8]) -> io::Result<usize> {
            let mut n = 0;
            while !raw.is_empty() {
                self.connection.read_tls(&mut raw)?;
                let state = self.connection.process_new_packets().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                self.closed |= state.peer_has_closed();
                let mut left = state.plaintext_bytes_to_read();
                while left > 0 {
                    let read = self.connection.reader().read(&mut out[n..])?;
                    if read == 0 {
                        return Err(io::Error::other("more was decrypted than was read"));
                    }
                    (n, left) = (n + read, left.saturating_sub(read));
                }
                if self.closed {
                    break;
                }
            }
            Ok(n)
        }
    }

    /// Accepts every certificate, but still checks that the server holds its key.
    #[derive(Debug)]
    struct AnyCertificate(Arc<CryptoProvider>);

    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}

#[cfg(not(feature = "tls"))]
mod without_tls {
    use std::io::{self, Write};

    use super::TlsOptions;
    use crate::error::LoadError;

    /// Has no value: [`Target::parse`](crate::Target::parse) refuses `https://`.
    #[derive(Debug, Clone)]
    pub(crate) enum TlsSetup {}

    /// Has no value.
    #[derive(Debug)]
    pub(crate) enum TlsSession {}

    impl TlsSetup {
        pub(crate) fn new(_: &str, _: &TlsOptions) -> Result<Self, LoadError> {
            Err(LoadError::Spec { field: "url", reason: "this build has no TLS (feature `tls`)".into() })
        }

        pub(crate) fn session(&self) -> io::Result<Box<TlsSession>> {
            match *self {}
        }
    }

    impl TlsSession {
        pub(crate) fn is_handshaking(&self) -> bool {
            match *self {}
        }

        pub(crate) fn wants_write(&self) -> bool {
            match *self {}
        }

        pub(crate) fn is_closed(&self) -> bool {
            match *self {}
        }

        pub(crate) fn encrypt(&mut self, _: &[u8]) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn write_to(&mut self, _: &mut dyn Write) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn decrypt(&mut self, _: &[u8], _: &mut [u8]) -> io::Result<usize> {
            match *self {}
        }
    }
}
