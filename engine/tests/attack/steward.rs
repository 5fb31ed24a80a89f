//! The life of guests and workers: attach, detach, move, pause, save, restore, reset, memory that changes, workers that end.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use ecmdq_engine::{Snapshot, VirtualSmmu};

use crate::fleet::{self, Crew, Fleet, Placement};
use crate::guest::{Guest, Machine};
use crate::random::Random;
use crate::world::{Actor, World, count};

/// A thread of the VMM. `workers` says that it looks after the workers, too.
pub fn run(world: &Arc<World>, actor: &Actor, workers: bool) {
    let mut random = actor.random();
    while !world.is_over() {
        if world.is_attack() {
            if workers && random.one_in(6) {
                change_workers(world, actor, &mut random);
            } else {
                let guest = &world.guests[random.below(world.guests.len())];
                change_guest(world, actor, guest, &mut random);
            }
            thread::sleep(Duration::from_micros(random.below(4000) as u64));
        } else {
            thread::sleep(Duration::from_millis(2));
        }
        if workers {
            replace_what_has_gone(world, actor, &mut random);
        }
        actor.beat();
    }
}

fn change_guest(world: &Arc<World>, actor: &Actor, guest: &Arc<Guest>, random: &mut Random) {
    let fleet = world.fleet.read();
    let mut placement = guest.placement.lock();
    let (n, smmu) = (guest.number, guest.machine.read().smmu.clone());
    match random.below(12) {
        0..=2 => {
            let to = random.below(fleet.workers.len());
            actor.note(format!("guest {n} moves from {:?} to {to}", placement.worker));
            fleet::detach(world, actor, &fleet, &smmu, &mut placement, random);
            settle(world, &fleet, guest, &mut placement, Some(to), random);
            count(&world.counts.moves);
        }
        3 => {
            actor.note(format!("guest {n} is nowhere for a while"));
            fleet::detach(world, actor, &fleet, &smmu, &mut placement, random);
        }
        4 => {
            actor.note(format!("guest {n} is paused and resumed"));
            smmu.pause();
            thread::sleep(Duration::from_micros(random.below(3000) as u64));
            smmu.resume();
        }
        5 => {
            actor.note(format!("guest {n} is paused for a while"));
            (placement.paused, ()) = (true, smmu.pause());
        }
        6 => reset(world, actor, guest, &smmu, random),
        7 | 8 => {
            if guest.change_memory(&smmu, random) {
                world.found(format!("guest {n}: memory that has gone is still used"));
            }
        }
        9 => restore(world, actor, guest, &smmu, &mut placement, random),
        _ => migrate(world, actor, &fleet, guest, &mut placement, random),
    }
    // What was left somewhere in between goes on at some time.
    if random.one_in(2) {
        settle(world, &fleet, guest, &mut placement, None, random);
    }
}

/// A guest that is nowhere comes to a worker, and one that is paused goes on.
fn settle(
    world: &Arc<World>,
    fleet: &Fleet,
    guest: &Arc<Guest>,
    placement: &mut Placement,
    to: Option<usize>,
    random: &mut Random,
) {
    let machine = guest.machine.read();
    if placement.worker.is_none() {
        machine.choose_doorbell(random);
        let to = to.unwrap_or_else(|| random.below(fleet.workers.len()));
        fleet::attach(world, fleet, guest, &machine.smmu, placement, to, random);
    }
    if std::mem::take(&mut placement.paused) {
        machine.smmu.resume();
    }
}

/// With its vCPUs running, or stopped.
fn reset(world: &World, actor: &Actor, guest: &Guest, smmu: &VirtualSmmu, random: &mut Random) {
    count(&world.counts.resets);
    let stopped = random.one_in(2).then(|| guest.machine.write());
    actor.note(format!("guest {} is reset, stopped: {}", guest.number, stopped.is_some()));
    guest.resets.fetch_add(1, SeqCst);
    smmu.reset();
    guest.resets.fetch_add(1, SeqCst);
}

