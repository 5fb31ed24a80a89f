//! Memory that is not atomic.
#![allow(unsafe_code, reason = "loom's cell is not Sync; it is what checks that sharing it is sound")]

use loom::cell::UnsafeCell;

/// A word whose accesses by several threads must be ordered by something else: loom reports a "Causality violation" when
/// they are not.
#[derive(Debug)]
pub struct Plain(UnsafeCell<u32>);

// SAFETY: loom fails the test when accesses to the cell are not ordered.
unsafe impl Sync for Plain {}
// SAFETY: as above.
unsafe impl Send for Plain {}

impl Plain {
    pub fn read(&self) -> u32 {
        // SAFETY: loom gives a valid pointer, and has checked that nobody writes meanwhile.
        self.0.with(|word| unsafe { *word })
    }

    pub fn write(&self, value: u32) {
        // SAFETY: loom gives a valid pointer, and has checked that nobody accesses it meanwhile.
        self.0.with_mut(|word| unsafe { *word = value });
    }
}

impl Default for Plain {
    fn default() -> Self {
        Self(UnsafeCell::new(0))
    }
}
