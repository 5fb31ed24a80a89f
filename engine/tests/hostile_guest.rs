//! Guests that keep to nothing: what they break is their own.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use common::reg::*;
use common::*;
use ecmdq_engine::Command;
use ecmdq_engine::memory::{GuestRam, Ram};
use ecmdq_ring::SharedRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A machine with an enabled queue of 2^`log2` entries at a base.
fn with_base(base: u64, log2: u32) -> Machine {
    let mut machine = Machine::new(Setup::default());
    machine.guest.start_at(base, log2, 0);
    machine.worker.poll();
    assert!(machine.guest.enabled());
    machine
}

/// Commands in the slots from an address on, with ASIDs from 1.
fn fill(machine: &Machine, at: u64, n: u64) {
    for i in 0..n {
        machine.guest.set_u64(at + 16 * i, nh_asid(i + 1).0[0]);
        machine.guest.set_u64(at + 16 * i + 8, 0);
    }
}

fn aborts(base: u64, log2: u32) {
    let mut machine = with_base(base, log2);
    machine.settle();
    assert_eq!(machine.guest.active(), 0, "an empty queue reads no memory");
    machine.guest.write(CMDQ_PROD, 1 << log2);
    machine.settle();
    assert_eq!((machine.guest.error(), machine.guest.cons()), (Some(CERROR_ABT), 0), "base {base:#x}");
    machine.guest.ack();
    machine.settle();
    assert_eq!((machine.guest.error(), machine.guest.stats.read().aborts), (Some(CERROR_ABT), 2));
    machine.guest.stop();
    machine.settle();
    machine.guest.ack();
    machine.guest.start(4);
    machine.settle();
    machine.run(&[nh_asid(1), sync()]);
    assert_eq!((machine.guest.cons(), machine.guest.active()), (2, 0), "a good queue works again");
    assert_eq!(machine.take_received(), [host_asid(7, 1), HOST_SYNC]);
}

#[test]
fn a_queue_outside_guest_memory_aborts() {
    for base in [0, RAM - 0x1000, 0x8000_0000, 0xfff_ffff_f000] {
        aborts(base, 4);
    }
}

#[test]
fn a_queue_that_straddles_the_end_of_guest_memory_aborts() {
    aborts(RAM + 0x20_0000, 9);
}

/// Memory that is not there at first.
struct Late {
    ram: Ram<Arc<GuestMemoryMmap>>,
    here: Arc<AtomicBool>,
}

impl GuestRam for Late {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        self.here.load(Relaxed).then(|| self.ram.region(at, len))?
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        self.here.load(Relaxed) && self.ram.store_u32(at, value)
    }

    fn refresh(&mut self) {}
}

#[test]
fn memory_that_appears_is_found_when_the_abort_is_acknowledged() {
    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), 0x1000)]).unwrap();
    let ram = Ram::new(Arc::new(ram));
    let here = Arc::new(AtomicBool::new(false));
    let late: Box<dyn GuestRam> = Box::new(Late { ram: ram.clone(), here: here.clone() });
    let mut machine = Machine::new(Setup { ram: Some(late), ..Setup::default() });
    machine.guest.start_at(RAM, 4, 0);
    ram.region(GuestAddress(RAM), 16).unwrap().store_u64(0, nh_asid(3).0[0], Relaxed);
    machine.guest.write(CMDQ_PROD, 1);
    machine.settle();
    assert_eq!(machine.guest.error(), Some(CERROR_ABT));
    here.store(true, Relaxed);
    machine.settle();
    assert_eq!(machine.guest.error(), Some(CERROR_ABT), "not before");
    machine.guest.ack();
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![host_asid(7, 3)], 1));
}

#[test]
fn an_unaligned_base_is_aligned_down_to_the_size_of_the_queue_and_to_32_bytes() {
    for (offset, log2) in [(0x20, 2), (0x3e0, 6), (0x7_ffe0, 15)] {
        let mut machine = with_base(RING + offset, log2);
        fill(&machine, RING, 4);
        machine.guest.write(CMDQ_PROD, 4);
        machine.settle();
        assert_eq!(machine.take_received(), [1, 2, 3, 4].map(|asid| host_asid(7, asid)), "{offset:#x}");
    }
    let mut machine = with_base(RING + 0x20, 0);
    fill(&machine, RING, 3);
    machine.guest.write(CMDQ_PROD, 1);
    machine.settle();
    assert_eq!(machine.take_received(), [host_asid(7, 3)], "one entry, 32 bytes in");
}

#[test]
fn reserved_bits_and_address_bits_above_the_output_size_are_ignored_in_base() {
    for bits in [1 << 63, 1 << 62, 0x3f << 56, 1 << 55, 1 << 44] {
        let mut machine = with_base(RING | bits, 4);
        fill(&machine, RING, 1);
        machine.guest.write(CMDQ_PROD, 1);
        machine.settle();
        assert_eq!((machine.take_received(), machine.guest.cons()), (vec![host_asid(7, 1)], 1), "{bits:#x}");
    }
}

