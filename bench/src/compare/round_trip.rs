//! How long a CMD_SYNC takes, beside one word there and one back.
//!
//! Requests begin by a schedule, and are timed from when they were to begin: one that comes late because the one before it took
//! long has waited, too (no coordinated omission).

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;

use super::lane::spin_until;
use crate::pin::{Busy, GUEST, SERVER, pin};
use crate::session::{join, spawn};

/// When requests begin.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The time from one to the next.
    pub interval: Duration,
    /// How many.
    pub requests: u32,
}

impl Schedule {
    /// Makes the requests, and records how long each took since it was to begin, in nanoseconds.
    pub(super) fn keep(self, times: &mut Histogram<u64>, mut request: impl FnMut()) {
        let start = Instant::now();
        for n in 0..self.requests {
            let due = start + self.interval * n;
            while Instant::now() < due {}
            request();
            times.saturating_record(due.elapsed().as_nanos() as u64);
        }
    }
}

/// One word there, one word back. Says what a side was [kept off](super::Ran::kept_off).
pub fn ping_pong(schedule: Schedule, times: &mut Histogram<u64>) -> f64 {
    let [there, back] = &[(); 2].map(|()| CachePadded::new(AtomicU64::new(0)));
    thread::scope(|scope| {
        let server = spawn(scope, "server".into(), move || {
            pin(SERVER);
            let busy = Busy::start();
            for round in 1..=u64::from(schedule.requests) {
                // Acquire and release: as the two sides of a queue.
                spin_until(|| there.load(Acquire) == round);
                back.store(round, Release);
            }
            busy.kept_off()
        });
        let guest = spawn(scope, "guest".into(), move || {
            pin(GUEST);
            let (busy, mut round) = (Busy::start(), 0);
            schedule.keep(times, || {
                round += 1;
                there.store(round, Release);
                spin_until(|| back.load(Acquire) == round);
            });
            busy.kept_off()
        });
        join(guest).max(join(server))
    })
}
