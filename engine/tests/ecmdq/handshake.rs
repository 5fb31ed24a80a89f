//! EN and ENACK, and what BASE, PROD and CONS mean meanwhile: facts sheet, sections 4.1 and 4.2.

use crate::common::reg::*;
use crate::common::*;
use crate::support::*;

#[test]
fn en_is_acknowledged_in_both_directions_as_often_as_one_likes() {
    on_both(0, 2, |mut machine| {
        let mut queue = machine.guest.ecmdq(1);
        queue.describe(ecmdq_ring(1), 4, 21);
        for _ in 0..3 {
            queue.enable();
            assert_eq!(queue.cons_word(), 21, "only the engine acknowledges");
            machine.worker.poll();
            assert_eq!((queue.cons_word(), queue.prod_word()), (0x8000_0015, 0x8000_0015));
            queue.disable();
            machine.worker.poll();
            assert_eq!((queue.cons_word(), queue.prod_word()), (21, 21));
        }
    });
}

#[test]
fn a_poll_says_that_there_was_a_handshake() {
    on_both(0, 2, |mut machine| {
        let mut queue = machine.guest.ecmdq(3);
        assert!(!machine.worker.poll());
        queue.start(4);
        assert!(machine.worker.poll());
        assert!(!machine.worker.poll());
        queue.disable();
        assert!(machine.worker.poll());
        assert!(!machine.worker.poll());
    });
}

#[test]
fn prod_is_no_doorbell_while_en_is_0() {
    on_both(0, 2, |mut machine| {
        let mut queue = machine.guest.ecmdq(0);
        queue.describe(ecmdq_ring(0), 4, 0);
        queue.push(&[illegal(), nh_asid(1)]);
        for prod in [2, 1, 0, 16] {
            queue.write_prod(prod);
            machine.settle();
            assert_eq!((queue.cons_word(), machine.guest.read(GERROR)), (0, 0));
        }
        assert_eq!(machine.take_received(), []);
    });
}

#[test]
fn prod_0_after_disabling_is_not_read_as_commands() {
    on_a_queue(|mut machine, mut queue| {
        queue.send(&[nh_asid(1), sync()]);
        machine.settle();
        queue.write_prod(0);
        machine.settle();
        queue.write_prod(5);
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.active()), (2, 0));
        assert_eq!(machine.take_received(), [host_asid(7, 1), HOST_SYNC]);
    });
}

#[test]
fn commands_that_are_there_when_the_queue_is_enabled_are_taken() {
    on_both(0, 2, |mut machine| {
        let mut queue = machine.guest.ecmdq(0);
        queue.describe(ecmdq_ring(0), 4, 7);
        queue.push(&[nh_asid(1), sync_msi(WORD, 9)]);
        queue.enable();
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.u32_at(WORD)), (0x8000_0009, 9));
        assert_eq!(machine.take_received(), [host_asid(7, 1), HOST_SYNC]);
    });
}

#[test]
fn base_and_cons_count_when_en_is_set_and_not_later() {
    on_a_queue(|mut machine, mut queue| {
        queue.push(&[nh_asid(1), sync()]);
        queue.write_base(HOLE | 2);
        queue.write_cons(0x8380_0003);
        queue.ring();
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.active()), (0x8000_0002, 0));
        assert_eq!(machine.take_received(), [host_asid(7, 1), HOST_SYNC]);
    });
}

#[test]
fn a_queue_can_be_described_anew_while_it_is_disabled() {
    on_a_queue(|mut machine, mut queue| {
        queue.send(&[nh_asid(1), sync()]);
        machine.settle();
        queue.disable();
        machine.settle();
        queue.describe(RAM + 0x8000, 2, 6);
        queue.push(&[nh_asid(2), nh_asid(3), sync()]);
        queue.enable();
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.active()), (0x8000_0001, 0));
        let expected = [host_asid(7, 1), HOST_SYNC, host_asid(7, 2), host_asid(7, 3), HOST_SYNC];
        assert_eq!(machine.take_received(), expected);
    });
}

/// Section 4.2: the architecture does not tie them together.
#[test]
fn ecmdqs_do_not_depend_on_cmdqen() {
    on_both(0, 2, |mut machine| {
        let mut queue = started(&mut machine, 0, 4);
        assert_eq!((machine.guest.read(CR0), machine.guest.read(CR0ACK)), (0, 0));
        queue.send(&[nh_asid(1), sync()]);
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8000_0002, "before");
        machine.guest.start(4);
        machine.settle();
        queue.send(&[nh_asid(2), sync()]);
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8000_0004, "meanwhile");
        machine.guest.stop();
        machine.settle();
        queue.send(&[nh_asid(3), sync()]);
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.active()), (0x8000_0006, 0), "afterwards");
    });
}

