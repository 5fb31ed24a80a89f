//! A queue over loom's atomics, and the same with one ordering weakened.
#![allow(unsafe_code, reason = "loom's cell is not Sync; it is what checks that sharing it is sound")]

use std::sync::atomic::Ordering::{self, Relaxed};

use ecmdq_ring::{Entry, QueueSize, QueueWords};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};

/// A slot: its two words, and a cell that makes loom report any access that is not ordered after the other
/// side's last one. (The words alone would not show a slot written too early: loom does not let a load see a
/// store that comes later.)
#[derive(Debug)]
struct Slot {
    words: [AtomicU64; 2],
    access: UnsafeCell<()>,
}

#[derive(Debug)]
struct Words {
    prod: AtomicU32,
    cons: AtomicU32,
    slots: Vec<Slot>,
}

// SAFETY: the cells hold nothing; loom fails the test when accesses to one are not ordered.
unsafe impl Sync for Words {}
// SAFETY: as above.
unsafe impl Send for Words {}

/// One of the four orderings of the protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weak {
    Nothing,
    ProdStore,
    ProdLoad,
    ConsStore,
    ConsLoad,
}

/// A queue over loom's atomics in which `weak` is relaxed whatever the algorithm asks for.
#[derive(Clone, Debug)]
pub struct LoomQueue {
    words: Arc<Words>,
    weak: Weak,
}

impl LoomQueue {
    pub fn new(size: QueueSize, start: u32, weak: Weak) -> Self {
        let slot = |_| Slot { words: [AtomicU64::new(0), AtomicU64::new(0)], access: UnsafeCell::new(()) };
        let words = Words {
            prod: AtomicU32::new(start),
            cons: AtomicU32::new(start),
            slots: (0..size.entries()).map(slot).collect(),
        };
        Self { words: Arc::new(words), weak }
    }

    fn order(&self, access: Weak, order: Ordering) -> Ordering {
        if self.weak == access { Relaxed } else { order }
    }
}

impl QueueWords for LoomQueue {
    fn load_prod(&self, order: Ordering) -> u32 {
        self.words.prod.load(self.order(Weak::ProdLoad, order))
    }

    fn store_prod(&self, word: u32, order: Ordering) {
        self.words.prod.store(word, self.order(Weak::ProdStore, order));
    }

    fn load_cons(&self, order: Ordering) -> u32 {
        self.words.cons.load(self.order(Weak::ConsLoad, order))
    }

    fn store_cons(&self, word: u32, order: Ordering) {
        self.words.cons.store(word, self.order(Weak::ConsStore, order));
    }

    fn load_entry(&self, slot: u32) -> Entry {
        let slot = &self.words.slots[slot as usize];
        slot.access.with(|_| slot.words.each_ref().map(|word| word.load(Relaxed)))
    }

    fn store_entry(&self, slot: u32, entry: Entry) {
        let slot = &self.words.slots[slot as usize];
        slot.access.with_mut(|_| {
            slot.words[0].store(entry[0], Relaxed);
            slot.words[1].store(entry[1], Relaxed);
        });
    }
}
