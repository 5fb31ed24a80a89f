//! Workers that stop or go while something is on its way: what was acknowledged was done, and the rest is done again.

use std::sync::atomic::AtomicBool;
use std::thread;

use ecmdq_engine::host::{Cause, NativeRing};
use ecmdq_engine::{AttachError, Command, HostStreamId, Idle, Share, StreamId, Worker};

use crate::common::reg::CR0;
use crate::common::*;

/// What makes good for all that a guest of this VMID may have sent.
fn makes_good(vmid: u64) -> Vec<Command> {
    let stream = (vmid << 16) << 32;
    vec![Command([0x06 | stream, 0]), Command([0x10 | vmid << 32, 0]), Command([0x40 | stream, 52])]
}

/// A guest in front of a worker whose host takes nothing, and the guest's TLBI and CMD_SYNC with it.
fn under_way() -> (Guest, Worker<Script>) {
    let host = Script::default();
    let mut worker = Worker::new(host.clone());
    let (mut guest, smmu) = Guest::new(Rig::ats_setup(1));
    worker.attach(smmu).unwrap();
    guest.start(4);
    guest.write(CR0, CMDQEN | SMMUEN);
    (0..3).for_each(|_| _ = worker.poll());
    host.set_room(0);
    guest.send(&[nh_asid(1), sync()]);
    (0..3).for_each(|_| _ = worker.poll());
    assert_eq!((guest.cons(), host.received().len()), (1, 0), "the TLBI is consumed, and no host has it");
    (guest, worker)
}

#[test]
fn what_a_dropped_worker_had_taken_is_made_good_before_the_cmd_sync_completes() {
    let (guest, worker) = under_way();
    let smmu = worker.guests().next().unwrap().clone();
    drop(worker);
    let host = Script::default();
    let mut next = Worker::new(host.clone());
    // Rounds of its own, which have nothing to do with those of the first.
    let (mut other, other_smmu) = Guest::new(Rig::ats_setup(2));
    next.attach(other_smmu).unwrap();
    other.start(4);
    for n in 1..=8 {
        other.send(&[nh_asid(1), sync()]);
        (0..2).for_each(|_| _ = next.poll());
        host.finish(n);
        (0..2).for_each(|_| _ = next.poll());
    }
    let before = host.received().len();
    next.attach(smmu).unwrap();
    (0..4).for_each(|_| _ = next.poll());
    assert_eq!(guest.cons(), 1, "nothing is synchronised yet");
    assert_eq!(host.received()[before..], makes_good(1));
    host.finish_all();
    (0..4).for_each(|_| _ = next.poll());
    assert_eq!((guest.cons(), guest.active()), (2, 0));
}

#[test]
fn what_makes_good_for_a_guest_with_substream_ids_reaches_entries_of_all_pasids() {
    let host = Script::at_once();
    let mut worker = Worker::new(host.clone());
    let mut setup = Rig::ats_setup(1);
    setup.features.ssid_bits = 4;
    let (mut guest, smmu) = Guest::new(setup);
    worker.attach(smmu.clone()).unwrap();
    drop(worker);
    let mut next = Worker::new(host.clone());
    next.attach(smmu).unwrap();
    guest.start(4);
    (0..3).for_each(|_| _ = next.poll());
    // ATC_INV with SSV and Global.
    let all_pasids = Command([0x40 | 1 << 9 | 1 << 11 | 1 << 48, 52]);
    assert_eq!(host.received()[..], [makes_good(1), vec![all_pasids]].concat());
}

#[test]
fn a_reset_does_not_forget_what_a_dropped_worker_left_undone() {
    let (mut guest, worker) = under_way();
    let smmu = worker.guests().next().unwrap().clone();
    drop(worker);
    smmu.reset();
    let host = Script::at_once();
    let mut next = Worker::new(host.clone());
    next.attach(smmu).unwrap();
    guest.start(4);
    (0..3).for_each(|_| _ = next.poll());
    guest.send(&[sync()]);
    (0..4).for_each(|_| _ = next.poll());
    assert_eq!((&host.received()[..], guest.cons()), (&makes_good(1)[..], 1));
}

#[test]
fn a_worker_that_goes_while_a_guest_leaves_tells_who_waits_and_the_next_one_makes_good() {
    let (guest, mut worker) = under_way();
    let smmu = worker.guests().next().unwrap().clone();
    let leaving = worker.detach(&smmu);
    worker.poll();
    let handle = worker.handle();
    let late = handle.detach(&smmu);
    assert!(!leaving.has_left() && !late.has_left());
    drop(worker);
    assert!(leaving.has_left() && late.has_left() && handle.detach(&smmu).has_left());
    let host = Script::at_once();
    let mut next = Worker::new(host.clone());
    next.attach(smmu).unwrap();
    (0..4).for_each(|_| _ = next.poll());
    assert_eq!((&host.received()[..], guest.cons()), (&makes_good(1)[..], 2));
}

#[test]
fn what_makes_good_and_is_refused_is_told_at_the_next_cmd_sync() {
    let (guest, worker) = under_way();
    let smmu = worker.guests().next().unwrap().clone();
    drop(worker);
    let host = Script::default();
    let mut next = Worker::new(host.clone());
    next.attach(smmu).unwrap();
    (0..3).for_each(|_| _ = next.poll());
    host.fail_for(2, Cause::Illegal, Some(makes_good(1)[1]));
    (0..3).for_each(|_| _ = next.poll());
    host.finish_all();
    (0..3).for_each(|_| _ = next.poll());
    assert_eq!((guest.error(), guest.cons()), (Some(CERROR_ILL), 1));
}

