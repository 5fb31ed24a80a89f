//! Workers that sleep whenever they can.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecmdq_engine::host::iommufd::{self, Invalidate};
use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{Command, Doorbell, DoorbellTraps, EventKind, Idle, SleeperKind, Token, Waker, Worker};
use rustix::io::Errno;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;
use crate::support::*;

const ROUNDS: u64 = 300;

#[test]
fn a_trapped_doorbell_wakes() {
    on_each_sleeper(|kind| {
        let (mut guest, smmu) = Guest::new(trapped());
        let host = AtOnce::default();
        let mut worker = Worker::new(host.clone()).with_sleep(sleepy(kind)).unwrap();
        worker.attach(smmu).unwrap();
        let running = worker.spawn("worker", None).unwrap();
        enable(&mut guest);
        for asid in 0..ROUNDS {
            asleep(&running);
            invalidate(&mut guest, asid);
        }
        assert_eq!(host.received(), ROUNDS);
    });
}

#[test]
fn an_eventfd_wakes() {
    on_each_sleeper(|kind| {
        let (guest, smmu) = Guest::new(with_ecmdq());
        let eventfds = [(); 2].map(|()| EventFd::new(0).unwrap());
        smmu.set_doorbell(Doorbell::Eventfds(eventfds.iter().map(|e| e.try_clone().unwrap()).collect()));
        let mut worker = Worker::new(AtOnce::default()).with_sleep(sleepy(kind)).unwrap();
        worker.attach(smmu).unwrap();
        let running = worker.spawn("worker", None).unwrap();
        let mut queue = guest.ecmdq(0);
        queue.start(4);
        eventfds[0].write(1).unwrap();
        wait_for("the queue is enabled", || queue.enabled());
        let mut eventfd = eventfds.iter().cycle();
        let mut store: Store<'_> = Box::new(move |queue, prod| {
            queue.write_prod(prod);
            eventfd.next().unwrap().write(1).unwrap();
        });
        for asid in 0..ROUNDS {
            asleep(&running);
            invalidate_on(&mut queue, &mut store, asid);
        }
    });
}

#[test]
fn a_guest_whose_eventfd_nobody_can_write_any_more_concerns_no_other() {
    on_each_sleeper(|kind| {
        let (guest, smmu) = Guest::new(with_ecmdq());
        let (mut other, other_smmu) = Guest::new(Setup { vmid: 8, ..trapped() });
        let eventfd = EventFd::new(0).unwrap();
        smmu.set_doorbell(Doorbell::Eventfds(vec![eventfd]));
        let mut worker = Worker::new(AtOnce::default()).with_sleep(sleepy(kind)).unwrap();
        worker.attach(smmu.clone()).unwrap();
        worker.attach(other_smmu).unwrap();
        let running = worker.spawn("worker", None).unwrap();
        // The VMM's end, and the virtual SMMU's own, are closed while the worker sleeps on it.
        asleep(&running);
        smmu.set_doorbell(Doorbell::Timer);
        let mut queue = guest.ecmdq(0);
        queue.start(4);
        enable(&mut other);
        for asid in 0..50 {
            asleep(&running);
            invalidate(&mut other, asid);
        }
        // What the first guest wants is seen when the worker is awake for another reason.
        wait_for("the queue is enabled", || queue.enabled());
    });
}

/// Traps that the system refuses.
struct Refused;

