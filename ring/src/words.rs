//! Where the words live: those of a queue, and those that threads of one process share.

use core::sync::atomic::{AtomicU64, Ordering};

/// One queue entry: two little-endian 64-bit words.
pub type Entry = [u64; 2];

/// The words of one queue: PROD, CONS and the slots.
///
/// The algorithms choose the memory orderings; an implementation must give at least what is asked for. Slots
/// are read and written word by word without ordering, and may be written by somebody else meanwhile.
pub trait QueueWords {
    /// Loads the PROD word.
    fn load_prod(&self, order: Ordering) -> u32;
    /// Stores the PROD word.
    fn store_prod(&self, word: u32, order: Ordering);
    /// Loads the CONS word.
    fn load_cons(&self, order: Ordering) -> u32;
    /// Stores the CONS word.
    fn store_cons(&self, word: u32, order: Ordering);
    /// Copies the entry of a slot out, each word loaded once. `slot` is below the number of slots.
    fn load_entry(&self, slot: u32) -> Entry;
    /// Writes the entry of a slot. `slot` is below the number of slots.
    fn store_entry(&self, slot: u32, entry: Entry);

    /// [`load_entry`](Self::load_entry) of the slots that follow each other from `slot` on; none is beyond the last.
    fn load_entries(&self, slot: u32, to: &mut [Entry]) {
        for (slot, to) in (slot..).zip(to) {
            *to = self.load_entry(slot);
        }
    }

    /// [`store_entry`](Self::store_entry) of the slots that follow each other from `slot` on; none is beyond the last.
    fn store_entries(&self, slot: u32, from: &[Entry]) {
        for (slot, from) in (slot..).zip(from) {
            self.store_entry(slot, *from);
        }
    }
}

/// What an [`AtomicWord`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Entries reserved since the beginning.
    Head,
    /// The head behind the entries that begin in this slot, once they have been written.
    Stamp,
    /// How many have counted in as owner.
    Owner,
    /// Entries published since the beginning: the owner's own.
    Published,
    /// The bits of PROD above the index.
    Flags,
    /// The position behind a synchronisation.
    Synced,
    /// The number of a request, and what became of it.
    Request,
    /// A row of a table.
    Row,
    /// Whether somebody sleeps.
    Sleep,
}

/// A 64-bit atomic word. A model checker supplies another one than the one that ships.
pub trait AtomicWord {
    /// A word for a role.
    fn new(role: Role, value: u64) -> Self;
    /// A full fence: sequentially consistent with all others.
    fn fence();
    /// Loads the word.
    fn load(&self, order: Ordering) -> u64;
    /// Stores the word.
    fn store(&self, value: u64, order: Ordering);
    /// Adds to the word; returns what it was.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// Replaces the word if it is `current`; returns what it was if it is not.
    ///
    /// # Errors
    ///
    /// The value that it has, if that is not `current`.
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;
}

// Inlined also by a crate that is built without link-time optimisation: look-ups are on the way of commands.
impl AtomicWord for AtomicU64 {
    #[inline]
    fn new(_role: Role, value: u64) -> Self {
        Self::new(value)
    }

    #[inline]
    fn fence() {
        core::sync::atomic::fence(Ordering::SeqCst);
    }

    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }

    #[inline]
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.compare_exchange(current, new, success, failure)
    }
}
