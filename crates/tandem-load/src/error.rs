//! What can stop a load run before it has records. A request's failure is never one of these: it is its record's outcome.

use std::io;

use thiserror::Error;

/// Why a run could not be started or carried through.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The URL cannot be used.
    #[error("URL `{url}`: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of the specification is impossible.
    #[error("{field}: {reason}")]
    Spec {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The host name has no address.
    #[error("failed to resolve `{host}`")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's error.
        #[source]
        source: io::Error,
    },
    /// Nothing accepts connections at the address.
    #[error("failed to connect to {address}")]
    Unreachable {
        /// The last address tried.
        address: String,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// A client of a load from several cannot take part.
    #[error("client {name}: {reason}")]
    Client {
        /// Its address.
        name: String,
        /// Why.
        reason: String,
    },
    /// Prompts of the wanted length cannot be made with this tokenizer.
    #[error("failed to make prompts of {isl} tokens: {reason}")]
    Prompts {
        /// The length.
        isl: u32,
        /// Why.
        reason: String,
    },
    /// The operating system refused something that the run needs.
    #[error("failed to {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// A thread of the run panicked: a bug.
    #[error("the {thread} thread panicked")]
    Panicked {
        /// Which.
        thread: &'static str,
    },
}
