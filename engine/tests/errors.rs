//! Command errors: where the queue stops, what has happened by then, and how it goes on.

mod common;

use common::reg::*;
use common::*;
use ecmdq_engine::Command;
use ecmdq_engine::rules::Reason;

/// A machine stopped at the illegal command that is the third of five.
fn stopped() -> Machine {
    let mut machine = Machine::with_queue(4);
    machine.run(&[nh_asid(1), nh_asid(2), illegal(), nh_asid(3), sync()]);
    assert_eq!((machine.guest.error(), machine.guest.cons()), (Some(CERROR_ILL), 2));
    machine
}

/// As Linux does: the command that failed becomes a CMD_SYNC, then the error is acknowledged.
fn skip_err(machine: &mut Machine) {
    machine.guest.put(machine.guest.cons(), sync_sev());
    machine.guest.ack();
    machine.settle();
}

#[test]
fn cons_points_exactly_at_the_failing_command() {
    for at in [0, 1, 62, 63, 64, 65, 127, 199] {
        let mut machine = Machine::with_queue(8);
        let mut commands: Vec<_> = (0..200).map(nh_asid).collect();
        commands[at] = illegal();
        machine.run(&commands);
        assert_eq!((machine.guest.error(), machine.guest.cons()), (Some(CERROR_ILL), at as u32));
        let older: Vec<_> = (0..at as u64).map(|asid| host_asid(7, asid)).collect();
        assert_eq!(machine.take_received(), older, "older commands have effect, younger have none");
    }
}

#[test]
fn the_error_is_exact_across_the_wrap() {
    let mut machine = Machine::new(Setup::default());
    machine.guest.start_at(RING, 2, 6);
    machine.worker.poll();
    machine.run(&[nh_asid(1), nh_asid(2), nh_asid(3), illegal()]);
    assert_eq!((machine.guest.error(), machine.guest.cons()), (Some(CERROR_ILL), 1));
}

#[test]
fn gerror_toggles_cmdq_err_alone() {
    let machine = stopped();
    assert_eq!((machine.guest.read(GERROR), machine.guest.read(GERRORN)), (1, 0));
    assert_eq!(machine.guest.read(CMDQ_CONS), 0x0100_0002);
}

#[test]
fn the_engine_tells_which_command_failed_and_why() {
    let mut machine = Machine::with_queue(4);
    assert_eq!(machine.worker.guests().next().unwrap().last_rejected(), None);
    machine.run(&[nh_asid(1), Command([0x10 | 1 << 8, 0])]);
    let rejected = machine.worker.guests().next().unwrap().last_rejected().unwrap();
    assert_eq!(rejected.command, Command([0x110, 0]));
    assert_eq!(rejected.reason, Reason::Reserved([0x100, 0]));
}

#[test]
fn a_stopped_queue_takes_nothing_whatever_prod_does() {
    let mut machine = stopped();
    machine.take_received();
    machine.run(&[nh_asid(4), nh_asid(5)]);
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![], 2));
    assert_eq!((machine.guest.error(), machine.guest.stats.read().rejected), (Some(CERROR_ILL), 1));
}

#[test]
fn the_acknowledgement_alone_resumes_and_the_entry_is_fetched_again() {
    let mut machine = stopped();
    machine.guest.put(2, nh_asid(9));
    machine.guest.put(3, nh_asid(8));
    machine.settle();
    assert_eq!(machine.guest.cons(), 2, "mending is not enough");
    machine.guest.ack();
    machine.settle();
    let asids = [1, 2, 9, 8].map(|asid| host_asid(7, asid));
    assert_eq!(machine.take_received(), [&asids[..], &[HOST_SYNC]].concat());
    assert_eq!((machine.guest.cons(), machine.guest.active()), (5, 0));
}

#[test]
fn the_cmd_sync_that_linux_puts_in_its_place_is_accepted() {
    let mut machine = stopped();
    skip_err(&mut machine);
    let asid = |asid| host_asid(7, asid);
    assert_eq!(machine.take_received(), [asid(1), asid(2), asid(3), HOST_SYNC]);
    assert_eq!((machine.guest.cons(), machine.guest.active()), (5, 0));
}

