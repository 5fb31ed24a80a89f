//! Where canonical commands go.

mod ring;
mod smmu;

pub use ring::NativeRing;
pub use smmu::HostSmmu;

use crate::command::Command;

/// A point in a host queue's order. It is reached once everything submitted before it has been synchronised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A queue that executes canonical commands. No method waits.
pub trait HostQueue {
    /// Hands commands over, in order; says how many were taken: fewer than given when the queue is full.
    fn submit(&mut self, commands: &[Command]) -> usize;

    /// Asks for a synchronisation of everything submitted so far. With nothing submitted since the last one,
    /// that one is shared.
    fn sync(&mut self) -> Ticket;

    /// The newest ticket that has been reached; with it, every older one.
    fn completed(&mut self) -> Ticket;
}