/// What a VMM writes to a file and reads again.
fn save(smmu: &VirtualSmmu) -> Snapshot {
    let saved = smmu.save().expect("it is paused");
    let text = serde_json::to_string(&saved).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A snapshot with some numbers changed.
fn corrupt(saved: &Snapshot, random: &mut Random) -> Option<Snapshot> {
    let mut text = serde_json::to_string(saved).unwrap().into_bytes();
    for _ in 0..1 + random.below(6) {
        let at = random.below(text.len());
        if text[at].is_ascii_digit() {
            text[at] = b'0' + random.below(10) as u8;
        }
    }
    serde_json::from_slice(&text).ok()
}

/// Back to where it was saved, in place.
fn restore(
    world: &World,
    actor: &Actor,
    guest: &Guest,
    smmu: &VirtualSmmu,
    placement: &mut Placement,
    random: &mut Random,
) {
    count(&world.counts.restores);
    actor.note(format!("guest {} is saved and restored at {:?}", guest.number, placement.worker));
    let _stopped = guest.machine.write();
    guest.widened.fetch_add(1, SeqCst);
    smmu.pause();
    let saved = save(smmu);
    if let Err(error) = smmu.restore(&saved) {
        world.found(format!("guest {}: {error}, which it said itself: {saved:?}", guest.number));
    }
    if guest.plan.honest.is_empty() {
        // Whatever becomes of that guest.
        let _ = corrupt(&saved, random).map(|corrupt| smmu.restore(&corrupt));
    }
    if !placement.paused {
        smmu.resume();
    }
    guest.widened.fetch_add(1, SeqCst);
}

/// To another virtual SMMU, as in another process.
fn migrate(
    world: &Arc<World>,
    actor: &Actor,
    fleet: &Fleet,
    guest: &Arc<Guest>,
    placement: &mut Placement,
    random: &mut Random,
) {
    count(&world.counts.restores);
    let (old, paused_first) = (guest.machine.read().smmu.clone(), random.one_in(2));
    actor.note(format!("guest {} migrates from {:?}", guest.number, placement.worker));
    if paused_first {
        old.pause();
    }
    fleet::detach(world, actor, fleet, &old, placement, random);
    let mut machine = guest.machine.write();
    guest.widened.fetch_add(1, SeqCst);
    old.pause();
    let saved = save(&old);
    let new: Machine = guest.another_machine();
    new.smmu.pause();
    if let Err(error) = new.smmu.restore(&saved) {
        world.found(format!("guest {}: {error}, which another said: {saved:?}", guest.number));
    }
    std::mem::replace(&mut *machine, new).end();
    placement.paused = true;
    drop(machine);
    settle(world, fleet, guest, placement, None, random);
    guest.widened.fetch_add(1, SeqCst);
}

/// A worker ends: in order, without its guests knowing, or only for a moment.
fn change_workers(world: &Arc<World>, actor: &Actor, random: &mut Random) {
    let mut fleet = world.fleet.write();
    let number = random.below(fleet.workers.len());
    match random.below(3) {
        0 => replace(world, actor, &mut fleet, number, random),
        1 => {
            actor.note(format!("worker {number} stops and goes on"));
            let old = fleet.workers.remove(number);
            let (kind, host) = (old.kind, old.host.clone());
            let Some(worker) = old.stop() else { return };
            fleet.workers.insert(number, Crew::run(worker, kind, host));
        }
        _ => lose(world, actor, &mut fleet, number, random),
    }
}

/// All guests leave, and come to a new worker.
fn replace(world: &Arc<World>, actor: &Actor, fleet: &mut Fleet, number: usize, random: &mut Random) {
    actor.note(format!("worker {number} is replaced"));
    let mut placements: Vec<_> = world.guests.iter().map(|guest| guest.placement.lock()).collect();
    let mut left = Vec::new();
    for (guest, placement) in world.guests.iter().zip(&mut placements) {
        if placement.worker == Some(number) {
            let smmu = guest.machine.read().smmu.clone();
            fleet::detach(world, actor, fleet, &smmu, placement, random);
            left.push(guest.number as usize);
        }
    }
    let new = fleet.make(world, random);
    drop(std::mem::replace(&mut fleet.workers[number], new).stop());
    for guest in left {
        settle(world, fleet, &world.guests[guest], &mut placements[guest], None, random);
    }
}

/// A worker is dropped, its guests attached.
fn lose(world: &Arc<World>, actor: &Actor, fleet: &mut Fleet, number: usize, random: &mut Random) {
    count(&world.counts.workers_lost);
    actor.note(format!("worker {number} is lost"));
    let mut placements: Vec<_> = world.guests.iter().map(|guest| guest.placement.lock()).collect();
    let of_it = |placement: &Placement| placement.worker == Some(number);
    let orphans: Vec<_> = (0..placements.len()).filter(|guest| of_it(&placements[*guest])).collect();
    let host = fleet.workers[number].host.clone();
    for guest in orphans.iter().map(|guest| &world.guests[*guest]) {
        guest.widened.fetch_add(1, SeqCst);
    }
    let new = fleet.make(world, random);
    drop(std::mem::replace(&mut fleet.workers[number], new).stop());
    for number in orphans {
        let (guest, placement) = (&world.guests[number], &mut placements[number]);
        let hosts = [Some(host.clone()), placement.own.clone()].into_iter().flatten();
        guest.ghosts.lock().extend(hosts);
        fleet::is_lost(placement);
        settle(world, fleet, guest, placement, None, random);
        guest.widened.fetch_add(1, SeqCst);
    }
}

/// Guests of a host queue that has gone get another one. When the attack is over, everybody is where something happens.
fn replace_what_has_gone(world: &Arc<World>, actor: &Actor, random: &mut Random) {
    let gone = |fleet: &Fleet| fleet.workers.iter().position(|crew| crew.host.gone.load(SeqCst));
    if gone(&world.fleet.read()).is_some() {
        let mut fleet = world.fleet.write();
        if let Some(number) = gone(&fleet) {
            replace(world, actor, &mut fleet, number, random);
        }
    }
    let fleet = world.fleet.read();
    for guest in &world.guests {
        let Some(mut placement) = guest.placement.try_lock() else { continue };
        if placement.own.as_ref().is_some_and(|own| own.gone.load(SeqCst)) {
            actor.note(format!("guest {} gets another host queue", guest.number));
            let smmu = guest.machine.read().smmu.clone();
            fleet::detach(world, actor, &fleet, &smmu, &mut placement, random);
            settle(world, &fleet, guest, &mut placement, None, random);
        } else if !world.is_attack() {
            settle(world, &fleet, guest, &mut placement, None, random);
        }
    }
}
