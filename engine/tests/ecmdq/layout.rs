//! Discovery, and where the registers are: facts sheet, sections 2.1 and 4.1.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Acquire;

use crate::common::reg::*;
use crate::common::*;
use crate::support::*;

/// log2 of the pages, log2 of the queues of a page, IDR6: LOG2NUMQ in bits 19:16, LOG2NUMP in bits 27:24.
const SIZES: [(u8, u8, u32); 4] =
    [(0, 0, 0x0000_0000), (0, 8, 0x0008_0000), (3, 2, 0x0302_0000), (8, 0, 0x0800_0000)];

/// Section 2.1.
#[test]
fn idr1_and_idr6_say_how_many_there_are() {
    for (pages, queues, idr6) in SIZES {
        on_both(pages, queues, |machine| {
            assert_eq!(machine.guest.read(IDR1), 0x81e7_0010, "ECMDQ is bit 31");
            assert_eq!(machine.guest.read(IDR6), idr6);
            assert_eq!(machine.guest.read(AIDR), 3, "SMMUv3.3");
        });
    }
}

/// Sections 2.1 and 4.1: CMDQ_CONTROL_PAGE_BASE, CFG, STATUS.
#[test]
fn every_control_page_is_described_and_no_other() {
    for (pages, queues, _) in SIZES {
        on_both(pages, queues, |machine| {
            for page in 0..256 {
                let at = 0x4000 + 32 * page;
                let there = page < 1 << pages;
                // PRESET, CMDQGS=64 KiB, ADDR from page 0: behind page 1, pages in one piece.
                let base = if there { 0x2_0000 + 0x1_0000 * page as u64 + 0b011 } else { 0 };
                let fixed = u32::from(there);
                assert_eq!(machine.guest.read_u64(at), base, "page {page}");
                assert_eq!(machine.guest.read(at), base as u32, "a driver reads the offset with 32 bits");
                assert_eq!((machine.guest.read(at + 8), machine.guest.read(at + 12)), (fixed, fixed));
            }
        });
    }
}

#[test]
fn an_smmu_without_ecmdqs_shows_nothing_of_them() {
    for direct in [false, true] {
        let machine = Machine::new(Setup { direct, ..Setup::default() });
        let shown = [IDR6, 0x4000, 0x4008, 0x400c].map(|register| machine.guest.read(register));
        assert_eq!((machine.guest.read(IDR1), shown), (0x01e7_0010, [0; 4]));
        assert_eq!(machine.worker.guests().next().unwrap().control_pages().count(), 0);
    }
}

#[test]
fn control_pages_are_pieces_of_one_file_in_ascending_order() {
    for (pages, queues, _) in SIZES {
        let (_guest, smmu) = Guest::new(setup(true, pages, queues));
        let first = smmu.control_pages().next().unwrap().fd.as_raw_fd();
        let is: Vec<_> = smmu
            .control_pages()
            .map(|page| (page.fd.as_raw_fd() == first, page.fd_offset, page.offset, page.size))
            .collect();
        let expected: Vec<_> =
            (0..1 << pages).map(|n| (true, 0x1_0000 * n, 0x2_0000 + 0x1_0000 * n, 0x1_0000)).collect();
        assert_eq!(is, expected);
    }
}

#[test]
fn control_pages_are_there_to_be_mapped_with_the_direct_front_end_only() {
    let (_guest, smmu) = Guest::new(setup(false, 0, 2));
    assert_eq!(smmu.control_pages().count(), 0);
}

/// Whoever maps it must not be killed by a page that has gone.
#[test]
fn the_file_of_the_control_pages_keeps_its_size() {
    let (_guest, smmu) = Guest::new(setup(true, 1, 2));
    let page = smmu.control_pages().next().unwrap();
    let file = File::from(page.fd.try_clone_to_owned().unwrap());
    assert_eq!(file.metadata().unwrap().len(), 0x2_0000);
    assert!(file.set_len(0).is_err());
    assert!(file.set_len(0x3_0000).is_err());
}

