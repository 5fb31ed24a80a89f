//! The simulation beside the engine, in lock step.

use std::io;

use super::costs::Costs;
use super::lock_step::LockStep;
use super::measure::{SHAPES, Shape, groups, lock_step, sweeps_ns};

/// A shape of guests in lock step, in the engine and in the simulation.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// Guests.
    pub guests: usize,
    /// Queues of each.
    pub queues: usize,
    /// Commands before each CMD_SYNC.
    pub group: u32,
    /// The engine.
    pub engine: Figures,
    /// The simulation.
    pub simulated: Figures,
}

/// What came of one of them.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Commands that a sweep takes, without CMD_SYNCs.
    pub commands_per_sweep: f64,
    /// CMD_SYNCs of the host for each of the guests.
    pub host_syncs: f64,
    /// Commands in a second of the worker's time, CMD_SYNCs included.
    pub per_second: f64,
}

/// Guests, and queues of each.
const SIZES: [(usize, usize); 7] = [(1, 1), (4, 1), (16, 1), (64, 1), (256, 1), (1, 64), (1, 256)];
/// TLBIs before a CMD_SYNC.
const GROUPS: [u32; 2] = [1, 16];
const TURNS: u64 = 1000;

/// Compares them at 1 to 256 guests, and 64 and 256 queues of one, with groups of 1 and 16 commands; and the costs that the
/// simulation has, measured beside the engine's times. Takes a few seconds.
///
/// # Errors
///
/// What the system said when it refused the memory.
pub fn check() -> io::Result<(Costs, Vec<Checked>)> {
    let checked = GROUPS.iter().flat_map(|group| SIZES.map(|(guests, queues)| (guests, queues, *group)));
    let shapes: Vec<Shape> = SHAPES.into_iter().chain(checked).collect();
    let times = sweeps_ns(&shapes)?;
    let costs = Costs::fit(&times[..SHAPES.len()]);
    let row = |((guests, queues, group), sweep_ns): (Shape, f64)| {
        let simulated = simulated(guests, queues, &groups(group), costs);
        let engine = engine(guests, queues, &groups(group), sweep_ns)?;
        Ok(Checked { guests, queues, group, engine, simulated })
    };
    let rows = shapes.into_iter().zip(times).skip(SHAPES.len()).map(row).collect::<io::Result<_>>()?;
    Ok((costs, rows))
}

/// The engine's counts in 1,000 sweeps, which have been found to take so long.
fn engine(guests: usize, queues: usize, groups: &[u32], sweep_ns: f64) -> io::Result<Figures> {
    let mut real = LockStep::new(guests, queues, groups)?;
    real.run(TURNS);
    real.take();
    real.run(TURNS);
    let tally = real.take();
    let sweeps = tally.sweeps as f64;
    Ok(Figures {
        commands_per_sweep: tally.commands as f64 / sweeps,
        host_syncs: tally.host_syncs as f64 / tally.syncs as f64,
        per_second: (tally.commands + tally.syncs) as f64 / (sweeps * sweep_ns) * 1e9,
    })
}

fn simulated(guests: usize, queues: usize, groups: &[u32], costs: Costs) -> Figures {
    let outcome = lock_step(guests, queues, groups, costs).run(1e6, 1e7);
    let counts = outcome.counts;
    Figures {
        commands_per_sweep: counts.commands as f64 / counts.sweeps as f64,
        host_syncs: counts.host_syncs as f64 / counts.syncs as f64,
        per_second: outcome.per_second(counts.commands + counts.syncs),
    }
}

#[cfg(test)]
mod tests {
    use super::{engine, simulated};
    use crate::scale::Costs;

    /// What a sweep takes and how CMD_SYNCs share those of the host depends on the guests alone.
    #[test]
    fn the_engine_and_the_simulation_count_alike() {
        // One group of each vCPU every second sweep; then groups that take one sweep and several; last, more than a guest's share
        // of a sweep. With each, commands a sweep and CMD_SYNCs of the host for each of the guests.
        let cases: [(usize, usize, &[u32], f64, f64); 6] = [
            (1, 1, &[1], 0.5, 1.0),
            (64, 1, &[16], 512.0, 1.0 / 64.0),
            (1, 64, &[1], 32.0, 1.0 / 64.0),
            (3, 4, &[1, 16, 600], 1028.5, 0.2),
            (16, 1, &[1, 16, 253, 600], 1546.0, 0.1094),
            (1, 32, &[16, 100], 503.3, 0.1152),
        ];
        for (guests, queues, groups, commands, host_syncs) in cases {
            let engine = engine(guests, queues, groups, 1.0).unwrap();
            let simulated = simulated(guests, queues, groups, Costs::default());
            for figures in [engine, simulated] {
                // Where groups are longer than a share, the order of a guest's queues is not quite that of the simulation.
                let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.03;
                assert!(
                    near(figures.commands_per_sweep, commands),
                    "{guests} {queues} {groups:?}: {figures:?}"
                );
                assert!(near(figures.host_syncs, host_syncs), "{guests} {queues} {groups:?}: {figures:?}");
            }
        }
    }
}