#[test]
fn an_unmended_command_fails_again_at_the_same_place() {
    let mut machine = stopped();
    machine.guest.ack();
    machine.settle();
    assert_eq!((machine.guest.read(GERROR), machine.guest.read(GERRORN)), (0, 1));
    assert_eq!((machine.guest.error(), machine.guest.cons()), (Some(CERROR_ILL), 2));
    assert_eq!(machine.guest.stats.read().rejected, 2);
    skip_err(&mut machine);
    assert_eq!((machine.guest.cons(), machine.guest.active()), (5, 0));
}

#[test]
fn prod_may_be_taken_back_to_cons_while_the_error_is_active() {
    let mut machine = stopped();
    machine.guest.write(CMDQ_PROD, 2);
    machine.guest.ack();
    machine.settle();
    assert_eq!((machine.guest.cons(), machine.guest.active()), (2, 0));
    machine.guest.put(2, nh_asid(7));
    machine.guest.write(CMDQ_PROD, 3);
    machine.settle();
    assert_eq!(machine.take_received(), [1, 2, 7].map(|asid| host_asid(7, asid)));
}

#[test]
fn acknowledging_another_error_does_not_resume() {
    let mut machine = stopped();
    machine.guest.put(2, nh_asid(9));
    machine.guest.write(GERRORN, 0x10);
    machine.settle();
    assert_eq!((machine.guest.error(), machine.guest.cons()), (Some(CERROR_ILL), 2));
}

#[test]
fn disabling_and_enabling_do_not_clear_the_error() {
    let mut machine = stopped();
    machine.take_received();
    machine.guest.stop();
    machine.settle();
    assert_eq!(machine.guest.active(), CMDQ_ERR);
    machine.guest.start(4);
    machine.guest.send(&[nh_asid(6), sync()]);
    machine.settle();
    assert!(machine.guest.enabled());
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![], 0), "nothing is consumed");
    machine.guest.ack();
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![host_asid(7, 6), HOST_SYNC], 2));
}

#[test]
fn an_error_acknowledged_while_the_queue_is_disabled_is_gone() {
    let mut machine = stopped();
    machine.guest.stop();
    machine.settle();
    machine.guest.ack();
    machine.settle();
    machine.guest.start(4);
    machine.settle();
    machine.run(&[sync()]);
    assert_eq!((machine.guest.cons(), machine.guest.active()), (1, 0));
}

#[test]
fn a_sync_with_a_bad_cs_is_an_error_and_never_completes() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[nh_asid(1), Command([0x46 | 3 << 12, 0]), nh_asid(2)]);
    assert_eq!((machine.guest.error(), machine.guest.cons()), (Some(CERROR_ILL), 1));
    assert_eq!((machine.take_received(), machine.guest.stats.read().syncs), (vec![host_asid(7, 1)], 0));
}

#[test]
fn one_guests_error_does_not_stop_another() {
    let mut rig = Rig::new(2, 4, Script::at_once());
    rig.guests[0].send(&[illegal()]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll_times(3);
    assert_eq!((rig.guests[0].error(), rig.guests[1].error()), (Some(CERROR_ILL), None));
    assert_eq!((rig.cons(0), rig.cons(1)), (0, 2));
}

#[test]
fn a_command_error_and_an_msi_abort_are_acknowledged_apart() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[sync_msi(0x1000, 1), illegal()]);
    assert_eq!((machine.guest.active(), machine.guest.cons()), (0x11, 1));
    machine.guest.put(1, sync_sev());
    machine.guest.write(GERRORN, 0x01);
    machine.settle();
    assert_eq!((machine.guest.active(), machine.guest.cons()), (0x10, 2));
}

#[test]
fn an_error_behind_commands_that_wait_for_a_slow_host_is_told_at_once() {
    let mut rig = Rig::new(1, 4, Script::default());
    rig.host.set_room(0);
    rig.guests[0].send(&[nh_asid(1), illegal()]);
    rig.poll();
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ILL), 1));
    rig.host.set_room(9);
    rig.poll();
    assert_eq!(*rig.host.received(), [host_asid(1, 1)]);
}
