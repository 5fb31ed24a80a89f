//! A native SMMUv3 command ring as a host queue, for one producer or several.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use ecmdq_ring::{MultiProducer, QueueSize, QueueWords, SharedQueue, SharedRegion};
use vmm_sys_util::eventfd::EventFd;

use super::recovery::{self, Recovery};
use super::{Failure, HostQueue, RingConsumer, Ticket};
use crate::command::{Command, Opcode};
use crate::memory;

/// Where a host ring is: slots and registers in memory that the host's SMMU reads and writes.
#[derive(Debug)]
pub struct RingLayout {
    /// The slots, from slot 0 on.
    pub slots: SharedRegion,
    /// log2 of their number.
    pub log2: u32,
    /// The registers.
    pub registers: SharedRegion,
    /// Where in them PROD is.
    pub prod: usize,
    /// Where in them CONS is.
    pub cons: usize,
    /// What PROD and CONS both are, the queue being enabled and empty.
    pub start: u32,
    /// How errors are told.
    pub format: RingFormat,
    /// Where a CMD_SYNC writes when it is complete; without it, CONS is looked at.
    pub msi: Option<MsiWord>,
    /// Rung after each store to PROD, for a consumer that sleeps.
    pub doorbell: Option<EventFd>,
}

/// How a host ring tells of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFormat {
    /// The CMDQ: CONS.ERR, GERROR and GERRORN, at these offsets of the registers. Nobody else may write GERRORN.
    Cmdq {
        /// GERROR.
        gerror: usize,
        /// GERRORN.
        gerrorn: usize,
    },
    /// An ECMDQ: ERR in CONS, ERRACK in PROD.
    Ecmdq,
}

/// A 32-bit word that a CMD_SYNC's MSI goes to.
#[derive(Clone, Debug)]
pub struct MsiWord {
    /// Its memory.
    pub region: SharedRegion,
    /// Where in it.
    pub offset: usize,
    /// Its address as the host's SMMU knows it.
    pub address: u64,
}

/// One producer's handle to a host ring. Each worker has its own; they take no lock.
///
/// A ticket is the position behind a CMD_SYNC in the ring. With [`MsiWord`], each CMD_SYNC writes the low half of its ticket
/// there; CMD_SYNCs complete in order, so one word tells everybody.
#[derive(Debug)]
pub struct NativeRing {
    producer: MultiProducer<SharedQueue>,
    shared: Arc<Shared>,
    /// Which producer it is.
    number: usize,
    /// The position behind what it submitted last.
    submitted: u64,
    /// The ticket that covers all of it, if there is one.
    ticket: Option<Ticket>,
    /// The position of the first command that no ticket covers yet.
    first: Option<u64>,
    /// What the next ticket covers of those before it.
    left_open: Range<u64>,
    /// Tickets, oldest first.
    asked: VecDeque<Asked>,
    merged: u64,
}

/// A ticket that was asked for, and what it covers.
#[derive(Clone, Debug)]
struct Asked {
    ticket: u64,
    /// The position of the first command that no ticket before covers.
    first: u64,
    /// What a ticket before covered that failed: more may have gone wrong there than it told.
    left_open: Range<u64>,
}

/// Tickets of a producer of which it is known what they cover. Of older ones no more is known than of the next.
const ASKED: usize = 128;

#[derive(Debug)]
struct Shared {
    recovery: Recovery,
    msi: Option<MsiWord>,
    doorbell: Option<EventFd>,
    producers: u32,
}

/// The CMD_SYNC of a ticket: CS=SIG_IRQ, MSH=inner shareable, MSIAttr=write-back; or CS=SIG_NONE.
fn cmd_sync(ticket: u64, msi: Option<&MsiWord>) -> [u64; 2] {
    let opcode = u64::from(Opcode::CMD_SYNC.0);
    match msi {
        Some(msi) => [opcode | 1 << 12 | 3 << 22 | 0xf << 24 | ticket << 32, msi.address],
        None => [opcode, 0],
    }
}

