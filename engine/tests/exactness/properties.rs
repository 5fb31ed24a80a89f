//! Random virtual machines, commands and schedules, driven by hand.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use ecmdq_engine::Worker;
use ecmdq_engine::host::Cause;
use ecmdq_engine::host::model::{Entry, ModelSmmu, Pace};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestError, TestRunner};

use crate::commands::{Cmd, command};
use crate::entries::{Cached, universe};
use crate::named::Host;
use crate::reference::{Completed, Reference};
use crate::seed;
use crate::vm::{Shown, Vm, host_features, shown, vmid};

/// What a system is made of.
#[derive(Clone, Debug)]
struct Setup {
    guests: Vec<Shown>,
    host: Host,
    /// Workers that share the guests; each has a queue of the host's.
    workers: usize,
    pace: Pace,
    room: usize,
    log2: u32,
}

#[derive(Clone, Debug)]
enum Step {
    /// To a queue of a guest; what there is no room for is not sent.
    Send(usize, usize, Vec<Cmd>),
    /// A part of what the guest may have cached, by a random number.
    Fill(usize, u64),
    Poll(usize),
    /// The host carries out so many commands of a queue.
    Work(usize, usize),
    /// A VMM does something that it was asked for.
    Serve(usize),
    /// The next CMD_SYNC of a host's queue fails.
    Fail(usize, Cause),
}

fn setup() -> impl Strategy<Value = Setup> {
    let host = (any::<bool>(), any::<bool>()).prop_map(|(ril, ats)| Host { ril, ats });
    let pace = select(vec![Pace::ByHand, Pace::AtOnce, Pace::PerLook(3), Pace::PerLook(50)]);
    let room = select(vec![usize::MAX, 1, 5, 80]);
    (vec(shown(), 2..=6), host, 1..=2usize, pace, room, select(vec![4, 6, 8, 9])).prop_map(
        |(guests, host, workers, pace, room, log2)| Setup { guests, host, workers, pace, room, log2 },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6usize, 0..5usize, vec(command(), 1..50)).prop_map(|(vm, queue, sent)| Step::Send(vm, queue, sent)),
        3 => (0..6usize, any::<u64>()).prop_map(|(vm, which)| Step::Fill(vm, which)),
        5 => (0..2usize).prop_map(Step::Poll),
        3 => (0..2usize, select(vec![1, 7, 60, usize::MAX])).prop_map(|(queue, most)| Step::Work(queue, most)),
        1 => (0..6usize).prop_map(Step::Serve),
        1 => (0..2usize, select(vec![Cause::Transient, Cause::AtcTimeout])).prop_map(|(queue, cause)| Step::Fail(queue, cause)),
    ]
}

struct System {
    vms: Vec<Vm>,
    references: Vec<Reference>,
    universe: Vec<Cached>,
    on_host: Vec<Vec<Entry>>,
    whose: HashMap<Entry, (usize, usize)>,
    workers: Vec<Worker<ModelSmmu>>,
    model: Vec<ModelSmmu>,
    sent: u64,
}

impl System {
    fn new(setup: &Setup) -> Self {
        let Setup { ref guests, host, workers, pace, room, log2 } = *setup;
        let features = host_features(host.ril, host.ats);
        let n = guests.len() as u32;
        let vms: Vec<_> =
            (0..).zip(guests).map(|(number, shown)| Vm::new(number, n, *shown, features, log2)).collect();
        let first = ModelSmmu::new(&features);
        first.caches().record();
        let another = |i| if i == 0 { first.clone() } else { first.another_queue() };
        let model: Vec<_> = (0..workers).map(another).collect();
        let mut workers: Vec<_> = model.iter().map(|queue| Worker::new(queue.clone())).collect();
        let universe = universe();
        let references =
            vms.iter().map(|vm| Reference::new(&universe, vm.queues.len(), vm.shown, host)).collect();
        let of_guest = |guest| {
            let on_host = |entry: &Cached| entry.on_host(guest, n, vmid(guest, n));
            universe.iter().map(on_host).collect::<Vec<_>>()
        };
        let on_host: Vec<_> = (0..n).map(of_guest).collect();
        let mut whose = HashMap::new();
        for (guest, entries) in on_host.iter().enumerate() {
            whose.extend(entries.iter().enumerate().map(|(entry, on_host)| (*on_host, (guest, entry))));
        }
        assert_eq!(whose.len(), on_host.len() * universe.len(), "no two are the same on the host");
        for (guest, vm) in vms.iter().enumerate() {
            vm.start();
            let count = workers.len();
            workers[guest % count].attach(vm.smmu.clone()).unwrap();
        }
        workers.iter_mut().for_each(|worker| assert!(worker.poll()));
        assert!(vms.iter().all(Vm::is_started));
        for queue in &model {
            queue.set_pace(pace);
            queue.set_room(room);
        }
        Self { vms, references, universe, on_host, whose, workers, model, sent: 0 }
    }

