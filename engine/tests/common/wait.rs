//! Waiting for other threads, which a busy machine may run when it likes.

use std::thread;
use std::time::{Duration, Instant};

/// How long something may take that takes milliseconds on an idle machine: only what hangs takes that long.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until something holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::yield_now();
    }
}
