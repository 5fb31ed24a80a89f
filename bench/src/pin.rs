//! Which processor a thread runs on, and whether it does.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The processor of who sends.
pub(crate) const GUEST: usize = 0;
/// The processor of who serves.
pub(crate) const SERVER: usize = 1;

/// Keeps this thread on a processor, where that exists.
pub(crate) fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    let _ = sched_setaffinity(None, &set);
}

/// A thread that always has something to do, and whether its processor was left to it: other threads take it away, and so do other
/// machines on the same host, whose time Linux does not count as the thread's.
#[derive(Debug)]
pub(crate) struct Busy {
    since: Instant,
    processor: Duration,
}

impl Busy {
    pub fn start() -> Self {
        Self { since: Instant::now(), processor: processor_time() }
    }

    /// The part of the time since in which the thread was kept off its processor.
    pub fn kept_off(&self) -> f64 {
        let (time, processor) = (self.since.elapsed(), processor_time() - self.processor);
        1.0 - processor.div_duration_f64(time).min(1.0)
    }
}

/// What this thread has had of its processors so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::Busy;

    #[test]
    fn who_sleeps_is_not_on_a_processor() {
        let busy = Busy::start();
        thread::sleep(Duration::from_millis(20));
        assert!(busy.kept_off() > 0.5);
    }
}
