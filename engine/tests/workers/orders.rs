//! Guests that come and go while a worker runs.

use std::sync::Arc;

use ecmdq_engine::host::{Cause, NativeRing};
use ecmdq_engine::{AttachError, Share, SleeperKind, Worker};

use crate::common::*;
use crate::support::*;

#[test]
fn guests_move_between_workers_that_run_and_miss_nothing() {
    on_each_sleeper(|kind| {
        const MOVES: u64 = 40;
        let hosts = [AtOnce::default(), AtOnce::default()];
        let running = hosts.each_ref().map(|host| {
            Worker::new(host.clone()).with_sleep(sleepy(kind)).unwrap().spawn("worker", None).unwrap()
        });
        let handles = running.each_ref().map(|running| running.handle());
        let (mut guest, smmu) = Guest::new(trapped());
        let (mut stays, other) = Guest::new(Setup { vmid: 8, ..trapped() });
        handles[0].attach(smmu.clone(), None, Share::default()).unwrap();
        handles[0].attach(other, None, Share::default()).unwrap();
        enable(&mut guest);
        enable(&mut stays);
        std::thread::scope(|scope| {
            let (smmu, handles) = (&smmu, &handles);
            scope.spawn(move || {
                for n in 0..MOVES as usize {
                    let [from, to] = [&handles[n % 2], &handles[(n + 1) % 2]];
                    let leaving = from.detach(smmu);
                    wait_for("the guest has left", || leaving.has_left());
                    to.attach(smmu.clone(), None, Share::default()).unwrap();
                }
            });
            scope.spawn(|| (0..500).for_each(|asid| invalidate(&mut stays, asid)));
            (0..500).for_each(|asid| invalidate(&mut guest, asid));
        });
        assert_eq!(hosts.iter().map(AtOnce::received).sum::<u64>(), 1000);
    });
}

#[test]
fn a_guest_leaves_when_what_was_taken_has_been_synchronised_and_not_before() {
    let mut rig = Rig::new(2, 4, Script::default());
    rig.guests[0].send(&[nh_asid(1), nh_asid(2), sync(), nh_asid(3)]);
    rig.poll();
    let smmu = rig.handle(0);
    let leaving = rig.worker.detach(&smmu);
    rig.guests[0].send(&[nh_asid(4)]);
    rig.guests[1].send(&[nh_asid(5), sync()]);
    rig.poll_times(4);
    assert!(!leaving.has_left(), "the host has not completed what it has of it");
    assert_eq!(rig.worker.guests().len(), 2);
    // One synchronisation is that of its CMD_SYNC; the other is shared with guest 1.
    for ticket in 1..=2 {
        rig.host.finish(ticket);
        rig.poll_times(4);
    }
    assert!(leaving.has_left());
    assert_eq!((rig.worker.guests().len(), rig.host.syncs()), (1, 2));
    // Its CMD_SYNC is complete, and what had been taken behind it; nothing was taken afterwards.
    assert_eq!((rig.cons(0), rig.guests[1].cons()), (4, 2));
    let sent: Vec<_> = rig.host.received().iter().map(|command| command.bits(0, 63, 48)).collect();
    assert_eq!(sent, [1, 2, 3, 5]);
    // Who goes on with it takes the rest.
    let host = Script::at_once();
    let mut next = Worker::new(host.clone());
    next.attach(smmu).unwrap();
    (0..4).for_each(|_| _ = next.poll());
    let sent: Vec<_> = host.received().iter().map(|command| command.bits(0, 63, 48)).collect();
    assert_eq!(sent, [4]);
    assert_eq!(rig.cons(0), 5);
}

#[test]
fn a_paused_guest_leaves_with_its_cmd_sync_which_the_next_worker_completes() {
    let mut rig = Rig::new(1, 4, Script::default());
    rig.guests[0].send(&[nh_asid(1), sync()]);
    rig.poll();
    let smmu = rig.handle(0);
    smmu.pause();
    let leaving = rig.worker.detach(&smmu);
    rig.host.finish_all();
    rig.poll_times(4);
    rig.host.finish_all();
    rig.poll_times(4);
    assert!(leaving.has_left());
    assert_eq!(rig.cons(0), 1, "it is paused");
    let host = Script::default();
    let mut next = Worker::new(host.clone());
    next.attach(smmu.clone()).unwrap();
    smmu.resume();
    (0..4).for_each(|_| _ = next.poll());
    assert_eq!(rig.cons(0), 2);
    assert_eq!(*host.received(), [], "the first host has done all that was to be done");
}

#[test]
fn a_guest_whose_last_synchronisation_failed_leaves_with_its_error() {
    for (cause, error) in [(Cause::DeviceGone, Some(CERROR_ABT)), (Cause::Transient, None)] {
        let mut rig = Rig::new(1, 4, Script::default());
        rig.guests[0].send(&[nh_asid(1), sync()]);
        rig.poll();
        let smmu = rig.handle(0);
        let leaving = rig.worker.detach(&smmu);
        rig.poll();
        rig.host.fail(1, cause);
        rig.poll_times(2);
        // Of a transient failure nothing is known: another synchronisation is asked for.
        assert_eq!(leaving.has_left(), error.is_some(), "{cause:?}");
        rig.host.finish_all();
        rig.poll_times(4);
        assert_eq!(rig.worker.guests().len(), 0);
        assert_eq!(rig.guests[0].error(), error, "{cause:?}");
    }
}

