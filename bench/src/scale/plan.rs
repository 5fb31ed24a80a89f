//! How many workers a host needs.

use super::costs::Costs;
use super::simulation::{Host, Outcome, Setting, Tickets};

/// What a host is to carry.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Virtual machines, with a virtual SMMU each.
    pub vms: usize,
    /// Their vCPUs, which have a queue each.
    pub vcpus: usize,
    /// Invalidations a second of a virtual machine: groups of commands with a CMD_SYNC.
    pub rate: f64,
    /// Commands of one, before its CMD_SYNC.
    pub commands: u32,
    /// The most workers that there may be.
    pub cores: usize,
    /// Host queues, among which the workers are divided.
    pub host_queues: usize,
    /// Each of them.
    pub host: Host,
    /// When a worker asks for a ticket.
    pub tickets: Tickets,
    /// What the p99 of the round trip must not exceed, in ns.
    pub bound: f64,
    /// What is random.
    pub seed: u64,
}

/// What so many workers make of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Workers.
    pub workers: usize,
    /// Host queues that have any.
    pub host_queues: usize,
    /// Guests of a worker.
    pub guests: usize,
    /// One of the host queues with its workers and guests.
    pub outcome: Outcome,
    /// CMD_SYNCs a second that are wanted of those.
    pub wanted: f64,
}

impl Plan {
    /// CMD_SYNCs a second, of those that are wanted.
    pub fn achieved(&self) -> f64 {
        self.outcome.per_second(self.outcome.counts.syncs) / self.wanted
    }

    /// A worker's sweep, in ns.
    pub fn sweep(&self) -> f64 {
        let workers = self.workers.div_ceil(self.host_queues);
        self.outcome.time * workers as f64 / self.outcome.counts.sweeps as f64
    }
}

/// The part of what is wanted that must be achieved.
const ENOUGH: f64 = 0.97;
/// CMD_SYNCs that are simulated, and how long at least and at most, in ns.
const SYNCS: f64 = 30_000.0;
const LEAST: f64 = 2e6;
const MOST: f64 = 1e8;

impl Demand {
    /// The fewest workers that keep the bound, or `None` if no number of them does.
    pub fn plan(&self, costs: Costs) -> Option<Plan> {
        // Doubled until it is enough, then halved in between.
        let (mut few, mut enough) = (0, None::<Plan>);
        while few < self.cores && enough.is_none() {
            let plan = self.with(self.cores.min((2 * few).max(1)), costs);
            match self.is_kept(&plan) {
                true => enough = Some(plan),
                false => few = plan.workers,
            }
        }
        let mut enough = enough?;
        while few + 1 < enough.workers {
            let plan = self.with(few.midpoint(enough.workers), costs);
            match self.is_kept(&plan) {
                true => enough = plan,
                false => few = plan.workers,
            }
        }
        Some(enough)
    }

    fn is_kept(&self, plan: &Plan) -> bool {
        let p99 = plan.outcome.round_trip.value_at_quantile(0.99) as f64;
        p99 <= self.bound && plan.achieved() >= ENOUGH
    }

    /// What so many workers make of it. Of host queues with their workers one is simulated, the fullest: they share nothing.
    pub fn with(&self, workers: usize, costs: Costs) -> Plan {
        let host_queues = self.host_queues.min(workers);
        let (workers_each, guests) = (workers.div_ceil(host_queues), self.vms.div_ceil(workers));
        let wanted = (workers_each * guests) as f64 * self.rate;
        let period = self.vcpus as f64 / self.rate * 1e9;
        let mut setting = Setting {
            workers: workers_each,
            guests: workers_each * guests,
            queues: self.vcpus,
            unused: 1,
            groups: vec![self.commands],
            think: period,
            host: self.host,
            tickets: self.tickets,
            costs,
            seed: self.seed,
        };
        let time = (SYNCS / wanted * 1e9).clamp(LEAST, MOST);
        let mut outcome = setting.run(time / 4.0, time);
        // Who waits does not think: as much less as they wait, so that the rate comes out, if it can.
        if outcome.round_trip.mean() < period {
            setting.think = period - outcome.round_trip.mean();
            outcome = setting.run(time / 4.0, time);
        }
        Plan { workers, host_queues, guests, outcome, wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::{Costs, Demand, Host, Tickets};

    /// A CMD_SYNC each 100 ns, and 20 ns a guest and sweep: a worker does some six million a second.
    const COSTS: Costs = Costs {
        sweep: 1.0,
        guest: 20.0,
        queue: 0.0,
        command: 0.0,
        doubling: 0.0,
        sync: 100.0,
        hand_over: 0.0,
        doorbell: 0.0,
        line: 0.0,
    };

    fn demand(per_second: f64) -> Demand {
        let host = Host { command: 0.0, sync: 0.0 };
        let (vms, vcpus, rate) = (60, 2, per_second / 60.0);
        Demand {
            vms,
            vcpus,
            rate,
            commands: 1,
            cores: 6,
            host_queues: 6,
            host,
            tickets: Tickets::One,
            bound: 5e4,
            seed: 1,
        }
    }

    #[test]
    fn there_are_as_many_workers_as_it_takes() {
        for (per_second, workers) in [(1e6, 1), (4e6, 1), (9e6, 2), (27e6, 5)] {
            let plan = demand(per_second).plan(COSTS);
            assert_eq!(plan.map(|plan| plan.workers), Some(workers), "{per_second}");
        }
        assert!(demand(70e6).plan(COSTS).is_none(), "so much is more than six can do");
    }

    #[test]
    fn a_host_queue_bounds_what_workers_can_do() {
        // A command each 200 ns: five million a second on each of two queues.
        let slow = Demand { host: Host { command: 200.0, sync: 0.0 }, host_queues: 2, ..demand(12e6) };
        assert!(slow.plan(COSTS).is_none());
        assert!(Demand { host_queues: 6, ..slow }.plan(COSTS).is_some());
    }
}
