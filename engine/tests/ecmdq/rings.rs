//! Full, empty, wrapped and contradictory queues, and their sizes: facts sheet, sections 2.5, 3.1 and 4.1.

use crate::common::reg::*;
use crate::common::*;
use crate::support::*;

/// Fills a queue of 2^`log2` entries that starts at `index` twice over, and checks what the host gets, and CONS.
fn fill_twice(machine: &mut Machine, log2: u32, index: u32) {
    let mut queue = machine.guest.ecmdq(0);
    queue.describe(ecmdq_ring(0), log2, index);
    queue.enable();
    machine.settle();
    let entries = 1 << log2;
    for pass in 0..2 {
        let first = u64::from(pass * entries);
        let commands: Vec<_> = (first..first + u64::from(entries)).map(nh_asid).collect();
        queue.send(&commands);
        machine.settle();
        let expected: Vec<_> = (first..first + u64::from(entries)).map(|asid| host_asid(7, asid)).collect();
        assert_eq!(machine.take_received(), expected, "2^{log2} entries from {index}");
        let cons = (index + (pass + 1) * entries) % (2 * entries);
        assert_eq!(queue.cons_word(), 0x8000_0000 | cons, "2^{log2} entries from {index}");
    }
    queue.disable();
    machine.settle();
}

#[test]
fn full_queues_of_any_size_are_taken_from_any_index_on() {
    on_both(0, 0, |mut machine| {
        for log2 in 0..=4 {
            for index in 0..2 << log2 {
                fill_twice(&mut machine, log2, index);
            }
        }
        assert_eq!(machine.guest.active(), 0);
    });
}

#[test]
fn a_full_queue_of_256_entries_as_drivers_have_it() {
    on_both(0, 0, |mut machine| fill_twice(&mut machine, 8, 0x1a3));
}

#[test]
fn a_queue_of_one_entry_takes_one_cmd_sync_at_a_time() {
    on_both(0, 2, |mut machine| {
        let mut queue = started(&mut machine, 2, 0);
        for n in 1..=5 {
            queue.send(&[sync_msi(WORD, n)]);
            machine.settle();
            assert_eq!((queue.cons_word(), machine.guest.u32_at(WORD)), (0x8000_0000 + n % 2, n));
        }
    });
}

/// Section 2.5: LOG2SIZE above IDR1.CMDQS counts as CMDQS; what is read back does not change.
#[test]
fn a_size_above_cmdqs_is_cut_to_it() {
    for direct in [false, true] {
        for log2size in [8, 19, 31] {
            let mut machine = Machine::new(Setup {
                direct,
                ..Setup::with(|f| {
                    *f = f.with_ecmdqs(0, 0);
                    f.cmdqs = 7;
                })
            });
            let mut queue = machine.guest.ecmdq(0);
            queue.describe(ecmdq_ring(0), 7, 0xff);
            queue.write_base(ecmdq_ring(0) | log2size);
            queue.write_cons(0xf_ffff);
            queue.enable();
            machine.settle();
            assert_eq!(queue.cons_word(), 0x8000_00ff, "7 bits and the wrap bit");
            queue.send(&[nh_asid(1), nh_asid(2)]);
            machine.settle();
            assert_eq!(queue.cons_word(), 0x8000_0001, "128 entries");
            assert_eq!(machine.take_received(), [host_asid(7, 1), host_asid(7, 2)]);
            assert_eq!(queue.base_word(), ecmdq_ring(0) | log2size);
        }
    }
}

/// Section 2.5: ADDR is aligned down to the size of the ring, at least 32 bytes; RA is a hint.
#[test]
fn base_is_aligned_down_to_the_size_of_the_ring() {
    let cases = [(0, 0x10), (1, 0x10), (4, 0x20), (4, 0xe0), (8, 0xfe0)];
    for (log2, low) in cases {
        on_both(0, 0, |mut machine| {
            let mut queue = machine.guest.ecmdq(0);
            queue.describe(ecmdq_ring(0), log2, 0);
            queue.write_base(1 << 62 | ecmdq_ring(0) | low & 0xffe0 | u64::from(log2));
            queue.push(&[nh_asid(3)]);
            queue.enable();
            machine.settle();
            assert_eq!(machine.take_received(), [host_asid(7, 3)], "2^{log2} entries at {low:#x}");
        });
    }
}

/// Section 3.1: nothing is consumed while PROD and CONS contradict each other, and there is no error for it.
#[test]
fn a_contradictory_prod_takes_nothing_until_it_is_mended() {
    // log2 of the size, CONS, PROD.
    let cases = [(1, 0, 3), (2, 0, 5), (2, 3, 2), (2, 7, 4), (4, 0, 0x1f), (4, 0x10, 0x0f)];
    for (log2, cons, prod) in cases {
        on_both(0, 0, |mut machine| {
            let mut queue = machine.guest.ecmdq(0);
            queue.describe(ecmdq_ring(0), log2, cons);
            queue.enable();
            machine.settle();
            queue.write_prod(EN | prod);
            machine.settle();
            machine.settle();
            assert_eq!((queue.cons_word(), machine.guest.active()), (EN | cons, 0), "{cons:#x} {prod:#x}");
            assert_eq!(machine.guest.stats.read().inconsistent, 1, "told once");
            queue.send(&[nh_asid(4), sync()]);
            machine.settle();
            assert_eq!(machine.take_received(), [host_asid(7, 4), HOST_SYNC]);
            assert_eq!(queue.cons(), (cons + 2) % (2 << log2));
        });
    }
}

/// Section 4.1: RES0 bits of PROD, and index bits that the size does not have.
#[test]
fn bits_of_prod_that_mean_nothing_have_no_effect() {
    on_a_queue(|mut machine, mut queue| {
        for (n, bits) in [0x7f00_0000, 0x0070_0000, 0x000f_ffe0, 0x7f7f_ffe0].into_iter().enumerate() {
            queue.push(&[nh_asid(n as u64)]);
            queue.write_prod(EN | bits | queue.prod());
            machine.settle();
            assert_eq!(queue.cons_word(), 0x8000_0001 + n as u32, "PROD {bits:#x}");
            assert_eq!(machine.take_received(), [host_asid(7, n as u64)]);
        }
    });
}

/// Section 3.3: the code is CERROR_ABT, at the first command, and nothing that could be read has effect.
#[test]
fn a_ring_that_is_not_memory_in_one_piece_aborts_at_the_first_command() {
    let last_page = RAM + RAM_SIZE - 0x1000;
    for (base, log2) in [(HOLE, 4), (0x7_0000_0000, 4), (last_page, 9)] {
        on_both(0, 2, |mut machine| {
            let mut queue = machine.guest.ecmdq(1);
            queue.describe(base, log2, 0);
            queue.enable();
            machine.settle();
            assert_eq!((queue.cons_word(), machine.guest.active()), (0x8000_0000, 0), "no command, no error");
            queue.write_prod(EN | 2);
            machine.settle();
            assert_eq!((queue.cons_word(), machine.guest.read(GERROR)), (0x8280_0000, 0x200), "{base:#x}");
            assert_eq!((machine.take_received(), machine.guest.stats.read().aborts), (vec![], 1));
        });
    }
}
