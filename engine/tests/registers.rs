//! The registers: what a guest reads after reset, and what answers a write.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use common::reg::*;
use common::*;
use ecmdq_engine::{Command, Config, ConfigError, Features, StreamMap, VirtualSmmu, Vmid, memory};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn id_registers(change: impl FnOnce(&mut Features)) -> [u32; 5] {
    let guest = Guest::new(Setup::with(change)).0;
    [IDR0, IDR1, IDR3, IDR5, AIDR].map(|register| guest.read(register))
}

/// A machine whose guest stores a register once and is polled once.
fn after_write(register: usize, value: u32) -> Machine {
    let mut machine = Machine::new(Setup::default());
    machine.guest.write(register, value);
    machine.worker.poll();
    machine
}

fn config(features: Features, page_bytes: usize) -> Config {
    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    Config {
        features,
        host_features: features,
        quirks: Vec::new(),
        vmid: Vmid(1),
        streams: Arc::new(StreamMap::new(1)),
        ram: Box::new(Arc::new(ram)),
        registers: memory::memfd("test-registers", page_bytes).unwrap().1,
        on_request: Box::new(|_| ()),
    }
}

#[test]
fn the_id_registers_of_the_default_features() {
    assert_eq!(id_registers(|_| ()), [0x0948_301a, 0x01e7_0010, 0x0000_0404, 0x0000_0054, 0x0000_0002]);
}

#[test]
fn each_feature_shows_in_its_own_bits_only() {
    let [idr0, idr1, idr3, idr5, aidr] = [0x0948_301a, 0x01e7_0010, 0x0000_0404, 0x0000_0054, 0x0000_0002];
    type Change = fn(&mut Features);
    let cases: [(Change, [u32; 5]); 11] = [
        (|f| f.coherent = false, [0x0948_300a, idr1, idr3, idr5, aidr]),
        (|f| f.msi = false, [0x0948_101a, idr1, idr3, idr5, aidr]),
        (|f| f.sev = true, [0x0948_701a, idr1, idr3, idr5, aidr]),
        (|f| f.ats = true, [0x0948_341a, idr1, idr3, idr5, aidr]),
        (|f| f.asid16 = false, [0x0948_201a, idr1, idr3, idr5, aidr]),
        (|f| f.ril = false, [idr0, idr1, 0x0000_0004, idr5, aidr]),
        (|f| f.cmdqs = 8, [idr0, 0x0107_0010, idr3, idr5, aidr]),
        (|f| f.eventqs = 19, [idr0, 0x01f3_0010, idr3, idr5, aidr]),
        (|f| f.sid_bits = 32, [idr0, 0x01e7_0020, idr3, idr5, aidr]),
        (|f| f.ssid_bits = 20, [idr0, 0x01e7_0510, idr3, idr5, aidr]),
        (|f| f.oas = 5, [idr0, idr1, idr3, 0x0000_0055, aidr]),
    ];
    for (n, (change, expected)) in cases.into_iter().enumerate() {
        assert_eq!(id_registers(change), expected, "case {n}");
    }
}

#[test]
fn everything_but_the_id_registers_is_zero_after_reset() {
    let pages = memory::memfd("test-registers", PAGES).unwrap().1;
    for offset in (0..PAGES).step_by(4) {
        pages.store_u32(offset, 0xdead_beef, Relaxed);
    }
    let guest = Guest::new(Setup { pages: Some(pages), ..Setup::default() }).0;
    let set: Vec<_> = (0..PAGES).step_by(4).filter(|&offset| guest.read(offset) != 0).collect();
    assert_eq!(set, [IDR0, IDR1, IDR3, IDR5, AIDR]);
}

