//! When groups begin.

use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use serde::Deserialize;

/// When the next group is due, whether or not the last one has completed: who had to wait for that begins late, and is timed since it
/// was due.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// From one to the next, in nanoseconds, on average.
    pub mean_ns: u64,
    /// How they are spread.
    #[serde(default)]
    pub spread: Spread,
    /// A pause now and then.
    pub burst: Option<Burst>,
}

/// How the times from one to the next are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// All the same.
    #[default]
    Fixed,
    /// As of events that know nothing of each other.
    Exponential,
}

/// So many groups, then a pause.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// Groups.
    pub groups: u32,
    /// The pause, in microseconds.
    pub pause_us: u64,
}

/// The times at which the groups of a vCPU are due.
pub(crate) struct Clock {
    pace: Pace,
    random: Xoshiro256PlusPlus,
    due: Instant,
    groups: u32,
}

impl Clock {
    pub fn new(pace: Pace, random: Xoshiro256PlusPlus) -> Self {
        Self { pace, random, due: Instant::now(), groups: 0 }
    }

    /// Waits until the next group is due, and says when that was.
    pub fn wait(&mut self) -> Instant {
        let gap = self.gap();
        self.due += gap;
        loop {
            let left = self.due.saturating_duration_since(Instant::now());
            match left {
                Duration::ZERO => return self.due,
                // A thread that sleeps wakes up late: not by more than this, mostly.
                _ if left > Duration::from_micros(200) => thread::sleep(left - Duration::from_micros(150)),
                _ => thread::yield_now(),
            }
        }
    }

    fn gap(&mut self) -> Duration {
        let Pace { mean_ns, spread, burst } = self.pace;
        let factor = match spread {
            Spread::Fixed => 1.0,
            // Of a number in (0, 1].
            Spread::Exponential => -(1.0 - self.random.random::<f64>()).ln(),
        };
        self.groups += 1;
        let pause = burst.filter(|burst| self.groups.is_multiple_of(burst.groups.max(1)));
        let pause = pause.map_or(Duration::ZERO, |burst| Duration::from_micros(burst.pause_us));
        Duration::from_nanos((mean_ns as f64 * factor) as u64) + pause
    }
}
