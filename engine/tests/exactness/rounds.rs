//! CMD_SYNCs of many queues before a host that is late, or finishes in bursts: which tickets they wait for, and how many of the
//! host's own they cost.

use std::collections::VecDeque;

use ecmdq_engine::Worker;
use ecmdq_engine::host::model::{ModelSmmu, Pace};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::commands::Cmd;
use crate::seed;
use crate::vm::{Shown, Vm, host_features};

/// Guests whose queues each send one command and a CMD_SYNC at a time.
struct Rig {
    vms: Vec<Vm>,
    worker: Worker<ModelSmmu>,
    model: ModelSmmu,
    /// For each queue of each guest what it waits for.
    waiting: Vec<Vec<Option<Waiting>>>,
    sent: u64,
    completed: u64,
    /// The ASIDs that the host has invalidated, and how many of these by the last synchronisation.
    executed: Vec<u16>,
    covered: usize,
}

/// A CMD_SYNC: the ASID before it, how many tickets had been asked for when it came, and the one that it waits for, once it has been
/// taken and that one has been asked for.
#[derive(Clone, Copy)]
struct Waiting {
    asid: u16,
    asked: u64,
    ticket: Option<u64>,
}

/// When a CMD_SYNC must be complete, at the latest.
#[derive(Clone, Copy, Debug)]
enum Within {
    /// With its own ticket. The host has room, so that one is asked for as soon as no other is outstanding, for all that were taken.
    Its,
    /// With the ticket after so many that had been asked for when it came.
    Tickets(u64),
}

impl Rig {
    /// `guests` guests with a CMDQ and 2^`ecmdqs_log2` ECMDQs each.
    fn new(guests: u32, ecmdqs_log2: u8) -> Self {
        let shown =
            Shown { ril: true, ds: false, ats: false, asid16: true, smmuen: true, ssid_bits: 0, ecmdqs_log2 };
        let features = host_features(true, false);
        let model = ModelSmmu::new(&features);
        let mut worker = Worker::new(model.clone());
        let vms: Vec<_> = (0..guests).map(|guest| Vm::new(guest, guests, shown, features, 4)).collect();
        for vm in &vms {
            worker.attach(vm.smmu.clone()).unwrap();
            vm.start();
        }
        // Enabling many queues takes a guest's share of several sweeps.
        (0..20).for_each(|_| _ = worker.poll());
        assert!(vms.iter().all(Vm::is_started));
        model.set_pace(Pace::ByHand);
        let waiting = vms.iter().map(|vm| vm.queues.iter().map(|_| None).collect()).collect();
        Self { vms, worker, model, waiting, sent: 0, completed: 0, executed: Vec::new(), covered: 0 }
    }

    /// A command and a CMD_SYNC, if the queue waits for nothing.
    fn send(&mut self, guest: usize, queue: usize) {
        if self.waiting[guest][queue].is_some() {
            return;
        }
        let asid = self.sent as u16;
        self.sent += 1;
        self.vms[guest].queues[queue].send([Cmd::Asid(asid), Cmd::Sync].map(Cmd::encode));
        self.waiting[guest][queue] = Some(Waiting { asid, asked: self.model.syncs().0, ticket: None });
    }

    /// The host works until so many of its synchronisations are finished, or it has nothing left to do.
    fn finish(&mut self, tickets: u64) {
        let mut finished = self.model.syncs().1;
        while finished < tickets && self.step() {
            finished = self.model.syncs().1;
        }
    }

    fn step(&mut self) -> bool {
        let before = self.model.syncs().1;
        let executed = &mut self.executed;
        let worked = self.model.work(1, |command| executed.push(command.bits(0, 63, 48) as u16)) > 0;
        if self.model.syncs().1 > before {
            self.covered = self.executed.len();
        }
        worked
    }

    /// One sweep. CMD_SYNCs complete just if they may and must: their commands are covered by a finished synchronisation, and it is
    /// time.
    fn poll(&mut self, within: Within) -> Result<(), String> {
        let (mut asked, finished) = self.model.syncs();
        // At the beginning of a sweep for what was taken before, and at its end for what it took.
        asked += u64::from(asked == finished && self.ask(asked + 1));
        self.worker.poll();
        asked += u64::from(asked == finished && self.ask(asked + 1));
        let (really_asked, _) = self.model.syncs();
        if matches!(within, Within::Its) && really_asked != asked {
            return Err(format!("{really_asked} tickets asked for instead of {asked}"));
        }
        for (vm, waiting) in self.vms.iter().zip(&mut self.waiting) {
            for (queue, slot) in vm.queues.iter().zip(waiting) {
                let Some(Waiting { asid, asked, ticket }) = *slot else { continue };
                let overdue = match within {
                    Within::Its => ticket.is_some_and(|ticket| ticket <= finished),
                    Within::Tickets(n) => finished >= asked + n,
                };
                if queue.outstanding() == 0 {
                    if !self.executed[..self.covered].contains(&asid) {
                        return Err(format!("the CMD_SYNC behind ASID {asid} completed too early"));
                    }
                    self.completed += 1;
                    *slot = None;
                } else if overdue {
                    return Err(format!("the CMD_SYNC behind ASID {asid} waits for a ticket too many"));
                }
            }
        }
        Ok(())
    }

