//! The workers: on threads of their own, that spin, give way, sleep on each kind of sleeper, or are driven by an event loop.

use std::fmt::Write;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ecmdq_engine::{Events, Idle, RateLimit, Running, Share, SleeperKind, VirtualSmmu, Worker, WorkerHandle};
use parking_lot::Mutex;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::guest::Guest;
use crate::hosts::{self, Host, Status};
use crate::random::Random;
use crate::world::{Actor, World, count};

/// Where a guest is, and what its VMM keeps of it.
#[derive(Debug, Default)]
pub struct Placement {
    pub worker: Option<usize>,
    /// Its own host queue, while it is nowhere.
    host: Option<Host>,
    /// What is known of that, wherever it is.
    pub own: Option<Arc<Status>>,
    pub paused: bool,
}

#[derive(Default)]
pub struct Fleet {
    pub workers: Vec<Crew>,
    /// Producers of a native ring that nobody has.
    rings: Mutex<Vec<Host>>,
}

/// How a worker is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It polls, and gives the processor away.
    Polls,
    Sleeps(SleeperKind),
    EventLoop,
}

/// A worker on its thread.
pub struct Crew {
    pub kind: Kind,
    pub handle: WorkerHandle<Host>,
    pub host: Arc<Status>,
    pub events: Events,
    thread: Thread,
}

enum Thread {
    Running(Running<Host>),
    EventLoop { stop: Arc<AtomicBool>, thread: JoinHandle<Worker<Host>> },
}

impl Fleet {
    /// A host queue for a worker.
    fn host(&mut self, world: &Arc<World>, random: &mut Random) -> Host {
        if random.one_in(2) {
            return hosts::model(world);
        }
        let rings = self.rings.get_mut();
        rings.retain(|ring| !ring.status.gone.load(SeqCst));
        if rings.is_empty() {
            *rings = hosts::ring(world, random);
        }
        rings.pop().expect("a ring has producers")
    }

    /// A worker with its host queue.
    pub fn make(&mut self, world: &Arc<World>, random: &mut Random) -> Crew {
        count(&world.counts.workers_made);
        let kind = match random.below(6) {
            0 => Kind::Polls,
            1 => Kind::Sleeps(SleeperKind::IoUring),
            2..=4 => Kind::Sleeps(SleeperKind::Epoll),
            _ => Kind::EventLoop,
        };
        let host = self.host(world, random);
        let status = host.status.clone();
        let worker = Worker::new(host);
        let idle = if random.one_in(2) { Idle::default() } else { Idle::always_sleep() };
        let sleeper = match kind {
            Kind::Polls => None,
            Kind::Sleeps(sleeper) => Some(sleeper),
            Kind::EventLoop => Some(SleeperKind::Epoll),
        };
        let (worker, kind) = match sleeper {
            None => (worker, kind),
            Some(sleeper) => match worker.with_sleep(Idle { sleeper: Some(sleeper), ..idle }) {
                Ok(worker) => (worker, kind),
                // A system without io_uring.
                Err(_) => (Worker::new(self.host(world, random)), Kind::Polls),
            },
        };
        Crew::run(worker, kind, status)
    }

    pub fn report(&self) -> String {
        let mut text = String::new();
        for (number, Crew { kind, host, handle, .. }) in self.workers.iter().enumerate() {
            let _ = writeln!(text, "worker {number}: {kind:?}, {host:?}, slept {} times", handle.sleeps());
        }
        text
    }
}

impl Crew {
    /// Runs a worker on a new thread.
    pub fn run(mut worker: Worker<Host>, kind: Kind, host: Arc<Status>) -> Self {
        let (handle, events) = (worker.handle(), worker.events());
        let thread = if kind == Kind::EventLoop {
            let (stop, fd) = (Arc::new(AtomicBool::new(false)), worker.pollable().unwrap());
            let told = stop.clone();
            let body = move || {
                event_loop(&mut worker, &told, fd);
                worker
            };
            Thread::EventLoop { stop, thread: thread::spawn(body) }
        } else {
            Thread::Running(worker.spawn("worker", None).unwrap())
        };
        Self { kind, handle, host, events, thread }
    }

