//! Two workers and the guests on threads of their own.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use ecmdq_engine::Worker;
use ecmdq_engine::host::model::{Entry, ModelSmmu, Pace};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::commands::{Cmd, command};
use crate::entries::{Cached, universe};
use crate::named::Host;
use crate::seed;
use crate::vm::{Shown, Vm, host_features, vmid};
use crate::wait::wait_for;

const GUESTS: u32 = 4;
const ROUNDS: usize = 60;
const HOST: Host = Host { ril: false, ats: true };
const SHOWN: Shown =
    Shown { ril: true, ds: true, ats: true, asid16: true, smmuen: true, ssid_bits: 7, ecmdqs_log2: 1 };

/// Tells the workers to end, also when a guest panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What a guest's queues send in one round. Nothing that the VMM is asked for, or that stops a queue.
type Round = Vec<Vec<Cmd>>;

fn rounds(runner: &mut TestRunner) -> Vec<Round> {
    let queue = proptest::collection::vec(command(), 0..30);
    let queue = queue.prop_map(|commands| {
        let plain = |command: &Cmd| *command == Cmd::Sync || !command.is_barrier();
        commands.iter().filter(|command| plain(command)).map(|command| command.fit(&SHOWN)).collect()
    });
    let rounds = proptest::collection::vec(proptest::collection::vec(queue, 3), ROUNDS);
    rounds.new_tree(runner).unwrap().current()
}

/// Fills everything, sends, waits for the CMD_SYNCs of all queues, and looks: what was named is gone, and nothing else.
fn drive(guest: u32, vm: &mut Vm, model: &ModelSmmu, rounds: &[Round]) {
    let universe = universe();
    let on_host = |entry: &Cached| entry.on_host(guest, GUESTS, vmid(guest, GUESTS));
    let on_host: Vec<Entry> = universe.iter().map(on_host).collect();
    for round in rounds {
        for entry in &on_host {
            model.caches().insert(*entry);
        }
        for (queue, commands) in vm.queues.iter_mut().zip(round) {
            queue.send(commands.iter().chain([&Cmd::Sync]).map(|command| command.encode()));
        }
        wait_for("all CMD_SYNCs are complete", || {
            assert!(vm.queues.iter().all(|queue| queue.error().is_none()));
            vm.queues.iter().all(|queue| queue.outstanding() == 0)
        });
        let caches = model.caches();
        for (entry, on_host) in universe.iter().zip(&on_host) {
            let named = round.iter().flatten().find(|command| command.names(*entry, &SHOWN, HOST));
            let there = caches.contains(*on_host);
            assert_eq!(there, named.is_none(), "guest {guest}: {entry:x?}, named by {named:x?}");
        }
    }
}

#[test]
fn guests_on_threads_lose_exactly_what_they_name() {
    let mut runner = TestRunner::new(seed::config(1));
    let features = host_features(HOST.ril, HOST.ats);
    for pace in [Pace::AtOnce, Pace::PerLook(5)] {
        let first = ModelSmmu::new(&features);
        let model = [first.clone(), first.another_queue()];
        let mut workers = model.each_ref().map(|queue| Worker::new(queue.clone()));
        let mut vms: Vec<_> = (0..GUESTS).map(|n| Vm::new(n, GUESTS, SHOWN, features, 6)).collect();
        for (number, vm) in vms.iter().enumerate() {
            workers[number % 2].attach(vm.smmu.clone()).unwrap();
            vm.start();
        }
        for (worker, queue) in workers.iter_mut().zip(&model) {
            worker.poll();
            queue.set_pace(pace);
        }
        assert!(vms.iter().all(Vm::is_started));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = Stop(&stop);
            workers.iter_mut().for_each(|worker| drop(scope.spawn(|| worker.run(&stop))));
            let guests = (0..).zip(&mut vms).map(|(guest, vm)| {
                let rounds = rounds(&mut runner);
                let model = &first;
                scope.spawn(move || drive(guest, vm, model, &rounds))
            });
            let guests: Vec<_> = guests.collect();
            guests.into_iter().for_each(|guest| guest.join().unwrap());
        });
    }
}
