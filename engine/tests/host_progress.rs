//! A host queue that stops while nobody waits for a ticket: it goes on all the same, and the VMM learns that it stands still.

mod common;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use std::{iter, thread};

use common::*;
use ecmdq_engine::host::iommufd::{self, Invalidate};
use ecmdq_engine::host::{HostQueue, NativeRing, RingConsumer};
use ecmdq_engine::{Command, CommandError, Doorbell, EventKind, Idle, Opcode, Worker};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

/// More commands than the host ring and what waits in front of it take together.
const FLOOD: usize = 2000;

/// A guest whose CMDQ holds [`FLOOD`] TLBIs, and no CMD_SYNC, in front of a host queue.
fn flooded<H: HostQueue>(host: H) -> (Guest, Worker<H>) {
    let mut worker = Worker::new(host);
    let (mut guest, smmu) = Guest::new(Setup::default());
    worker.attach(smmu).unwrap();
    guest.start(12);
    worker.poll();
    guest.send(&iter::repeat_n(nh_asid(1), FLOOD).collect::<Vec<_>>());
    (guest, worker)
}

/// The host stops once with an error at its first command, and goes on when that is acknowledged.
fn goes_on_after(error: CommandError) {
    let (ring, mut smmu) = NativeRing::with_consumer(6).unwrap();
    let (mut guest, mut worker) = flooded(ring);
    (0..10).for_each(|_| _ = worker.poll());
    let mut told = false;
    let mut host = |smmu: &mut RingConsumer| {
        smmu.poll_with(|commands| {
            if std::mem::replace(&mut told, true) { (commands.len(), None) } else { (0, Some(error)) }
        })
    };
    host(&mut smmu);
    assert!(smmu.is_stopped());
    for _ in 0..200 {
        worker.poll();
        host(&mut smmu);
    }
    assert_eq!(guest.cons(), FLOOD as u32, "the flood is taken after {error:?}");
    guest.send(&[sync()]);
    for _ in 0..20 {
        worker.poll();
        host(&mut smmu);
    }
    // An illegal command is told to whose it was, once.
    let told = (error == CommandError::Ill).then_some(CERROR_ILL);
    assert_eq!((guest.cons() - FLOOD as u32, guest.error()), (told.is_none().into(), told));
    let executed = smmu.received(Opcode::TLBI_NH_ASID) + smmu.received(Opcode::CMD_SYNC);
    assert!(executed > FLOOD as u64, "all of it was executed: {executed}");
}

#[test]
fn a_full_host_ring_that_stops_with_cerror_ill_goes_on_without_a_cmd_sync() {
    goes_on_after(CommandError::Ill);
}

#[test]
fn a_full_host_ring_that_stops_with_cerror_abt_goes_on_without_a_cmd_sync() {
    goes_on_after(CommandError::Abt);
}

/// Refuses one command, once.
struct Refuses(AtomicBool);

impl Invalidate for Refuses {
    fn invalidate(&self, commands: &[Command]) -> io::Result<()> {
        // One thread: no order is needed.
        match commands.len() == 1 && !self.0.swap(true, Relaxed) || !self.0.load(Relaxed) {
            true => Err(Errno::IO.into()),
            false => Ok(()),
        }
    }
}

#[test]
fn a_full_iommufd_queue_with_a_refused_command_goes_on_without_a_cmd_sync() {
    let (queue, mut executor) = iommufd::queue(Refuses(AtomicBool::new(false)), 6).unwrap();
    let (guest, mut worker) = flooded(queue);
    for _ in 0..400 {
        worker.poll();
        executor.step();
    }
    assert_eq!(guest.cons(), FLOOD as u32);
}

/// A worker on a thread of its own says that the host queue stands still, asleep or not.
fn told_of_a_stall(idle: Idle, commands: &[Command]) {
    let (ring, _smmu) = NativeRing::with_consumer(6).unwrap();
    let (mut guest, worker) = flooded(ring);
    let events = worker.events();
    let idle = Idle { stalled: Duration::from_millis(20), ..idle };
    let running = worker.with_sleep(idle).unwrap().spawn("worker", None).unwrap();
    guest.send(commands);
    let told = iter::from_fn(|| events.wait_at_most(PATIENCE));
    assert!(told.map(|event| event.kind).any(|kind| matches!(kind, EventKind::HostStalled(_))));
    drop(running);
}

#[test]
fn a_host_queue_without_room_is_told_to_stand_still_though_no_ticket_is_outstanding() {
    told_of_a_stall(Idle::always_sleep(), &[]);
    told_of_a_stall(Idle::always_spin(), &[]);
}

