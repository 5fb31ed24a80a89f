//! One CMDQ for all vCPUs of a guest, without a lock around it: how Linux's driver adds commands (facts sheet, section 7.4).
//!
//! A *shadow* word holds PROD, an OWNED bit above it, and the CONS up to which slots may be used again. A vCPU that adds
//!
//! 1. **reserves** its slots by a compare-and-swap of the shadow, if there is room, and sets OWNED with it: who found it clear is
//!    the *owner*, and will ring for all who come until it clears it again;
//! 2. **writes** its commands, the CMD_SYNC last;
//! 3. **marks** its slots as valid, a bit each, whose meaning flips each time the ring wraps, so that nobody has to clear it;
//! 4. if it is the owner: waits until the owner before it has rung; clears OWNED, which fixes how far it is to ring; waits until all
//!    slots up to there are valid; rings once; tells the next owner;
//! 5. **waits** for its CMD_SYNC.
//!
//! Who waits for a CMD_SYNC (from before 3 on) is counted, and while anybody is, the shadow's CONS does not move: so no slot is used
//! again under a CMD_SYNC whose MSI has not been seen. The last one to leave moves it; so does who finds no room and nobody waiting.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use crossbeam::utils::{Backoff, CachePadded};
use ecmdq_engine::Command;
use ecmdq_engine::registers::{CMDQ_CONS, CMDQ_PROD};
use ecmdq_ring::{Index, QueueSize, QueueWords, SharedQueue, SharedRegion};
use vm_memory::GuestAddress;

use crate::driver::{Driver, DriverError, Sync, cmd_sync, enable_cmdq, queue_error};
use crate::registers::{Registers, TIMEOUT};

/// The most commands that are added at once: more are split, and the last part has the CMD_SYNC.
const BATCH: usize = 64;
/// In the shadow, above PROD; never in the register.
const OWNED: u32 = 1 << 31;

/// A vCPU's handle to a CMDQ that it shares with others.
#[derive(Clone, Debug)]
pub struct Cmdlist {
    words: SharedQueue,
    size: QueueSize,
    base: GuestAddress,
    registers: Registers,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// PROD and OWNED below, CONS above.
    shadow: CachePadded<AtomicU64>,
    /// What the last owner rang with.
    rung: CachePadded<AtomicU32>,
    /// How many wait for a CMD_SYNC; far below zero while somebody who found no room moves CONS.
    waiting: CachePadded<AtomicI32>,
    valid: Box<[AtomicU64]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Shadow {
    prod: Index,
    owned: bool,
    cons: Index,
}

/// How far an owner is: the first slot that it has not seen to be valid, and, once it has cleared OWNED, where it rings.
#[derive(Debug)]
struct Owner {
    next: Index,
    end: Option<Index>,
}

/// How long a vCPU has waited for something while the SMMU stood still.
struct Patience {
    backoff: Backoff,
    /// Where CONS was last.
    cons: Index,
    since: Instant,
}

impl Cmdlist {
    /// Resets the SMMU as a driver does, and enables a CMDQ of 2^`log2` entries at `base`, whose memory is `ring`.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoQueue`], [`DriverError::NoAck`].
    pub fn new(
        pages: &SharedRegion,
        base: GuestAddress,
        ring: SharedRegion,
        log2: u32,
    ) -> Result<Self, DriverError> {
        let registers = Registers::Memory(pages.clone());
        let size = QueueSize::from_log2(log2).ok_or(DriverError::NoQueue(log2))?;
        let words = SharedQueue::new(ring, 0, size, pages.clone(), CMDQ_PROD, CMDQ_CONS);
        let words = words.ok_or(DriverError::NoQueue(log2))?;
        enable_cmdq(&registers, base, log2)?;
        Ok(Self::over(words, size, base, registers))
    }

    /// Over a queue that is enabled and empty.
    fn over(words: SharedQueue, size: QueueSize, base: GuestAddress, registers: Registers) -> Self {
        let valid = (0..size.entries().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            shadow: CachePadded::default(),
            rung: CachePadded::default(),
            waiting: CachePadded::default(),
            valid,
        });
        Self { words, size, base, registers, shared }
    }

    /// A driver that knows nothing of the others: what it does clashes with what they do.
    pub(crate) fn into_own(self) -> Driver {
        Driver::over(self.words, self.size, self.base, self.registers)
    }

