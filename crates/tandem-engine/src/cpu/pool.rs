//! Runs the parallel regions of a step on a fixed set of threads.
//!
//! A step has dozens of short regions, so handing one over must cost microseconds; a worker
//! shares its cores with other processes, so nobody may burn them while waiting. The driving
//! thread takes part and never waits for a helper that has not started: late helpers find
//! nothing to do. Waiting is a bounded spin of some ten microseconds, then parking.
#![expect(unsafe_code, reason = "a region borrows from the stack of the thread that opens it")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Spin iterations before parking.
const SPINS: u32 = 300;

type Task = dyn Fn(usize) + Sync + 'static;

/// A fixed set of compute threads, the caller's among them.
pub(crate) struct Pool {
    shared: Option<Arc<Shared>>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when a region opens or the pool shuts down.
    opened: Condvar,
    /// Signalled when the last helper leaves a region.
    left: Condvar,
    /// Number of regions opened so far; helpers spin on it.
    epoch: AtomicU64,
    /// Next task of the open region.
    next: AtomicUsize,
    /// Helpers inside the open region.
    active: AtomicUsize,
}

#[derive(Clone, Copy)]
struct Region {
    task: *const Task,
    n_tasks: usize,
}

// SAFETY: the pointer is dereferenced only while the opener waits in `Pool::run`, and the task is `Sync`.
unsafe impl Send for Region {}

struct State {
    /// The open region; `None` when helpers must not enter.
    region: Option<Region>,
    shutdown: bool,
    panicked: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims and runs tasks until none is left.
    fn work(&self, region: Region) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= region.n_tasks {
                return;
            }
            // SAFETY: `Pool::run` keeps the closure alive until every thread that entered the region has left it.
            unsafe { (*region.task)(i) };
        }
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            for _ in 0..SPINS {
                if self.epoch.load(Ordering::Acquire) != seen {
                    break;
                }
                std::hint::spin_loop();
            }
            let mut state = self.lock();
            while self.epoch.load(Ordering::Acquire) == seen && !state.shutdown {
                state = self.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.shutdown {
                return;
            }
            seen = self.epoch.load(Ordering::Acquire);
            let Some(region) = state.region else { continue };
            self.active.fetch_add(1, Ordering::AcqRel);
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| self.work(region)));
            let mut state = self.lock();
            state.panicked |= result.is_err();
            if self.active.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.left.notify_one();
            }
        }
    }
}

impl Pool {
    /// A pool of `threads` threads (at least one: the caller's own).
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        if threads <= 1 {
            return Ok(Self { shared: None, helpers: Vec::new() });
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State { region: None, shutdown: false, panicked: false }),
            opened: Condvar::new(),
            left: Condvar::new(),
            epoch: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
        });
        let mut pool = Self { shared: Some(shared.clone()), helpers: Vec::new() };
        for i in 1..threads {
            let shared = shared.clone();
            pool.helpers.push(std::thread::Builder::new().name(format!("engine-{i}")).spawn(move || shared.help())?);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task(i)` for each `i < n_tasks`, in no particular order, and returns when all are done.
    pub(crate) fn run(&self, n_tasks: usize, task: impl Fn(usize) + Sync) {
        let shared = match &self.shared {
            Some(shared) if n_tasks > 1 => shared,
            _ => return (0..n_tasks).for_each(task),
        };
        let task: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime is erased; this function does not return or unwind before `close` has
        // seen every helper leave the region.
        let task: *const Task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        let region = Region { task, n_tasks };
        {
            let mut state = shared.lock();
            shared.next.store(0, Ordering::Relaxed);
            state.region = Some(region);
            shared.epoch.fetch_add(1, Ordering::Release);
        }
        shared.opened.notify_all();
        let mine = catch_unwind(AssertUnwindSafe(|| shared.work(region)));
        let helper_panicked = close(shared);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(!helper_panicked, "a compute thread panicked");
    }
}

/// Shuts the open region and waits for the helpers inside it; says whether one panicked.
fn close(shared: &Shared) -> bool {
    // A panicking task must not leave unclaimed tasks to helpers forever; claiming past the end is harmless.
    let mut state = shared.lock();
    state.region = None;
    if shared.active.load(Ordering::Acquire) != 0 {
        drop(state);
        for _ in 0..SPINS {
            if shared.active.load(Ordering::Acquire) == 0 {
                break;
            }
            std::hint::spin_loop();
        }
        state = shared.lock();
        while shared.active.load(Ordering::Acquire) != 0 {
            state = shared.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
    std::mem::take(&mut state.panicked)
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.lock().shutdown = true;
            shared.opened.notify_all();
        }
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of tasks, so joining cannot fail with anything worth reporting here.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads).unwrap();
            for n in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(n, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3).unwrap();
        for bad in [0, 5] {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, |i| assert!(i != bad))));
            assert!(result.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
