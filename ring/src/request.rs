//! A request that one thread makes and another one settles.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::{AtomicWord, Role};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out.
    Completed = 1,
    /// It will never be.
    Rejected = 2,
    /// It was forgotten.
    Dropped = 3,
}

/// Holds one request at a time: its number, and in the low bits what became of it, 0 while it is pending.
#[derive(Debug)]
pub struct RequestCell<A = AtomicU64>(A);

const OUTCOME: u64 = 0b11;

impl<A: AtomicWord> RequestCell<A> {
    /// A new request; what is done about the one before has no effect any more. Returns the word that
    /// [`settle`](Self::settle) takes.
    pub fn issue(&self) -> u64 {
        let mut now = self.0.load(Relaxed);
        loop {
            let issued = (now | OUTCOME).wrapping_add(1);
            // An exchange, so that the outcome of the request before is in front of this one, or refused. Relaxed: whatever
            // carries the word to whoever settles it orders the rest.
            match self.0.compare_exchange(now, issued, Relaxed, Relaxed) {
                Ok(_) => return issued,
                Err(settled) => now = settled,
            }
        }
    }

    /// Settles a request, from any thread. The first outcome counts, and none once there is a newer request.
    pub fn settle(&self, issued: u64, outcome: Outcome) {
        // Release: pairs with the acquire load in `outcome`, so that what was done is seen by who asked for it.
        let _ = self.0.compare_exchange(issued, issued | outcome as u64, Release, Relaxed);
    }

    /// What became of the last request; `None` while it is pending.
    pub fn outcome(&self) -> Option<Outcome> {
        // Acquire: pairs with the release in `settle`.
        let outcomes = [Outcome::Completed, Outcome::Rejected, Outcome::Dropped];
        let word = self.0.load(Acquire);
        outcomes.into_iter().find(|outcome| *outcome as u64 == word & OUTCOME)
    }
}

impl<A: AtomicWord> Default for RequestCell<A> {
    /// A cell whose last request was completed.
    fn default() -> Self {
        Self(A::new(Role::Request, Outcome::Completed as u64))
    }
}
