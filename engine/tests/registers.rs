//! The registers: what a guest reads after reset, and what answers a write.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use common::reg::*;
use common::*;
use ecmdq_engine::memory::{self, Ram};
use ecmdq_engine::{
    Command, Config, ConfigError, Features, FrontEnd, NoInterrupts, StreamMap, VirtualSmmu, Vmid,
};
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
        ram: Box::new(Ram::new(Arc::new(ram))),
        front_end: FrontEnd::Shared(memory::memfd("test-registers", page_bytes).unwrap().1),
        interrupts: Box::new(NoInterrupts),
        on_request: Box::new(|_, token| token.complete()),
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
    let cases: [(Change, [u32; 5]); 17] = [
        (|f| f.coherent = false, [0x0948_300a, idr1, idr3, idr5, aidr]),
        (|f| f.msi = false, [0x0948_101a, idr1, idr3, idr5, aidr]),
        (|f| f.sev = true, [0x0948_701a, idr1, idr3, idr5, aidr]),
        (|f| f.ats = true, [0x0948_341a, idr1, idr3, idr5, aidr]),
        (|f| f.asid16 = false, [0x0948_201a, idr1, idr3, idr5, aidr]),
        (|f| f.ril = false, [idr0, idr1, 0x0000_0004, idr5, 0x0000_0001]),
        (|f| f.cmdqs = 8, [idr0, 0x0107_0010, idr3, idr5, aidr]),
        (|f| f.eventqs = 19, [idr0, 0x01f3_0010, idr3, idr5, aidr]),
        (|f| f.sid_bits = 32, [idr0, 0x01e7_0020, idr3, idr5, aidr]),
        (|f| f.ssid_bits = 20, [idr0, 0x01e7_0510, idr3, idr5, aidr]),
        (|f| f.httu = 2, [0x0948_309a, idr1, idr3, idr5, aidr]),
        (|f| f.cd2l = false, [0x0940_301a, idr1, idr3, idr5, aidr]),
        (|f| f.st2l = false, [0x0148_301a, idr1, idr3, idr5, aidr]),
        (|f| f.gran4k = false, [idr0, idr1, idr3, 0x0000_0044, aidr]),
        (|f| f.gran16k = true, [idr0, idr1, idr3, 0x0000_0074, aidr]),
        (|f| f.gran64k = false, [idr0, idr1, idr3, 0x0000_0014, aidr]),
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
    let cases: [(Change, &str); 25] = [
        (|f| f.cmdqs = 6, "CMDQS is 6, must be within 7 to 19: Linux refuses queues of up to 64 entries, "),
        (|f| f.cmdqs = 20, "CMDQS is 20, must be within 7 to 19: "),
        (|f| f.eventqs = 20, "EVENTQS is 20, must be within 0 to 19: "),
        (|f| f.priqs = 20, "PRIQS is 20, must be within 0 to 19: "),
        (|f| f.priqs = 1, "PRIQS above 0 without PRI: "),
        (|f| f.sid_bits = 33, "SIDSIZE is 33, must be within 0 to 32: "),
        (|f| f.ssid_bits = 21, "SSIDSIZE is 21, must be within 0 to 20: "),
        (|f| f.oas = 8, "OAS is 8, must be within 0 to 7: "),
        (|f| *f = f.with_ecmdqs(9, 0), "LOG2NUMP is 9, must be within 0 to 8: "),
        (|f| *f = f.with_ecmdqs(0, 9), "LOG2NUMQ is 9, must be within 0 to 8: "),
        (|f| f.httu = 3, "HTTU is 3, must be within 0 to 2: "),
        (|f| (f.gran4k, f.gran64k) = (false, false), "an SMMU without GRAN4K, GRAN16K or GRAN64K: "),
        (|f| (*f, f.sev) = (f.with_ecmdqs(0, 1), true), "ECMDQ without SEV=0: "),
        (|f| (*f, f.hyp) = (f.with_ecmdqs(0, 1), true), "ECMDQ without Hyp=0: "),
        (|f| *f = Features::none(), "an SMMU without stage 1 or stage 2: "),
        (|f| (f.ecmdq, f.coherent) = (true, false), "ECMDQ without COHACC: "),
        (|f| (f.ecmdq, f.msi) = (true, false), "ECMDQ without MSI: "),
        (|f| (f.s1p, f.s2p) = (false, true), "ASID16 without S1P: "),
        (|f| (f.s1p, f.s2p, f.asid16, f.hyp) = (false, true, false, true), "Hyp without S1P: "),
        (
            |f| (f.s1p, f.s2p, f.asid16, f.ssid_bits) = (false, true, false, 1),
            "SSIDSIZE above 0 without S1P: ",
        ),
        (|f| f.vmid16 = true, "VMID16 without S2P: "),
        (|f| f.pri = true, "PRI without ATS: "),
        (|f| f.dpt = true, "DPT without ATS: "),
        (|f| (f.ds, f.ril) = (true, false), "DS without RIL: "),
        (|f| (f.d128, f.ril) = (true, false), "D128 without RIL: "),
    ];
    for (change, expected) in cases {
        let error = VirtualSmmu::new(config(features(change), PAGES)).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

#[test]
fn register_pages_that_are_too_small_are_refused() {
    assert!(VirtualSmmu::new(config(Features::default(), PAGES)).is_ok());
    let error = VirtualSmmu::new(config(Features::default(), 0x1_0000)).unwrap_err();
    assert_eq!(error, ConfigError::Registers { len: 0x1_0000, needed: 0x2_0000 });
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