    /// Adds commands and a CMD_SYNC, waits until it has completed, and tells how long that took.
    ///
    /// # Errors
    ///
    /// [`DriverError::SyncTimeout`], [`DriverError::Command`].
    pub fn send(&self, commands: &[Command], sync: Sync) -> Result<Duration, DriverError> {
        let start = Instant::now();
        // The CMD_SYNC is one more; a queue may be smaller than a batch.
        let most = BATCH.min(self.size.entries() as usize) - 1;
        let (last, others) = match commands.len() {
            0..=BATCH if commands.len() <= most => (commands, &commands[..0]),
            len => (&commands[len / most * most..], &commands[..len / most * most]),
        };
        for batch in others.chunks(most) {
            self.add(batch, None)?;
        }
        self.add(last, Some(sync))?;
        Ok(start.elapsed())
    }

    fn add(&self, commands: &[Command], sync: Option<Sync>) -> Result<(), DriverError> {
        let n = commands.len() as u32 + u32::from(sync.is_some());
        let Shadow { prod: first, owned, .. } = self.wait(self.patience(), || self.reserve(n))?;
        let end = self.size.advance(first, n);
        self.write(first, commands);
        let sync_at = self.size.advance(first, n - 1);
        if let Some(sync) = sync {
            self.write(sync_at, &[cmd_sync(sync, self.base.0 + 16 * u64::from(self.size.slot(sync_at)))]);
            self.begin_waiting();
        }
        self.mark(first, n);
        let rung = if owned { Ok(()) } else { self.ring(first, self.patience()) };
        let Some(sync) = sync else { return rung };
        // After an error nothing goes on: CONS need not move.
        rung.and_then(|()| self.wait(self.patience(), || self.is_over(sync, sync_at, end).then_some(())))?;
        self.end_waiting(end);
        Ok(())
    }

    /// Step 1. The shadow as it was before, unless there is no room.
    fn reserve(&self, n: u32) -> Option<Shadow> {
        let mut tried = false;
        loop {
            // Relaxed: what counts is what the exchange finds.
            let word = self.shared.shadow.load(Relaxed);
            let shadow = self.unpack(word);
            let used = self.size.used(shadow.prod, shadow.cons).unwrap_or(self.size.entries());
            if self.size.entries() - used < n {
                if std::mem::replace(&mut tried, true) {
                    return None;
                }
                self.make_room();
                continue;
            }
            let new = Shadow { prod: self.size.advance(shadow.prod, n), owned: true, ..shadow };
            // Acquire: pairs with `move_cons`: the slots that CONS has passed are free. Release: see `ring`.
            if self.shared.shadow.compare_exchange(word, pack(new), AcqRel, Relaxed).is_ok() {
                return Some(shadow);
            }
        }
    }

    /// Step 2.
    fn write(&self, first: Index, commands: &[Command]) {
        for (i, command) in (0..).zip(commands) {
            self.words.store_entry(self.slot(first, i), command.0);
        }
    }

    /// Step 3.
    fn mark(&self, first: Index, n: u32) {
        let mut done = 0;
        while done < n {
            let slot = self.slot(first, done);
            let (word, bit) = (slot / 64, slot % 64);
            let bits = (n - done).min(64 - bit).min(self.size.entries() - slot);
            let mask = (u64::MAX >> (64 - bits)) << bit;
            // Release: pairs with the owner's acquire load in `ring`: the entries are written.
            self.shared.valid[word as usize].fetch_xor(mask, Release);
            done += bits;
        }
    }

    /// Whether a slot has been marked on the way round that its index belongs to.
    fn is_valid(&self, index: Index) -> bool {
        let slot = self.size.slot(index);
        // Acquire: pairs with `mark`.
        let bit = self.shared.valid[slot as usize / 64].load(Acquire) >> (slot % 64) & 1;
        // The first way round sets it, the next one clears it, and so on.
        (bit == 1) == (index.raw() & self.size.entries() == 0)
    }

    /// Step 4, of who has reserved from `first` on.
    fn ring(&self, first: Index, patience: Patience) -> Result<(), DriverError> {
        let mut owner = Owner { next: first, end: None };
        self.wait(patience, || self.try_ring(&mut owner).then_some(()))
    }

    /// As far in step 4 as it goes without waiting; whether it has rung.
    fn try_ring(&self, owner: &mut Owner) -> bool {
        let Shared { shadow, rung, .. } = &*self.shared;
        let end = match owner.end {
            Some(end) => end,
            // Acquire: pairs with the store below, of the owner before: its PROD is written.
            None if rung.load(Acquire) != owner.next.raw() => return false,
            // Acquire and release: pairs with `reserve`: who comes after this finds it clear, and is the next owner.
            None => self.unpack(shadow.fetch_and(!u64::from(OWNED), AcqRel)).prod,
        };
        owner.end = Some(end);
        while owner.next != end {
            if !self.is_valid(owner.next) {
                return false;
            }
            owner.next = self.size.advance(owner.next, 1);
        }
        // Release: pairs with the SMMU's acquire load of PROD: all entries, others' too, which `is_valid` has acquired.
        self.words.store_prod(end.raw(), Release);
        rung.store(end.raw(), Release);
        true
    }

