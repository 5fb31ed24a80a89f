//! Where canonical commands go.

mod ring;
mod smmu;

pub use ring::NativeRing;
pub use smmu::HostSmmu;

use crate::command::Command;

/// A point in a host queue's order. It is reached once everything submitted before it has been synchronised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Why a synchronisation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// An endpoint did not answer an ATC_INV in time. Invalidations other than ATC_INV have been done.
    AtcTimeout,
    /// Anything that may be over when the synchronisation is asked for again.
    Transient,
}

/// A queue that executes canonical commands. No method waits.
pub trait HostQueue {
    /// Hands commands over, in order; says how many were taken: fewer than given when the queue is full.
    fn submit(&mut self, commands: &[Command]) -> usize;

    /// Asks for a synchronisation of everything submitted so far. With nothing submitted since the last one, and that one
    /// not failed, it is shared.
    fn sync(&mut self) -> Ticket;

    /// The newest ticket that has been reached; with it, every older one that has not failed.
    fn completed(&mut self) -> Ticket;

    /// Why the synchronisation of a ticket failed, if it did. It is asked for the oldest ticket that has not been seen
    /// reached, until that has.
    fn failure(&mut self, ticket: Ticket) -> Option<Cause> {
        let _ = ticket;
        None
    }
}
