//! What stops a queue while several of its CMD_SYNCs are under way: a failure of the host, commands that must wait, memory that goes.

use ecmdq_engine::host::Cause::{AtcTimeout, Transient};

use crate::common::reg::CMDQ_PROD;
use crate::common::*;
use crate::support::*;

#[test]
fn an_error_at_the_second_of_three_cmd_syncs_lets_the_first_complete_and_the_third_be_taken_again() {
    let mut yard = Yard::new(4);
    yard.send(&[cfgi_cd(STREAM), msi(1), nh_asid(1), atc_inv(STREAM), msi(2), atc_inv(STREAM), msi(3)]);
    let [cfgi, tlbi, atc] = host_three();
    assert_eq!((yard.received(), yard.rig.host.syncs()), (vec![cfgi, tlbi, atc, atc], 3));
    yard.rig.host.fail(2, AtcTimeout);
    yard.rig.poll_times(2);
    let told = (Some(CERROR_ATC_INV_SYNC), 4);
    assert_eq!((yard.error(), yard.cons()), told, "at the second CMD_SYNC");
    assert_eq!(yard.msis(), [(1, 2)]);
    // The third's synchronisation does not complete it while the queue is stopped.
    yard.finish_all();
    assert_eq!(((yard.error(), yard.cons()), yard.msis()), (told, vec![(1, 2)]));
    assert_eq!(yard.received().len(), 4, "nothing is taken");
    yard.rig.guests[0].ack();
    yard.rig.poll_times(2);
    assert_eq!(
        (yard.received()[4..].to_vec(), yard.error()),
        (vec![atc], None),
        "what is behind it comes again"
    );
    yard.finish_all();
    assert_eq!((yard.error(), yard.cons()), (None, 7));
    assert_eq!(yard.msis(), [(1, 2), (2, 5), (3, 7)]);
    let stats = yard.rig.guests[0].stats.read();
    assert_eq!((stats.syncs, stats.host_failures), (3, 1));
}

#[test]
fn a_request_behind_cmd_syncs_is_made_when_cons_has_reached_it_and_what_is_behind_it_waits() {
    let vmm = Vmm::default();
    let mut yard = Yard::with(Setup { on_request: vmm.on_request(), ..Rig::ats_setup(1) }, 4);
    // SMMUEN.
    vmm.complete();
    yard.rig.poll_times(2);
    yard.send(&[nh_asid(1), msi(1), nh_asid(2), msi(2), cfgi_ste(STREAM), nh_asid(3), msi(3)]);
    assert_eq!((yard.cons(), vmm.waiting(), yard.received().len()), (1, 0, 2));
    yard.finish(1);
    assert_eq!((yard.cons(), vmm.waiting(), yard.received().len()), (4, 1, 2));
    vmm.complete();
    yard.rig.poll_times(2);
    assert_eq!((yard.cons(), yard.received().len(), yard.rig.host.syncs()), (6, 3, 2));
    yard.finish(2);
    assert_eq!((yard.cons(), yard.msis()), (7, vec![(1, 2), (2, 4), (3, 7)]));
}

#[test]
fn cmd_syncs_under_way_complete_when_the_memory_of_their_queue_has_gone() {
    // Whether the next command is published before that.
    for published in [false, true] {
        let mut yard = Yard::new(4);
        yard.send(&[nh_asid(1), msi(1), nh_asid(2), msi(2)]);
        yard.set_memory(false);
        if published {
            yard.send(&[nh_asid(3), msi(3)]);
        }
        assert_eq!((yard.cons(), yard.error(), yard.msis()), (1, None, vec![]), "they are under way");
        yard.finish(1);
        assert_eq!((yard.cons(), yard.msis()), (4, vec![(1, 2), (2, 4)]));
        if !published {
            assert_eq!(yard.error(), None, "there is no command");
            yard.send(&[nh_asid(3), msi(3)]);
        }
        assert_eq!((yard.error(), yard.cons(), yard.received().len()), (Some(CERROR_ABT), 4, 2));
        yard.set_memory(true);
        yard.rig.guests[0].ack();
        yard.rig.poll_times(2);
        yard.finish_all();
        assert_eq!((yard.error(), yard.cons(), yard.received().len()), (None, 6, 3));
        assert_eq!(yard.msis(), [(1, 2), (2, 4), (3, 6)]);
    }
}

#[test]
fn a_cmd_sync_that_has_completed_is_told_though_the_next_round_failed_meanwhile() {
    let mut yard = Yard::new(4);
    yard.send(&three());
    yard.rig.host.fail(2, Transient);
    yard.rig.poll_times(2);
    assert_eq!((yard.msis(), yard.error()), (vec![(1, 2)], None));
    assert!((2..=3).contains(&yard.cons()), "between the first and the second");
}

#[test]
fn all_commands_that_cons_has_passed_are_counted_when_the_second_cmd_sync_fails() {
    let mut yard = Yard::new(4);
    yard.send(&[cfgi_cd(STREAM), sync(), atc_inv(STREAM), sync()]);
    yard.rig.host.fail(2, AtcTimeout);
    yard.rig.poll_times(2);
    assert_eq!((yard.cons(), yard.error()), (3, Some(CERROR_ATC_INV_SYNC)));
    assert_eq!(yard.rig.guests[0].stats.read().commands, 3);
}

/// PROD is further from CONS than the ring is long, until a CMD_SYNC that is under way completes.
#[test]
fn commands_of_a_doorbell_that_came_too_early_are_taken_when_cons_has_caught_up() {
    let mut yard = Yard::new(2);
    yard.send(&[nh_asid(1), sync(), nh_asid(2), nh_asid(3)]);
    yard.rig.guests[0].put(4, nh_asid(4));
    yard.rig.guests[0].write(CMDQ_PROD, 6);
    yard.rig.poll_times(3);
    let stats = yard.rig.guests[0].stats.read();
    assert_eq!((yard.cons(), stats.inconsistent, yard.received().len()), (1, 1, 3));
    yard.finish_all();
    assert_eq!((yard.cons(), yard.received()[3]), (6, host_asid(1, 4)));
}