impl RingLayout {
    fn words(&self) -> io::Result<(SharedQueue, QueueSize)> {
        let size = QueueSize::from_log2(self.log2).ok_or(io::ErrorKind::InvalidInput)?;
        let words =
            SharedQueue::new(self.slots.clone(), 0, size, self.registers.clone(), self.prod, self.cons);
        Ok((words.ok_or(io::ErrorKind::InvalidInput)?, size))
    }

    /// What stands for the host's SMMU on this ring, where there is none.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a ring that is not wholly inside its memory.
    pub fn consumer(&self) -> io::Result<RingConsumer> {
        let (words, size) = self.words()?;
        let start = size.index(self.start);
        Ok(RingConsumer::new(words, size, start, self.registers.clone(), self.format, self.msi.clone()))
    }
}

impl NativeRing {
    /// The handles of `producers` producers to a ring.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a ring that is not wholly inside its memory, or has too few slots for so many producers.
    pub fn new(layout: RingLayout, producers: u32) -> io::Result<Vec<Self>> {
        let (words, size) = layout.words()?;
        if producers == 0 || size.entries() / 2 <= producers {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let RingLayout { registers, start, format, msi, doorbell, .. } = layout;
        // Relaxed: the ring is empty, and nobody writes yet.
        let flags = recovery::flags(format, words.load_prod(Relaxed));
        let recovery = Recovery::new(format, registers, producers as usize);
        let all = MultiProducer::new(words, size, size.index(start), flags, producers as usize);
        let submitted = u64::from(size.index(start).raw());
        if let Some(msi) = &msi {
            // Relaxed: nothing is complete yet, and the SMMU writes the word later.
            msi.region.store_u32(msi.offset, submitted as u32, Relaxed);
        }
        let shared = Arc::new(Shared { recovery, msi, doorbell, producers });
        let handle = |(number, producer)| Self {
            producer,
            shared: shared.clone(),
            number,
            submitted,
            ticket: Some(Ticket(submitted)),
            first: None,
            left_open: 0..0,
            asked: VecDeque::with_capacity(ASKED),
            merged: 0,
        };
        Ok((0..).zip(all).map(handle).collect())
    }

    /// A ring of 2^`log2` entries in a memfd of its own, and the consumer that stands for the host's SMMU.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a log2 size below 2 or above 19; what the system said when it refused the memory.
    pub fn with_consumer(log2: u32) -> io::Result<(Self, RingConsumer)> {
        let (mut rings, smmu) = Self::several_with_consumer(log2, 1)?;
        let ring = rings.pop().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((ring, smmu))
    }

    /// The same for several producers.
    ///
    /// # Errors
    ///
    /// As [`Self::with_consumer`], and [`Self::new`].
    pub fn several_with_consumer(log2: u32, producers: u32) -> io::Result<(Vec<Self>, RingConsumer)> {
        let size = QueueSize::from_log2(log2).ok_or(io::ErrorKind::InvalidInput)?;
        // PROD and CONS a page apart from the slots and from each other: one writer a cache line.
        const PAGE: usize = 4096;
        let (_file, memory) = memory::memfd("ecmdq-host-ring", 2 * PAGE + size.bytes())?;
        let slots = memory.part(2 * PAGE, size.bytes()).ok_or(io::ErrorKind::InvalidInput)?;
        let layout = RingLayout {
            slots,
            log2,
            registers: memory,
            prod: 0,
            cons: PAGE,
            start: 0,
            format: RingFormat::Cmdq { gerror: PAGE + 4, gerrorn: 4 },
            msi: None,
            doorbell: None,
        };
        let smmu = layout.consumer()?;
        Ok((Self::new(layout, producers)?, smmu))
    }

    /// How often a CMD_SYNC of another producer served as this one's.
    pub fn merged(&self) -> u64 {
        self.merged
    }

    /// Adds what fits of the commands, and behind all of them a CMD_SYNC if there is to be one.
    fn add(&mut self, commands: &[Command], sync: bool) -> (usize, Option<Ticket>) {
        let Shared { recovery, msi, producers, .. } = &*self.shared;
        if recovery.is_dead() {
            // So that the guests' CMD_SYNCs are met, and told.
            self.ticket = None;
            return (commands.len(), sync.then_some(Ticket(u64::MAX)));
        }
        // A slot for a CMD_SYNC of each producer stays free, so that one always fits: since anybody has last submitted, each
        // has asked for one ticket at most.
        let cmd_sync = sync.then_some(|end| cmd_sync(end, msi.as_ref()));
        let (n, end, with_sync) =
            self.producer.add_with(bytemuck::cast_slice(commands), *producers, cmd_sync);
        if n == 0 && !with_sync {
            return (0, None);
        }
        if n > 0 {
            self.first.get_or_insert(end - n as u64 - u64::from(with_sync));
        }
        (self.submitted, self.ticket) = (end, None);
        if with_sync {
            self.covered_by(end);
        }
        self.ring_doorbell();
        (n, self.ticket)
    }

    /// There is a ticket for all that was submitted.
    fn covered_by(&mut self, ticket: u64) {
        if self.asked.len() == ASKED
            && let Some(Asked { ticket, first, left_open }) = self.asked.pop_front()
        {
            self.leave_open(0, &both(&left_open, &(first..ticket)));
        }
        let first = self.first.take().unwrap_or(ticket);
        let left_open = std::mem::take(&mut self.left_open);
        self.asked.push_back(Asked { ticket, first, left_open });
        self.ticket = Some(Ticket(ticket));
    }

    /// These positions are also covered by the asked ticket number `n`, or by the next one if there is no such.
    fn leave_open(&mut self, n: usize, positions: &Range<u64>) {
        let next = self.asked.get_mut(n).map_or(&mut self.left_open, |asked| &mut asked.left_open);
        *next = both(next, positions);
    }

    fn ring_doorbell(&self) {
        // It fails where the counter is full: then it has been rung already.
        self.shared.doorbell.as_ref().map(|doorbell| doorbell.write(1));
    }

    /// The position behind the newest CMD_SYNC that is known to be complete, or behind what has been consumed.
    fn reached(&self) -> u64 {
        match &self.shared.msi {
            None => self.producer.consumed().unwrap_or(0),
            Some(msi) => {
                // Acquire: pairs with the SMMU's write: what the CMD_SYNC completed is visible.
                let word = msi.region.load_u32(msi.offset, Acquire);
                let head = self.producer.head();
                head - u64::from((head as u32).wrapping_sub(word))
            }
        }
    }
}

impl HostQueue for NativeRing {
    fn submit(&mut self, commands: &[Command]) -> usize {
        self.add(commands, false).0
    }