impl DoorbellTraps for Refused {
    fn arm(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn disarm(&mut self) -> io::Result<()> {
        panic!("it was never armed");
    }
}

#[test]
fn without_a_doorbell_and_with_traps_that_are_refused_a_timer_serves() {
    on_each_sleeper(|kind| {
        for doorbell in [Doorbell::Timer, Doorbell::Traps(Box::new(Refused))] {
            let (guest, smmu) = Guest::new(with_ecmdq());
            smmu.set_doorbell(doorbell);
            let idle = Idle { look_every: Duration::from_millis(1), ..sleepy(kind) };
            let mut worker = Worker::new(AtOnce::default()).with_sleep(idle).unwrap();
            worker.attach(smmu).unwrap();
            let running = worker.spawn("worker", None).unwrap();
            let mut queue = guest.ecmdq(0);
            queue.start(4);
            wait_for("the queue is enabled", || queue.enabled());
            let mut store: Store<'_> = Box::new(|queue, prod| queue.write_prod(prod));
            for asid in 0..20 {
                asleep(&running);
                invalidate_on(&mut queue, &mut store, asid);
            }
        }
    });
}

#[test]
fn a_token_that_another_thread_completes_wakes() {
    on_each_sleeper(|kind| {
        let tokens = Arc::new(Mutex::new(Vec::<Token>::new()));
        let asked = tokens.clone();
        let on_request = Box::new(move |_, token| asked.lock().unwrap().push(token));
        let (mut guest, smmu) = Guest::new(Setup { on_request: Some(on_request), ..trapped() });
        let mut worker = Worker::new(AtOnce::default()).with_sleep(sleepy(kind)).unwrap();
        worker.attach(smmu).unwrap();
        let _running = worker.spawn("worker", None).unwrap();
        enable(&mut guest);
        for _ in 0..50 {
            guest.send(&[cfgi_ste(STREAM)]);
            let mut token = None;
            wait_for("the VMM is asked", || {
                token = tokens.lock().unwrap().pop();
                token.is_some()
            });
            token.unwrap().complete();
            wait_for("the command is complete", || guest.cons() == guest.prod());
        }
    });
}

#[test]
fn a_guest_that_rang_while_it_was_paused_is_served_when_it_is_resumed() {
    on_each_sleeper(|kind| {
        let (mut guest, smmu) = Guest::new(trapped());
        let mut worker = Worker::new(AtOnce::default()).with_sleep(sleepy(kind)).unwrap();
        worker.attach(smmu.clone()).unwrap();
        let _running = worker.spawn("worker", None).unwrap();
        enable(&mut guest);
        for asid in 0..50 {
            smmu.pause();
            guest.send(&[nh_asid(asid), sync()]);
            let prod = guest.prod();
            assert_ne!(guest.cons(), prod);
            smmu.resume();
            wait_for("a CMD_SYNC is complete", || guest.cons() == prod);
        }
    });
}

#[test]
fn many_vcpus_ring_a_worker_that_sleeps_and_none_waits_for_ever() {
    on_each_sleeper(|kind| {
        let host = AtOnce::default();
        let mut worker = Worker::new(host.clone()).with_sleep(sleepy(kind)).unwrap();
        let mut guests = Vec::new();
        for vmid in 1..=4 {
            let (guest, smmu) = Guest::new(Setup { vmid, ..trapped() });
            worker.attach(smmu).unwrap();
            guests.push(guest);
        }
        let running = worker.spawn("worker", None).unwrap();
        std::thread::scope(|scope| {
            for mut guest in guests.drain(..) {
                scope.spawn(move || {
                    enable(&mut guest);
                    (0..ROUNDS).for_each(|asid| invalidate(&mut guest, asid));
                });
            }
        });
        running.stop().unwrap();
        assert_eq!(host.received(), 4 * ROUNDS);
    });
}

#[test]
fn a_host_queue_that_does_not_wake_is_looked_at_by_a_timer() {
    use ecmdq_engine::host::NativeRing;
    let (ring, mut smmu_of_host) = NativeRing::with_consumer(6).unwrap();
    let (mut guest, smmu) = Guest::new(trapped());
    let idle = Idle { look_every: Duration::from_millis(1), ..sleepy(SleeperKind::Epoll) };
    let mut worker = Worker::new(ring).with_sleep(idle).unwrap();
    worker.attach(smmu).unwrap();
    let _running = worker.spawn("worker", None).unwrap();
    enable(&mut guest);
    for asid in 0..20 {
        guest.send(&[nh_asid(asid), sync()]);
        // The worker has handed it over, and sleeps.
        wait_for("the host has it", || smmu_of_host.poll(|_| ()) > 0);
        wait_for("a CMD_SYNC is complete", || {
            smmu_of_host.poll(|_| ());
            guest.cons() == guest.prod()
        });
    }
}

/// A host with room for one command at a time, which says nothing when it has some again.
#[derive(Debug, Default)]
struct Narrow {
    received: Arc<AtomicU64>,
    full: bool,
}

impl HostQueue for Narrow {
    fn submit(&mut self, commands: &[Command]) -> usize {
        // Every second time it has room.
        self.full = !self.full;
        let taken = commands.len().min(usize::from(!self.full));
        self.received.fetch_add(taken as u64, Relaxed);
        taken
    }

