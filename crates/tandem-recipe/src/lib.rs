//! tandem-recipe
