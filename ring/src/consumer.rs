//! The side that takes entries.

use core::sync::atomic::Ordering::{Acquire, Release};

use crate::{Entry, Inconsistent, Index, QueueSize, QueueWords};

/// Slots that are loaded in one go: so many that a processor loads several cache lines at the same time, so few that not many are
/// loaded in vain behind the one that ends it.
const STEP: u32 = 32;

/// Takes entries from a queue: [`fetch`](Self::fetch) copies, [`consume`](Self::consume) publishes CONS.
///
/// CONS is private to the consumer; the shared word is an output and is never read back.
#[derive(Debug)]
pub struct Consumer<W> {
    words: W,
    size: QueueSize,
    cons: Index,
    flags: u32,
}

impl<W: QueueWords> Consumer<W> {
    /// A consumer that starts at `cons`.
    pub fn new(words: W, size: QueueSize, cons: Index) -> Self {
        Self { words, size, cons, flags: 0 }
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

    /// Copies entries from CONS on into `out`, in order, and says how many: up to the index in the word `prod`, or up to the
    /// end of `out`. Nothing is consumed.
    ///
    /// `prod` is a word that [`Self::prod`] returned: what it says about the queue and where it ends is from one load.
    ///
    /// # Errors
    ///
    /// [`Inconsistent`] if PROD and CONS contradict each other; nothing is copied.
    pub fn fetch(&self, prod: u32, out: &mut [Entry]) -> Result<usize, Inconsistent> {
        self.fetch_until(prod, out, |_| None)
    }

    /// The same up to and including the first entry of a kind. Entries are shown to `find` a few at a time, in order; it says
    /// which is the first of those. What `out` holds behind it is of no use.
    ///
    /// # Errors
    ///
    /// As [`Self::fetch`].
    pub fn fetch_until(
        &self,
        prod: u32,
        out: &mut [Entry],
        mut find: impl FnMut(&[Entry]) -> Option<usize>,
    ) -> Result<usize, Inconsistent> {
        let used = self.size.used(self.size.index(prod), self.cons)? as usize;
        let end = out.len().min(used);
        let mut n = 0;
        while n < end {
            let slot = self.size.slot(self.size.advance(self.cons, n as u32));
            // Where a ring ends, a step ends, too: the smaller of two powers of two.
            let step = STEP.min(self.size.entries());
            let to = end.min(n + (step - slot % step) as usize);
            self.words.load_entries(slot, &mut out[n..to]);
            match find(&out[n..to]) {
                Some(at) => return Ok(n + at + 1),
                None => n = to,
            }
        }
        Ok(n)
    }

    /// Passes `n` fetched entries and publishes CONS.
    pub fn consume(&mut self, n: usize) {
        self.cons = self.size.advance(self.cons, n as u32);
        self.publish();
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