    fn sync(&mut self) -> Ticket {
        // Only a CONS that contradicts PROD leaves no room: such a ring never completes anything.
        self.submit_and_sync(&[]).1.unwrap_or(Ticket(u64::MAX))
    }

    fn submit_and_sync(&mut self, commands: &[Command]) -> (usize, Option<Ticket>) {
        if commands.is_empty() && self.ticket.is_none() {
            // A CMD_SYNC that somebody added behind what we submitted covers it.
            let synced = self.producer.synced();
            if synced > self.submitted {
                self.merged += 1;
                self.covered_by(synced);
            }
        }
        if commands.is_empty() && self.ticket.is_some() {
            return (0, self.ticket);
        }
        self.add(commands, true)
    }

    fn completed(&mut self) -> Ticket {
        self.shared.recovery.look(&self.producer);
        Ticket(self.reached())
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        while self.asked.front().is_some_and(|older| older.ticket < ticket.0) {
            self.asked.pop_front();
        }
        let covered = match self.asked.front() {
            Some(asked) => [asked.left_open.clone(), asked.first..ticket.0],
            None => [0..0, ticket.0..ticket.0],
        };
        let failure = self.shared.recovery.failure(self.number, &covered)?;
        // The next ticket is a new one. What else may have failed of what this one covers is told with it.
        self.ticket = None;
        self.leave_open(1, &both(&covered[0], &covered[1]));
        Some(failure)
    }
}

/// The positions of both, and what is between them.
fn both(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => a.start.min(b.start)..a.end.max(b.end),
    }
}
