//! Pausing, resetting and disabling while several CMD_SYNCs are under way.

use crate::common::reg::CR0;
use crate::common::*;
use crate::support::*;

/// The CMD_SYNCs of [`three`], each of a round of its own, and CMDQ_CONS when their MSIs come.
const TOLD: [(u32, u32); 3] = [(1, 2), (2, 4), (3, 6)];

fn under_way() -> Yard {
    let mut yard = Yard::new(4);
    yard.send(&three());
    assert_eq!((yard.cons(), yard.received(), yard.rig.host.syncs()), (1, host_three().to_vec(), 3));
    yard
}

#[test]
fn what_the_host_completes_while_the_guest_is_paused_completes_when_it_goes_on() {
    for before in 0..3 {
        let mut yard = under_way();
        yard.finish(before);
        yard.smmu.pause();
        let cons = yard.cons();
        yard.finish(3);
        assert_eq!((yard.cons(), yard.msis()), (cons, TOLD[..before].to_vec()));
        yard.smmu.resume();
        yard.rig.poll_times(2);
        assert_eq!((yard.cons(), yard.msis(), yard.error()), (6, TOLD.to_vec(), None));
        assert_eq!((yard.received().len(), yard.rig.host.syncs()), (3, 3), "nothing is sent again");
    }
}

#[test]
fn after_a_reset_none_completes() {
    for before in 0..3 {
        let mut yard = under_way();
        yard.finish(before);
        yard.smmu.reset();
        let start = |yard: &mut Yard| {
            yard.rig.guests[0].start(4);
            yard.rig.poll_times(2);
            yard.send(&[nh_asid(5), msi(9)]);
        };
        // Nor one of the queue that is started then, with their tickets.
        if before > 0 {
            start(&mut yard);
        }
        yard.finish(3);
        assert_eq!(yard.msis(), TOLD[..before], "{before}");
        assert_eq!(yard.rig.guests[0].stats.read().syncs, before as u64);
        if before == 0 {
            assert_eq!(yard.cons(), 0);
            start(&mut yard);
        }
        yard.finish_all();
        assert_eq!((yard.cons(), yard.msis()), (2, [&TOLD[..before], &[(9, 2)]].concat()));
    }
}

#[test]
fn when_their_queue_is_disabled_none_completes_and_those_of_another_queue_do() {
    for before in 0..3 {
        let (mut yard, mut ecmdq) = Yard::with_ecmdq();
        yard.send(&three());
        ecmdq.send(&[nh_asid(7), sync(), nh_asid(8), sync()]);
        yard.rig.poll_times(2);
        yard.finish(before);
        let cons = yard.cons();
        yard.rig.guests[0].stop();
        yard.rig.poll_times(2);
        yard.finish_all();
        assert_eq!((yard.cons(), yard.msis()), (cons, TOLD[..before].to_vec()), "CONS is at the oldest");
        assert_eq!((ecmdq.cons(), yard.received().len()), (4, 5));
        // They are taken again.
        yard.rig.guests[0].write(CR0, CMDQEN | SMMUEN);
        yard.rig.poll_times(2);
        yard.finish_all();
        assert_eq!((yard.cons(), yard.msis()), (6, TOLD.to_vec()));
    }
}

#[test]
fn when_their_queue_is_enabled_again_they_wait_for_other_tickets() {
    let mut yard = under_way();
    yard.rig.guests[0].stop();
    yard.rig.poll_times(2);
    yard.rig.guests[0].write(CR0, CMDQEN | SMMUEN);
    yard.rig.poll_times(2);
    let [_, tlbi, atc] = host_three();
    assert_eq!(yard.received()[3..], [tlbi, atc], "what is behind the first comes again");
    yard.finish(2);
    assert_eq!((yard.cons(), yard.msis()), (1, vec![]));
    yard.finish_all();
    assert_eq!((yard.cons(), yard.msis()), (6, TOLD.to_vec()));
}
