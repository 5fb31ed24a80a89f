//! What the VMM holds while it acts upon a request, and gives back when it is done.

use std::fmt;
use std::sync::Arc;

pub(crate) use ecmdq_ring::Outcome;
use ecmdq_ring::RequestCell;

use crate::sleep::WakerSlot;

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
#[must_use = "the queue waits until the token is completed or rejected; dropping it is an error that the guest sees"]
pub struct Token {
    shared: Arc<Shared>,
    index: usize,
    issued: u64,
}

impl Token {
    /// The request has been carried out: whatever the guest invalidated is no longer in use.
    pub fn complete(self) {
        self.settle(Outcome::Completed);
    }

    /// The request cannot be carried out, now or later. A command gets CERROR_ILL.
    pub fn reject(self) {
        self.settle(Outcome::Rejected);
    }

    fn settle(&self, outcome: Outcome) {
        self.shared.cells[self.index].settle(self.issued, outcome);
        self.shared.worker.notify();
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.settle(Outcome::Dropped);
    }
}

/// The tokens of a virtual SMMU: at most one at a time for each queue. All memory is there from the start.
pub(crate) struct Tokens(Arc<Shared>);

struct Shared {
    cells: Box<[RequestCell]>,
    worker: Arc<WakerSlot>,
}

impl Tokens {
    pub fn new(cells: usize, worker: Arc<WakerSlot>) -> Self {
        Self(Arc::new(Shared { cells: (0..cells).map(|_| RequestCell::default()).collect(), worker }))
    }

    /// A token for a new request of `cell`; the one before has no effect any more.
    pub fn issue(&self, cell: usize) -> Token {
        Token { shared: self.0.clone(), index: cell, issued: self.0.cells[cell].issue() }
    }

    /// What became of the last request of `cell`; `None` while it is pending.
    pub fn outcome(&self, cell: usize) -> Option<Outcome> {
        self.0.cells[cell].outcome()
    }

    /// Takes all tokens back: what is done with them has no effect.
    pub fn revoke(&self) {
        for cell in 0..self.0.cells.len() {
            drop(self.issue(cell));
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("index", &self.index).finish_non_exhaustive()
    }
}
