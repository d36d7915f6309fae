//! The page and its siblings from a small committed run folder, and from runs that are odd, hostile or large.

mod browser;
mod escaping;
mod fixture;
mod large;
mod markup;
mod pages;
