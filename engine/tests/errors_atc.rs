//! Synchronisations of the host that fail: CERROR_ATC_INV_SYNC for whom it concerns, patience for everybody else (facts
//! sheet, sections 1.8, 3.3 and 4.3).

mod common;

use common::*;
use ecmdq_engine::Command;
use ecmdq_engine::host::Cause::{AtcTimeout, Transient};

/// A word of RAM that is in no queue.
const WORD: u64 = RAM + 0x804;

/// The MSIs that came to [`WORD`] are told apart by their data.
fn msi(data: u32) -> Command {
    sync_msi(WORD, data)
}

/// A guest whose CMD_SYNC at index 2, behind an ATC_INV, has failed by a time-out.
fn timed_out() -> Rig {
    let mut rig = Rig::with_ats(1);
    rig.guests[0].send(&[nh_asid(1), atc_inv(STREAM), msi(9), nh_asid(2)]);
    rig.poll();
    rig.host.fail(1, AtcTimeout);
    rig.poll_times(3);
    rig
}

#[test]
fn a_time_out_stops_the_queue_at_the_cmd_sync_without_an_msi() {
    let rig = timed_out();
    let guest = &rig.guests[0];
    assert_eq!((guest.error(), guest.cons(), guest.active()), (Some(CERROR_ATC_INV_SYNC), 2, CMDQ_ERR));
    assert_eq!(guest.u32_at(WORD), 0, "not complete");
    assert_eq!(
        *rig.host.received(),
        [host_asid(1, 1), atc_inv(0x1_0000), host_asid(1, 2)],
        "what is behind the CMD_SYNC had been taken before"
    );
    let stats = guest.stats.read();
    assert_eq!((stats.host_failures, stats.syncs, stats.commands), (1, 0, 2));
}

#[test]
fn acknowledging_a_time_out_repeats_the_cmd_sync_which_completes() {
    let mut rig = timed_out();
    rig.guests[0].ack();
    rig.poll_times(3);
    assert_eq!((rig.cons(0), rig.guests[0].error(), rig.host.syncs()), (2, None, 2), "it is asked for again");
    rig.host.finish(2);
    rig.poll_times(3);
    assert_eq!((rig.cons(0), rig.guests[0].u32_at(WORD), rig.guests[0].active()), (4, 9, 0));
    let expected = [host_asid(1, 1), atc_inv(0x1_0000), host_asid(1, 2), host_asid(1, 2)];
    assert_eq!(*rig.host.received(), expected, "no ATC_INV is repeated, and what is behind the CMD_SYNC is");
}

#[test]
fn a_repeated_cmd_sync_that_times_out_for_somebody_else_is_only_delayed() {
    let mut rig = timed_out();
    rig.guests[0].ack();
    rig.poll_times(2);
    rig.host.fail(2, AtcTimeout);
    rig.poll_times(2);
    assert_eq!((rig.guests[0].error(), rig.cons(0), rig.host.syncs()), (None, 2, 3));
    rig.host.finish(3);
    rig.poll();
    assert_eq!((rig.guests[0].u32_at(WORD), rig.guests[0].active()), (9, 0));
}

#[test]
fn a_guest_without_an_atc_inv_in_the_round_is_only_delayed() {
    let mut rig = Rig::with_ats(2);
    rig.guests[0].send(&[atc_inv(STREAM), sync()]);
    rig.guests[1].send(&[nh_asid(1), msi(9)]);
    rig.poll();
    assert_eq!(rig.host.syncs(), 1, "one round");
    rig.host.fail(1, AtcTimeout);
    rig.poll_times(3);
    assert_eq!((rig.guests[0].error(), rig.guests[1].error()), (Some(CERROR_ATC_INV_SYNC), None));
    assert_eq!((rig.cons(1), rig.guests[1].u32_at(WORD), rig.host.syncs()), (1, 0, 2), "asked for again");
    rig.host.finish(2);
    rig.poll();
    assert_eq!((rig.cons(1), rig.guests[1].u32_at(WORD), rig.guests[1].active()), (2, 9, 0));
    assert_eq!(rig.cons(0), 1, "the other waits for its acknowledgement");
}

/// Whether an ATC_INV counts does not depend on what stands between it and its CMD_SYNC, nor on a CMD_SYNC before it.
#[test]
fn every_atc_inv_since_the_last_cmd_sync_counts_and_none_before_it() {
    let cases: [(&[Command], bool); 5] = [
        (&[atc_inv(STREAM), nh_asid(1)], true),
        (&[nh_asid(1), atc_inv(STREAM)], true),
        (&[atc_inv(STREAM), atc_inv(STREAM)], true),
        (&[atc_inv(NO_STREAM)], false),
        (&[nh_asid(1)], false),
    ];
    for (commands, concerned) in cases {
        let mut rig = Rig::with_ats(1);
        rig.guests[0].send(&[atc_inv(STREAM), sync()]);
        rig.poll();
        rig.host.finish(1);
        rig.poll();
        assert_eq!(rig.cons(0), 2);
        for command in commands {
            rig.guests[0].send(&[*command]);
            rig.poll();
        }
        rig.guests[0].send(&[nh_asid(7), sync()]);
        rig.poll();
        rig.host.fail(2, AtcTimeout);
        rig.poll();
        assert_eq!(rig.guests[0].error(), concerned.then_some(CERROR_ATC_INV_SYNC), "{commands:?}");
    }
}

