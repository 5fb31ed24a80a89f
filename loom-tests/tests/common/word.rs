//! A word over loom's atomics.

use std::sync::atomic::Ordering::{self, Relaxed};

use ecmdq_ring::{AtomicWord, Role};
use loom::sync::atomic::{AtomicU64, fence};

/// What is relaxed, whatever the algorithm asks for.
pub const NOTHING: u8 = 0;
pub const STAMP_STORE: u8 = 1;
pub const STAMP_LOAD: u8 = 2;
pub const OWNER: u8 = 3;
pub const REQUEST_SETTLE: u8 = 4;
pub const REQUEST_LOOK: u8 = 5;
/// A request is settled without a look at whether it is still the one.
pub const REQUEST_BLIND: u8 = 6;
pub const ROW_STORE: u8 = 7;
pub const ROW_LOAD: u8 = 8;
/// There are no fences.
pub const FENCES: u8 = 9;
pub const SYNCED_STORE: u8 = 10;
pub const SYNCED_LOAD: u8 = 11;

/// Kinds of accesses.
enum Access {
    Load,
    Store,
    Change,
}

pub struct LoomWord<const WEAK: u8> {
    role: Role,
    word: AtomicU64,
}

impl<const WEAK: u8> LoomWord<WEAK> {
    fn order(&self, access: Access, order: Ordering) -> Ordering {
        match (WEAK, self.role, access) {
            (STAMP_STORE, Role::Stamp, Access::Store)
            | (STAMP_LOAD, Role::Stamp, Access::Load)
            | (OWNER, Role::Owner, Access::Change)
            | (REQUEST_SETTLE, Role::Request, Access::Change)
            | (REQUEST_LOOK, Role::Request, Access::Load)
            | (ROW_STORE, Role::Row, Access::Store)
            | (ROW_LOAD, Role::Row, Access::Load)
            | (SYNCED_STORE, Role::Synced, Access::Store)
            | (SYNCED_LOAD, Role::Synced, Access::Load) => Relaxed,
            _ => order,
        }
    }
}

impl<const WEAK: u8> AtomicWord for LoomWord<WEAK> {
    fn new(role: Role, value: u64) -> Self {
        Self { role, word: AtomicU64::new(value) }
    }

    fn fence() {
        if WEAK != FENCES {
            fence(Ordering::SeqCst);
        }
    }

    fn load(&self, order: Ordering) -> u64 {
        self.word.load(self.order(Access::Load, order))
    }

    fn store(&self, value: u64, order: Ordering) {
        self.word.store(value, self.order(Access::Store, order));
    }

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.word.fetch_add(value, self.order(Access::Change, order))
    }

    fn compare_exchange(&self, current: u64, new: u64, s: Ordering, f: Ordering) -> Result<u64, u64> {
        if WEAK == REQUEST_BLIND {
            self.word.store(new, s);
            return Ok(current);
        }
        let order = |order| self.order(Access::Change, order);
        self.word.compare_exchange(current, new, order(s), order(f))
    }
}
