//! What the tests of several crates share; a dependency of tests only.
//!
//! Here: saying that a test could not run (`not_run`). Fixtures stay with the crate that they test.

mod not_run;

pub use not_run::not_run;
