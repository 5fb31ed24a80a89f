//! A guest's command queue: from the doorbell to the outbox, and from the ticket back to CONS.
//!
//! The order of things for a CMD_SYNC, with who sees what when:
//!
//! 1. A visit fetches entries up to PROD or up to the CMD_SYNC. Nothing behind a CMD_SYNC is looked at.
//! 2. What stands before it goes to the outbox and is consumed: CONS then points *at* the CMD_SYNC.
//! 3. The worker hands the outbox to the host queue and asks for a ticket; the queue waits for it.
//! 4. Ticket reached: CONS passes the CMD_SYNC, and only then the MSI is written.
//!
//! A command for the VMM is waited for in the same way: CONS stays at it until the VMM has acted.

use std::sync::atomic::Ordering::Release;

use ecmdq_ring::{Consumer, Index, QueueSize, SharedQueue};
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use crate::command::{Command, Opcode};
use crate::features::Features;
use crate::host::Cause;
use crate::identity::StreamMap;
use crate::memory::GuestRam;
use crate::outbox::{FEW, Outbox};
use crate::registers::{BASE_ADDR, BASE_LOG2SIZE, RegisterWords};
use crate::rules::{Applied, End, Rules, Signal};
use crate::submission::OUTSTANDING;
use crate::worker::MOST;

/// Why a queue stopped: a code of CMDQ_CONS.ERR and of ECMDQ_CONS.ERR_REASON (facts sheet, section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandError {
    /// CERROR_ILL: the command at CONS is not allowed.
    Ill = 1,
    /// CERROR_ABT: the entry at CONS could not be read.
    Abt = 2,
    /// CERROR_ATC_INV_SYNC: the CMD_SYNC at CONS could not complete an earlier ATC_INV.
    AtcInvSync = 3,
}

/// Where the registers of a queue are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub registers: RegisterWords,
    pub base: usize,
    pub prod: usize,
    pub cons: usize,
}

/// An enabled command queue.
#[derive(Debug)]
pub(crate) struct CommandQueue {
    base: GuestAddress,
    size: QueueSize,
    ring: Ring,
    /// What the command at CONS waits for.
    pub waiting: Option<Waiting>,
    inconsistent: bool,
    /// The rounds in which commands went to the host since the last CMD_SYNC, and those in which ATC_INVs did.
    sent: Rounds,
    atc: Rounds,
    /// What the host failed to do for this queue, until its CMD_SYNC tells: no later synchronisation says so again.
    blame: Blame,
}

/// A set of rounds, whose synchronisations cover what was taken in them.
///
/// It reaches back as many rounds as may be outstanding: an older one is over, and can no longer fail.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    newest: u64,
    /// Bit n is the round n before the newest.
    bits: u128,
}

const _: () = assert!(OUTSTANDING < u128::BITS as usize);

impl Rounds {
    fn add(&mut self, round: u64) {
        if let Some(age) = self.newest.checked_sub(round) {
            self.bits |= bit(age);
        } else {
            self.bits = u32::try_from(round - self.newest).map_or(0, |n| self.bits.unbounded_shl(n)) | 1;
            self.newest = round;
        }
    }

    fn contain(&self, round: u64) -> bool {
        self.newest.checked_sub(round).is_some_and(|age| self.bits & bit(age) != 0)
    }

    /// The synchronisation of a round said nothing of it, or not all: the next one covers it, too.
    fn put_off(&mut self, round: u64) {
        if self.contain(round) {
            self.add(round + 1);
        }
    }

    fn remove(&mut self, round: u64) {
        self.bits &= !self.newest.checked_sub(round).map_or(0, bit);
    }
}

/// The bit of a round by how many rounds it is before the newest; none if it is too old.
fn bit(age: u64) -> u128 {
    u32::try_from(age).map_or(0, |age| 1_u128.unbounded_shl(age))
}

/// Errors that the next CMD_SYNC must report, as bits by their codes: it reports one at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Blame(u8);

impl Blame {
    fn add(&mut self, error: CommandError) {
        self.0 |= 1 << error as u8;
    }

    fn take(&mut self) -> Option<CommandError> {
        use CommandError::{Abt, AtcInvSync, Ill};
        let error = [Ill, Abt, AtcInvSync].into_iter().find(|error| self.0 & 1 << *error as u8 != 0)?;
        self.0 &= !(1 << error as u8);
        Some(error)
    }
}

