//! A queue over loom's atomics, and the same with one ordering weakened; words and memory that threads share.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod plain;
mod word;

pub use plain::Plain;
pub use word::*;

use std::sync::atomic::Ordering::{self, Relaxed};

use ecmdq_ring::{Entry, QueueSize, QueueWords};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

/// Explores all interleavings of a test, up to 3 preemptions.
pub fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(3);
    model.check(test);
}

/// Lets others go on until `what` returns something.
pub fn wait<T>(mut what: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = what() {
            return value;
        }
        thread::yield_now();
    }
}

/// Waits until `what` holds of CONS.
pub fn wait_cons(words: &LoomQueue, what: impl Fn(u32) -> bool) -> u32 {
    wait(|| Some(words.load_cons(Ordering::Acquire)).filter(|cons| what(*cons)))
}

/// A slot: its two words, and memory that makes loom report any access that is not ordered after the other
/// side's last one. (The words alone would not show a slot written too early: loom does not let a load see a
/// store that comes later.)
#[derive(Debug)]
struct Slot {
    words: [AtomicU64; 2],
    access: Plain,
}

#[derive(Debug)]
struct Words {
    prod: AtomicU32,
    cons: AtomicU32,
    slots: Vec<Slot>,
}

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
        let slot = |_| Slot { words: [AtomicU64::new(0), AtomicU64::new(0)], access: Plain::default() };
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
        slot.access.read();
        slot.words.each_ref().map(|word| word.load(Relaxed))
    }

    fn store_entry(&self, slot: u32, entry: Entry) {
        let slot = &self.words.slots[slot as usize];
        slot.access.write(0);
        slot.words[0].store(entry[0], Relaxed);
        slot.words[1].store(entry[1], Relaxed);
    }
}
