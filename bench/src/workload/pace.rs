//! When groups begin.

use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use serde::Deserialize;

/// When the next group is due, whether or not the last one has completed: who had to wait for that begins late, and is timed since it
/// was due. A group that [follows](crate::Group::follows) another counts as a part of it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// From one to the next, in nanoseconds, on average. With 0 they have no time of their own: each is due once the last one has
    /// completed, and a pause begins then.
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
        if self.pace.mean_ns == 0 {
            self.due = Instant::now();
        }
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
        let pause = burst.filter(|burst| self.groups > 0 && self.groups.is_multiple_of(burst.groups.max(1)));
        self.groups += 1;
        let pause = pause.map_or(Duration::ZERO, |burst| Duration::from_micros(burst.pause_us));
        Duration::from_nanos((mean_ns as f64 * factor) as u64) + pause
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn gaps(spread: Spread, burst: Option<Burst>, n: usize) -> Vec<u64> {
        let pace = Pace { mean_ns: 1000, spread, burst };
        let mut clock = Clock::new(pace, Xoshiro256PlusPlus::seed_from_u64(1));
        (0..n).map(|_| clock.gap().as_nanos() as u64).collect()
    }

    #[test]
    fn a_pause_comes_behind_each_burst() {
        let burst = Some(Burst { groups: 3, pause_us: 7 });
        assert_eq!(gaps(Spread::Fixed, burst, 7), [1000, 1000, 1000, 8000, 1000, 1000, 8000]);
    }

    #[test]
    fn exponential_gaps_have_the_mean_and_are_often_short() {
        let gaps = gaps(Spread::Exponential, None, 100_000);
        // The mean is 1000, and 1 - 1/e of them are below it: with this seed, always the same sample of that.
        assert!((99_000_000..101_000_000).contains(&gaps.iter().sum::<u64>()));
        assert!((62_500..64_000).contains(&gaps.iter().filter(|gap| **gap < 1000).count()));
    }
}
