//! Measures the costs on this machine.
//!
//! The engine runs in lock step in a few settings of different shape, and the simulation says how many steps of each kind a sweep
//! of each has. The costs are those whose sums come nearest to the times that were measured, by the least squares of the relative errors. What
//! crosses between processors, which lock step does not, is timed [apart](super::crossing).
//!
//! Other machines on the same processor come and go, and make everything up to twice as slow. So each piece of time is compared with
//! those of one small setting just before and just after it, and counts in proportion to the best that this was seen to do.

use std::io;
use std::time::{Duration, Instant};

use super::costs::Costs;
use super::crossing::crossing;
use super::lock_step::LockStep;
use super::simulation::{Counts, Host, Setting, Tickets};

/// Guests, queues of each, and commands before a CMD_SYNC; 0 for no traffic at all.
pub(super) type Shape = (usize, usize, u32);

/// What the costs are from. The check compares others.
pub(super) const SHAPES: [Shape; 14] = [
    (2, 1, 0),
    (32, 1, 0),
    (4, 8, 1),
    (2, 128, 1),
    (2, 1, 1),
    (2, 1, 32),
    (2, 1, 200),
    (32, 1, 1),
    (32, 1, 32),
    (128, 1, 4),
    (200, 1, 1),
    (200, 1, 32),
    (2, 32, 1),
    (2, 32, 32),
];

/// The costs that lock step has.
const COSTS: usize = 7;

/// Every shape is timed in so many rounds, set up anew in each, in so many pieces of about so long, with so many sweeps of the
/// reference before and after each.
const ROUNDS: usize = 3;
const PIECES: usize = 20;
const PIECE: Duration = Duration::from_micros(400);
const REFERENCE: Shape = (1, 1, 1);
const TURNS: u64 = 200;
/// How much the two may differ for a piece to count.
const STEADY: f64 = 0.1;

impl Costs {
    /// Measures them on this machine, in about two seconds.
    ///
    /// # Errors
    ///
    /// What the system said when it refused the memory.
    pub fn measure() -> io::Result<Self> {
        Ok(Self::fit(&sweeps_ns(&SHAPES)?))
    }

    /// The costs from the times of [`SHAPES`].
    pub(super) fn fit(times: &[f64]) -> Self {
        let rows: Vec<_> = SHAPES.iter().map(steps).zip(times.iter().copied()).collect();
        let [sweep, guest, queue, command, doubling, sync, hand_over] = solve(&rows);
        let (doorbell, line) = crossing();
        Self { sweep, guest, queue, command, doubling, sync, hand_over, doorbell, line }
    }
}

/// Lock step as a setting of the simulation: vCPUs that do not think, a host that takes no time.
pub(super) fn lock_step(guests: usize, queues: usize, groups: &[u32], costs: Costs) -> Setting {
    Setting {
        workers: 1,
        guests,
        queues,
        unused: 1,
        groups: groups.to_vec(),
        think: 0.0,
        host: Host { command: 0.0, sync: 0.0 },
        tickets: Tickets::One,
        costs: Costs { doorbell: 0.0, line: 0.0, ..costs },
        seed: 0,
    }
}

/// How often each step comes in a sweep.
fn steps(&(guests, queues, group): &Shape) -> [f64; COSTS] {
    let doublings = (guests as f64).log2();
    let counts = lock_step(guests, queues, &groups(group), Costs::default()).run(1e6, 5e6).counts;
    let Counts { sweeps, guests, queues, commands, lines, syncs, hand_overs, .. } = counts;
    let further = (guests + lines) as f64 * doublings / sweeps as f64;
    let [guests, queues, commands, syncs, hand_overs] =
        [guests, queues, commands, syncs, hand_overs].map(|n| n as f64 / sweeps as f64);
    [1.0, guests, queues, commands, further, syncs, hand_overs]
}

/// What vCPUs send in a shape.
pub(super) fn groups(group: u32) -> Vec<u32> {
    Vec::from_iter((group > 0).then_some(group))
}

/// The time of a sweep in each shape, in ns.
pub(super) fn sweeps_ns(shapes: &[Shape]) -> io::Result<Vec<f64>> {
    let new = |(guests, queues, group)| LockStep::new(guests, queues, &groups(group));
    let (clock, mut reference) = (clock(), new(REFERENCE)?);
    let mut refer = || {
        reference.run(TURNS);
        reference.take().sweep_ns() - clock
    };
    let (mut best, mut ratios) = (f64::INFINITY, vec![Vec::new(); shapes.len()]);
    for _ in 0..ROUNDS {
        for (shape, ratios) in shapes.iter().zip(&mut ratios) {
            let mut real = new(*shape)?;
            // Whoever is idle has become quiet.
            real.run(130);
            for _ in 0..PIECES {
                let before = refer();
                real.run(2);
                real.take();
                let start = Instant::now();
                while start.elapsed() < PIECE {
                    real.run(2);
                }
                let (sweep, after) = (real.take().sweep_ns() - clock, refer());
                best = best.min(after);
                if (before / after - 1.0).abs() < STEADY {
                    ratios.push(2.0 * sweep / (before + after));
                }
            }
        }
    }
    Ok(ratios.into_iter().map(|ratios| best * median(ratios)).collect())
}

/// The median; not a number if there is none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What reading the clock twice adds to what is between, in ns.
pub(super) fn clock() -> f64 {
    const TIMES: u32 = 10_000;
    let times = (0..20).map(|_| (0..TIMES).map(|_| Instant::now().elapsed()).sum::<Duration>());
    times.min().unwrap_or_default().as_nanos() as f64 / f64::from(TIMES)
}

/// The costs for which the sums of `steps` come nearest to the times, each error relative to its time; none is negative.
fn solve(rows: &[([f64; COSTS], f64)]) -> [f64; COSTS] {
    // The normal equations, by Gauss and Seidel: they converge, since the matrix is positive definite, and each cost can be kept from
    // being negative on the way.
    let mut matrix = [[0.0; COSTS]; COSTS];
    let mut right = [0.0; COSTS];
    for (steps, time) in rows {
        for i in 0..COSTS {
            right[i] += steps[i] / time;
            for j in 0..COSTS {
                matrix[i][j] += steps[i] * steps[j] / (time * time);
            }
        }
    }
    let mut costs = [0.0; COSTS];
    for _ in 0..100_000 {
        for i in 0..COSTS {
            let others: f64 = (0..COSTS).filter(|j| *j != i).map(|j| matrix[i][j] * costs[j]).sum();
            costs[i] = f64::max(0.0, (right[i] - others) / matrix[i][i]);
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::{COSTS, SHAPES, solve, steps};

    #[test]
    fn costs_are_found_from_times_that_they_made() {
        let costs: [f64; COSTS] = [40.0, 25.0, 15.0, 3.0, 1.0, 35.0, 55.0];
        let time = |steps: [f64; COSTS]| costs.iter().zip(steps).map(|(cost, n)| cost * n).sum();
        let rows: Vec<_> = SHAPES.iter().map(steps).map(|steps| (steps, time(steps))).collect();
        for (found, cost) in solve(&rows).into_iter().zip(costs) {
            assert!((found - cost).abs() < 0.01 * cost, "{found} for {cost}");
        }
    }
}
