//! Workers, vCPUs and a host queue on a virtual clock.
//!
//! Each vCPU has a queue to itself: it thinks, rings for a group of commands and a CMD_SYNC, waits until that has completed, and
//! thinks again. Time is what the worker's steps cost: a doorbell is seen by the first look that comes after it, and a
//! completion by the vCPU when the worker has come to it.

use hdrhistogram::Histogram;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::costs::Costs;
use super::worker::Worker;
use crate::vcpu::histogram;

/// What is simulated: one host queue, the workers in front of it, and their guests.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Workers, which share the guests evenly.
    pub workers: usize,
    /// Guests.
    pub guests: usize,
    /// Queues of each, with a vCPU for each.
    pub queues: usize,
    /// Queues of each that are never used: the CMDQ beside ECMDQs.
    pub unused: usize,
    /// Commands before a CMD_SYNC: a vCPU takes the next number for each of its groups, and starts at its own place. Without
    /// any nobody rings.
    pub groups: Vec<u32>,
    /// How long a vCPU thinks in the mean, in ns: exponential, or not at all for 0.
    pub think: f64,
    /// The host queue.
    pub host: Host,
    /// When a worker asks for a ticket, a CMD_SYNC of the host.
    pub tickets: Tickets,
    /// What the workers' steps cost.
    pub costs: Costs,
    /// Of what is random.
    pub seed: u64,
}

/// When a worker asks for a ticket, if CMD_SYNCs wait for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tickets {
    /// When none is outstanding. What comes while one is, is taken, and shares the next.
    #[default]
    One,
    /// When fewer than so many are outstanding. While as many are, nothing is taken.
    Fewer(usize),
}

/// A host queue: commands one after another, nothing behind a CMD_SYNC begins before that has completed (facts sheet,
/// section 3.4). There is always room in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Host {
    /// What a command takes, in ns.
    pub command: f64,
    /// What a CMD_SYNC takes, in ns.
    pub sync: f64,
}

/// Steps of all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sweeps.
    pub sweeps: u64,
    /// Visits to guests.
    pub guests: u64,
    /// Looks at queues.
    pub queues: u64,
    /// Commands taken, without CMD_SYNCs.
    pub commands: u64,
    /// Cache lines of the rings that these and their CMD_SYNCs are in.
    pub lines: u64,
    /// CMD_SYNCs completed.
    pub syncs: u64,
    /// Hand-overs to the host, with a CMD_SYNC or without.
    pub hand_overs: u64,
    /// CMD_SYNCs of the host.
    pub host_syncs: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How long it was, in ns.
    pub time: f64,
    /// What was done.
    pub counts: Counts,
    /// From the doorbell until the vCPU sees its CMD_SYNC completed, in ns.
    pub round_trip: Histogram<u64>,
    /// The part of the workers' time in sweeps that found something to do.
    pub busy: f64,
    /// The part of the time in which the host queue had something.
    pub host_busy: f64,
}

impl Outcome {
    /// Something counted, a second.
    pub fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.time * 1e9
    }
}

/// What the workers share.
pub(super) struct World {
    pub costs: Costs,
    host: Host,
    /// When the host queue has done all that it was given.
    free: f64,
    host_busy: f64,
    pub counts: Counts,
    pub tickets: Tickets,
    pub round_trip: Histogram<u64>,
    /// Time in sweeps that found something.
    pub busy: f64,
    pub groups: Vec<u32>,
    think: f64,
    random: Xoshiro256PlusPlus,
}

impl World {
    /// Hands commands to the host at a time, and a CMD_SYNC behind them if wanted: when they are done.
    pub fn hand_over(&mut self, at: f64, commands: u64, sync: bool) -> f64 {
        let takes = commands as f64 * self.host.command + f64::from(u8::from(sync)) * self.host.sync;
        self.counts.hand_overs += 1;
        self.counts.host_syncs += u64::from(sync);
        self.host_busy += takes;
        self.free = self.free.max(at) + takes;
        self.free
    }