#[test]
fn a_guest_takes_its_own_host_queue_along() {
    let (mut guest, smmu) = Guest::new(trapped());
    let host = AtOnce::default();
    let mut worker = Worker::without_host();
    worker.attach_with(smmu.clone(), host.clone()).unwrap();
    guest.start(4);
    worker.poll();
    guest.send(&[nh_asid(1), sync()]);
    (0..4).for_each(|_| _ = worker.poll());
    let leaving = worker.detach(&smmu);
    (0..4).for_each(|_| _ = worker.poll());
    let mut next = Worker::without_host();
    next.attach_with(smmu, leaving.wait().unwrap()).unwrap();
    guest.send(&[nh_asid(2), sync()]);
    (0..4).for_each(|_| _ = next.poll());
    assert_eq!((guest.cons(), host.received()), (4, 2));
}

#[test]
fn a_guest_that_has_a_worker_gets_no_second_one() {
    let (mut guest, smmu) = Guest::new(trapped());
    let hosts = [Script::at_once(), Script::at_once()];
    let [mut first, mut second] = hosts.each_ref().map(|host| Worker::new(host.clone()));
    first.attach(smmu.clone()).unwrap();
    assert_eq!(first.attach(smmu.clone()), Err(AttachError::HasWorker));
    assert_eq!(second.attach(smmu.clone()), Err(AttachError::HasWorker));
    let by_handle = second.handle().attach(smmu.clone(), None, Share::default());
    assert_eq!(by_handle, Err(AttachError::HasWorker));
    assert_eq!((first.guests().len(), second.guests().len()), (1, 0));
    guest.start(4);
    first.poll();
    guest.send(&[nh_asid(1), sync()]);
    (0..4).for_each(|_| _ = (first.poll(), second.poll()));
    assert_eq!((guest.cons(), hosts[0].received().len(), hosts[1].received().len()), (2, 1, 0));
    drop(first);
    second.attach(smmu).unwrap();
    assert_eq!(second.guests().len(), 1);
}

#[test]
fn a_guest_that_is_not_there_has_left() {
    let mut worker = Worker::new(Script::at_once());
    let (_, smmu) = Guest::new(Setup::default());
    let leaving = worker.detach(&smmu);
    worker.poll();
    assert!(leaving.has_left());
}

#[test]
fn when_the_worker_is_dropped_its_guests_have_left() {
    let (mut guest, smmu) = Guest::new(trapped());
    let mut worker = Worker::new(AtOnce::default());
    worker.attach(smmu.clone()).unwrap();
    let leaving = worker.detach(&smmu);
    drop(worker);
    assert!(leaving.has_left());
    leaving.wait();
    let mut next = Worker::new(AtOnce::default());
    next.attach(smmu).unwrap();
    guest.start(4);
    next.poll();
    assert!(guest.enabled());
}

#[test]
fn everything_may_be_dropped_in_any_order() {
    for order in 0..6 {
        let (ring, host) = NativeRing::with_consumer(6).unwrap();
        let (mut guest, smmu) = Guest::new(trapped());
        let mut worker = Worker::new(ring).with_sleep(sleepy(SleeperKind::Epoll)).unwrap();
        worker.attach(smmu.clone()).unwrap();
        let (handle, events) = (worker.handle(), worker.events());
        let running = worker.spawn("worker", None).unwrap();
        enable(&mut guest);
        guest.send(&[nh_asid(1), sync()]);
        let mut rest: Vec<Box<dyn std::any::Any>> =
            vec![Box::new(smmu.clone()), Box::new(running), Box::new((host, events))];
        // All six orders of three.
        drop(rest.remove(order % 3));
        drop(rest.remove(order / 3));
        drop(rest);
        // Those that outlive the worker do nothing.
        handle.wake();
        handle.stop();
        assert_eq!(handle.attach(smmu.clone(), None, Share::default()), Err(AttachError::NoWorker));
        smmu.pause();
        smmu.resume();
        guest.send(&[nh_asid(2)]);
    }
}

#[test]
fn several_engines_share_a_process_and_a_stream_map() {
    let (mut a, smmu_a) = Guest::new(trapped());
    let (mut b, smmu_b) = Guest::new(Setup { vmid: 8, ..trapped() });
    let hosts = [AtOnce::default(), AtOnce::default()];
    let streams = Arc::clone(&a.streams);
    let running: Vec<_> = [smmu_a, smmu_b]
        .into_iter()
        .zip(&hosts)
        .map(|(smmu, host)| {
            let mut worker = Worker::new(host.clone());
            worker.attach(smmu).unwrap();
            worker.spawn("worker", None).unwrap()
        })
        .collect();
    enable(&mut a);
    enable(&mut b);
    (0..100).for_each(|asid| {
        invalidate(&mut a, asid);
        invalidate(&mut b, asid);
    });
    drop(running);
    assert_eq!(hosts.map(|host| host.received()), [100, 100]);
    drop(streams);
}
