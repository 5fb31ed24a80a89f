//! Errors of a native ring: found, attributed, told to every producer, and mended, as a driver does (facts sheet, sections
//! 3.3, 4.3 and 7.6).

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use ecmdq_ring::handshake::{ERR, REASON_SHIFT};
use ecmdq_ring::{MultiProducer, QueueWords, SharedQueue, SharedRegion};
use parking_lot::Mutex;

use super::{Cause, Failure, RingFormat};
use crate::command::CommandError;
use crate::command::{Command, Opcode};
use crate::registers::{CONS_ERR_SHIFT, GERROR_CMDQ_ERR, INDEX};

/// How often the fetch of one command may abort before the ring counts as dead.
const ABORTS: u32 = 3;
/// Failures that a producer may leave unasked for. More of one cause become one, which covers the positions of all.
const UNASKED: usize = 64;
/// How many causes there are.
const CAUSES: usize = 4;

/// What all producers know of a ring's errors.
#[derive(Debug)]
pub(super) struct Recovery {
    format: RingFormat,
    registers: SharedRegion,
    /// Nothing will be executed any more.
    dead: AtomicBool,
    /// Held by the producer that mends an error; the others go on without.
    mending: Mutex<Mending>,
    inboxes: Box<[Inbox]>,
}

#[derive(Debug, Default)]
struct Mending {
    /// The position of the last command whose fetch aborted, and how often it has.
    aborted: (u64, u32),
}

/// What failed, and where, that a producer has not asked for.
#[derive(Debug)]
struct Inbox {
    /// Whether there is anything: looked at without the lock.
    full: AtomicBool,
    failures: Mutex<VecDeque<(RangeInclusive<u64>, Failure)>>,
}

impl Recovery {
    pub fn new(format: RingFormat, registers: SharedRegion, producers: usize) -> Self {
        let failures = || Mutex::new(VecDeque::with_capacity(UNASKED + CAUSES));
        let inbox = |_| Inbox { full: AtomicBool::new(false), failures: failures() };
        let inboxes = (0..producers).map(inbox).collect();
        Self { format, registers, dead: AtomicBool::new(false), mending: Mutex::default(), inboxes }
    }

    /// Finds an error, tells of it, and mends it.
    pub fn look(&self, producer: &MultiProducer<SharedQueue>) {
        if self.error(producer).is_none() {
            return;
        }
        let Some(mut mending) = self.mending.try_lock() else { return };
        // Somebody else may have mended it just now.
        let (Some(code), Some(position)) = (self.error(producer), producer.consumed()) else { return };
        let slot = producer.slot(position);
        let command = Command(producer.words().load_entry(slot));
        let illegal = command.opcode() != Opcode::CMD_SYNC && code == CommandError::Ill as u32;
        if illegal {
            self.tell(position, Failure { cause: Cause::Illegal, command: Some(command) });
            producer.words().store_entry(slot, [Opcode::CMD_SYNC.0.into(), 0]);
        } else if code == CommandError::AtcInvSync as u32 {
            // The CMD_SYNC is executed again; the ATC_INVs are not.
            self.tell(position, Failure { cause: Cause::AtcTimeout, command: None });
        } else {
            let (at, times) = mending.aborted;
            mending.aborted = if at == position { (at, times + 1) } else { (position, 1) };
            if mending.aborted.1 > ABORTS || code == CommandError::Ill as u32 {
                // A CMD_SYNC of ours that is illegal, or memory that is not there: nothing that we could mend.
                // Relaxed: nothing else is to be seen.
                self.dead.store(true, Relaxed);
                return;
            }
        }
        self.acknowledge(producer);
    }

    /// Whether nothing will be executed any more.
    pub fn is_dead(&self) -> bool {
        // Relaxed: see `look`.
        self.dead.load(Relaxed)
    }

    /// Why a producer's ticket failed, if anything has that the ticket covers: `covered` are the positions of its commands, in order. What
    /// failed before the first of them concerned others, and is forgotten.
    pub fn failure(&self, number: usize, covered: &[Range<u64>]) -> Option<Failure> {
        if self.is_dead() {
            return Some(Failure { cause: Cause::DeviceGone, command: None });
        }
        let inbox = &self.inboxes[number];
        // Relaxed: `tell` stored it before the acknowledgement, which the SMMU saw before any CMD_SYNC behind the error completed,
        // and that the caller has seen. What is told is behind the lock.
        if !inbox.full.load(Relaxed) {
            return None;
        }
        let mut failures = inbox.failures.lock();
        let first = covered.iter().find(|positions| !positions.is_empty()).or(covered.last())?.start;
        failures.retain(|(at, _)| *at.end() >= first);
        let concerns = |at: &RangeInclusive<u64>| {
            covered.iter().any(|positions| *at.start() < positions.end && *at.end() >= positions.start)
        };
        let found = failures.iter().position(|(at, _)| concerns(at));
        let failure = found.and_then(|found| failures.remove(found)).map(|(_, failure)| failure);
        inbox.full.store(!failures.is_empty(), Relaxed);
        failure
    }

    /// The error code, if an error is active.
    fn error(&self, producer: &MultiProducer<SharedQueue>) -> Option<u32> {
        let (active, code) = match self.format {
            RingFormat::Ecmdq => {
                // Relaxed: only `consumed`, which loads CONS with acquire, is followed by accesses to a slot.
                let cons = producer.words().load_cons(Relaxed);
                ((cons ^ producer.flags()) & ERR != 0, cons >> REASON_SHIFT & 7)
            }
            RingFormat::Cmdq { gerror, gerrorn } => {
                // Acquire: pairs with the SMMU's store of GERROR. CONS was stored before, and the slot at it is ours.
                let word = |offset| self.registers.load_u32(offset, Acquire);
                let active = (word(gerror) ^ word(gerrorn)) & GERROR_CMDQ_ERR != 0;
                (active, producer.words().load_cons(Relaxed) >> CONS_ERR_SHIFT & 0x7f)
            }
        };
        active.then_some(code)
    }

    /// Lets the ring go on. Release: what was mended is seen by whoever sees it.
    fn acknowledge(&self, producer: &MultiProducer<SharedQueue>) {
        match self.format {
            RingFormat::Ecmdq => producer.set_flags(producer.flags() ^ ERR),
            RingFormat::Cmdq { gerror, gerrorn } => {
                // Relaxed: `error` has seen the one, and the lock orders whoever wrote the other.
                let toggled = self.registers.load_u32(gerror, Relaxed) & GERROR_CMDQ_ERR;
                let others = self.registers.load_u32(gerrorn, Relaxed) & !GERROR_CMDQ_ERR;
                self.registers.store_u32(gerrorn, others | toggled, Release);
            }
        }
    }

    fn tell(&self, position: u64, failure: Failure) {
        for inbox in &self.inboxes {
            let mut failures = inbox.failures.lock();
            let full = failures.len() >= UNASKED;
            match failures.iter_mut().rev().find(|(_, last)| full && last.cause == failure.cause) {
                // Whose they were is lost, not that they were.
                Some((at, last)) => (*at, last.command) = (*at.start()..=position, None),
                None => failures.push_back((position..=position, failure)),
            }
            inbox.full.store(true, Relaxed);
        }
    }
}

/// The bits of a PROD word above the index.
pub(super) fn flags(format: RingFormat, prod: u32) -> u32 {
    if format == RingFormat::Ecmdq { prod & !INDEX } else { 0 }
}
