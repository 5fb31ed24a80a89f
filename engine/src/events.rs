//! What workers tell the VMM: typed, bounded, and not more often than it can listen.

use std::any::Any;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::command::CommandError;
use crate::host::Failure;
use crate::identity::Vmid;
use crate::rules::Rejected;

/// Events of one guest that may come at once, and how long it takes until there may be one more.
const BURST: u32 = 16;
const INTERVAL: Duration = Duration::from_millis(100);

/// Something that the VMM may want to act upon, or to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose it is; `None` if it is the worker's or a host queue's.
    pub guest: Option<Vmid>,
    /// What happened.
    pub kind: EventKind,
    /// How many events of this guest were left out before this one.
    pub left_out: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A queue stopped, which the guest sees as an error. Queue 0 is the CMDQ, behind it the ECMDQs.
    QueueStopped {
        /// Which queue.
        queue: usize,
        /// The error that the guest sees.
        error: CommandError,
    },
    /// A command was not allowed: its queue stops with CERROR_ILL, of which there is no other event.
    Rejected {
        /// Which queue.
        queue: usize,
        /// The command, and why.
        rejected: Rejected,
    },
    /// PROD contradicts CONS; nothing is taken until it no longer does.
    Inconsistent {
        /// Which queue.
        queue: usize,
    },
    /// The VMM rejected, or forgot, what the guest asked for by a register.
    RequestFailed,
    /// There is nothing at the address of an MSI.
    MsiAborted,
    /// A synchronisation of a host queue failed.
    HostFailed(Failure),
    /// A host queue has completed nothing for a while, and something is outstanding.
    HostStalled(Duration),
    /// The engine, or a callback of the VMM, panicked. A queue is not served any more, or nothing of the guest is, until
    /// the virtual SMMU is reset; a host queue counts as gone.
    Quarantined {
        /// The queue that was being served.
        queue: Option<usize>,
        /// What the panic said.
        message: String,
    },
}

/// What a worker tells, for any thread of the VMM; clones share what waits, and each event goes to one of them.
#[derive(Clone, Debug)]
pub struct Events(Receiver<Event>);

impl Events {
    /// The oldest event that waits, if any does.
    pub fn try_next(&self) -> Option<Event> {
        self.0.try_recv().ok()
    }

    /// Waits for an event; `None` once the worker is no more and no event waits.
    pub fn wait(&self) -> Option<Event> {
        self.0.recv().ok()
    }

    /// The same for `at_most` so long: `None` also if that is over.
    pub fn wait_at_most(&self, at_most: Duration) -> Option<Event> {
        self.0.recv_timeout(at_most).ok()
    }

    /// The events that wait, without waiting for more.
    pub fn waiting(&self) -> impl Iterator<Item = Event> + '_ {
        self.0.try_iter()
    }
}

/// The worker's end, for one guest or for the worker itself.
#[derive(Debug)]
pub(crate) struct EventSink {
    sender: Sender<Event>,
    guest: Option<Vmid>,
    /// When all of the burst is there again.
    rested_at: Instant,
    left_out: u64,
}

/// A channel of `n` events. When it is full events are left out, and counted.
pub(crate) fn channel(n: usize) -> (EventSink, Events) {
    let (sender, receiver) = bounded(n);
    (EventSink { sender, guest: None, rested_at: Instant::now(), left_out: 0 }, Events(receiver))
}

impl EventSink {
    /// For a guest of the same worker.
    pub fn of(&self, guest: Vmid) -> Self {
        Self { sender: self.sender.clone(), guest: Some(guest), rested_at: Instant::now(), left_out: 0 }
    }

    /// Tells it if there is room. Never waits.
    pub fn emit(&mut self, kind: EventKind) {
        let now = Instant::now();
        let rested_at = self.rested_at.max(now) + INTERVAL;
        if rested_at > now + INTERVAL * BURST {
            self.left_out += 1;
            return;
        }
        let event = Event { guest: self.guest, kind, left_out: self.left_out };
        match self.sender.try_send(event) {
            Ok(()) => (self.rested_at, self.left_out) = (rested_at, 0),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.left_out += 1,
        }
    }
}

/// What a panic says.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
        .into()
}
