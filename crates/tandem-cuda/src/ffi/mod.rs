//! The C functions that are used, by library. Each library is opened when it is first wanted and stays open.
//!
//! Written by hand: some fifty functions compile in no time, so that every build has them. Complete bindings (the crate `cudarc`) cost half a
//! minute of compilation and would have to be a feature that the released program lacks. Types and numbers are those of the headers of CUDA 13.0.

#![expect(unsafe_code, reason = "C libraries are opened and their functions looked up")]

pub(crate) mod cublaslt;
pub(crate) mod driver;
pub(crate) mod nvrtc;

use libloading::Library;

use crate::error::CudaError;

/// A struct of functions of one library, and how it is opened.
macro_rules! functions {
    ($(#[$doc:meta])* $name:ident, $what:literal, $names:expr, { $($function:ident = $symbol:literal ($($arg:ty),*) -> $result:ty;)* }) => {
        $(#[$doc])*
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($arg),*) -> $result,)*
            /// Keeps the functions valid.
            _library: libloading::Library,
        }

        impl $name {
            /// Opens the library.
            pub(crate) fn open() -> Result<Self, crate::error::CudaError> {
                let library = crate::ffi::open($what, &$names)?;
                Ok($name {
                    // SAFETY: the types are those of the library's header; the pointers live as long as the library, which is kept beside them.
                    $($function: unsafe { *library.get(concat!($symbol, "\0").as_bytes()).map_err(|_| crate::error::CudaError::Symbol { what: $what, symbol: $symbol })? },)*
                    _library: library,
                })
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($what)
            }
        }
    };
}
use functions;

fn open(what: &'static str, names: &[&str]) -> Result<Library, CudaError> {
    let mut last = None;
    for name in names {
        // SAFETY: loading runs the initialisers of NVIDIA's library (or of what the user put in its place).
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => last = Some(error),
        }
    }
    let source = last.expect("every library has a name");
    Err(CudaError::Missing { what, tried: names.join(", "), source })
}
