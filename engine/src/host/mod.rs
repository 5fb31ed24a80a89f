//! Where canonical commands go.

pub mod iommufd;
pub mod model;
mod null;
mod recovery;
mod ring;
mod ring_consumer;

pub use model::ModelSmmu;
pub use null::NullQueue;
pub use ring::{MsiWord, NativeRing, RingFormat, RingLayout};
pub use ring_consumer::RingConsumer;

use crate::command::Command;
use crate::sleep::Waker;

/// A point in a host queue's order. It is reached once everything submitted before it has been synchronised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A synchronisation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// The command that was to blame, as it was submitted, if that is known.
    pub command: Option<Command>,
}

/// Why a synchronisation failed, and what that says of the commands before it.
///
/// In each case the queue goes on, and a guest that is not to blame only sees that its CMD_SYNC takes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The host found a command illegal, and left it out; all others have been executed or will be. The guest whose
    /// command it was gets CERROR_ILL at its CMD_SYNC.
    Illegal,
    /// An endpoint did not answer an ATC_INV in time. Everything but ATC_INVs has been executed. Guests that sent one get
    /// CERROR_ATC_INV_SYNC.
    AtcTimeout,
    /// Nothing before the ticket is lost: it will have been executed when the next ticket is reached, and before anything that is submitted
    /// behind this one begins.
    Transient,
    /// Nothing will be executed any more. All guests get CERROR_ABT.
    DeviceGone,
}

/// Whose VMIDs and StreamIDs the commands name that a host queue takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identities {
    /// The host's: the engine replaces the guest's.
    #[default]
    Host,
    /// The guest's StreamIDs, and VMID 0: the queue belongs to one guest, and its owner replaces them, as the kernel does
    /// behind iommufd.
    Guest,
}

/// A queue that executes canonical commands. No method waits.
///
/// A worker calls it from one thread. Tickets are reached in their order.
///
/// Nothing of a guest is locked during a call: an implementation may take any lock, also one that other threads hold while they call a
/// virtual SMMU or a worker handle.
pub trait HostQueue {
    /// Whose identities the commands name; it does not change.
    fn identities(&self) -> Identities {
        Identities::Host
    }

    /// Hands commands over, in order; says how many were taken: fewer than given when the queue is full. Among each other they may be
    /// executed in any order; they begin behind everything in front of the last [`sync`](Self::sync).
    fn submit(&mut self, commands: &[Command]) -> usize;

    /// Asks for a synchronisation of everything submitted so far. With nothing submitted since the last one, and that one
    /// not failed, it is shared.
    ///
    /// What is submitted afterwards begins only after everything submitted before has been executed, though nobody waits for the ticket in
    /// between; also where the ticket fails, but for what its [`Cause`] says to be lost. The worker relies on it where a guest has
    /// invalidated configuration, and then the translations that were made with it: begun too early, these would be made with it again.
    ///
    /// A queue may leave that out where it makes no difference: where no command behind is of a higher rank than any in front. CFGI_*
    /// have the lowest rank, then come TLBI_*, then ATC_INV: TLBs are filled through cached configuration, ATCs through TLBs.
    fn sync(&mut self) -> Ticket;

    /// [`submit`](Self::submit), and [`sync`](Self::sync) if all were taken: how many were, and the ticket. For queues that do
    /// both at once for less. What is submitted afterwards is behind that synchronisation, as with `sync`.
    fn submit_and_sync(&mut self, commands: &[Command]) -> (usize, Option<Ticket>) {
        let taken = self.submit(commands);
        (taken, (taken == commands.len()).then(|| self.sync()))
    }

    /// The newest ticket that has been reached; with it, every older one that has not failed. The worker asks whenever anything is on its
    /// way, also without a ticket: here a queue finds and mends errors.
    fn completed(&mut self) -> Ticket;

    /// Whether, and why, the synchronisation of a ticket failed: only if a command failed that it covers and no ticket before. The worker
    /// asks for the oldest ticket that it has not seen reached or failed; a failed one counts as reached, and is not asked for again.
    /// What else has failed of the same commands, the next ticket says.
    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        let _ = ticket;
        None
    }

    /// From now on `waker` is to be woken when a ticket has been reached or has failed. Says whether it will be; if not, a
    /// worker that sleeps while tickets are outstanding looks at [`completed`](Self::completed) by a timer.
    fn set_waker(&mut self, waker: &Waker) -> bool {
        let _ = waker;
        false
    }
}

impl<T: HostQueue + ?Sized> HostQueue for Box<T> {
    fn identities(&self) -> Identities {
        (**self).identities()
    }

    fn submit(&mut self, commands: &[Command]) -> usize {
        (**self).submit(commands)
    }

    fn sync(&mut self) -> Ticket {
        (**self).sync()
    }

    fn submit_and_sync(&mut self, commands: &[Command]) -> (usize, Option<Ticket>) {
        (**self).submit_and_sync(commands)
    }

    fn completed(&mut self) -> Ticket {
        (**self).completed()
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        (**self).failure(ticket)
    }

    fn set_waker(&mut self, waker: &Waker) -> bool {
        (**self).set_waker(waker)
    }
}
