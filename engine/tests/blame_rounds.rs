//! Which rounds a queue has something in, for which it may be to blame, when more than one of them fails.

mod common;

use common::*;
use ecmdq_engine::Worker;
use ecmdq_engine::host::Cause::{AtcTimeout, DeviceGone, Illegal, Transient};

/// Two guests, the second with two ECMDQs, so that others than guest 0 can have CMD_SYNCs in more than one round.
fn rig() -> (Rig, [Ecmdq; 2]) {
    let mut rig = Rig::with_ats(2);
    let mut ecmdqs = [0, 1].map(|number| rig.guests[1].ecmdq(number));
    ecmdqs.iter_mut().for_each(|ecmdq| ecmdq.start(4));
    rig.poll_times(2);
    (rig, ecmdqs)
}

/// Guest 0 sends its CMD_SYNC at last, which completes, or fails: its error.
fn told(rig: &mut Rig) -> Option<u32> {
    rig.guests[0].send(&[sync()]);
    // What the host has been asked for, and then the round of this CMD_SYNC.
    for _ in 0..2 {
        rig.poll_times(2);
        rig.host.finish_all();
    }
    rig.poll_times(2);
    let error = rig.guests[0].error();
    assert_eq!(rig.cons(0), rig.guests[0].prod() - u32::from(error.is_some()), "{error:?}");
    error
}

#[test]
fn the_first_of_two_rounds_with_its_atc_invs_fails() {
    let (mut rig, mut ecmdqs) = rig();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.guests[1].send(&[sync()]);
    rig.poll();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    ecmdqs[0].send(&[sync()]);
    rig.poll();
    rig.host.fail(1, AtcTimeout);
    rig.poll_times(2);
    assert_eq!(told(&mut rig), Some(CERROR_ATC_INV_SYNC));
}

#[test]
fn what_a_transient_failure_left_open_is_covered_by_the_next_round_though_a_later_one_has_begun() {
    let (mut rig, mut ecmdqs) = rig();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.poll();
    // The order of guest 1's commands demands a round between them, and a second one follows.
    rig.guests[1].send(&[cfgi_cd(STREAM), sync(), nh_asid(1), sync()]);
    rig.poll();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    ecmdqs[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    assert_eq!((rig.host.syncs(), rig.host.received().len()), (2, 5), "and the third has begun");
    rig.host.fail(1, Transient);
    rig.poll();
    rig.host.fail(2, AtcTimeout);
    rig.poll_times(2);
    assert_eq!(told(&mut rig), Some(CERROR_ATC_INV_SYNC));
}

#[test]
fn an_illegal_command_that_a_transient_failure_left_open_is_told() {
    let (mut rig, _) = rig();
    rig.guests[0].send(&[nh_asid(1)]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.fail(1, Transient);
    rig.poll_times(2);
    assert_eq!(rig.host.syncs(), 2, "guest 1 asks again");
    rig.host.fail_for(2, Illegal, Some(host_asid(1, 1)));
    rig.poll_times(2);
    assert_eq!(told(&mut rig), Some(CERROR_ILL));
}

#[test]
fn a_round_of_long_ago_is_not_taken_for_a_later_one() {
    let (mut rig, mut ecmdqs) = rig();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    for round in 1..=128 {
        rig.guests[1].send(&[nh_asid(1), sync()]);
        rig.poll();
        rig.host.finish(round);
        rig.poll();
    }
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    ecmdqs[0].send(&[sync()]);
    rig.poll();
    assert_eq!(rig.host.syncs(), 129, "round 130 has begun");
    rig.host.fail(129, AtcTimeout);
    rig.poll_times(2);
    assert_eq!(told(&mut rig), None);
}

#[test]
fn a_queue_that_was_told_of_an_illegal_command_is_told_of_the_time_out_of_the_next_round() {
    let (mut rig, _) = rig();
    rig.guests[0].send(&[nh_asid(1), atc_inv(STREAM), sync()]);
    rig.poll();
    rig.host.fail_for(1, Illegal, Some(host_asid(1, 1)));
    rig.poll_times(2);
    assert_eq!(rig.guests[0].error(), Some(CERROR_ILL));
    rig.guests[0].ack();
    rig.poll_times(2);
    rig.host.fail(2, AtcTimeout);
    rig.poll_times(2);
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ATC_INV_SYNC), 2));
}

#[test]
fn a_cmd_sync_with_nothing_before_it_fails_when_the_host_has_gone() {
    let (mut rig, _) = rig();
    rig.guests[1].send(&[nh_asid(1)]);
    rig.guests[0].send(&[sync()]);
    rig.poll();
    rig.host.fail(1, DeviceGone);
    rig.poll_times(2);
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ABT), 0));
}

#[test]
fn a_guest_that_has_left_is_not_to_blame_for_a_round_of_its_next_worker() {
    let (mut rig, _) = rig();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.poll();
    let smmu = rig.handle(0);
    let leaving = rig.worker.detach(&smmu);
    rig.poll();
    rig.host.finish_all();
    rig.poll_times(2);
    assert!(leaving.has_left());
    let host = Script::default();
    let mut next = Worker::new(host.clone());
    let (mut other, other_smmu) = Guest::new(Rig::ats_setup(3));
    [smmu, other_smmu].into_iter().for_each(|smmu| next.attach(smmu).unwrap());
    other.start(4);
    (0..2).for_each(|_| _ = next.poll());
    other.send(&[nh_asid(1), sync()]);
    next.poll();
    host.fail(1, AtcTimeout);
    (0..2).for_each(|_| _ = next.poll());
    rig.guests[0].send(&[sync()]);
    (0..2).for_each(|_| _ = next.poll());
    host.finish_all();
    (0..2).for_each(|_| _ = next.poll());
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (None, 2));
}

/// Round 6 fails for an ATC_INV of guest 0, which has no CMD_SYNC yet. Then it moves to a worker whose rounds begin with 1.
#[test]
fn an_error_that_was_not_told_yet_is_told_by_the_next_worker_whatever_the_numbers_of_its_rounds() {
    let (mut rig, _) = rig();
    for round in 1..=5 {
        rig.guests[1].send(&[nh_asid(1), sync()]);
        rig.poll();
        rig.host.finish(round);
        rig.poll();
    }
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.fail(6, AtcTimeout);
    rig.poll_times(2);
    let smmu = rig.handle(0);
    let leaving = rig.worker.detach(&smmu);
    for _ in 0..2 {
        rig.poll();
        rig.host.finish_all();
    }
    rig.poll();
    assert!(leaving.has_left());
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (None, 1));
    let mut next = Worker::new(Script::at_once());
    next.attach(smmu).unwrap();
    next.poll();
    rig.guests[0].send(&[nh_asid(1), sync()]);
    (0..3).for_each(|_| _ = next.poll());
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ATC_INV_SYNC), 2));
}