    /// How long a vCPU thinks.
    pub fn think(&mut self) -> f64 {
        // At least 0 and below 1.
        let uniform: f64 = self.random.random();
        -self.think * (1.0 - uniform).ln()
    }
}

impl Setting {
    /// Runs it for a while that does not count, and for `time` ns that do.
    pub fn run(&self, warm_up: f64, time: f64) -> Outcome {
        let Self { costs, host, think, .. } = *self;
        let mut world = World {
            costs,
            host,
            tickets: self.tickets,
            free: 0.0,
            host_busy: 0.0,
            counts: Counts::default(),
            round_trip: histogram(),
            busy: 0.0,
            groups: self.groups.clone(),
            think,
            random: Xoshiro256PlusPlus::seed_from_u64(self.seed),
        };
        let share = |n| (self.guests + self.workers - 1 - n) / self.workers;
        let mut workers: Vec<_> =
            (0..self.workers).map(|n| Worker::new(share(n), self.queues, self.unused, &mut world)).collect();
        advance(&mut workers, &mut world, warm_up);
        let start = now(&workers);
        (world.counts, world.busy, world.host_busy) = (Counts::default(), 0.0, 0.0);
        world.round_trip.reset();
        advance(&mut workers, &mut world, start + time);
        let time = now(&workers) - start;
        Outcome {
            time,
            counts: world.counts,
            busy: world.busy / time / self.workers as f64,
            host_busy: world.host_busy / time,
            round_trip: world.round_trip,
        }
    }
}

/// The mean of the workers' clocks.
fn now(workers: &[Worker]) -> f64 {
    workers.iter().map(|worker| worker.clock).sum::<f64>() / workers.len() as f64
}

/// Whoever is behind goes on, so that what reaches the host is in the order of time.
fn advance(workers: &mut [Worker], world: &mut World, until: f64) {
    while let Some(worker) =
        workers.iter_mut().filter(|w| w.clock < until).min_by(|a, b| a.clock.total_cmp(&b.clock))
    {
        worker.step(world);
    }
}

#[cfg(test)]
mod tests {
    use super::{Costs, Host, Outcome, Setting, Tickets};

    const COSTS: Costs = Costs {
        sweep: 100.0,
        guest: 10.0,
        queue: 5.0,
        command: 2.0,
        doubling: 0.0,
        sync: 50.0,
        hand_over: 30.0,
        doorbell: 0.0,
        line: 3.0,
    };

    /// vCPUs that do not think, groups of five commands and a CMD_SYNC, which are in two lines, a host that takes no time.
    fn setting(workers: usize, guests: usize) -> Setting {
        let (groups, host) = (vec![5], Host { command: 0.0, sync: 0.0 });
        Setting {
            workers,
            guests,
            queues: 1,
            unused: 0,
            groups,
            think: 0.0,
            host,
            tickets: Tickets::One,
            costs: COSTS,
            seed: 1,
        }
    }

    /// The time for each CMD_SYNC.
    fn period(outcome: &Outcome) -> f64 {
        outcome.time / outcome.counts.syncs as f64
    }