/// Why the command at CONS has been taken and not consumed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiting {
    /// A CMD_SYNC, for the host to complete a round; `None` if that round failed, and another is to be asked for.
    Sync { signal: Signal, round: Option<u64> },
    /// A command for the VMM, for the VMM.
    Vmm,
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
    /// No new command.
    Idle,
    /// Commands were taken, of so many that were fetched. The one that ended the batch, if it is to be waited for, is not consumed.
    Taken(Applied, usize),
    /// There are commands where there is no memory.
    Abort,
    /// PROD contradicts CONS, and did not at the last visit. Nothing is taken until it no longer does.
    Inconsistent,
}

impl CommandQueue {
    /// The queue that the BASE and CONS registers describe. ADDR is aligned down to the size of the ring, and
    /// LOG2SIZE is capped (facts sheet, section 2.5).
    pub fn new(base: u64, cons: u32, features: &Features) -> Self {
        let size = QueueSize::capped((base & BASE_LOG2SIZE) as u32, features.queue_cap());
        let alignment = size.bytes().max(32) as u64;
        let base = GuestAddress(base & BASE_ADDR & features.address_mask() & !(alignment - 1));
        let ring = Ring::Unbacked { cons: size.index(cons) };
        let (sent, atc) = (Rounds::default(), Rounds::default());
        Self { base, size, ring, waiting: None, inconsistent: false, sent, atc, blame: Blame::default() }
    }

    /// Looks for the ring's memory in the memory map as it is now.
    pub fn back(&mut self, place: &Place, ram: &dyn GuestRam) {
        let cons = self.cons();
        let words = ram.region(self.base, self.size.bytes()).and_then(|ring| {
            let registers = place.registers.memory().clone();
            SharedQueue::new(ring, 0, self.size, registers, place.prod, place.cons)
        });
        self.ring = match words {
            Some(words) => Ring::Backed(Consumer::new(words, self.size, cons)),
            None => Ring::Unbacked { cons },
        };
    }

    /// The BASE register that describes this queue, with what really counts of it.
    pub fn base(&self) -> u64 {
        self.base.0 | u64::from(self.size.log2())
    }

    /// The next command to be consumed.
    pub fn cons(&self) -> Index {
        match &self.ring {
            Ring::Backed(consumer) => consumer.cons(),
            Ring::Unbacked { cons } => *cons,
        }
    }

    /// Whether its memory has been found.
    pub fn is_backed(&self) -> bool {
        matches!(self.ring, Ring::Backed(_))
    }

    /// The number of commands between CONS and a PROD word, or `None` if the two contradict each other.
    pub fn used(&self, prod: u32) -> Option<u32> {
        self.size.used(self.size.index(prod), self.cons()).ok()
    }

    /// Whether there is something to take up to a PROD word, or PROD contradicts CONS.
    pub fn wants(&mut self, prod: u32) -> bool {
        let empty = self.used(prod) == Some(0);
        self.inconsistent &= !empty;
        !empty
    }

    /// The synchronisation of a round failed, whether the queue waits for it or not. `ours` says that a command of this guest
    /// may be to blame.
    pub fn on_sync_failed(&mut self, failed: u64, cause: Cause, ours: bool) {
        let waits = matches!(self.waiting, Some(Waiting::Sync { round: Some(round), .. }) if round == failed);
        let concerned = waits || self.sent.contain(failed);
        let blame = match cause {
            Cause::Transient => None,
            Cause::DeviceGone => concerned.then_some(CommandError::Abt),
            Cause::Illegal => (ours && concerned).then_some(CommandError::Ill),
            Cause::AtcTimeout => (ours && self.atc.contain(failed)).then_some(CommandError::AtcInvSync),
        };
        if blame == Some(CommandError::AtcInvSync) {
            // The ATC_INVs are not executed again, so that no later round can fail for them.
            self.atc.remove(failed);
        }
        // More may have gone wrong with what the round covers than this: the next one says so.
        self.sent.put_off(failed);
        self.atc.put_off(failed);
        if let Some(error) = blame {
            self.blame.add(error);
        } else if let Some(Waiting::Sync { round, .. }) = &mut self.waiting
            && waits
        {
            // Somebody else's fault, or one that may be over: once more.
            *round = None;
        }
    }

    /// The CMD_SYNC at CONS is over: returns the error that it reports, or else forgets all that it covers.
    pub fn synchronised(&mut self) -> Option<CommandError> {
        self.waiting = None;
        let error = self.blame.take();
        if error.is_none() {
            (self.sent, self.atc) = (Rounds::default(), Rounds::default());
        }
        error
    }

