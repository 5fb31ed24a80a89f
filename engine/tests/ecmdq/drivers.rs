//! What the published drivers do: facts sheet, section 4.5.

use ecmdq_engine::Command;

use crate::common::reg::*;
use crate::common::*;
use crate::support::*;

/// The start of each driver series: one enables its ECMDQs before CR0.CMDQEN, the other after it.
#[test]
fn the_start_up_order_of_both_series_works() {
    for before in [true, false] {
        on_both(0, 2, |mut machine| {
            if !before {
                machine.guest.start(8);
                machine.worker.poll();
                assert!(machine.guest.enabled());
            }
            let mut queues: Vec<_> = (0..4).map(|number| machine.guest.ecmdq(number)).collect();
            for queue in &mut queues {
                // BASE with 64 bits, PROD, CONS, PROD=EN.
                queue.start(8);
                machine.worker.poll();
                assert_eq!(queue.cons_word(), 0x8000_0000, "ENACK within its second");
            }
            if before {
                machine.guest.start(8);
                machine.worker.poll();
                assert!(machine.guest.enabled());
            }
            // From now on all commands go through an ECMDQ.
            let nsnh_all = Command([0x30, 0]);
            queues[1].send(&[cfgi_all(), sync_sev(), nsnh_all, sync_sev()]);
            machine.settle();
            assert_eq!((queues[1].cons(), machine.guest.active()), (4, 0));
            assert_eq!(machine.take_received(), [Command([0x7_0000_0010, 0]), HOST_SYNC]);
            machine.run(&[nh_asid(1), sync_sev()]);
            assert_eq!(machine.guest.cons(), 2, "the CMDQ works as well");
        });
    }
}

/// The probe of both series: what it reads, and how.
#[test]
fn the_probe_finds_contiguous_pages_below_4_gib() {
    on_both(3, 2, |machine| {
        assert_ne!(machine.guest.read(IDR1) & 1 << 31, 0);
        let idr6 = machine.guest.read(IDR6);
        assert_eq!((1 << (idr6 >> 24 & 0xf), 1 << (idr6 >> 16 & 0xf)), (8, 4));
        let bases: Vec<_> = (0..8).map(|page| machine.guest.read_u64(0x4000 + 32 * page)).collect();
        assert!(bases.iter().all(|base| base & 1 == 1), "PRESET");
        let addresses: Vec<_> = bases.iter().map(|base| base & 0x000f_ffff_ffff_f000).collect();
        assert!(addresses.windows(2).all(|pair| pair[1] == pair[0] + 0x1_0000));
        assert_eq!(u64::from(machine.guest.read(0x4000) & 0xffff_f000), addresses[0]);
    });
}

/// The handler of both series looks at CONS.ERR, takes the code from CONS[30:24], puts a CMD_SYNC in the place of the
/// command, and flips ERRACK in PROD.
#[test]
fn the_error_handler_of_the_drivers_recovers_again_and_again() {
    on_a_queue(|mut machine, mut queue| {
        for error in 0..5 {
            queue.push(&[nh_asid(1), illegal(), nh_asid(2), sync()]);
            queue.ring();
            machine.settle();
            let (prod, cons) = (queue.prod_word(), queue.cons_word());
            assert_ne!((prod ^ cons) & ERR, 0);
            assert_eq!((cons >> 24 & 0x7f, cons & 0xf_ffff), (1, (4 * error + 1) % 32));
            queue.put(cons & 0xf_ffff, sync_sev());
            queue.write_prod(prod ^ ERR);
            queue.acknowledged();
            machine.settle();
            assert_eq!((queue.cons(), queue.error()), ((4 * error + 4) % 32, None));
            machine.take_received();
        }
    });
}

/// The series that loses ERRACK: its doorbell is the index and EN, and nothing else.
#[test]
fn a_driver_that_loses_errack_goes_on_and_its_next_errors_are_told() {
    on_a_queue(|mut machine, mut queue| {
        for error in 0..4 {
            queue.push(&[nh_asid(1), illegal(), sync()]);
            queue.write_prod(EN | queue.prod());
            machine.settle();
            let cons = queue.cons_word();
            // ERRACK is 0 whenever an error comes, so that ERR must be 1.
            assert_eq!(cons, 0x8180_0000 + (5 * error + 1) % 32, "error {error}");
            assert_eq!(machine.guest.active(), CMDQP_ERR);
            assert_eq!(machine.guest.stats.read().rejected, u64::from(error + 1), "it was fetched once");
            machine.guest.ack();
            queue.put(cons & 0xf_ffff, sync_sev());
            queue.write_prod(queue.prod_word() ^ ERR);
            machine.settle();
            assert_eq!((queue.cons(), queue.error()), ((5 * error + 3) % 32, None));
            queue.push(&[nh_asid(2), sync_msi(WORD, error + 1)]);
            queue.write_prod(EN | queue.prod());
            machine.settle();
            assert_eq!(queue.cons(), (5 * error + 5) % 32, "it is not stopped by its own mistake");
            assert_eq!(machine.guest.u32_at(WORD), error + 1);
        }
    });
}

/// Bit 9 is not in the mask of errors that the handlers know, 0x1fd: it stays active, and does no harm.
#[test]
fn cmdqp_err_that_is_never_acknowledged_stops_nothing() {
    on_a_queue(|mut machine, mut queue| {
        queue.send(&[illegal()]);
        machine.settle();
        assert_eq!(machine.guest.active() & 0x1fd, 0, "the handler sees no error");
        let mut other = started(&mut machine, 1, 4);
        machine.guest.start(4);
        machine.run(&[nh_asid(1), sync()]);
        other.send(&[nh_asid(2), sync()]);
        machine.settle();
        assert_eq!((machine.guest.cons(), other.cons(), queue.cons()), (2, 2, 0));
        queue.skip_err();
        machine.settle();
        assert_eq!((queue.cons(), machine.guest.active()), (1, CMDQP_ERR));
    });
}