    fn take(&mut self, step: &Step) -> Result<bool, String> {
        let guests = self.vms.len();
        match step {
            Step::Send(guest, queue, commands) => self.send(guest % guests, *queue, commands),
            Step::Fill(guest, which) => self.fill(guest % guests, *which),
            Step::Poll(worker) => {
                let worker = worker % self.workers.len();
                return Ok(self.workers[worker].poll() | self.check()?);
            }
            Step::Work(queue, most) => {
                let worked = self.model[queue % self.model.len()].work(*most, |_| ()) > 0;
                return Ok(self.check()? | worked);
            }
            Step::Serve(guest) => {
                let served = self.vms[guest % guests].serve(&mut self.model[0].caches());
                return Ok(self.check()? | served);
            }
            Step::Fail(queue, cause) => self.model[queue % self.model.len()].fail_next(*cause),
        }
        Ok(true)
    }

    fn send(&mut self, guest: usize, queue: usize, commands: &[Cmd]) {
        let (vm, reference) = (&mut self.vms[guest], &mut self.references[guest]);
        let queue = queue % vm.queues.len();
        let room = vm.queues[queue].room(reference.outstanding(queue));
        let commands: Vec<_> = commands.iter().take(room).map(|command| command.fit(&vm.shown)).collect();
        self.sent += commands.len() as u64;
        reference.sent(queue, &commands);
        vm.queues[queue].send(commands.iter().map(|command| command.encode()));
    }

    fn fill(&mut self, guest: usize, which: u64) {
        let mut caches = self.model[0].caches();
        for entry in 0..self.universe.len() {
            // Bits of the random number, stirred: all of it with the largest, nothing with 0.
            let stirred = which.rotate_left(entry as u32 * 7) ^ which >> (entry % 32);
            if stirred & 1 != 0 {
                caches.insert(self.on_host[guest][entry]);
                self.references[guest].filled(entry);
            }
        }
    }

    /// Looks at everything that a guest could see, and at the caches; says whether a queue went on.
    fn check(&mut self) -> Result<bool, String> {
        let mut completed: Vec<(usize, Completed)> = Vec::new();
        let mut went_on = false;
        for (guest, (vm, reference)) in self.vms.iter_mut().zip(&mut self.references).enumerate() {
            for (number, queue) in vm.queues.iter_mut().enumerate() {
                let outstanding = queue.outstanding();
                went_on |= outstanding != reference.outstanding(number);
                let news = reference.consumed(number, outstanding);
                let news = news.map_err(|why| format!("guest {guest}: {why}"))?;
                completed.extend(news.into_iter().map(|news| (guest, news)));
                if let Some(error) = queue.error() {
                    let mended = reference.stopped(number, error);
                    let mended = mended.map_err(|why| format!("guest {guest}, queue {number}: {why}"))?;
                    queue.mend(mended.map(Cmd::encode));
                    went_on = true;
                }
            }
        }
        let removed = self.model[0].caches().take_removed();
        for entry in removed {
            let (guest, entry) = self.whose[&entry];
            self.references[guest].disappeared(entry).map_err(|why| format!("guest {guest}: {why}"))?;
        }
        for (guest, completed) in completed {
            self.references[guest].completed(completed).map_err(|why| format!("guest {guest}: {why}"))?;
        }
        Ok(went_on)
    }