    fn assert_near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 0.001, "{value}, not {expected}");
    }

    #[test]
    fn one_vcpu_waits_for_every_step_once() {
        let host = Host { command: 4.0, sync: 40.0 };
        let costs = Costs { doorbell: 7.0, ..COSTS };
        let outcome = Setting { host, costs, ..setting(1, 1) }.run(1e4, 1e6);
        // Seen and taken: 115 from the beginning of a sweep, of which 7 passed before the doorbell; 7 + 6 for the lines, 10 for
        // the commands, 30 to hand over. The host takes 60, during the next sweep of 115. One more, 50, and 7 until it is seen.
        assert_eq!(outcome.round_trip.min(), 115 - 7 + 13 + 10 + 30 + 115 + 115 + 50 + 7);
        assert_eq!(outcome.round_trip.max(), 448);
        assert_near(period(&outcome), 448.0);
    }

    #[test]
    fn a_worker_that_always_has_something_does_as_much_as_its_costs_allow() {
        // Of two sweeps one takes a group of each, 100 + 8 x (15 + 6 + 10) + 30, and one passes the CMD_SYNCs, 100 + 8 x (15 + 50).
        let one = setting(1, 8).run(1e4, 1e7);
        assert_near(period(&one), (378.0 + 620.0) / 8.0);
        assert_eq!(one.counts.syncs / one.counts.host_syncs, 8);
        assert_near(one.busy, 1.0);
        // Two workers do twice as much.
        let two = setting(2, 16).run(1e4, 1e7);
        assert_near(period(&two), period(&one) / 2.0);
    }

    #[test]
    fn more_guests_than_lines_that_are_near_cost_more() {
        // Three doublings: 3 more for each visit, and for each line of the groups.
        let costs = Costs { doubling: 1.0, ..COSTS };
        let outcome = Setting { costs, ..setting(1, 8) }.run(1e4, 1e7);
        assert_near(period(&outcome), (378.0 + 8.0 * 9.0 + 620.0 + 8.0 * 3.0) / 8.0);
    }

    #[test]
    fn a_host_completes_one_cmd_sync_at_a_time() {
        let host = Host { command: 10.0, sync: 10_000.0 };
        let tickets = Tickets::Fewer(64);
        let outcome = Setting { host, tickets, think: 20_000.0, ..setting(1, 256) }.run(1e6, 1e7);
        let host_time = 10.0 * outcome.counts.commands as f64 + 10_000.0 * outcome.counts.host_syncs as f64;
        assert!((host_time / outcome.time - 1.0).abs() < 0.02, "{:?}", outcome.counts);
        assert!(outcome.host_busy > 0.99);
    }

    #[test]
    fn what_comes_while_the_host_is_at_work_shares_its_next_cmd_sync() {
        let host = Host { command: 0.0, sync: 10_000.0 };
        let with = |tickets| Setting { host, tickets, think: 1000.0, ..setting(1, 64) }.run(1e6, 1e7);
        // Half of them wait for the CMD_SYNC that the host is at, half for the next; a few come too late for it. From the one to the
        // next the worker passes 32 CMD_SYNCs.
        let one = with(Tickets::One);
        assert!((28..=32).contains(&(one.counts.syncs / one.counts.host_syncs)), "{:?}", one.counts);
        assert!(one.round_trip.value_at_quantile(0.9) < 26_000, "{}", one.round_trip.value_at_quantile(0.9));
        // One more of them to wait for, and one more for those that are not taken meanwhile.
        let two = with(Tickets::Fewer(2));
        assert!(two.round_trip.value_at_quantile(0.5) > 36_000, "{}", two.round_trip.value_at_quantile(0.5));
        // They queue up.
        let all = with(Tickets::Fewer(64));
        assert!(all.round_trip.value_at_quantile(0.5) > 300_000, "{}", all.round_trip.value_at_quantile(0.5));
    }

    #[test]
    fn who_thinks_and_waits_does_nothing_else() {
        // The response time law: vCPUs = rate x (thinking + waiting).
        let outcome = Setting { think: 20_000.0, queues: 4, ..setting(2, 32) }.run(1e6, 1e7);
        let each = period(&outcome) * 128.0;
        assert!((each / (20_000.0 + outcome.round_trip.mean()) - 1.0).abs() < 0.02, "{each}");
    }

    #[test]
    fn the_seed_decides() {
        let with = |seed| Setting { think: 5_000.0, seed, ..setting(2, 8) }.run(1e5, 1e6);
        let of = |outcome: Outcome| (outcome.counts, outcome.round_trip.mean());
        assert_eq!(of(with(1)), of(with(1)));
        assert_ne!(of(with(1)), of(with(2)));
    }
}
