//! The page and its siblings from a small committed run folder, and from runs that are odd, hostile or large.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

mod browser;
mod escaping;
mod fixture;
mod large;
mod markup;
mod pages;
