//! What the VMM holds while it acts upon a request, and gives back when it is done.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The duty to act upon a request. The queue that the request came from waits until it is given back, from any thread; other queues go on.
///
/// A token that is dropped without a word counts as failed: the guest gets an error, and its queue does not hang. It is given
/// back once:
///
/// ```compile_fail,E0382
/// fn twice(token: ecmdq_engine::Token) {
///     token.complete();
///     token.reject();
/// }
/// ```
#[derive(Debug)]
#[must_use = "the queue waits until the token is completed or rejected; dropping it is an error that the guest sees"]
pub struct Token {
    cells: Arc<[AtomicU64]>,
    index: usize,
    issued: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was carried out.
    Completed,
    /// It will never be.
    Rejected,
    /// It was forgotten.
    Dropped,
}

const STATE: u64 = 0b11;
const COMPLETED: u64 = 1;
const REJECTED: u64 = 2;
const DROPPED: u64 = 3;

impl Token {
    /// The request has been carried out: whatever the guest invalidated is no longer in use.
    pub fn complete(self) {
        self.settle(COMPLETED);
    }

    /// The request cannot be carried out, now or later. A command gets CERROR_ILL.
    pub fn reject(self) {
        self.settle(REJECTED);
    }

    /// The first word counts; and none does once the request was revoked, by a reset for example.
    fn settle(&self, state: u64) {
        // Release: pairs with the acquire load in `Tokens::outcome`, so that what the VMM did is seen by the worker.
        let _ = self.cells[self.index].compare_exchange(self.issued, self.issued | state, Release, Relaxed);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.settle(DROPPED);
    }
}

/// The tokens of a virtual SMMU: at most one at a time for each queue. All memory is there from the start.
#[derive(Debug)]
pub(crate) struct Tokens(Arc<[AtomicU64]>);

impl Tokens {
    pub fn new(cells: usize) -> Self {
        Self((0..cells).map(|_| AtomicU64::new(COMPLETED)).collect())
    }

    /// A token for a new request of `cell`; the one before has no effect any more.
    pub fn issue(&self, cell: usize) -> Token {
        let issued = (self.0[cell].load(Relaxed) | STATE).wrapping_add(1);
        // Relaxed: the token itself carries the value to whoever uses it.
        self.0[cell].store(issued, Relaxed);
        Token { cells: self.0.clone(), index: cell, issued }
    }

    /// What became of the last request of `cell`; `None` while it is pending.
    pub fn outcome(&self, cell: usize) -> Option<Outcome> {
        // Acquire: pairs with the release in `Token::settle`.
        match self.0[cell].load(Acquire) & STATE {
            COMPLETED => Some(Outcome::Completed),
            REJECTED => Some(Outcome::Rejected),
            DROPPED => Some(Outcome::Dropped),
            _ => None,
        }
    }

    /// Takes all tokens back: what is done with them has no effect.
    pub fn revoke(&self) {
        for cell in 0..self.0.len() {
            drop(self.issue(cell));
        }
    }
}