    /// Ends its thread; the worker, if it did not panic.
    pub fn stop(self) -> Option<Worker<Host>> {
        match self.thread {
            Thread::Running(running) => running.stop(),
            Thread::EventLoop { stop, thread } => {
                stop.store(true, SeqCst);
                self.handle.wake();
                thread.join().ok()
            }
        }
    }
}

fn event_loop(worker: &mut Worker<Host>, stop: &AtomicBool, fd: RawFd) {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
    let mut events = [EpollEvent::default()];
    while !stop.load(SeqCst) {
        if worker.poll() {
            continue;
        }
        let Some(nap) = worker.prepare_to_sleep() else { continue };
        // Looked at once more since the announcement.
        if !stop.load(SeqCst) {
            let at_most = nap.at_most.map_or(-1, |time| time.as_millis() as i32 + 1);
            let _ = epoll.wait(at_most, &mut events);
        }
    }
}

/// The first workers, with all guests.
pub fn begin(world: &Arc<World>) {
    let mut random = Random::new(world.seed);
    let mut fleet = world.fleet.write();
    for _ in 0..2 + random.below(2) {
        let crew = fleet.make(world, &mut random);
        fleet.workers.push(crew);
    }
    for guest in &world.guests {
        let worker = random.below(fleet.workers.len());
        let mut placement = guest.placement.lock();
        let smmu = guest.machine.read().smmu.clone();
        attach(world, &fleet, guest, &smmu, &mut placement, worker, &mut random);
    }
}

/// The workers end, with some guests still attached.
pub fn end(world: &Arc<World>) {
    let mut fleet = world.fleet.write();
    for crew in fleet.workers.drain(..) {
        drop(crew.stop());
    }
    fleet.rings.get_mut().clear();
    for guest in &world.guests {
        guest.placement.lock().host = None;
    }
}

/// A guest that is nowhere comes to a worker.
pub fn attach(
    world: &Arc<World>,
    fleet: &Fleet,
    guest: &Arc<Guest>,
    smmu: &VirtualSmmu,
    placement: &mut Placement,
    worker: usize,
    random: &mut Random,
) {
    if guest.plan.own_host {
        let host = placement.host.take().filter(|host| !host.status.gone.load(SeqCst));
        placement.host = Some(host.unwrap_or_else(|| hosts::iommufd(world, guest, random)));
        placement.own = placement.host.as_ref().map(|host| host.status.clone());
    }
    let limit = random.one_in(4).then_some(RateLimit { per_second: 100_000, burst: 1000 });
    let share = Share { weight: random.below(3) as u16, burst: 100, limit };
    let attached = fleet.workers[worker].handle.attach(smmu.clone(), placement.host.take(), share);
    attached.expect("it is nowhere");
    placement.worker = Some(worker);
}

/// A guest leaves its worker, which takes as long as the worker needs.
pub fn detach(
    world: &World,
    actor: &Actor,
    fleet: &Fleet,
    smmu: &VirtualSmmu,
    placement: &mut Placement,
    random: &mut Random,
) {
    let Some(worker) = placement.worker.take() else { return };
    let leaving = fleet.workers[worker].handle.detach(smmu);
    // Whoever asks again waits for the same.
    let again = random.one_in(4).then(|| fleet.workers[worker].handle.detach(smmu));
    let patience = Instant::now() + world.patience() / 2;
    for leaving in [&leaving].into_iter().chain(&again) {
        while !leaving.has_left() {
            if Instant::now() > patience {
                world.found(format!("{}: a guest does not leave worker {worker}; {smmu:?}", actor.name()));
                return;
            }
            actor.beat();
            thread::sleep(Duration::from_micros(100));
        }
    }
    placement.host = leaving.wait();
}

/// The worker of a guest has gone with what it had of it.
pub fn is_lost(placement: &mut Placement) {
    (placement.worker, placement.host, placement.own) = (None, None, None);
}
