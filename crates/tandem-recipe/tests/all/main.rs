//! Tests of recipes and plans as a user meets them: one binary, so that it links once.

mod common;
mod effects;
mod errors;
mod hints;
mod layers;
mod properties;
mod published;
