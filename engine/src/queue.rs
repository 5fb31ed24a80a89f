//! A guest's command queue: from the doorbell to the outbox, and from the ticket back to CONS.
//!
//! The order of things for a CMD_SYNC, with who sees what when:
//!
//! 1. A visit fetches entries up to PROD or up to the CMD_SYNC. Nothing behind a CMD_SYNC is read.
//! 2. What stands before it goes to the outbox and is consumed: CONS then points *at* the CMD_SYNC.
//! 3. The worker hands the outbox to the host queue and asks for a ticket; the queue waits for it.
//! 4. Ticket reached: CONS passes the CMD_SYNC, and only then the MSI is written.

use std::sync::atomic::Ordering::{Relaxed, Release};

use ecmdq_ring::{Consumer, Index, QueueSize, SharedQueue, SharedRegion};
use vm_memory::GuestAddress;

use crate::command::Command;
use crate::features::Features;
use crate::host::Ticket;
use crate::identity::StreamMap;
use crate::memory::GuestRam;
use crate::outbox::{BATCH, Outbox};
use crate::registers::{BASE_ADDR, BASE_LOG2SIZE, CMDQ_CONS, CMDQ_PROD, CONS_ERR_SHIFT};
use crate::rules::{Applied, End, Rules, Signal};

/// A code of CMDQ_CONS.ERR (facts sheet, section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// CERROR_ILL: the command at CONS is not allowed.
    Ill = 1,
    /// CERROR_ABT: the entry at CONS could not be read.
    Abt = 2,
}

/// An enabled command queue.
#[derive(Debug)]
pub(crate) struct CommandQueue {
    base: GuestAddress,
    size: QueueSize,
    ring: Ring,
    waiting: Option<Waiting>,
    inconsistent: bool,
}

/// A CMD_SYNC at CONS that has not completed.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    signal: Signal,
    /// `None` until everything before it is with the host.
    ticket: Option<Ticket>,
}

#[derive(Debug)]
enum Ring {
    Backed(Consumer<SharedQueue>),
    /// The ring is not, or not wholly, guest memory.
    Unbacked {
        cons: Index,
    },
}

/// What a visit found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    /// No new command, or none may be taken.
    Idle,
    /// Commands were taken.
    Taken(Applied),
    /// There are commands where there is no memory.
    Abort,
    /// PROD contradicts CONS, and did not at the last visit. Nothing is taken until it no longer does.
    Inconsistent,
}

impl CommandQueue {
    /// The queue that the BASE and CONS registers describe. ADDR is aligned down to the size of the ring, and
    /// LOG2SIZE is capped (facts sheet, section 2.5).
    pub(crate) fn new(base: u64, cons: u32, features: &Features) -> Self {
        let size = QueueSize::capped((base & BASE_LOG2SIZE) as u32, features.queue_cap());
        let alignment = size.bytes().max(32) as u64;
        let base = GuestAddress(base & BASE_ADDR & features.address_mask() & !(alignment - 1));
        let ring = Ring::Unbacked { cons: size.index(cons) };
        Self { base, size, ring, waiting: None, inconsistent: false }
    }

    /// Looks for the ring's memory if there was none.
    pub(crate) fn back(&mut self, registers: &SharedRegion, ram: &dyn GuestRam) {
        if let Ring::Unbacked { cons } = self.ring
            && let Some(ring) = ram.region(self.base, self.size.bytes())
            && let Some(words) = SharedQueue::new(ring, 0, self.size, registers.clone(), CMDQ_PROD, CMDQ_CONS)
        {
            self.ring = Ring::Backed(Consumer::new(words, self.size, cons));
        }
    }

    /// Takes a batch into the outbox, if no CMD_SYNC is waiting.
    pub(crate) fn visit(
        &mut self,
        out: &mut Outbox,
        rules: &Rules,
        streams: &StreamMap,
        registers: &SharedRegion,
    ) -> Visit {
        if self.waiting.is_some() || !out.has_room() {
            return Visit::Idle;
        }
        let (buffer, room) = out.buffers();
        let entries: &mut [_; BATCH] = bytemuck::cast_mut(buffer);
        let fetched = match &self.ring {
            Ring::Backed(consumer) => consumer.fetch(entries, |entry| rules.ends_batch(Command(*entry))),
            Ring::Unbacked { cons } => {
                let prod = self.size.index(registers.load_u32(CMDQ_PROD, Relaxed));
                match self.size.used(prod, *cons) {
                    Ok(0) => Ok(0),
                    Ok(_) => return Visit::Abort,
                    Err(e) => Err(e),
                }
            }
        };
        let was_inconsistent = std::mem::replace(&mut self.inconsistent, fetched.is_err());
        match fetched {
            Ok(0) => Visit::Idle,
            Ok(n) => {
                let applied = rules.apply(streams, &buffer[..n], room);
                out.keep(applied.host);
                self.consume(applied);
                Visit::Taken(applied)
            }
            Err(_) if was_inconsistent => Visit::Idle,
            Err(_) => Visit::Inconsistent,
        }
    }

    /// Passes what was taken, except a CMD_SYNC, which is passed when it completes.
    fn consume(&mut self, applied: Applied) {
        let Ring::Backed(consumer) = &mut self.ring else { return };
        match applied.end {
            End::Sync(signal) => {
                self.waiting = Some(Waiting { signal, ticket: None });
                consumer.consume(applied.taken - 1);
            }
            End::Batch | End::Request(_) | End::Illegal(_) => consumer.consume(applied.taken),
        }
    }

    /// Publishes CONS, at the entry that failed, with a code in CONS.ERR; 0 when the error was acknowledged.
    pub(crate) fn set_error(&mut self, code: u32, registers: &SharedRegion) {
        let flags = code << CONS_ERR_SHIFT;
        match &mut self.ring {
            Ring::Backed(consumer) => consumer.publish_flags(flags),
            // Release: the guest, which sees GERROR change, sees this first.
            Ring::Unbacked { cons } => registers.store_u32(CMDQ_CONS, cons.raw() | flags, Release),
        }
    }

    /// Whether a CMD_SYNC needs a ticket, or waits for one.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Everything before the waiting CMD_SYNC is with the host, synchronised at `ticket`.
    pub(crate) fn wait_for(&mut self, ticket: Ticket) {
        if let Some(waiting) = &mut self.waiting {
            waiting.ticket.get_or_insert(ticket);
        }
    }

    /// Passes the waiting CMD_SYNC if its ticket has been reached, and returns how it signals.
    pub(crate) fn complete(&mut self, completed: Ticket) -> Option<Signal> {
        let waiting = self.waiting?;
        if waiting.ticket? > completed {
            return None;
        }
        self.waiting = None;
        if let Ring::Backed(consumer) = &mut self.ring {
            consumer.consume(1);
        }
        Some(waiting.signal)
    }

    /// Writes to the ring's own memory, which is where Linux aims its MSIs; false if the address is elsewhere.
    pub(crate) fn write_msi(&self, address: GuestAddress, data: u32) -> bool {
        let Ring::Backed(consumer) = &self.ring else { return false };
        let Some(offset) = address.0.checked_sub(self.base.0) else { return false };
        let inside = offset < self.size.bytes() as u64;
        if inside {
            // Release: CONS was stored before, and must be seen to have passed the CMD_SYNC by whoever sees this.
            consumer.words().ring().store_u32(offset as usize, data.to_le(), Release);
        }
        inside
    }
}