    /// Step 5: whether the CMD_SYNC at `at` has completed.
    fn is_over(&self, sync: Sync, at: Index, end: Index) -> bool {
        let done = match sync {
            // Acquire: pairs with the SMMU's write: what the CMD_SYNC completed is seen.
            Sync::Msi => self.words.ring().load_u32(16 * self.size.slot(at) as usize, Acquire) == 0,
            Sync::Cons => true,
        };
        // After an MSI, CONS must have passed the CMD_SYNC already. It is less than the ring's size away from it, on either
        // side: while we wait, that is as far as anybody can have got.
        let passed = self.size.used(self.cons(), end);
        done && passed.is_ok_and(|passed| passed < self.size.entries())
    }

    fn cons(&self) -> Index {
        // Acquire: pairs with the SMMU's release store of CONS: it has read the entries before.
        self.size.index(self.words.load_cons(Acquire))
    }

    fn begin_waiting(&self) {
        let backoff = Backoff::new();
        loop {
            // Relaxed: what counts is what the exchange finds.
            let n = self.shared.waiting.load(Relaxed).max(0);
            // Acquire: pairs with the release in `make_room`.
            if self.shared.waiting.compare_exchange(n, n + 1, Acquire, Relaxed).is_ok() {
                return;
            }
            backoff.snooze();
        }
    }

    /// The CMD_SYNC before the position `end` has completed.
    fn end_waiting(&self, end: Index) {
        let waiting = &self.shared.waiting;
        // Relaxed: who moves CONS does so before it leaves, and leaves with a release. Others may have begun to wait since: their
        // CMD_SYNCs are behind this one, or it would not have completed.
        if waiting.load(Relaxed) == 1 {
            self.move_cons(end);
        }
        // Release: pairs with the acquire in `make_room`.
        waiting.fetch_sub(1, Release);
    }

    /// Moves the shadow's CONS if nobody waits.
    fn make_room(&self) {
        let waiting = &self.shared.waiting;
        // Acquire: pairs with `end_waiting`; those who have left have seen their MSI.
        if waiting.compare_exchange(0, i32::MIN, Acquire, Relaxed).is_ok() {
            self.move_cons(self.cons());
            // Release: pairs with `begin_waiting`.
            waiting.store(0, Release);
        }
    }

    fn move_cons(&self, cons: Index) {
        // Release: pairs with `reserve`: the SMMU has read what CONS has passed.
        let _ = self
            .shared
            .shadow
            .fetch_update(Release, Relaxed, |word| Some(pack(Shadow { cons, ..self.unpack(word) })));
    }

    fn wait<T>(
        &self,
        mut patience: Patience,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, DriverError> {
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            self.pause(&mut patience)?;
        }
    }

    fn patience(&self) -> Patience {
        Patience { backoff: Backoff::new(), cons: self.cons(), since: Instant::now() }
    }

    /// Gives way; looks for errors when it has taken a while. As long as CONS moves it is only somebody else's turn.
    fn pause(&self, patience: &mut Patience) -> Result<(), DriverError> {
        if patience.backoff.is_completed() {
            if let Some(error) = queue_error(&self.registers, &self.words, self.size) {
                return Err(error);
            }
            let cons = self.cons();
            if cons != patience.cons {
                (patience.cons, patience.since) = (cons, Instant::now());
            } else if patience.since.elapsed() > TIMEOUT {
                let prod = self.unpack(self.shared.shadow.load(Relaxed)).prod.raw();
                return Err(DriverError::SyncTimeout { prod, cons: cons.raw() });
            }
        }
        patience.backoff.snooze();
        Ok(())
    }

    fn slot(&self, first: Index, n: u32) -> u32 {
        self.size.slot(self.size.advance(first, n))
    }

    fn unpack(&self, word: u64) -> Shadow {
        let (prod, cons) = (word as u32, (word >> 32) as u32);
        Shadow { prod: self.size.index(prod), owned: prod & OWNED != 0, cons: self.size.index(cons) }
    }
}

fn pack(Shadow { prod, owned, cons }: Shadow) -> u64 {
    u64::from(prod.raw() | if owned { OWNED } else { 0 }) | u64::from(cons.raw()) << 32
}

mod stepped;
#[cfg(test)]
mod tests;

pub use stepped::Stepped;
