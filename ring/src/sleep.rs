//! Going to sleep without losing a doorbell.
//!
//! Who goes to sleep *announces* it, looks at everything once more, and sleeps if there is nothing. Who gives work makes it
//! visible, and then looks whether anybody sleeps. Between the two steps of each is a full fence: so either the sleeper
//! sees the work, or the other sees the announcement, or both.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::{AtomicWord, Role};

const AWAKE: u64 = 0;
const ASLEEP: u64 = 1;

/// Whether somebody sleeps, or is about to.
#[derive(Debug)]
pub struct SleepWord<A = AtomicU64>(A);

impl<A: AtomicWord> SleepWord<A> {
    /// The sleeper's: from now on it is woken. It must look at everything once more before it sleeps.
    pub fn announce(&self) {
        // Relaxed, and a fence: pairs with the one in `must_wake`.
        self.0.store(ASLEEP, Relaxed);
        A::fence();
    }

    /// The sleeper's: it is awake, or did not go to sleep.
    pub fn awake(&self) {
        // Relaxed: a wake-up too many does no harm, and is what may come of it.
        self.0.store(AWAKE, Relaxed);
    }

    /// Whether the caller, who has made work visible, must wake the sleeper. One of several callers is told to.
    pub fn must_wake(&self) -> bool {
        // Pairs with the fence in `announce`.
        A::fence();
        self.0.load(Relaxed) == ASLEEP && self.0.compare_exchange(ASLEEP, AWAKE, Relaxed, Relaxed).is_ok()
    }
}

impl<A: AtomicWord> Default for SleepWord<A> {
    /// Awake.
    fn default() -> Self {
        Self(A::new(Role::Sleep, AWAKE))
    }
}
