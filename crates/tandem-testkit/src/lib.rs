//! What the tests of several crates share; a dependency of tests only.
//!
//! Here: saying that a test could not run (`not_run`), compiling a library that stands for a driver's (`shared_library`), a real browser (`browser`). Fixtures stay with the crate that they test.

mod browser;
mod not_run;
mod shared_library;

pub use browser::{Browser, View};
pub use not_run::not_run;
pub use shared_library::shared_library;
