//! Errors of ECMDQs: facts sheet, section 4.3.

use crate::common::reg::*;
use crate::common::*;
use crate::support::*;

/// Runs a test with the first of four queues stopped at the illegal command that is the third of five.
fn on_stopped(test: impl Fn(Machine, Ecmdq)) {
    on_a_queue(|mut machine, mut queue| {
        queue.send(&[nh_asid(1), nh_asid(2), illegal(), nh_asid(3), sync()]);
        machine.settle();
        assert_eq!(machine.take_received(), [host_asid(7, 1), host_asid(7, 2)]);
        assert_eq!((queue.error(), queue.cons()), (Some(CERROR_ILL), 2));
        test(machine, queue);
    });
}

/// What the host gets of the three commands behind those in front of the error, the first of which was mended.
fn rest(first: u64) -> [ecmdq_engine::Command; 3] {
    [host_asid(7, first), host_asid(7, 3), HOST_SYNC]
}

#[test]
fn an_illegal_command_toggles_err_and_cmdqp_err_which_is_bit_9() {
    on_stopped(|machine, queue| {
        assert_eq!(queue.cons_word(), 0x8180_0002, "ENACK, ERR, ERR_REASON=1, RD=2");
        assert_eq!((machine.guest.read(GERROR), machine.guest.read(GERRORN)), (0x200, 0));
        assert_eq!(machine.guest.error(), None, "the CMDQ is not in error");
    });
}

#[test]
fn cons_points_exactly_at_the_failing_command() {
    for at in [0, 1, 62, 63, 64, 65, 127, 199] {
        on_both(0, 2, |mut machine| {
            let mut queue = started(&mut machine, 3, 8);
            let mut commands: Vec<_> = (0..200).map(nh_asid).collect();
            commands[at] = illegal();
            queue.send(&commands);
            machine.settle();
            assert_eq!(queue.cons_word(), 0x8180_0000 | at as u32);
            let older: Vec<_> = (0..at as u64).map(|asid| host_asid(7, asid)).collect();
            assert_eq!(machine.take_received(), older, "older commands have effect, younger have none");
        });
    }
}

#[test]
fn the_error_is_exact_across_the_wrap() {
    on_both(0, 2, |mut machine| {
        let mut queue = machine.guest.ecmdq(0);
        queue.describe(ecmdq_ring(0), 2, 6);
        queue.push(&[nh_asid(1), nh_asid(2), nh_asid(3), illegal()]);
        queue.enable();
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8180_0001);
    });
}

#[test]
fn a_stopped_queue_takes_nothing_whatever_wr_does() {
    on_stopped(|mut machine, mut queue| {
        queue.push(&[nh_asid(4), sync()]);
        for index in [7, 2, 3, 19, 0] {
            queue.write_prod(EN | index);
            machine.settle();
            assert_eq!(queue.cons_word(), 0x8180_0002);
        }
        assert_eq!((machine.take_received(), machine.guest.read(GERROR)), (vec![], 0x200));
        assert_eq!(machine.guest.stats.read().rejected, 1);
    });
}

#[test]
fn errack_alone_resumes_and_the_entry_is_fetched_again() {
    on_stopped(|mut machine, mut queue| {
        queue.put(2, nh_asid(9));
        machine.settle();
        assert_eq!(queue.cons(), 2, "mending is not enough");
        queue.write_prod(EN | ERR | 5);
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8180_0005, "ERR stays, the reason means nothing");
        assert_eq!(machine.take_received(), rest(9));
        assert_eq!(machine.guest.active(), CMDQP_ERR, "nobody acknowledged that");
        queue.acknowledged();
        queue.send(&[nh_asid(4), sync()]);
        machine.settle();
        assert_eq!((queue.cons(), queue.error()), (7, None));
    });
}

#[test]
fn acknowledging_cmdqp_err_does_not_resume() {
    on_stopped(|mut machine, mut queue| {
        queue.put(2, nh_asid(9));
        machine.guest.ack();
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.active()), (0x8180_0002, 0));
        queue.ack();
        machine.settle();
        assert_eq!((machine.take_received(), queue.error()), (rest(9).to_vec(), None));
    });
}

#[test]
fn prod_may_be_taken_back_to_cons_with_the_acknowledgement() {
    on_stopped(|mut machine, queue| {
        queue.write_prod(EN | ERR | 2);
        machine.settle();
        assert_eq!((queue.cons(), machine.take_received()), (2, vec![]));
        queue.put(2, nh_asid(7));
        queue.write_prod(EN | ERR | 3);
        machine.settle();
        assert_eq!((queue.cons(), machine.take_received()), (3, vec![host_asid(7, 7)]));
    });
}

#[test]
fn a_second_error_toggles_err_back() {
    on_stopped(|mut machine, mut queue| {
        machine.guest.ack();
        queue.ack();
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8100_0002, "unmended: the same error again, ERR=0");
        assert_eq!(queue.error(), Some(CERROR_ILL));
        assert_eq!((machine.guest.read(GERROR), machine.guest.read(GERRORN)), (0, 0x200));
        queue.skip_err();
        machine.settle();
        assert_eq!((queue.cons(), queue.error(), queue.prod_word()), (5, None, 0x8000_0005));
    });
}

