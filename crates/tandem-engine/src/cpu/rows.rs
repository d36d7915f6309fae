//! Row-wise work over the pool: each task owns some rows of an output buffer.
#![expect(unsafe_code, reason = "threads write disjoint parts of one buffer")]

use std::marker::PhantomData;
use std::ops::Range;

use super::pool::Pool;

/// A buffer whose disjoint parts several threads write at once.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for an exclusive borrow whose parts are handed out disjointly (see `part`).
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self { ptr: buffer.as_mut_ptr(), len: buffer.len(), borrow: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other live part may overlap `range`.
    #[expect(clippy::mut_from_ref, reason = "the caller guarantees that parts are disjoint")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part is in bounds");
        // SAFETY: in bounds, exclusively borrowed as a whole, and disjoint from other parts by contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

/// Calls `f(first_row, rows)` for stretches of the `n` rows of `buffer` (`ld` elements each), in parallel
/// when there are at least `min_rows` for each stretch.
pub(crate) fn for_rows<T: Send>(pool: &Pool, buffer: &mut [T], ld: usize, n: usize, min_rows: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if n == 0 {
        return;
    }
    let buffer = &mut buffer[..n * ld];
    let stretch = n.div_ceil(pool.threads() * 2).max(min_rows);
    if pool.threads() == 1 || stretch >= n {
        return f(0, buffer);
    }
    let shared = SharedMut::new(buffer);
    pool.run(n.div_ceil(stretch), |i| {
        let (first, last) = (i * stretch, ((i + 1) * stretch).min(n));
        // SAFETY: stretches do not overlap.
        f(first, unsafe { shared.part(first * ld..last * ld) });
    });
}

/// A buffer of at least `n` values; old contents are unspecified.
pub(crate) fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}