    /// This ticket is asked for, for all CMD_SYNCs that have been taken and have none; says whether there are any.
    fn ask(&mut self, number: u64) -> bool {
        let mut any = false;
        for (vm, waiting) in self.vms.iter().zip(&mut self.waiting) {
            for (queue, slot) in vm.queues.iter().zip(waiting) {
                // CONS is at the CMD_SYNC.
                if let Some(Waiting { ticket: ticket @ None, .. }) = slot
                    && queue.outstanding() == 1
                {
                    (*ticket, any) = (Some(number), true);
                }
            }
        }
        any
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize, usize),
    Poll,
    /// The host carries out so many commands and synchronisations.
    Work(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3usize, 0..5usize).prop_map(|(guest, queue)| Step::Send(guest, queue)),
        2 => Just(Step::Poll),
        2 => select(vec![1, 2, 3, 100]).prop_map(Step::Work),
    ];
    vec(step, 1..150)
}

proptest! {
    #![proptest_config(seed::config(300))]

    /// Where the host has no room, the next ticket is due before a CMD_SYNC is taken.
    #[test]
    fn a_sync_waits_for_the_ticket_that_is_outstanding_when_it_is_taken_and_for_the_next_one(
        steps in steps(),
        (room, within) in
            select(vec![(usize::MAX, Within::Its), (1, Within::Tickets(2)), (3, Within::Tickets(2))]),
    ) {
        let mut rig = Rig::new(3, 2);
        rig.model.set_room(room);
        for step in steps {
            match step {
                Step::Send(guest, queue) => rig.send(guest, queue),
                Step::Poll => rig.poll(within).map_err(TestCaseError::fail)?,
                Step::Work(n) => {
                    let _ = (0..n).take_while(|_| rig.step()).count();
                }
            }
        }
        for _ in 0..200 {
            rig.poll(within).map_err(TestCaseError::fail)?;
            rig.finish(u64::MAX);
        }
        prop_assert_eq!(rig.completed, rig.sent);
    }
}

/// When a host finishes a ticket, and when queues first send.
#[derive(Clone, Copy, Debug)]
enum Schedule {
    /// All queues send at once; a ticket is finished 4 sweeps after it was asked for.
    InStep,
    /// As before, but each sweep an eighth of the queues begins.
    Staggered,
    /// The same, and every 16 sweeps the host finishes all that it was asked.
    Bursts,
}

/// How many CMD_SYNCs of the guests one of the host's own completes.
fn factor(guests: u32, ecmdqs_log2: u8, schedule: Schedule) -> f64 {
    const SWEEPS: usize = 160;
    let mut rig = Rig::new(guests, ecmdqs_log2);
    let mut asked = VecDeque::from([0; 4]);
    for sweep in 0..SWEEPS {
        let begun = |number: usize| matches!(schedule, Schedule::InStep) || number % 8 <= sweep;
        let ecmdqs = 1 << ecmdqs_log2;
        for number in (0..guests as usize * ecmdqs).filter(|number| begun(*number)) {
            rig.send(number / ecmdqs, 1 + number % ecmdqs);
        }
        rig.poll(Within::Its).unwrap();
        asked.push_back(rig.model.syncs().0);
        let finished = asked.pop_front().unwrap_or(0);
        match schedule {
            Schedule::Bursts if sweep % 16 == 0 => rig.finish(u64::MAX),
            Schedule::Bursts => {}
            _ => rig.finish(finished),
        }
    }
    rig.completed as f64 / rig.model.syncs().1 as f64
}

#[test]
fn one_host_sync_serves_many_queues() {
    println!(
        "guest CMD_SYNCs for each of the host's\nqueues {:>10} {:>10} {:>10}",
        "in step", "staggered", "bursts"
    );
    for (guests, ecmdqs_log2) in [(1, 0), (4, 0), (4, 2), (4, 4), (4, 6)] {
        let queues = guests << ecmdqs_log2;
        let schedules = [Schedule::InStep, Schedule::Staggered, Schedule::Bursts];
        let [in_step, staggered, bursts] = schedules.map(|how| factor(guests, ecmdqs_log2, how));
        println!("{queues:>6} {in_step:>10.1} {staggered:>10.1} {bursts:>10.1}");
        let queues = f64::from(queues);
        assert_eq!(in_step, queues, "all of a sweep share a ticket");
        // Some share the ticket that is outstanding, the others gather for the next: half of them on average, when all have begun.
        assert!(staggered >= (0.4 * queues).max(1.0), "however they spread");
        assert!(bursts >= (0.4 * queues).max(1.0), "and however long a ticket takes");
    }
}
