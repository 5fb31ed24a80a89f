//! Waking a worker.

use std::fmt;
use std::io;
use std::sync::Arc;

use crossbeam::utils::CachePadded;
use ecmdq_ring::SleepWord;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Wakes somebody who may be asleep. Costs a fence and a load while nobody is, else an eventfd is written.
#[derive(Clone)]
pub struct Waker(Arc<Inner>);

struct Inner {
    word: CachePadded<SleepWord>,
    eventfd: EventFd,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let inner = Inner { word: CachePadded::default(), eventfd: EventFd::new(EFD_NONBLOCK)? };
        Ok(Self(Arc::new(inner)))
    }

    /// Whatever the caller has done before is looked at. Any thread may call it; it never waits.
    pub fn wake(&self) {
        if self.0.word.must_wake() {
            // It fails where the counter is full, which 2^64 wakes do not achieve.
            let _ = self.0.eventfd.write(1);
        }
    }

    pub(crate) fn word(&self) -> &SleepWord {
        &self.0.word
    }

    /// Writing it wakes, asleep or not.
    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.0.eventfd
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").field("eventfd", &self.0.eventfd).finish_non_exhaustive()
    }
}
