//! The ring of a command queue as its driver sees it.

use std::sync::atomic::Ordering::Release;

use ecmdq_engine::Command;
use ecmdq_ring::SharedRegion;

use super::RAM;

/// Where the entries are, and where the next one goes.
pub struct Ring {
    ram: SharedRegion,
    base: u64,
    log2: u32,
    prod: u32,
}

impl Ring {
    /// A ring of 2^`log2` entries that is empty at `index`.
    pub fn new(ram: SharedRegion, base: u64, log2: u32, index: u32) -> Self {
        Self { ram, base: base & !((16 << log2) - 1), log2, prod: index }
    }

    /// The index, with wrap bit, where the next command goes.
    pub fn prod(&self) -> u32 {
        self.prod
    }

    pub fn index_mask(&self) -> u32 {
        (2 << self.log2) - 1
    }

    /// The address of the entry at an index.
    pub fn slot(&self, index: u32) -> u64 {
        self.base + 16 * u64::from(index & (self.index_mask() >> 1))
    }

    /// Writes the entry at an index.
    pub fn put(&self, index: u32, command: Command) {
        let at = self.slot(index).wrapping_sub(RAM) as usize;
        self.ram.store_u64(at, command.0[0], Release);
        self.ram.store_u64(at + 8, command.0[1], Release);
    }

    /// Free entries while the queue is consumed up to `cons`.
    pub fn room(&self, cons: u32) -> u32 {
        (1 << self.log2) - (self.prod.wrapping_sub(cons) & self.index_mask())
    }

    /// Adds commands without telling.
    pub fn push(&mut self, commands: &[Command], cons: u32) {
        assert!(commands.len() as u32 <= self.room(cons), "the driver never overfills its queue");
        for command in commands {
            self.put(self.prod, *command);
            self.prod = (self.prod + 1) & self.index_mask();
        }
    }
}