/// Section 4.1: queue q's registers start at q times 64 KiB/N.
#[test]
fn the_queues_are_spread_evenly_over_a_page() {
    // log2 N, queue, the offset of its registers.
    let cases = [
        (0, 0, 0x0),
        (1, 0, 0x0),
        (1, 1, 0x8000),
        (2, 3, 0xc000),
        (7, 1, 0x200),
        (7, 127, 0xfe00),
        (8, 1, 0x100),
        (8, 128, 0x8000),
        (8, 255, 0xff00),
    ];
    for (log2, queue, offset) in cases {
        for page in [0, 1] {
            on_both(1, log2, |mut machine| {
                let at = 0x1_0000 * page + offset;
                let mut driver =
                    Ecmdq::new(&machine.guest.control, at, machine.guest.ram.clone(), ecmdq_ring(0));
                driver.start(4);
                driver.send(&[nh_asid(5), sync()]);
                machine.settle();
                assert_eq!(driver.cons_word(), 0x8000_0002, "queue {queue} of 2^{log2}");
                assert_eq!(machine.take_received(), [host_asid(7, 5), HOST_SYNC]);
                let control = &machine.guest.control;
                let words = (0..control.len()).step_by(4);
                let used: Vec<_> = words.filter(|&word| control.load_u32(word, Acquire) != 0).collect();
                assert_eq!(used, [at, at + 8, at + 12], "nothing else of the control pages changed");
            });
        }
    }
}

/// Sections 4.1: a block occupies 16 bytes.
#[test]
fn what_lies_between_the_queues_is_no_register() {
    on_both(0, 1, |mut machine| {
        for offset in [0x10, 0x100, 0x4000, 0x7ff0, 0x8010, 0xfff0] {
            let mut driver =
                Ecmdq::new(&machine.guest.control, offset, machine.guest.ram.clone(), ecmdq_ring(0));
            driver.start(4);
            machine.settle();
            assert!(!driver.enabled(), "offset {offset:#x}");
        }
    });
}

/// What a VMM maps at `offset` of the guest is `size` bytes at `fd_offset` of `fd`.
#[test]
fn each_page_is_reached_through_its_file_descriptor() {
    let mut machine = Machine::new(setup(true, 2, 1));
    let smmu = machine.worker.guests().next().unwrap().clone();
    for (number, page) in smmu.control_pages().enumerate() {
        let file = File::from(page.fd.try_clone_to_owned().unwrap());
        let at = page.fd_offset + 0x8000;
        file.write_all_at(&(ecmdq_ring(number) | 4).to_le_bytes(), at).unwrap();
        file.write_all_at(&0x8000_0000_u32.to_le_bytes(), at + 8).unwrap();
        machine.settle();
        let mut cons = [0; 4];
        file.read_exact_at(&mut cons, at + 12).unwrap();
        assert_eq!(u32::from_le_bytes(cons), 0x8000_0000, "page {number}");
        let mut trapped = [0; 8];
        smmu.mmio_read(page.offset + 0x8000, &mut trapped);
        assert_eq!(u64::from_le_bytes(trapped), ecmdq_ring(number) | 4, "the same by a trap");
    }
}

/// No bit that the guest can write makes a trap wait.
#[test]
fn a_mapped_page_reads_by_a_trap_whatever_the_guest_wrote() {
    let machine = Machine::new(setup(true, 0, 0));
    let smmu = machine.worker.guests().next().unwrap().clone();
    for bit in 0..32 {
        machine.guest.ecmdq(0).write_cons(1 << bit);
        let mut cons = [0; 4];
        smmu.mmio_read(0x2_000c, &mut cons);
        assert_eq!(u32::from_le_bytes(cons), 1 << bit);
    }
}

/// Section 4.1: up to 256 pages of 256 queues.
#[test]
fn the_last_of_65536_queues_works() {
    on_both(8, 8, |mut machine| {
        assert_eq!(machine.guest.read(IDR6), 0x0808_0000);
        let (ram, place) = (machine.guest.ram.clone(), ecmdq_ring(0));
        let mut driver = Ecmdq::new(&machine.guest.control, 0xff_ff00, ram, place);
        driver.start(4);
        driver.send(&[nh_asid(5), sync_msi(WORD, 9)]);
        machine.settle();
        assert_eq!((driver.cons_word(), machine.guest.u32_at(WORD)), (0x8000_0002, 9));
        assert_eq!(machine.take_received(), [host_asid(7, 5), HOST_SYNC]);
    });
}