/// A queue that was disabled while its CMD_SYNC at index 1 of 3 waited for the host.
fn disabled_at_its_cmd_sync(direct: bool) -> (Rig, Ecmdq) {
    let (mut rig, [mut queue, _]) = late_host(direct);
    queue.send(&[nh_asid(1), sync_msi(WORD, 9), nh_asid(2)]);
    rig.poll_times(3);
    assert_eq!((queue.cons_word(), rig.host.syncs()), (0x8000_0001, 1));
    queue.disable();
    rig.poll();
    assert_eq!(queue.cons_word(), 1, "the first command that is not consumed");
    (rig, queue)
}

#[test]
fn a_disabled_queues_cmd_sync_does_not_complete_any_more_and_nothing_is_taken() {
    for direct in [false, true] {
        let (mut rig, mut queue) = disabled_at_its_cmd_sync(direct);
        rig.host.finish(1);
        rig.poll_times(3);
        queue.push(&[nh_asid(3)]);
        queue.disable();
        rig.poll_times(3);
        assert_eq!((queue.cons_word(), rig.guests[0].u32_at(WORD)), (1, 0));
        assert_eq!(*rig.host.received(), [host_asid(7, 1), host_asid(7, 2)], "what had been taken before");
    }
}

#[test]
fn a_queue_that_is_enabled_again_takes_its_cmd_sync_again() {
    for direct in [false, true] {
        let (mut rig, queue) = disabled_at_its_cmd_sync(direct);
        queue.enable();
        rig.poll_times(3);
        assert_eq!((queue.cons_word(), rig.guests[0].u32_at(WORD)), (0x8000_0001, 0), "and waits again");
        rig.host.finish(1);
        rig.poll_times(3);
        // That ticket covers all that was sent before the CMD_SYNC was taken again.
        assert_eq!((queue.cons_word(), rig.guests[0].u32_at(WORD)), (0x8000_0003, 9));
        assert_eq!(*rig.host.received(), [1, 2, 2].map(|asid| host_asid(7, asid)), "and what is behind it");
    }
}

#[test]
fn the_ticket_of_a_dropped_cmd_sync_completes_no_new_one() {
    for direct in [false, true] {
        let (mut rig, mut queue) = disabled_at_its_cmd_sync(direct);
        queue.start(4);
        rig.poll();
        queue.send(&[nh_asid(3), sync()]);
        rig.poll_times(3);
        rig.host.finish(1);
        rig.poll_times(3);
        assert_eq!((queue.cons_word(), rig.host.syncs()), (0x8000_0001, 2));
        rig.host.finish(2);
        rig.poll();
        assert_eq!(queue.cons_word(), 0x8000_0002);
    }
}

/// Section 4.2: ENACK is updated even while ERR differs from ERRACK, and the error can still be read.
#[test]
fn a_queue_in_error_can_be_disabled() {
    on_a_queue(|mut machine, mut queue| {
        queue.send(&[nh_asid(1), illegal()]);
        machine.settle();
        queue.disable();
        machine.settle();
        assert_eq!(queue.cons_word(), 0x0180_0001);
        assert_eq!((queue.error(), machine.guest.active()), (Some(CERROR_ILL), CMDQP_ERR));
    });
}

/// Reset values: EN, ENACK, ERRACK, ERR are 0 (section 4.1).
#[test]
fn a_reset_clears_everything_and_the_queue_can_be_started_anew() {
    on_a_queue(|mut machine, mut queue| {
        queue.send(&[nh_asid(1), illegal()]);
        machine.settle();
        machine.worker.guests().next().unwrap().reset();
        machine.settle();
        assert_eq!((queue.base_word(), queue.prod_word(), queue.cons_word()), (0, 0, 0));
        assert_eq!((machine.guest.read(GERROR), machine.guest.read(IDR6)), (0, 0x0002_0000));
        assert_eq!(machine.guest.read_u64(0x4000), 0x2_0003);
        machine.take_received();
        let mut queue = started(&mut machine, 0, 4);
        queue.send(&[nh_asid(2), sync()]);
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8000_0002);
        assert_eq!(machine.take_received(), [host_asid(7, 2), HOST_SYNC]);
    });
}

#[test]
fn a_cmd_sync_that_waits_while_the_smmu_is_reset_never_completes() {
    for direct in [false, true] {
        let (mut rig, [mut queue, _]) = late_host(direct);
        queue.send(&[nh_asid(1), sync_msi(WORD, 9)]);
        rig.poll_times(2);
        rig.worker.guests().next().unwrap().reset();
        rig.host.finish_all();
        rig.poll_times(3);
        assert_eq!((queue.cons_word(), rig.guests[0].u32_at(WORD)), (0, 0));
    }
}
