//! Where the host must synchronise between commands of a queue, and where it needs not.

use std::iter::{self, Peekable};

use ecmdq_engine::Command;
use ecmdq_engine::host::Cause::Transient;

use crate::common::reg::CR0;
use crate::common::*;
use crate::support::*;

/// What the host receives, its own CMD_SYNCs included, when a guest sends commands with one doorbell.
fn received(commands: &[Command]) -> Vec<Command> {
    let mut machine = Machine::new(Rig::ats_setup(1)).enabled(9);
    machine.guest.write(CR0, CMDQEN | SMMUEN);
    machine.settle();
    machine.run(commands);
    assert_eq!(machine.guest.cons(), commands.len() as u32);
    machine.take_received()
}

#[test]
fn configuration_then_translations_then_atcs_are_synchronised_by_the_host_one_after_the_other() {
    for (tlbi, host_tlbi) in [(nh_asid(1), host_asid(1, 1)), (nh_page(1), host_page(1, 1))] {
        let got = received(&[cfgi_cd(STREAM), sync(), tlbi, sync(), atc_inv(STREAM), sync()]);
        let [cfgi, _, atc] = host_three();
        assert_eq!(got, [cfgi, HOST_SYNC, host_tlbi, HOST_SYNC, atc, HOST_SYNC]);
    }
}

#[test]
fn commands_of_one_rank_or_of_a_falling_one_share_a_synchronisation() {
    let [cfgi, tlbi, atc] = host_three();
    let got = received(&[atc_inv(STREAM), sync(), nh_asid(1), sync(), cfgi_cd(STREAM), sync()]);
    assert_eq!(got, [atc, tlbi, cfgi, HOST_SYNC]);
    let same: Vec<_> = (0..30).flat_map(|asid| [nh_asid(asid), sync()]).collect();
    let expected: Vec<_> = (0..30).map(|asid| host_asid(1, asid)).chain([HOST_SYNC]).collect();
    assert_eq!(received(&same), expected);
}

#[test]
fn without_a_cmd_sync_between_them_commands_of_a_rising_rank_share_a_synchronisation() {
    let got = received(&[cfgi_cd(STREAM), nh_asid(1), atc_inv(STREAM), sync()]);
    assert_eq!(got, [&host_three()[..], &[HOST_SYNC]].concat());
}

#[test]
fn the_lowest_rank_before_a_cmd_sync_and_the_highest_behind_it_count() {
    let [cfgi, tlbi, atc] = host_three();
    let got = received(&[atc_inv(STREAM), nh_asid(1), sync(), cfgi_cd(STREAM), atc_inv(STREAM), sync()]);
    assert_eq!(got, [atc, tlbi, HOST_SYNC, cfgi, atc, HOST_SYNC]);
}

#[test]
fn a_cmd_sync_with_nothing_before_it_keeps_the_order_of_what_is_around_it() {
    let [cfgi, tlbi, _] = host_three();
    let got = received(&[cfgi_cd(STREAM), sync(), sync(), nh_asid(1), sync()]);
    assert_eq!(got, [cfgi, HOST_SYNC, tlbi, HOST_SYNC]);
}

/// How many CMD_SYNCs come next.
fn syncs(got: &mut Peekable<impl Iterator<Item = Command>>) -> usize {
    iter::from_fn(|| got.next_if_eq(&HOST_SYNC)).count()
}

#[test]
fn more_synchronisations_than_are_handed_over_at_once_keep_the_order() {
    let commands = (0..100).flat_map(|asid| [cfgi_cd(STREAM), sync(), nh_asid(asid), sync()]);
    let mut got = received(&commands.collect::<Vec<_>>()).into_iter().peekable();
    let [cfgi, ..] = host_three();
    for asid in 0..100 {
        assert_eq!(got.next(), Some(cfgi));
        assert_eq!(syncs(&mut got), 1, "before ASID {asid}");
        assert_eq!(got.next(), Some(host_asid(1, asid)));
        // Not needed, and there may be one.
        assert!(syncs(&mut got) <= 1);
    }
    assert_eq!(got.next(), None);
}

#[test]
fn what_an_outstanding_synchronisation_covers_needs_no_other_before_a_higher_rank() {
    let (mut yard, mut ecmdq) = Yard::with_ecmdq();
    yard.send(&three()[..2]);
    ecmdq.send(&[nh_asid(9)]);
    yard.send(&three()[2..4]);
    assert_eq!(
        (yard.received().len(), yard.rig.host.syncs()),
        (3, 1),
        "the host has it, and a ticket before"
    );
    // Regardless of what is outstanding.
    yard.send(&three()[4..]);
    let [cfgi, tlbi, atc] = host_three();
    assert_eq!(yard.received(), [cfgi, host_asid(1, 9), tlbi, atc]);
    assert_eq!(yard.rig.host.covers(), [1, 3]);
    yard.finish(2);
    assert_eq!(yard.cons(), 4);
    yard.finish_all();
    assert_eq!((yard.cons(), yard.msis()), (6, vec![(1, 2), (2, 4), (3, 6)]));
}

#[test]
fn queues_have_no_order_among_each_other() {
    let (mut yard, mut ecmdq) = Yard::with_ecmdq();
    yard.rig.guests[0].send(&[cfgi_cd(STREAM), sync()]);
    ecmdq.send(&[nh_asid(1), sync()]);
    yard.rig.poll();
    assert_eq!((yard.received().len(), yard.rig.host.syncs()), (2, 1));
    yard.finish(1);
    assert_eq!((yard.cons(), ecmdq.cons()), (2, 2));
}

/// What a transient failure left undone is executed with the next synchronisation only.
#[test]
fn what_is_sent_again_after_a_transient_failure_is_behind_a_synchronisation_that_covers_what_failed() {
    let host = host_three();
    // How many of the three and their CMD_SYNCs are sent, and the ticket that fails.
    for (sent, failed) in [(3, 1), (4, 1), (5, 2)] {
        let mut yard = Yard::new(4);
        yard.send(&three()[..sent]);
        let last = host[sent.div_ceil(2) - 1];
        assert_eq!(yard.received().last(), Some(&last));
        yard.rig.host.fail(failed, Transient);
        yard.rig.poll_times(2);
        let received = yard.received();
        let again = received.len() - 1;
        assert_eq!((received[again], received.iter().filter(|command| **command == last).count()), (last, 2));
        let covers = yard.rig.host.covers();
        assert!(covers[failed..].contains(&again), "{covers:?} of {received:?}");
        yard.finish_all();
        assert_eq!((yard.cons(), yard.error()), (sent as u32, None));
    }
}

#[test]
fn a_queue_that_is_enabled_again_keeps_the_order_of_what_it_sent_before() {
    let (mut yard, mut ecmdq) = Yard::with_ecmdq();
    ecmdq.send(&[nh_asid(9), sync()]);
    yard.rig.poll();
    yard.send(&[cfgi_cd(STREAM), sync()]);
    assert_eq!(yard.rig.host.covers(), [1], "CMD_SYNCs gather");
    yard.rig.guests[0].stop();
    yard.rig.poll_times(2);
    yard.rig.guests[0].write(CR0, CMDQEN | SMMUEN);
    yard.send(&[nh_asid(1), sync()]);
    let [cfgi, tlbi, _] = host_three();
    assert_eq!(yard.received(), [host_asid(1, 9), cfgi, tlbi]);
    yard.finish_all();
    assert_eq!((yard.cons(), yard.rig.host.covers()), (4, vec![1, 2, 3]));
}
