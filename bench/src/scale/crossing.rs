//! What it costs that a vCPU and its worker are on different processors: the lines that one writes and the other reads.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::{Duration, Instant};

use super::costs::Costs;
use super::measure::clock;
use crate::pin::pin;
use crate::session::join;

/// Lines that are read together, and sets of them.
const LINES: usize = 16;
const SETS: usize = 4;
const TIMES: u64 = 20_000;

/// A word that has a cache line, and the one that is fetched with it, to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// What it takes to read a cache line that another processor has written, and each further one of many, in ns. Without another
/// processor, the default.
pub(super) fn crossing() -> (f64, f64) {
    if thread::available_parallelism().is_ok_and(|n| n.get() < 2) {
        return (Costs::default().doorbell, Costs::default().line);
    }
    let clock = clock();
    let [one, many] = [1, LINES].map(|lines| (reading(lines).as_nanos() as f64 - clock).max(0.0));
    (one, (many - one).max(0.0) / (LINES - 1) as f64)
}

/// Reading so many lines, and the clock: the median.
fn reading(lines: usize) -> Duration {
    let words: Vec<_> = (0..SETS * LINES).map(|_| Line::default()).collect();
    let (written, read) = (&Line::default().0, &Line::default().0);
    // Which lines is only known from the word that was written: else they are read ahead of it.
    let set = |n: u64| &words[n as usize % SETS * LINES..][..lines];
    let mut times: Vec<_> = thread::scope(|scope| {
        scope.spawn(move || {
            pin(0);
            for n in 1..=TIMES {
                set(n).iter().for_each(|line| line.0.store(n, Relaxed));
                // Release: pairs with the reader's load of it: the lines are written before they are read.
                written.store(n, Release);
                // Acquire: pairs with the reader's store: the lines have been read.
                while read.load(Acquire) != n {
                    spin_loop();
                }
            }
        });
        let reader = scope.spawn(move || {
            pin(1);
            let time = |n| {
                // Acquire, and release below: as above.
                let mut seen = 0;
                while seen != n {
                    spin_loop();
                    seen = written.load(Acquire);
                }
                let start = Instant::now();
                black_box(set(black_box(seen)).iter().map(|line| line.0.load(Relaxed)).sum::<u64>());
                let time = start.elapsed();
                read.store(n, Release);
                time
            };
            (1..=TIMES).map(time).collect()
        });
        join(reader)
    });
    times.sort_unstable();
    times[times.len() / 2]
}
