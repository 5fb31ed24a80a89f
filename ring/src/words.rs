//! Where the words of a queue live.

use core::sync::atomic::Ordering;

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
}
