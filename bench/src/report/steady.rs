//! Measurements in which the machine left its processors to those who were measured.

use serde::{Deserialize, Serialize};

use crate::compare::{Lane, Load, Ran};

/// The part of its time that a thread may be kept off its processor.
const KEPT_OFF: f64 = 0.01;
/// How often something is measured until it is taken as it is.
const ATTEMPTS: u64 = 8;

/// What was measured, and how much of it again because other threads, or other machines on the same host, took more than 1 % of a
/// processor's time meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steady {
    /// Measurements that count.
    pub measured: u64,
    /// Those that do not.
    pub again: u64,
    /// Those that count though they were disturbed: so were all of their repetitions, and more.
    pub disturbed: u64,
}

impl Steady {
    /// Measures until it is not disturbed; at last, what was disturbed least. `once` says what it was kept off its processors.
    pub(super) fn measure<R>(&mut self, mut once: impl FnMut() -> (R, f64)) -> R {
        self.measured += 1;
        let mut best = once();
        for _ in 1..ATTEMPTS {
            if best.1 <= KEPT_OFF {
                return best.0;
            }
            self.again += 1;
            let next = once();
            if next.1 < best.1 {
                best = next;
            }
        }
        self.disturbed += u64::from(best.1 > KEPT_OFF);
        best.0
    }

    /// Sends a load along a lane.
    pub(super) fn run(&mut self, lane: &mut dyn Lane, load: &Load, groups: usize) -> Ran {
        self.measure(|| {
            let ran = lane.run(load, groups);
            (ran, ran.kept_off)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Steady;

    #[test]
    fn what_is_disturbed_is_measured_again() {
        let mut steady = Steady::default();
        let mut results = [('a', 0.5), ('b', 0.01), ('c', 0.0)].into_iter();
        let mut once = || results.next().expect("no more than that is measured");
        assert_eq!(steady.measure(&mut once), 'b');
        assert_eq!(steady.measure(&mut once), 'c');
        assert_eq!(steady, Steady { measured: 2, again: 1, disturbed: 0 });
    }

    #[test]
    fn what_is_always_disturbed_is_taken_when_it_was_disturbed_least() {
        let mut steady = Steady::default();
        let mut results = [0.5, 0.4, 0.02, 0.3, 0.9, 0.9, 0.9, 0.9].into_iter().enumerate();
        assert_eq!(steady.measure(|| results.next().expect("no more than that is measured")), 2);
        assert_eq!(steady, Steady { measured: 1, again: 7, disturbed: 1 });
    }
}
