//! Which processor a thread runs on.

use rustix::thread::{CpuSet, sched_setaffinity};

/// The processor of who sends.
pub(crate) const GUEST: usize = 0;
/// The processor of who serves.
pub(crate) const SERVER: usize = 1;

/// Keeps this thread on a processor, where that exists.
pub(crate) fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    let _ = sched_setaffinity(None, &set);
}