    /// Everybody works until there is nothing left to do.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..100_000 {
            let mut busy = false;
            for worker in 0..self.workers.len() {
                busy |= self.take(&Step::Poll(worker))?;
                busy |= self.take(&Step::Work(worker, usize::MAX))?;
            }
            for guest in 0..self.vms.len() {
                busy |= self.take(&Step::Serve(guest))?;
            }
            if !busy {
                return Ok(());
            }
        }
        Err("the system does not come to rest".into())
    }

    /// Lets each queue end with a CMD_SYNC; then what is there must be there, and nothing else.
    fn finish(&mut self) -> Result<(), String> {
        self.settle()?;
        for guest in 0..self.vms.len() {
            (0..self.vms[guest].queues.len()).for_each(|queue| self.send(guest, queue, &[Cmd::Sync]));
        }
        self.settle()?;
        let caches = self.model[0].caches();
        let mut there = 0;
        for (guest, (reference, on_host)) in self.references.iter().zip(&self.on_host).enumerate() {
            let waiting = (0..self.vms[guest].queues.len()).map(|queue| reference.outstanding(queue));
            if waiting.sum::<usize>() > 0 {
                return Err(format!("guest {guest}: CMD_SYNCs never completed"));
            }
            for (entry, on_host) in on_host.iter().enumerate() {
                there += usize::from(reference.is_present(entry));
                if caches.contains(*on_host) != reference.is_present(entry) {
                    return Err(format!("guest {guest}: {:?} in the caches", self.universe[entry]));
                }
            }
            let widened = self.vms[guest].smmu.stats().widened;
            // What stands behind a CMD_SYNC that fails is sent, and counted, again.
            if widened < reference.widened {
                return Err(format!(
                    "guest {guest}: {widened} widened, expected {} at least",
                    reference.widened
                ));
            }
        }
        if caches.len() != there {
            return Err(format!("{} entries, expected {there}", caches.len()));
        }
        Ok(())
    }
}

/// What all cases together came to: commands sent, entries removed, and of what the engine counted what is not usual.
static TOTAL: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];
const TOTALS: [&str; 7] = ["sent", "removed", "widened", "dropped", "rejected", "requests", "host failures"];

fn run(setup: &Setup, steps: &[Step]) -> Result<(), String> {
    let mut system = System::new(setup);
    for (number, step) in steps.iter().enumerate() {
        system.take(step).map_err(|why| format!("step {number}: {why}"))?;
    }
    system.finish()?;
    let removed = system.model[0].caches().removed();
    let stats = system.vms.iter().map(|vm| vm.smmu.stats());
    let counted = stats.map(|s| [0, 0, s.widened, s.dropped, s.rejected, s.requests, s.host_failures]);
    for counts in counted.chain([[system.sent, removed, 0, 0, 0, 0, 0]]) {
        TOTAL.iter().zip(counts).for_each(|(total, n)| {
            total.fetch_add(n, Relaxed);
        });
    }
    Ok(())
}

#[test]
fn guests_lose_exactly_what_they_name_of_their_own() {
    let mut runner = TestRunner::new(seed::config(1100));
    let cases = (setup(), vec(step(), 1..200));
    let failed = runner.run(&cases, |(setup, steps)| run(&setup, &steps).map_err(TestCaseError::fail));
    match failed {
        Ok(()) => {}
        Err(TestError::Fail(_, (setup, steps))) => panic!("{}", smallest(&setup, steps)),
        Err(abort) => panic!("{abort}"),
    }
    let totals = TOTAL.each_ref().map(|total| total.load(Relaxed));
    TOTALS.iter().zip(totals).for_each(|(what, n)| println!("{n:>9} {what}"));
    let enough = totals.iter().all(|n| *n > 100);
    assert!(enough || totals[0] < 100_000, "so many commands come to all that may happen");
}

/// Leaves out steps and commands as long as it fails still, and tells what is left, a step a line.
fn smallest(setup: &Setup, mut steps: Vec<Step>) -> String {
    let fails = |steps: &[Step]| run(setup, steps).err();
    let mut before = usize::MAX;
    while steps.len() < before {
        before = steps.len();
        for at in (0..steps.len()).rev() {
            let mut fewer = steps.clone();
            fewer.remove(at);
            if fails(&fewer).is_some() {
                steps = fewer;
                continue;
            }
            for command in (0..steps[at].commands()).rev() {
                let mut fewer = steps.clone();
                if let Step::Send(_, _, commands) = &mut fewer[at] {
                    commands.remove(command);
                }
                if fails(&fewer).is_some() {
                    steps = fewer;
                }
            }
        }
    }
    let why = fails(&steps).unwrap_or_default();
    let steps = steps.iter().map(|step| format!("  {step:x?}\n")).collect::<String>();
    format!("{why}\n{setup:?}\n{steps}")
}

impl Step {
    fn commands(&self) -> usize {
        if let Self::Send(_, _, commands) = self { commands.len() } else { 0 }
    }
}