    /// The errors that the next CMD_SYNC must report, for a snapshot: bit n is the [`CommandError`] n.
    pub fn blame_bits(&self) -> u8 {
        self.blame.0
    }

    /// As [`Self::blame_bits`], from a snapshot.
    pub fn set_blame_bits(&mut self, bits: u8) {
        self.blame = Blame(bits);
    }

    /// All that was taken has been synchronised. A CMD_SYNC that still waits asks for a synchronisation of its next worker.
    pub fn leave(&mut self) {
        (self.sent, self.atc) = (Rounds::default(), Rounds::default());
        if let Some(Waiting::Sync { round, .. }) = &mut self.waiting {
            *round = None;
        }
    }

    /// What was taken may never reach the host. A CMD_SYNC that waits is taken again, behind what makes good.
    pub fn abandon(&mut self) {
        (self.sent, self.atc) = (Rounds::default(), Rounds::default());
        if let Some(Waiting::Sync { .. }) = self.waiting {
            self.waiting = None;
        }
    }

    /// What makes good for whatever this queue may have sent is in a round, with or without ATC_INVs: if that fails, the queue's next
    /// CMD_SYNC says so.
    pub fn made_good(&mut self, round: u64, atc_invs: bool) {
        self.sent.add(round);
        if atc_invs {
            self.atc.add(round);
        }
    }

    /// Takes a batch, up to the PROD word and of `most` commands, into the outbox, which must have room; `round` is the one that
    /// covers it. Nothing must be waited for.
    pub fn visit(
        &mut self,
        prod: u32,
        most: usize,
        out: &mut Outbox,
        round: u64,
        rules: &Rules,
        streams: &StreamMap,
    ) -> Visit {
        let (buffer, room) = out.buffers();
        let most = most.min(room.len());
        let entries = bytemuck::cast_slice_mut(buffer.get_mut(..most).unwrap_or_default());
        let fetched = match &self.ring {
            Ring::Backed(consumer) => {
                consumer.fetch_until(prod, entries, |entries| rules.batch_end(bytemuck::cast_slice(entries)))
            }
            Ring::Unbacked { cons } => match self.size.used(self.size.index(prod), *cons) {
                Ok(0) => Ok(0),
                Ok(_) => return Visit::Abort,
                Err(e) => Err(e),
            },
        };
        let was_inconsistent = std::mem::replace(&mut self.inconsistent, fetched.is_err());
        match fetched {
            Ok(0) => Visit::Idle,
            Ok(n) => {
                let mut applied = rules.apply(streams, &buffer[..n], room);
                if applied.cost > MOST && n > FEW {
                    // Only the first of them, which cannot cost more than that.
                    applied = rules.apply(streams, &buffer[..FEW], room);
                }
                if applied.host > 0 {
                    self.sent.add(round);
                    // One costs more than a unit.
                    if applied.cost > applied.host as u64 && has_atc_inv(&room[..applied.host]) {
                        self.atc.add(round);
                    }
                }
                out.keep(applied.host);
                let waited_for = matches!(applied.end, End::Sync(_) | End::Request(_));
                self.consume(applied.taken - usize::from(waited_for));
                Visit::Taken(applied, n)
            }
            Err(_) if was_inconsistent => Visit::Idle,
            Err(_) => Visit::Inconsistent,
        }
    }

    /// Passes commands that were fetched just now, and publishes CONS.
    fn consume(&mut self, n: usize) {
        if let Ring::Backed(consumer) = &mut self.ring {
            consumer.consume(n);
        }
    }

    /// Passes the command that was waited for, and publishes CONS with what its register says above the index. The memory of
    /// the ring may have gone since it was taken.
    pub fn pass(&mut self, flags: u32, place: &Place) {
        match &mut self.ring {
            Ring::Backed(consumer) => consumer.consume(1),
            Ring::Unbacked { cons } => {
                *cons = self.size.advance(*cons, 1);
                self.publish(flags, place);
            }
        }
    }

    /// Publishes CONS with what its register says above the index.
    pub fn publish(&mut self, flags: u32, place: &Place) {
        match &mut self.ring {
            Ring::Backed(consumer) => consumer.publish_flags(flags),
            // Release: the guest, which sees an error or an acknowledgement, sees this first.
            Ring::Unbacked { cons } => place.registers.store_u32(place.cons, cons.raw() | flags, Release),
        }
    }
}

/// Whether there is an ATC_INV among commands.
pub(crate) fn has_atc_inv(commands: &[Command]) -> bool {
    commands.iter().any(|command| command.opcode() == Opcode::ATC_INV)
}
