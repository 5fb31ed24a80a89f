//! A table in which one thread looks things up while another one changes it.

use alloc::boxed::Box;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Release};

use crate::{AtomicWord, Role};

/// Keys to values, of 32 bits each. The value `u32::MAX` means none, and the key `u32::MAX` never has one.
///
/// A look-up takes no lock and sees a row either as it was or as it is; one that starts after a change has returned sees
/// that change. It takes constant time. Changes are made one at a time.
///
/// Open addressing with linear probing. A row is one word, the key above the value, so that it cannot tear. A key keeps its
/// row when it loses its value, so that probing goes on past it.
#[derive(Debug)]
pub struct LookupTable<A = AtomicU64> {
    rows: Box<[A]>,
}

const NONE: u32 = u32::MAX;
const FREE: u64 = u64::MAX;

impl<A: AtomicWord> LookupTable<A> {
    /// An empty table, for up to `keys` different keys over its life: with more, look-ups need not end.
    pub fn new(keys: usize) -> Self {
        let rows = (2 * keys.max(1)).next_power_of_two();
        Self { rows: (0..rows).map(|_| A::new(Role::Row, FREE)).collect() }
    }

    /// The value of a key.
    pub fn get(&self, key: u32) -> Option<u32> {
        let value = self.find(key).1 as u32;
        (value != NONE).then_some(value)
    }

    /// Whether a key has ever had a value.
    pub fn knows(&self, key: u32) -> bool {
        self.find(key).1 != FREE
    }

    /// Gives a key a value, or takes it away.
    pub fn set(&self, key: u32, value: Option<u32>) {
        let (row, _) = self.find(key);
        // Release: pairs with the acquire load in `row`, so that what the caller set up for the value before is seen by
        // who finds it.
        self.rows[row].store(u64::from(key) << 32 | u64::from(value.unwrap_or(NONE)), Release);
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The key and the value in a row.
    pub fn at(&self, row: usize) -> Option<(u32, u32)> {
        let word = self.row(row);
        (word as u32 != NONE).then_some(((word >> 32) as u32, word as u32))
    }

    fn row(&self, row: usize) -> u64 {
        // Acquire: pairs with the release store in `set`.
        self.rows[row].load(Acquire)
    }

    /// The row of a key and its word, or the free row where it would go. At most half of the rows are in use, so there is
    /// a free one.
    fn find(&self, key: u32) -> (usize, u64) {
        let mask = self.rows.len() - 1;
        // Fibonacci hashing: neighbouring keys (functions of one device) spread out.
        let mut row = (key.wrapping_mul(0x9e37_79b9) >> 7) as usize & mask;
        loop {
            let word = self.row(row);
            if word == FREE || (word >> 32) as u32 == key {
                return (row, word);
            }
            row = (row + 1) & mask;
        }
    }
}
