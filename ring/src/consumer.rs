//! The side that takes entries.

use core::sync::atomic::Ordering::{Acquire, Release};

use crate::{Entry, Inconsistent, Index, QueueSize, QueueWords};

/// Takes entries from a queue: [`fetch`](Self::fetch) copies, [`take`](Self::take) passes what was copied, and
/// [`consume`](Self::consume) publishes CONS.
///
/// Entries may be taken ahead of CONS, whose slots the producer must leave alone. CONS is private to the consumer; the shared
/// word is an output and is never read back.
#[derive(Debug)]
pub struct Consumer<W> {
    words: W,
    size: QueueSize,
    cons: Index,
    /// The next entry to be fetched.
    taken: Index,
    flags: u32,
}

impl<W: QueueWords> Consumer<W> {
    /// A consumer that starts at `cons`.
    pub fn new(words: W, size: QueueSize, cons: Index) -> Self {
        Self { words, size, cons, taken: cons, flags: 0 }
    }

    /// The next entry to be fetched: at CONS, or ahead of it.
    pub fn taken(&self) -> Index {
        self.taken
    }

    /// Takes the words from elsewhere from now on.
    pub fn replace_words(&mut self, words: W) {
        self.words = words;
    }

    /// The next entry to be consumed.
    pub fn cons(&self) -> Index {
        self.cons
    }

    /// The size of the queue.
    pub fn size(&self) -> QueueSize {
        self.size
    }

    /// The words of the queue.
    pub fn words(&self) -> &W {
        &self.words
    }

    /// The PROD word as it is now: the index, and what a register says above it.
    pub fn prod(&self) -> u32 {
        // Acquire: pairs with the producer's release store of PROD (or the guest's barrier before it), so that
        // the entries below PROD are the published ones.
        self.words.load_prod(Acquire)
    }

    /// How many entries there are to be fetched up to the index in a PROD word.
    ///
    /// # Errors
    ///
    /// [`Inconsistent`] if PROD contradicts CONS, or lies behind what has been taken.
    pub fn available(&self, prod: u32) -> Result<u32, Inconsistent> {
        let (prod, cons) = (self.size.index(prod), self.cons);
        let used = self.size.used(prod, cons)?;
        let ahead = self.size.distance(self.taken, cons);
        used.checked_sub(ahead).ok_or(Inconsistent { prod, cons })
    }

    /// Copies entries into `out`, in order, from the first that has not been taken on, and says how many: up to the index in the
    /// word `prod`, or up to the end of `out`. Nothing is taken.
    ///
    /// `prod` is a word that [`Self::prod`] returned: what it says about the queue and where it ends is from one load.
    ///
    /// # Errors
    ///
    /// As [`Self::available`]; nothing is copied.
    pub fn fetch(&self, prod: u32, out: &mut [Entry]) -> Result<usize, Inconsistent> {
        let n = out.len().min(self.available(prod)? as usize);
        self.copy(&mut out[..n]);
        Ok(n)
    }

    /// Copies as many entries as `out` has room for, which must be [available](Self::available).
    #[inline]
    pub fn copy(&self, out: &mut [Entry]) {
        let slot = self.size.slot(self.taken);
        // Up to the end of the ring, and then from its beginning.
        let (first, rest) = out.split_at_mut(out.len().min((self.size.entries() - slot) as usize));
        self.words.load_entries(slot, first);
        if !rest.is_empty() {
            self.words.load_entries(0, rest);
        }
    }

    /// Passes `n` fetched entries; CONS stays.
    pub fn take(&mut self, n: usize) {
        self.taken = self.size.advance(self.taken, n as u32);
    }

    /// Forgets that entries were taken ahead of CONS: they are fetched again.
    pub fn forget(&mut self) {
        self.taken = self.cons;
    }

    /// Publishes that everything before an entry is consumed; it is not before CONS, nor behind what has been taken.
    pub fn consume_to(&mut self, next: Index) {
        self.cons = next;
        self.publish();
    }

    /// Passes `n` fetched entries, none of which was taken ahead, and publishes CONS.
    pub fn consume(&mut self, n: usize) {
        self.take(n);
        self.consume_to(self.taken);
    }

    /// Publishes CONS with other bits of its register (an error code, an acknowledgement) above the index.
    /// They stay until they are replaced.
    pub fn publish_flags(&mut self, flags: u32) {
        self.flags = flags;
        self.publish();
    }

    fn publish(&self) {
        // Release: pairs with the producer's acquire load of CONS, so that the copies are made before the slots
        // are written again.
        self.words.store_cons(self.cons.raw() | self.flags, Release);
    }
}
