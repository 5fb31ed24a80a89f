//! CMD_SYNCs that were under way together complete one after the other, and all of them do.

use ecmdq_engine::Opcode;

use crate::common::*;
use crate::support::*;

#[test]
fn msis_come_in_order_each_when_cons_has_passed_its_cmd_sync() {
    let mut yard = Yard::new(6);
    yard.send(&(0..30).flat_map(|n| [nh_asid(n), msi(n as u32)]).collect::<Vec<_>>());
    assert_eq!((yard.cons(), yard.msis(), yard.received().len()), (1, vec![], 30));
    assert_eq!(yard.rig.host.syncs(), 1, "one for all");
    yard.finish(1);
    // CONS is at the next command.
    assert_eq!(yard.msis(), (0..30).map(|n| (n, 2 * n + 2)).collect::<Vec<_>>());
    assert_eq!((yard.cons(), yard.rig.guests[0].stats.read().syncs), (60, 30));
}

#[test]
fn an_msi_behind_cmd_syncs_without_one_comes_when_cons_has_passed_them_all() {
    let mut yard = Yard::new(6);
    yard.send(&(0..10).flat_map(|n| [nh_asid(n), sync(), sync(), msi(n as u32)]).collect::<Vec<_>>());
    assert_eq!((yard.cons(), yard.msis()), (1, vec![]));
    yard.finish(1);
    assert_eq!(yard.msis(), (0..10).map(|n| (n, 4 * n + 4)).collect::<Vec<_>>());
    assert_eq!((yard.cons(), yard.rig.guests[0].stats.read().syncs), (40, 30));
}

#[test]
fn cmd_syncs_of_several_rounds_complete_with_theirs_whether_they_have_msis_or_not() {
    let told = [(1, 2), (2, 4), (3, 6)];
    for with_msis in [true, false] {
        let mut yard = Yard::new(4);
        yard.send(&three().map(|command| match command.opcode() {
            Opcode::CMD_SYNC if !with_msis => sync(),
            _ => command,
        }));
        assert_eq!((yard.cons(), yard.rig.host.syncs()), (1, 3));
        for (ticket, cons) in [(1, 2), (2, 4), (3, 6)] {
            yard.finish(ticket);
            let msis = if with_msis { told[..ticket].to_vec() } else { Vec::new() };
            assert_eq!((yard.cons(), yard.msis()), (cons, msis), "ticket {ticket}");
        }
    }
}

#[test]
fn cons_passes_a_cmd_sync_whoever_completes_next() {
    let (mut yard, mut ecmdq) = Yard::with_ecmdq();
    yard.rig.guests[0].send(&[nh_asid(1), sync()]);
    ecmdq.send(&[nh_asid(2), sync()]);
    yard.rig.poll();
    ecmdq.send(&[nh_asid(3), sync()]);
    yard.send(&[nh_asid(4), sync()]);
    assert_eq!((yard.cons(), ecmdq.cons(), yard.rig.host.syncs()), (1, 1, 1));
    yard.finish(1);
    assert_eq!((yard.cons(), ecmdq.cons(), yard.rig.host.syncs()), (2, 2, 2));
}

/// A guest has room for 512.
#[test]
fn more_cmd_syncs_than_may_be_under_way_complete_all_the_same() {
    let mut yard = Yard::new(10);
    yard.send(&[vec![nh_asid(1)], vec![sync(); 513], vec![nh_asid(2), msi(9)]].concat());
    yard.rig.poll_times(20);
    assert_eq!((yard.cons(), yard.received().len()), (1, 1), "the last ones wait");
    yard.finish(1);
    assert_eq!((yard.cons(), yard.received().len()), (513, 2), "with all that were under way");
    yard.finish(2);
    assert_eq!((yard.cons(), yard.msis()), (516, vec![(9, 516)]));
    assert_eq!(yard.rig.guests[0].stats.read().syncs, 514);
}

#[test]
fn a_ring_full_of_commands_each_with_its_cmd_sync_is_taken_once_and_in_order() {
    const ALL: u64 = 1000;
    let mut yard = Yard::new(11);
    yard.send(&(0..ALL).flat_map(|n| [nh_asid(n), sync()]).collect::<Vec<_>>());
    for _ in 0..50 {
        let before = yard.cons();
        yard.rig.host.finish_all();
        yard.rig.poll();
        let completed = yard.rig.guests[0].stats.read().syncs;
        assert!(yard.cons() >= before && completed <= yard.rig.host.covered() as u64);
    }
    assert_eq!((yard.cons(), yard.rig.guests[0].stats.read().syncs), (2 * ALL as u32, ALL));
    assert_eq!(yard.received(), (0..ALL).map(|n| host_asid(1, n)).collect::<Vec<_>>());
}

/// Of those that a visit notes for the VMM there may be 64.
#[test]
fn more_cmd_syncs_that_are_told_by_interrupt_than_one_visit_tells_of_complete_all_the_same() {
    let mut yard = Yard::new(9);
    yard.send(&(0..200).map(msi).collect::<Vec<_>>());
    yard.rig.poll_times(20);
    assert_eq!(yard.msis(), (0..200).map(|n| (n, n + 1)).collect::<Vec<_>>(), "with nothing to wait for");
    yard.send(&[vec![nh_asid(1)], (0..200).map(msi).collect()].concat());
    yard.finish(1);
    yard.rig.poll_times(20);
    assert_eq!(yard.msis()[200..], (0..200).map(|n| (n, n + 202)).collect::<Vec<_>>(), "one round");
}