#[test]
fn log2size_above_cmdqs_is_capped() {
    for log2size in [8, 19, 20, 31] {
        let mut machine = Machine::new(Setup::with(|f| f.cmdqs = 7));
        machine.guest.start_at(RING, 7, 0xff);
        machine.guest.write_base(RING | log2size);
        machine.worker.poll();
        fill(&machine, RING + 127 * 16, 1);
        fill(&machine, RING, 2);
        machine.guest.write(CMDQ_PROD, 0x02);
        machine.settle();
        assert_eq!(machine.take_received(), [1, 1, 2].map(|asid| host_asid(7, asid)), "{log2size}");
        assert_eq!(machine.guest.cons(), 2);
    }
}

#[test]
fn prod_beyond_the_queue_consumes_nothing() {
    for cons in 0..8u32 {
        for prod in 0..8 {
            let mut machine = Machine::new(Setup::default());
            machine.guest.start_at(RING, 2, cons);
            fill(&machine, RING, 4);
            machine.guest.write(CMDQ_PROD, prod);
            machine.settle();
            let filled = prod.wrapping_sub(cons) & 7;
            let (taken, inconsistent) = if filled <= 4 { (filled, 0) } else { (0, 1) };
            assert_eq!(machine.take_received().len() as u32, taken, "PROD {prod} CONS {cons}");
            assert_eq!(machine.guest.cons(), (cons + taken) & 7);
            assert_eq!((machine.guest.active(), machine.guest.stats.read().inconsistent), (0, inconsistent));
        }
    }
}

#[test]
fn the_queue_goes_on_when_prod_is_consistent_again() {
    let mut machine = Machine::with_queue(2);
    machine.run(&[nh_asid(1)]);
    machine.guest.write(CMDQ_PROD, 0);
    machine.settle();
    assert_eq!(machine.guest.cons(), 1);
    machine.run(&[nh_asid(2), sync()]);
    assert_eq!(machine.guest.cons(), 3);
    assert_eq!(machine.take_received(), [host_asid(7, 1), host_asid(7, 2), HOST_SYNC]);
}

/// The opcodes that are commands here; every other one, 0x00 to 0xff, is CERROR_ILL.
const WITHOUT_ATS: [u64; 12] = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46];
const WITH_ATS: [u64; 13] = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40, 0x46];

fn accepted_opcodes(ats: bool) -> Vec<u64> {
    let is_accepted = |opcode: &u64| {
        let mut machine = Machine::new(Setup::with(|f| f.ats = ats)).enabled(0);
        machine.run(&[Command([*opcode, 0])]);
        let (cons, error) = (machine.guest.cons(), machine.guest.error());
        assert!(matches!((cons, error), (1, None) | (0, Some(CERROR_ILL))), "{opcode:#x}: {cons} {error:?}");
        cons == 1
    };
    (0..=0xff).filter(is_accepted).collect()
}

#[test]
fn the_verdict_on_all_256_opcodes() {
    assert_eq!(accepted_opcodes(false), WITHOUT_ATS);
    assert_eq!(accepted_opcodes(true), WITH_ATS);
}

#[test]
fn registers_that_the_guest_may_not_write_are_never_read_back() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[nh_asid(1), nh_asid(2)]);
    for register in (0..0x20).step_by(4).chain([CR0ACK, IRQ_CTRLACK, GERROR, CMDQ_CONS]) {
        machine.guest.write(register, 0xffff_ffff);
    }
    machine.guest.put(2, nh_asid(3));
    machine.guest.put(3, sync_msi(RAM + 4, 9));
    machine.guest.put(4, illegal());
    machine.guest.write(CMDQ_PROD, 5);
    machine.settle();
    let asid = |asid| host_asid(7, asid);
    assert_eq!(machine.take_received(), [asid(1), asid(2), asid(3), HOST_SYNC]);
    assert_eq!(machine.guest.u32_at(RAM + 4), 9);
    assert_eq!((machine.guest.read(CMDQ_CONS), machine.guest.read(GERROR)), (0x0100_0004, 1));
}

#[test]
fn cons_of_an_enabled_queue_cannot_be_moved() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[nh_asid(1), nh_asid(2)]);
    machine.guest.write(CMDQ_CONS, 0);
    machine.settle();
    assert_eq!(machine.take_received(), [host_asid(7, 1), host_asid(7, 2)]);
    machine.guest.write(CMDQ_CONS, 2);
    machine.run(&[nh_asid(3)]);
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![host_asid(7, 3)], 3));
}

#[test]
fn an_error_that_only_the_guest_believes_in_stops_its_queue_until_it_takes_it_back() {
    let mut machine = Machine::with_queue(4);
    machine.guest.write(GERRORN, 1);
    machine.run(&[nh_asid(1)]);
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![], 0));
    machine.guest.write(GERRORN, 0);
    machine.settle();
    assert_eq!((machine.take_received(), machine.guest.cons()), (vec![host_asid(7, 1)], 1));
}

#[test]
fn a_sync_that_overwrites_commands_behind_itself_with_its_msi_is_too_late_for_those_that_are_published() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[sync_msi(RING + 16, 0x10), nh_asid(2)]);
    assert_eq!((machine.guest.error(), machine.guest.cons()), (None, 2));
    assert_eq!(machine.take_received(), [host_asid(7, 2), HOST_SYNC]);
}