#[test]
fn a_host_queue_without_room_for_a_cmd_sync_is_told_to_stand_still() {
    told_of_a_stall(Idle::always_sleep(), &[sync()]);
}

#[test]
fn an_event_loop_is_told_that_a_host_queue_stands_still() {
    let (ring, _smmu) = NativeRing::with_consumer(6).unwrap();
    let (_guest, worker) = flooded(ring);
    let idle = Idle { stalled: Duration::from_millis(1), ..Idle::default() };
    let mut worker = worker.with_sleep(idle).unwrap();
    let events = worker.events();
    // Sweeps, and naps that are over at once.
    let told = (0..10_000).any(|_| {
        while worker.poll() {}
        if let Some(nap) = worker.prepare_to_sleep() {
            let at_most = nap.at_most.expect("something is outstanding");
            assert!(at_most <= Duration::from_millis(1));
            thread::sleep(Duration::from_millis(1));
        }
        events.waiting().any(|event| matches!(event.kind, EventKind::HostStalled(_)))
    });
    assert!(told);
}

#[test]
fn a_host_queue_that_wakes_its_worker_is_told_to_stand_still_by_a_worker_that_sleeps() {
    struct Never;
    impl Invalidate for Never {
        fn invalidate(&self, _: &[Command]) -> io::Result<()> {
            unreachable!("the executor does not run")
        }
    }
    let (queue, _executor) = iommufd::queue(Never, 6).unwrap();
    let mut worker = Worker::new(queue);
    let (mut guest, smmu) = Guest::new(Setup::default());
    // A doorbell that nobody rings: the worker has no timer of its own.
    smmu.set_doorbell(Doorbell::Eventfds(vec![EventFd::new(0).unwrap()]));
    worker.attach(smmu).unwrap();
    guest.start(4);
    worker.poll();
    let events = worker.events();
    let idle = Idle { stalled: Duration::from_millis(20), ..Idle::always_sleep() };
    let running = worker.with_sleep(idle).unwrap().spawn("worker", None).unwrap();
    guest.send(&[nh_asid(1), sync()]);
    running.handle().wake();
    let told = iter::from_fn(|| events.wait_at_most(PATIENCE));
    assert!(told.map(|event| event.kind).any(|kind| matches!(kind, EventKind::HostStalled(_))));
    drop(running);
}

/// A worker whose host queue has this, and what tells of stalls.
fn watched(stalled: Duration) -> (Guest, Worker<Script>, Script) {
    let host = Script::default();
    let mut worker = Worker::new(host.clone());
    let (mut guest, smmu) = Guest::new(Setup::default());
    worker.attach(smmu).unwrap();
    guest.start(4);
    let worker = worker.with_sleep(Idle { stalled, ..Idle::default() });
    let mut worker = worker.unwrap();
    while worker.poll() {}
    (guest, worker, host)
}

fn stalls(worker: &Worker<Script>) -> usize {
    let events = worker.events();
    events.waiting().filter(|event| matches!(event.kind, EventKind::HostStalled(_))).count()
}

#[test]
fn a_stall_is_told_once_in_each_period() {
    const PERIOD: Duration = Duration::from_millis(20);
    let start = Instant::now();
    let (mut guest, mut worker, _host) = watched(PERIOD);
    guest.send(&[nh_asid(1), sync()]);
    let mut told = 0;
    while start.elapsed() < 5 * PERIOD || told == 0 {
        while worker.poll() {}
        let _ = worker.prepare_to_sleep();
        told += stalls(&worker);
    }
    let most = start.elapsed().as_millis() / PERIOD.as_millis();
    assert!(told as u128 <= most, "{told} in {:?}", start.elapsed());
}

#[test]
fn a_host_queue_that_gets_on_does_not_stand_still_however_long_something_is_outstanding() {
    let (mut guest, mut worker, host) = watched(Duration::from_millis(1));
    let mut told = 0;
    guest.send(&[nh_asid(1)]);
    worker.poll();
    for round in 1..=20 {
        // A ticket is outstanding at each look, always another one.
        guest.send(&[sync(), nh_asid(1)]);
        (0..3).for_each(|_| _ = worker.poll());
        assert!(host.syncs() >= round);
        let _ = worker.prepare_to_sleep();
        told += stalls(&worker);
        thread::sleep(Duration::from_millis(2));
        host.finish(round);
        (0..3).for_each(|_| _ = worker.poll());
    }
    assert_eq!(told, 0);
}