#[test]
fn cmdqp_err_is_activated_once_while_it_is_active() {
    on_stopped(|mut machine, mut queue| {
        let mut other = started(&mut machine, 1, 4);
        other.send(&[illegal()]);
        queue.ack();
        machine.settle();
        assert_eq!((queue.error(), other.error()), (Some(CERROR_ILL), Some(CERROR_ILL)));
        assert_eq!((machine.guest.read(GERROR), machine.guest.stats.read().rejected), (0x200, 3));
        machine.guest.ack();
        machine.settle();
        assert_eq!(machine.guest.active(), 0, "they are told by ERR; nothing is told again");
    });
}

#[test]
fn errors_of_the_cmdq_and_of_ecmdqs_are_acknowledged_apart() {
    on_stopped(|mut machine, mut queue| {
        machine.guest.start(4);
        machine.guest.send(&[nh_asid(1), illegal()]);
        machine.settle();
        assert_eq!((machine.guest.active(), machine.guest.error()), (0x201, Some(CERROR_ILL)));
        machine.take_received();
        queue.skip_err();
        machine.settle();
        assert_eq!((queue.cons(), machine.guest.cons()), (5, 1));
        machine.guest.put(1, sync());
        machine.guest.write(GERRORN, 0x201);
        machine.settle();
        assert_eq!((queue.cons(), machine.guest.cons(), machine.guest.active()), (5, 2, 0));
    });
}

#[test]
fn memory_that_has_come_is_found_when_the_abort_is_acknowledged() {
    on_both(0, 2, |mut machine| {
        let mut queue = machine.guest.ecmdq(0);
        queue.describe(HOLE, 4, 0);
        queue.enable();
        machine.settle();
        queue.write_prod(EN | 1);
        machine.settle();
        assert_eq!(queue.cons_word(), 0x8280_0000, "ERR_REASON=2");
        queue.ack();
        machine.settle();
        assert_eq!((queue.cons_word(), queue.error()), (0x8280_0000, None), "no command: PROD is at CONS");
        queue.write_prod(EN | ERR | 1);
        machine.settle();
        assert_eq!((queue.cons_word(), queue.error()), (0x8200_0000, Some(CERROR_ABT)), "still not there");
        queue.disable();
        machine.settle();
        queue.acknowledged();
        let mut queue = started(&mut machine, 0, 4);
        queue.send(&[nh_asid(1), sync()]);
        machine.settle();
        assert_eq!((queue.cons(), queue.error()), (2, None));
    });
}

/// Section 4.3: a mismatch that software makes by itself may stop the queue, or not; ours goes on. Its next error is told.
#[test]
fn enabling_with_a_mismatch_stops_nothing_and_hides_no_error() {
    // ERRACK in PROD, ERR in CONS when the queue is enabled; CONS once it has failed.
    for (errack, err, failed) in [(ERR, 0, 0x8100_0001), (0, ERR, 0x8180_0001)] {
        on_both(0, 2, |mut machine| {
            let mut queue = machine.guest.ecmdq(0);
            queue.describe(ecmdq_ring(0), 4, 0);
            queue.write_cons(err);
            queue.write_prod(EN | errack);
            machine.settle();
            assert_eq!(queue.cons_word(), EN | err);
            queue.push(&[nh_asid(1), illegal()]);
            queue.write_prod(EN | errack | 2);
            machine.settle();
            assert_eq!(machine.take_received(), [host_asid(7, 1)]);
            assert_eq!((queue.cons_word(), queue.error()), (failed, Some(CERROR_ILL)));
            assert_eq!(machine.guest.active(), CMDQP_ERR);
            queue.skip_err();
            machine.settle();
            assert_eq!((queue.cons(), queue.error()), (2, None));
        });
    }
}

/// Section 4.3: disable, make equal, enable. By ERRACK, or by writing ERR.
#[test]
fn disabling_mending_and_enabling_cure_an_error() {
    for (errack, err) in [(ERR, ERR), (0, 0)] {
        on_stopped(|mut machine, mut queue| {
            queue.disable();
            machine.settle();
            queue.put(2, nh_asid(9));
            queue.write_cons(err | 2);
            queue.write_prod(errack | 5);
            machine.settle();
            queue.write_prod(EN | errack | 5);
            machine.settle();
            assert_eq!((machine.take_received(), queue.error()), (rest(9).to_vec(), None));
            queue.acknowledged();
            queue.send(&[illegal()]);
            machine.settle();
            assert_eq!((queue.error(), queue.cons()), (Some(CERROR_ILL), 5), "and the next error is told");
        });
    }
}

#[test]
fn disabling_and_enabling_alone_do_not_clear_an_error() {
    on_stopped(|mut machine, mut queue| {
        queue.put(2, nh_asid(9));
        queue.disable();
        machine.settle();
        queue.enable();
        machine.settle();
        assert_eq!((queue.cons_word(), queue.error()), (0x8180_0002, Some(CERROR_ILL)));
        queue.ack();
        machine.settle();
        assert_eq!(machine.take_received(), rest(9));
    });
}

/// Sections 1.11 and 4.3: the queue is not in error, and goes on.
#[test]
fn an_msi_that_finds_no_memory_is_told_by_msi_cmdq_abt_err() {
    on_a_queue(|mut machine, mut queue| {
        queue.send(&[sync_msi(HOLE, 9), nh_asid(1), sync_msi(WORD, 9)]);
        machine.settle();
        assert_eq!((queue.cons_word(), machine.guest.read(GERROR)), (0x8000_0003, 0x10));
        assert_eq!(machine.guest.u32_at(WORD), 9);
        assert_eq!(machine.guest.stats.read().msi_aborts, 1);
    });
}
