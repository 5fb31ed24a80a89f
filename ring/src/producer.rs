//! The side that adds entries, for a queue with one producer.

use core::sync::atomic::Ordering::{Acquire, Release};

use crate::{Entry, Index, QueueSize, QueueWords};

/// Adds entries to a queue: [`write`](Self::write) fills slots, [`publish`](Self::publish) rings once for all.
///
/// PROD is private to the producer; the shared word is an output and is never read back.
#[derive(Debug)]
pub struct Producer<W> {
    words: W,
    size: QueueSize,
    prod: Index,
    flags: u32,
    /// CONS as last seen: it only moves on, so what was free stays free.
    cons: Index,
}

impl<W: QueueWords> Producer<W> {
    /// A producer for an empty queue whose PROD and CONS are both `start`.
    pub fn new(words: W, size: QueueSize, start: Index) -> Self {
        Self { words, size, prod: start, flags: 0, cons: start }
    }

    /// The next slot to be written, published or not.
    pub fn prod(&self) -> Index {
        self.prod
    }

    /// The size of the queue.
    pub fn size(&self) -> QueueSize {
        self.size
    }

    /// The words of the queue.
    pub fn words(&self) -> &W {
        &self.words
    }

    /// The number of entries that can be written now, if that is less than `wanted` (CONS is looked up only then).
    pub fn room(&mut self, wanted: u32) -> u32 {
        let free = self.free();
        if free >= wanted {
            return free;
        }
        self.unconsumed();
        self.free()
    }

    /// Looks CONS up and tells how many entries, published or not, the consumer has not passed.
    ///
    /// A CONS word that contradicts PROD is not believed: the last good one counts.
    pub fn unconsumed(&mut self) -> u32 {
        // Acquire: pairs with the consumer's release store of CONS, so that its copies are made before we write
        // those slots again.
        let cons = self.size.index(self.words.load_cons(Acquire));
        if self.size.used(self.prod, cons).is_ok() {
            self.cons = cons;
        }
        self.size.entries() - self.free()
    }

    /// Writes as many of `entries` as fit, in order, and says how many. The consumer sees none of them before
    /// [`publish`](Self::publish).
    pub fn write(&mut self, entries: &[Entry]) -> usize {
        let wanted = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let n = self.room(wanted).min(wanted);
        store(&self.words, self.size, self.prod, &entries[..n as usize]);
        self.prod = self.size.advance(self.prod, n);
        n as usize
    }

    /// Makes everything written visible to the consumer: the doorbell.
    pub fn publish(&mut self) {
        // Release: pairs with the consumer's acquire load of PROD, so that it sees the entries.
        self.words.store_prod(self.prod.raw() | self.flags, Release);
    }

    /// Publishes PROD with other bits of its register (an enable, an acknowledgement) above the index. They stay until they
    /// are replaced.
    pub fn publish_flags(&mut self, flags: u32) {
        self.flags = flags;
        self.publish();
    }

    /// What [`publish_flags`](Self::publish_flags) put above the index.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    fn free(&self) -> u32 {
        // `cons` was checked against `prod` when it was read, and `prod` moves only within `free`.
        self.size.used(self.prod, self.cons).map_or(0, |used| self.size.entries() - used)
    }
}

/// Writes entries to the slots from `at` on, around the end of the ring.
#[inline]
pub(crate) fn store(words: &impl QueueWords, size: QueueSize, at: Index, entries: &[Entry]) {
    let slot = size.slot(at);
    let (first, second) = entries.split_at(entries.len().min((size.entries() - slot) as usize));
    words.store_entries(slot, first);
    words.store_entries(0, second);
}