#[test]
fn an_atc_inv_that_makes_good_and_times_out_is_told_at_the_next_cmd_sync() {
    let (guest, worker) = under_way();
    let smmu = worker.guests().next().unwrap().clone();
    drop(worker);
    let host = Script::default();
    let mut next = Worker::new(host.clone());
    next.attach(smmu).unwrap();
    (0..3).for_each(|_| _ = next.poll());
    host.fail(3, Cause::AtcTimeout);
    (0..3).for_each(|_| _ = next.poll());
    assert_eq!((guest.error(), guest.cons()), (Some(CERROR_ATC_INV_SYNC), 1));
}

#[test]
fn all_of_a_guests_streams_are_made_good_before_anything_of_it_is_taken() {
    const STREAMS: u32 = 100;
    let (mut guest, smmu) = Guest::new(Setup { max_streams: 200, ..Rig::ats_setup(1) });
    for stream in 0..STREAMS {
        let owned = (StreamId(0x1000 + stream), HostStreamId(0x2_0000 + stream));
        guest.streams.insert(owned.0, owned.1).unwrap();
    }
    let mut worker = Worker::new(Script::at_once());
    worker.attach(smmu.clone()).unwrap();
    guest.start(4);
    worker.poll();
    drop(worker);
    guest.send(&[nh_asid(1), sync()]);
    let host = Script::at_once();
    let mut next = Worker::new(host.clone());
    next.attach(smmu).unwrap();
    (0..30).for_each(|_| _ = next.poll());
    let received = host.received().to_vec();
    assert_eq!(guest.cons(), 2);
    let streams = || (0..STREAMS).map(|stream| 0x2_0000 + u64::from(stream)).chain([1 << 16]);
    let of_streams = |low, high| streams().map(move |stream| Command([low | stream << 32, high]));
    let sorted = |commands: &[Command]| {
        let mut commands = commands.to_vec();
        commands.sort_by_key(|command| command.0);
        commands
    };
    let (configuration, rest) = received.split_at(STREAMS as usize + 1);
    assert_eq!(sorted(configuration), sorted(&of_streams(0x06, 0).collect::<Vec<_>>()));
    assert_eq!((rest[0], rest.last()), (makes_good(1)[1], Some(&host_asid(1, 1))));
    assert_eq!(sorted(&rest[1..rest.len() - 1]), sorted(&of_streams(0x40, 52).collect::<Vec<_>>()));
}

#[test]
fn a_guest_that_was_to_be_attached_to_a_worker_that_is_dropped_is_free() {
    let worker = Worker::new(Script::at_once());
    let handle = worker.handle();
    let (_, smmu) = Guest::new(Setup::default());
    handle.attach(smmu.clone(), None, Share::default()).unwrap();
    drop(worker);
    assert_eq!(handle.attach(smmu.clone(), None, Share::default()), Err(AttachError::NoWorker));
    let mut next = Worker::new(Script::at_once());
    next.attach(smmu).unwrap();
}

#[test]
fn a_worker_without_a_host_queue_refuses_guests_that_bring_none() {
    let mut worker = Worker::<Script>::without_host();
    let (_, smmu) = Guest::new(Setup::default());
    assert_eq!(worker.attach(smmu.clone()), Err(AttachError::NoHostQueue));
    let by_handle = worker.handle().attach(smmu.clone(), None, Share::default());
    assert_eq!(by_handle, Err(AttachError::NoHostQueue));
    worker.attach_with(smmu, Script::at_once()).unwrap();
    assert_eq!(worker.guests().len(), 1);
}

#[test]
fn whoever_detaches_a_guest_again_waits_as_long_as_the_first() {
    let (_guest, mut worker) = under_way();
    let smmu = worker.guests().next().unwrap().clone();
    let all = [worker.detach(&smmu), worker.detach(&smmu)];
    (0..3).for_each(|_| _ = worker.poll());
    assert_eq!(all.each_ref().map(|leaving| leaving.has_left()), [false; 2], "it is still served");
    drop(worker);

    let host = Script::at_once();
    let mut worker = Worker::without_host();
    let (_, smmu) = Guest::new(Setup::default());
    worker.attach_with(smmu.clone(), host).unwrap();
    let [first, second] = [worker.detach(&smmu), worker.detach(&smmu)];
    (0..3).for_each(|_| _ = worker.poll());
    assert!(first.has_left() && second.has_left());
    assert!(first.wait().is_some() && second.wait().is_none(), "there is one host queue");
}

#[test]
fn a_worker_that_was_stopped_runs_again() {
    let (ring, _smmu) = NativeRing::with_consumer(4).unwrap();
    let running = Worker::new(ring).with_sleep(Idle::default()).unwrap().spawn("worker", None).unwrap();
    let mut worker = running.stop().unwrap();
    let handle = worker.handle();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (mut guest, smmu) = Guest::new(Setup::default());
        handle.attach(smmu, None, Share::default()).unwrap();
        guest.start(4);
        let thread = scope.spawn(|| worker.run(&stop));
        // It enables the queue: it runs.
        while !guest.enabled() {
            assert!(!thread.is_finished(), "it ended at once");
            thread::yield_now();
        }
        handle.stop();
        thread.join().unwrap();
    });
}

#[test]
fn a_stop_before_the_run_ends_that_run_and_keeps_no_polled_worker_awake() {
    let mut worker = Worker::new(Script::at_once()).with_sleep(Idle::always_sleep()).unwrap();
    worker.handle().stop();
    worker.handle().stop();
    while worker.poll() {}
    assert!(worker.prepare_to_sleep().is_some(), "there is nothing to do");
    worker.poll();
    worker.run(&AtomicBool::new(false));
}