    fn sync(&mut self) -> Ticket {
        Ticket(0)
    }

    fn completed(&mut self) -> Ticket {
        Ticket(0)
    }

    fn set_waker(&mut self, _: &Waker) -> bool {
        true
    }
}

#[test]
fn what_waits_for_room_at_the_host_is_not_slept_over() {
    on_each_sleeper(|kind| {
        let host = Narrow::default();
        let received = host.received.clone();
        let idle = Idle { look_every: Duration::from_millis(1), ..sleepy(kind) };
        let mut worker = Worker::new(host).with_sleep(idle).unwrap();
        let (mut guest, smmu) = Guest::new(trapped());
        worker.attach(smmu).unwrap();
        let _running = worker.spawn("worker", None).unwrap();
        enable(&mut guest);
        // No CMD_SYNC: nobody waits for them, and they get there all the same.
        guest.send(&[1, 2, 3, 4, 5, 6, 7, 8].map(nh_asid));
        wait_for("the host has them", || received.load(Relaxed) == 8);
    });
}

#[test]
fn a_worker_naps_no_longer_than_until_it_looks_for_room_again() {
    let idle = Idle { look_every: Duration::from_millis(3), ..sleepy(SleeperKind::Epoll) };
    let idle = Idle { stalled: Duration::from_secs(1000), ..idle };
    let mut worker = Worker::new(Narrow::default()).with_sleep(idle).unwrap();
    let (mut guest, smmu) = Guest::new(trapped());
    worker.attach(smmu).unwrap();
    guest.start(4);
    while worker.poll() {}
    guest.send(&[1, 2, 3, 4, 5, 6, 7, 8].map(nh_asid));
    worker.poll();
    let nap = (0..4).find_map(|_| worker.prepare_to_sleep().or_else(|| (worker.poll(), None).1));
    assert_eq!(nap.expect("there is nothing else to do").at_most, Some(idle.look_every));
}

/// A host that takes everything and completes nothing.
#[derive(Debug, Default)]
struct Still(u64);

impl HostQueue for Still {
    fn submit(&mut self, commands: &[Command]) -> usize {
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        self.0 += 1;
        Ticket(self.0)
    }