#[test]
fn features_that_no_smmu_has_are_refused() {
    type Change = fn(&mut Features);
    let cases: [(Change, &str); 6] = [
        (|f| f.cmdqs = 6, "CMDQS 6 is not within 7 to 19"),
        (|f| f.cmdqs = 20, "CMDQS 20 is not within 7 to 19"),
        (|f| f.eventqs = 20, "EVENTQS 20 is above 19"),
        (|f| f.sid_bits = 33, "SIDSIZE 33 is above 32"),
        (|f| f.ssid_bits = 21, "SSIDSIZE 21 is above 20"),
        (|f| f.oas = 8, "OAS 8 is above 7"),
    ];
    for (change, expected) in cases {
        let error = VirtualSmmu::new(config(features(change), PAGES)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn register_pages_that_are_too_small_are_refused() {
    assert!(VirtualSmmu::new(config(Features::default(), PAGES)).is_ok());
    let error = VirtualSmmu::new(config(Features::default(), 0x1_0000)).unwrap_err();
    assert_eq!(error, ConfigError::Registers(0x1_0000));
    assert_eq!(error.to_string(), "register pages of 0x10000 bytes, 0x20000 are needed");
}

#[test]
fn register_pages_are_shared_through_their_file_descriptor() {
    let (file, pages) = memory::memfd("test-registers", PAGES).unwrap();
    let mapped = memory::map(&file, PAGES).unwrap();
    let mut machine = Machine::new(Setup { pages: Some(pages), ..Setup::default() });
    mapped.store_u32(CR0, 1, Release);
    machine.worker.poll();
    assert_eq!(mapped.load_u32(CR0ACK, Acquire), 1);
}

#[test]
fn cr0ack_mirrors_implemented_bits_of_cr0_and_cr0_keeps_them_all() {
    let machine = after_write(CR0, 0xffff_ffff);
    assert_eq!(machine.guest.read(CR0ACK), 0x0d, "SMMUEN, EVENTQEN, CMDQEN");
    assert_eq!(machine.guest.read(CR0), 0xffff_ffff);
}

#[test]
fn cr0ack_mirrors_atschk_with_ats() {
    let mut machine = Machine::new(Setup::with(|f| f.ats = true));
    machine.guest.write(CR0, 0xffff_ffff);
    machine.worker.poll();
    assert_eq!(machine.guest.read(CR0ACK), 0x1d);
}

#[test]
fn each_bit_of_cr0_is_acknowledged_in_both_directions() {
    let mut machine = Machine::new(Setup::default());
    for value in [0x1, 0x5, 0xd, 0x9, 0x8, 0x0, 0x4, 0x0] {
        machine.guest.write(CR0, value);
        assert_ne!(machine.guest.read(CR0ACK), value, "only the engine acknowledges");
        machine.worker.poll();
        assert_eq!(machine.guest.read(CR0ACK), value);
    }
}

#[test]
fn irq_ctrl_is_acknowledged_but_for_the_queue_that_is_not_there() {
    let mut machine = after_write(IRQ_CTRL, 0xffff_ffff);
    assert_eq!(machine.guest.read(IRQ_CTRLACK), 0x5, "GERROR_IRQEN, EVENTQ_IRQEN; no PRIQ_IRQEN");
    machine.guest.write(IRQ_CTRL, 0);
    machine.worker.poll();
    assert_eq!(machine.guest.read(IRQ_CTRLACK), 0);
}

#[test]
fn gbpa_update_is_cleared_and_the_attributes_stay() {
    assert_eq!(after_write(GBPA, 0x8010_1000).guest.read(GBPA), 0x0010_1000);
    assert_eq!(after_write(GBPA, 0x0010_1000).guest.read(GBPA), 0x0010_1000);
}

#[test]
fn a_poll_says_whether_there_was_anything_to_do() {
    let mut machine = Machine::new(Setup::default());
    assert!(!machine.worker.poll());
    for (register, value) in [(CR0, 0x1), (IRQ_CTRL, 0x1), (GBPA, 1 << 31), (GERRORN, 0x10)] {
        machine.guest.write(register, value);
        assert!(machine.worker.poll(), "register {register:#x}");
        assert!(!machine.worker.poll(), "register {register:#x} again");
    }
}

#[test]
fn no_register_write_raises_an_error() {
    for register in [CR0, IRQ_CTRL, GBPA, CMDQ_BASE, CMDQ_CONS, IDR0, CR0ACK] {
        assert_eq!(after_write(register, 0xffff_ffff).guest.read(GERROR), 0, "register {register:#x}");
    }
}

/// Waits for the acknowledgement as Linux does: the whole written value must come back.
fn handshake(machine: &mut Machine, register: usize, value: u32) {
    machine.guest.write(register, value);
    machine.worker.poll();
    assert_eq!(machine.guest.read(register + 4), value);
}

/// Facts sheet, section 7.2.
#[test]
fn the_reset_sequence_of_linux_goes_through() {
    let mut machine = Machine::new(Setup::default());
    handshake(&mut machine, CR0, 0);
    machine.guest.write(0x28, 0xd75);
    machine.guest.write(0x2c, 0x6);
    machine.guest.start(15);
    handshake(&mut machine, CR0, 0x8);
    let cfgi_all = Command([0x04, 0x1f]);
    let nsnh_all = Command([0x30, 0]);
    machine.run(&[cfgi_all, sync_sev()]);
    assert_eq!(machine.guest.cons(), 2);
    machine.run(&[nsnh_all, sync_msi(machine.guest.slot(3), 0)]);
    assert_eq!(machine.guest.cons(), 4);
    assert_eq!(machine.guest.u32_at(machine.guest.slot(3)), 0, "the MSI came");
    handshake(&mut machine, CR0, 0xc);
    handshake(&mut machine, IRQ_CTRL, 0);
    handshake(&mut machine, IRQ_CTRL, 0x5);
    handshake(&mut machine, CR0, 0xd);
    assert_eq!(machine.take_received(), [Command([0x7_0000_0010, 0]), HOST_SYNC]);
    assert_eq!(machine.guest.active(), 0);
}
