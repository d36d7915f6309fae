//! When a load begins once everything is ready: at once, or when somebody says so for several clients together.

use tandem_plan::Nanos;

use crate::clock::Clock;

/// Opens when the load may begin.
pub trait Gate: Send + Sync {
    /// Called once, when all connections are open and the first requests are made. Blocks until the load may begin, or the run has been
    /// told to stop; returns the origin of its schedule on `clock`.
    fn wait(&self, clock: &Clock) -> Nanos;
}

/// Opens at once.
#[derive(Debug, Clone, Copy)]
pub struct AtOnce;

impl Gate for AtOnce {
    fn wait(&self, clock: &Clock) -> Nanos {
        clock.now()
    }
}