    fn completed(&mut self) -> Ticket {
        Ticket(0)
    }
}

#[test]
fn a_host_that_stands_still_is_told_of_whether_the_worker_sleeps_or_not() {
    for idle in [Idle::always_spin(), Idle::always_sleep()] {
        let idle = Idle { stalled: Duration::from_millis(5), ..idle };
        let mut worker = Worker::new(Still::default()).with_sleep(idle).unwrap();
        let (mut guest, smmu) = Guest::new(trapped());
        worker.attach(smmu).unwrap();
        let events = worker.events();
        let _running = worker.spawn("worker", None).unwrap();
        enable(&mut guest);
        guest.send(&[nh_asid(1), sync()]);
        for _ in 0..3 {
            let event = events.wait_at_most(PATIENCE).unwrap();
            assert_eq!(event.guest, None);
            assert!(matches!(event.kind, EventKind::HostStalled(time) if time >= idle.stalled));
        }
    }
}

/// A kernel that executes everything.
struct Executes(Arc<AtomicU64>);

impl Invalidate for Executes {
    fn invalidate(&self, commands: &[Command]) -> io::Result<()> {
        self.0.fetch_add(commands.len() as u64, Relaxed);
        Ok(())
    }
}

#[test]
fn a_worker_and_what_executes_its_commands_wake_each_other() {
    on_each_sleeper(|kind| {
        let executed = Arc::new(AtomicU64::new(0));
        let (queue, mut executor) = iommufd::queue(Executes(executed.clone()), 6).unwrap();
        let (mut guest, smmu) = Guest::new(trapped());
        let mut worker = Worker::new(queue).with_sleep(sleepy(kind)).unwrap();
        worker.attach(smmu).unwrap();
        let running = worker.spawn("worker", None).unwrap();
        let (stop, waker) = (AtomicBool::new(false), executor.waker());
        std::thread::scope(|scope| {
            scope.spawn(|| executor.run(&stop));
            let stopping = SetOnDrop(&stop);
            enable(&mut guest);
            for asid in 0..ROUNDS {
                asleep(&running);
                invalidate(&mut guest, asid);
            }
            drop(stopping);
            waker.wake();
        });
        assert_eq!(executed.load(Relaxed), ROUNDS);
    });
}

/// Whether a descriptor is readable now.
fn is_readable(epoll: &Epoll) -> bool {
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
}

#[test]
fn an_event_loop_polls_when_the_descriptor_says_so() {
    let (mut guest, smmu) = Guest::new(trapped());
    let mut worker = Worker::new(AtOnce::default()).with_sleep(sleepy(SleeperKind::Epoll)).unwrap();
    worker.attach(smmu.clone()).unwrap();
    let epoll = Epoll::new().unwrap();
    let fd = worker.pollable().unwrap();
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
    // The way of an event loop: poll until there is nothing to do, prepare, wait.
    let rest =
        |worker: &mut Worker<AtOnce>| (0..100).any(|_| !worker.poll() && worker.prepare_to_sleep().is_some());
    guest.start(4);
    assert!(rest(&mut worker));
    assert!(guest.enabled() && !is_readable(&epoll));
    for asid in 0..10 {
        guest.send(&[nh_asid(asid), sync()]);
        assert!(is_readable(&epoll), "a doorbell");
        assert!(rest(&mut worker));
        assert_eq!(guest.cons(), guest.prod());
        assert!(!is_readable(&epoll), "all of it was seen");
    }
    guest.send(&[sync()]);
    assert_eq!(worker.prepare_to_sleep(), None, "there is something to do");
    smmu.pause();
    assert!(rest(&mut worker));
    smmu.resume();
    assert!(is_readable(&epoll), "the VMM has changed something");
}

/// A kernel that refuses everything.
struct RefusesAll;

impl Invalidate for RefusesAll {
    fn invalidate(&self, _: &[Command]) -> io::Result<()> {
        Err(Errno::IO.into())
    }
}

#[test]
fn an_executor_that_stops_with_an_error_wakes_the_worker_that_must_acknowledge_it() {
    let (queue, mut executor) = iommufd::queue(RefusesAll, 6).unwrap();
    let (mut guest, smmu) = Guest::new(trapped());
    let mut worker = Worker::new(queue).with_sleep(sleepy(SleeperKind::Epoll)).unwrap();
    worker.attach(smmu).unwrap();
    guest.start(4);
    while worker.poll() {}
    guest.send(&[nh_asid(1), sync()]);
    while worker.poll() {}
    assert!(worker.prepare_to_sleep().is_some());
    let epoll = Epoll::new().unwrap();
    let fd = worker.pollable().unwrap();
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
    assert!(!is_readable(&epoll));
    assert_eq!(executor.step(), 0, "nothing is done");
    assert!(is_readable(&epoll));
    for _ in 0..4 {
        while worker.poll() {}
        executor.step();
    }
    assert_eq!(guest.error(), Some(CERROR_ILL));
}

#[test]
fn a_worker_on_io_uring_has_no_descriptor_for_event_loops() {
    let Ok(worker) = Worker::new(AtOnce::default()).with_sleep(sleepy(SleeperKind::IoUring)) else { return };
    assert_eq!(worker.pollable().unwrap_err().kind(), io::ErrorKind::Unsupported);
}

#[test]
fn a_worker_that_sleeps_hears_stop_in_each_way() {
    on_each_sleeper(|kind| {
        let new = || Worker::new(AtOnce::default()).with_sleep(sleepy(kind)).unwrap();
        assert!(new().spawn("worker", Some(0)).unwrap().stop().is_some());
        drop(new().spawn("worker", None).unwrap());
        let (mut worker, stop, runs) = (new(), AtomicBool::new(false), AtomicU64::new(0));
        let handle = worker.handle();
        std::thread::scope(|scope| {
            let (stop, runs) = (&stop, &runs);
            scope.spawn(move || {
                runs.fetch_add(1, Release);
                worker.run(stop);
                runs.fetch_add(1, Release);
            });
            wait_for("it runs", || runs.load(Acquire) == 1);
            stop.store(true, Relaxed);
            handle.wake();
            wait_for("it has stopped", || runs.load(Acquire) == 2);
        });
    });
}
