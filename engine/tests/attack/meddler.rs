//! Threads of the VMM that call what may be called at any time, at random, and answer what guests ask.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ecmdq_engine::{EventKind, StatsReader};

use crate::guest::{Guest, ON_PURPOSE};
use crate::random::Random;
use crate::world::{Actor, World, count};

pub fn run(world: &Arc<World>, actor: &Actor) {
    let mut random = actor.random();
    let readers: Vec<StatsReader> =
        world.guests.iter().map(|guest| guest.machine.read().smmu.stats_reader()).collect();
    while !world.is_over() {
        for guest in &world.guests {
            answer(world, guest, &mut random);
        }
        if world.is_attack() {
            let guest = &world.guests[random.below(world.guests.len())];
            count(&world.counts.calls);
            call(world, guest, &mut random);
            readers[random.below(readers.len())].read();
        }
        listen(world, &mut random);
        actor.beat();
        thread::sleep(Duration::from_micros(random.below(500) as u64));
    }
}

/// Answers a request, late, or not as the guest would like.
fn answer(world: &World, guest: &Guest, random: &mut Random) {
    if world.is_attack() && random.one_in(2) {
        return;
    }
    // Not under the lock: a token wakes the worker.
    let Some((_, token)) = guest.requests.lock().pop_front() else { return };
    match random.below(12) {
        0 if world.is_attack() => token.reject(),
        1 if world.is_attack() => drop(token),
        _ => token.complete(),
    }
}

fn call(world: &World, guest: &Guest, random: &mut Random) {
    // No handle is kept: when a guest has another virtual SMMU, the one before is gone.
    let machine = guest.machine.read();
    let smmu = &machine.smmu;
    match random.below(12) {
        0 => drop(format!("{}", smmu.inspect())),
        1 => drop(format!("{smmu:?}")),
        2 => drop((smmu.stats(), smmu.features())),
        3 => drop(smmu.last_rejected()),
        4 => drop(smmu.save()),
        5 => smmu.memory_changed(),
        6 | 7 => {
            let mut data = vec![0; random.of(&[1, 2, 4, 4, 8, 8, 16])];
            smmu.mmio_read(random.next() & 0x3_ffff, &mut data);
        }
        8 => {
            // Any offset of a guest that is hostile anyway; of others what is ignored.
            let wholly = guest.plan.honest.is_empty();
            let at = if wholly { random.next() & 0x3_ffff } else { random.next() & 0x3_fffc | 2 };
            let data = random.next().to_le_bytes();
            smmu.mmio_write(at, &data[..random.of(&[1, 4, 4, 8])]);
        }
        9 => assert!(smmu.control_pages().all(|page| page.size == 0x1_0000)),
        10 => {
            drop(machine);
            leave_another(world, guest, random);
        }
        _ => {
            drop(machine);
            let fleet = world.fleet.read();
            let handle = &fleet.workers[random.below(fleet.workers.len())].handle;
            handle.wake();
            handle.sleeps();
        }
    }
}

/// From a worker where it is not it leaves at once.
fn leave_another(world: &World, guest: &Guest, random: &mut Random) {
    let fleet = world.fleet.read();
    // Where it is does not change meanwhile.
    let placement = guest.placement.lock();
    let other = random.below(fleet.workers.len());
    if placement.worker != Some(other) {
        let leaving = fleet.workers[other].handle.detach(&guest.machine.read().smmu);
        while !leaving.has_left() {
            thread::yield_now();
        }
    }
}

/// Takes events: none may tell of a panic.
fn listen(world: &World, random: &mut Random) {
    let fleet = world.fleet.read();
    for crew in &fleet.workers {
        if world.is_attack() && random.one_in(4) {
            continue;
        }
        for event in crew.events.waiting().take(64) {
            if let EventKind::Quarantined { message, .. } = &event.kind
                && message != ON_PURPOSE
            {
                world.found(format!("{event:?}"));
            }
        }
    }
}
