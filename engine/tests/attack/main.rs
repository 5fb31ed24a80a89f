//! The standing attacker: workers, guests, hosts and VMMs that do everything at once, at random, on threads of their own.
//!
//! Guests share one [model SMMU's](ecmdq_engine::host::model) caches, whatever their host queue is. An honest queue fills
//! entries, names some of them, and sends a CMD_SYNC; when that completes without an error, what was named must be gone and
//! what was not must be there. Meanwhile workers end and begin, guests move, are reset, saved and restored, hosts fail in each
//! way that they can, and hostile guests and queues misbehave. A watchdog says who is stuck.
//!
//! `ECMDQ_SEED` is the seed (`random`, or a number), `ECMDQ_ATTACK_SECONDS` the length, `ECMDQ_ATTACK_PATIENCE` after how many
//! seconds somebody counts as stuck. Threads interleave as they like: a seed says what is tried, not what comes of it.
//!
//! | file | role |
//! |---|---|
//! | `world.rs` | what all share: caches, guests, faults that were injected, the log of each actor, what has been found |
//! | `guest.rs` | a guest's machine: memory, registers by each front end, doorbells |
//! | `honest.rs`, `judge.rs` | a vCPU with queues that keep to the architecture, and what is checked when a CMD_SYNC completes |
//! | `hostile.rs` | guests and queues that do not |
//! | `hosts.rs`, `kernel.rs` | host queues that are late, full and fail |
//! | `fleet.rs` | the workers |
//! | `steward.rs` | the VMM's life: attach, detach, move, save, restore, reset, worker lost |
//! | `meddler.rs` | VMM threads that call everything else at random; tokens |

mod fleet;
mod guest;
mod honest;
mod hostile;
mod hosts;
mod judge;
mod kernel;
mod meddler;
#[path = "../common/random.rs"]
mod random;
mod steward;
mod world;

use std::panic;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use world::{Actor, Phase, World};

/// Starts an actor on a thread of its own.
fn start(
    world: &Arc<World>,
    name: String,
    role: impl FnOnce(&Arc<World>, &Actor) + Send + 'static,
) -> JoinHandle<()> {
    let (world, actor) = (world.clone(), world.actor(&name));
    let body = move || {
        role(&world, &actor);
        actor.leave();
    };
    thread::Builder::new().name(name).spawn(body).unwrap()
}

#[test]
fn nothing_is_lost_nothing_hangs_and_nobody_is_touched_by_another() {
    let world = World::new();
    println!("ECMDQ_SEED={} ECMDQ_ATTACK_SECONDS={}", world.seed, world.seconds.as_secs());
    let (usual, found) = (panic::take_hook(), world.clone());
    panic::set_hook(Box::new(move |info| {
        if info.payload_as_str() == Some(guest::ON_PURPOSE) {
            return;
        }
        found.found(format!("a panic: {info}"));
        usual(info);
    }));
    fleet::begin(&world);
    let mut threads = Vec::new();
    for guest in &world.guests {
        let (n, vcpu, villain) = (guest.number, guest.clone(), guest.clone());
        if !guest.plan.honest.is_empty() {
            threads.push(start(&world, format!("vcpu {n}"), move |w, a| honest::run(w, &vcpu, a)));
        }
        if !guest.plan.hostile.is_empty() {
            threads.push(start(&world, format!("villain {n}"), move |w, a| hostile::run(w, &villain, a)));
        }
    }
    for n in 0..2 {
        threads.push(start(&world, format!("steward {n}"), move |w, a| steward::run(w, a, n == 0)));
        threads.push(start(&world, format!("meddler {n}"), meddler::run));
    }
    let end = Instant::now() + world.seconds;
    watch(&world, || Instant::now() >= end);
    world.set_phase(Phase::Calm);
    watch(&world, || world.guests.iter().all(|guest| guest.waiting.load(SeqCst) == 0));
    world.set_phase(Phase::End);
    watch(&world, || threads.iter().all(JoinHandle::is_finished));
    fleet::end(&world);
    watch(&world, || world.actors_left() == 0);
    let _ = panic::take_hook();
    println!("{}", world.summary());
}

/// Waits until something holds; fails when somebody has found a fault, or is stuck.
fn watch(world: &Arc<World>, mut holds: impl FnMut() -> bool) {
    while !holds() {
        world.check();
        thread::sleep(Duration::from_millis(10));
    }
    world.check();
}