#[test]
fn a_time_out_after_a_transient_failure_is_still_told() {
    let mut rig = Rig::with_ats(1);
    rig.guests[0].send(&[atc_inv(STREAM), sync()]);
    rig.poll();
    rig.host.fail(1, Transient);
    rig.poll_times(2);
    rig.host.fail(2, AtcTimeout);
    rig.poll();
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ATC_INV_SYNC), 1));
}

#[test]
fn ecmdqs_tell_a_time_out_by_reason_3() {
    let mut rig = Rig::with_ats(1);
    let mut queues = [0, 1].map(|number| rig.guests[0].ecmdq(number));
    queues.iter_mut().for_each(|queue| queue.start(4));
    rig.poll();
    queues[0].send(&[nh_asid(1), atc_inv(STREAM), msi(9)]);
    queues[1].send(&[nh_asid(2), sync()]);
    rig.poll();
    rig.host.fail(1, AtcTimeout);
    rig.poll_times(2);
    assert_eq!(queues[0].cons_word(), 0x8380_0002, "ENACK, ERR, ERR_REASON=3, RD=2");
    assert_eq!((queues[1].cons_word(), rig.guests[0].active()), (0x8000_0001, CMDQP_ERR));
    assert_eq!((rig.host.syncs(), rig.guests[0].u32_at(WORD)), (2, 0));
    queues[0].ack();
    rig.poll_times(2);
    rig.host.finish_all();
    rig.poll_times(2);
    assert_eq!((queues[0].cons(), queues[1].cons(), rig.guests[0].u32_at(WORD)), (3, 2, 9));
    assert_eq!((queues[0].error(), queues[1].error()), (None, None));
}

/// The ATC_INV of one queue times out in the synchronisation that another's CMD_SYNC asked for. Its own CMD_SYNC, which
/// comes later, could not complete it (facts sheet, section 1.8); a synchronisation is not told twice.
#[test]
fn an_atc_inv_that_timed_out_in_anothers_round_fails_its_own_cmd_sync() {
    let mut rig = Rig::with_ats(2);
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.fail(1, AtcTimeout);
    rig.poll_times(3);
    assert_eq!((rig.guests[0].active(), rig.guests[1].active()), (0, 0), "nobody has waited for it yet");
    rig.guests[0].send(&[msi(9)]);
    rig.poll_times(2);
    rig.host.finish_all();
    rig.poll_times(2);
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ATC_INV_SYNC), 1));
    assert_eq!((rig.cons(1), rig.guests[1].active()), (2, 0));
    rig.guests[0].ack();
    rig.poll_times(2);
    rig.host.finish_all();
    rig.poll_times(2);
    assert_eq!((rig.cons(0), rig.guests[0].active(), rig.guests[0].u32_at(WORD)), (2, 0, 9));
}

#[test]
fn a_round_that_was_finished_before_another_failed_is_not_concerned() {
    let mut rig = Rig::with_ats(2);
    rig.guests[0].send(&[atc_inv(STREAM), sync()]);
    rig.poll();
    rig.guests[1].send(&[atc_inv(STREAM), sync()]);
    rig.poll();
    rig.host.fail(2, AtcTimeout);
    rig.poll_times(3);
    assert_eq!((rig.cons(0), rig.guests[0].active()), (2, 0), "the first is complete");
    assert_eq!((rig.cons(1), rig.guests[1].error()), (1, Some(CERROR_ATC_INV_SYNC)));
}

/// One ATC_INV was completed by a round, a later one was not.
#[test]
fn the_last_of_several_atc_invs_counts_as_well_as_the_first() {
    for failed in [1, 2] {
        let mut rig = Rig::with_ats(2);
        for _ in 0..2 {
            rig.guests[0].send(&[atc_inv(STREAM)]);
            rig.guests[1].send(&[nh_asid(1), sync()]);
            rig.poll();
            if rig.host.syncs() == failed {
                rig.host.fail(failed, AtcTimeout);
                rig.poll();
            }
            rig.host.finish_all();
            rig.poll_times(2);
            rig.host.finish_all();
            rig.poll();
        }
        rig.guests[0].send(&[sync()]);
        rig.poll_times(2);
        rig.host.finish_all();
        rig.poll_times(2);
        assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ATC_INV_SYNC), 2), "round {failed}");
        assert_eq!((rig.guests[1].active(), rig.cons(1)), (0, 4));
    }
}

/// The synchronisation that failed began after the ATC_INV was complete.
#[test]
fn an_atc_inv_that_anothers_round_has_completed_is_not_concerned_by_a_later_one() {
    let mut rig = Rig::with_ats(2);
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.finish(1);
    rig.poll();
    rig.guests[0].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.fail(2, AtcTimeout);
    rig.poll_times(2);
    assert_eq!((rig.guests[0].active(), rig.cons(0), rig.host.syncs()), (0, 2, 3), "delayed");
}

#[test]
fn a_queue_that_was_disabled_or_reset_is_not_told() {
    type Change = fn(&mut Rig);
    let changes: [Change; 2] = [|rig| rig.guests[0].stop(), |rig| rig.handle(0).reset()];
    for change in changes {
        let mut rig = Rig::with_ats(1);
        rig.guests[0].send(&[atc_inv(STREAM), sync()]);
        rig.poll();
        change(&mut rig);
        rig.poll();
        rig.host.fail(1, AtcTimeout);
        rig.poll_times(2);
        assert_eq!(rig.guests[0].active(), 0);
        rig.guests[0].start(4);
        rig.poll();
        rig.guests[0].send(&[nh_asid(1), sync()]);
        rig.poll_times(2);
        rig.host.finish_all();
        rig.poll_times(2);
        assert_eq!((rig.cons(0), rig.guests[0].active()), (2, 0));
    }
}
