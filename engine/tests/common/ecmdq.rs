//! A driver of one ECMDQ that keeps to the architecture: facts sheet, sections 4.1 to 4.3.

use std::fs::File;
use std::sync::atomic::Ordering::{Acquire, Release};

use ecmdq_engine::{Command, VirtualSmmu, memory};
use ecmdq_ring::SharedRegion;

use super::{RAM, Ring};

/// ECMDQ_PROD.EN and ECMDQ_CONS.ENACK.
pub const EN: u32 = 1 << 31;
/// ECMDQ_PROD.ERRACK and ECMDQ_CONS.ERR.
pub const ERR: u32 = 1 << 23;
/// GERROR.CMDQP_ERR.
pub const CMDQP_ERR: u32 = 1 << 9;

const BASE: usize = 0x0;
const PROD: usize = 0x8;
const CONS: usize = 0xc;

/// The control pages that a VMM would map into the guest; no memory if there are none.
pub fn mapped_control_pages(smmu: &VirtualSmmu) -> SharedRegion {
    let Some(last) = smmu.control_pages().last() else { return SharedRegion::from_words(Vec::new()) };
    let file = File::from(last.fd.try_clone_to_owned().unwrap());
    memory::map(&file, last.fd_offset as usize + last.size).unwrap()
}

/// The guest's side of one ECMDQ.
pub struct Ecmdq {
    /// Its 16 bytes of a control page.
    block: SharedRegion,
    ram: SharedRegion,
    /// Where its ring is by default.
    place: u64,
    ring: Ring,
    errack: u32,
}

impl Ecmdq {
    /// The queue whose registers are at `offset` bytes from the first control page.
    pub fn new(control: &SharedRegion, offset: usize, ram: SharedRegion, place: u64) -> Self {
        let block = control.part(offset, 16).expect("the ECMDQ is on a control page");
        let ring = Ring::new(ram.clone(), place, 0, 0);
        Self { block, ram, place, ring, errack: 0 }
    }

    /// Describes a queue of 2^`log2` entries that is empty at `index`, in the order in which drivers do: BASE with 64 bits,
    /// PROD, CONS.
    pub fn describe(&mut self, base: u64, log2: u32, index: u32) {
        self.ring = Ring::new(self.ram.clone(), base, log2, index);
        self.write_base(base | u64::from(log2));
        self.write_prod(self.errack | index);
        self.write_cons(self.errack | index);
    }

    /// Asks for the queue to be enabled, with PROD as it is.
    pub fn enable(&self) {
        self.write_prod(EN | self.errack | self.prod());
    }

    /// Describes an empty queue of 2^`log2` entries at the default place, and asks for it to be enabled.
    pub fn start(&mut self, log2: u32) {
        self.describe(self.place, log2, 0);
        self.enable();
    }

    /// Asks for the queue to be disabled.
    pub fn disable(&self) {
        self.write_prod(self.errack | self.prod());
    }

    pub fn enabled(&self) -> bool {
        self.cons_word() & EN != 0
    }

    /// Adds commands without telling.
    pub fn push(&mut self, commands: &[Command]) {
        self.ring.push(commands, self.cons());
    }

    /// The doorbell.
    pub fn ring(&self) {
        self.write_prod(EN | self.errack | self.prod());
    }

    pub fn send(&mut self, commands: &[Command]) {
        self.push(commands);
        self.ring();
    }

    pub fn put(&self, index: u32, command: Command) {
        self.ring.put(index, command);
    }

    pub fn slot(&self, index: u32) -> u64 {
        self.ring.slot(index)
    }

    pub fn prod(&self) -> u32 {
        self.ring.prod()
    }

    /// CONS.RD with its wrap bit; everything that must read as zero does.
    pub fn cons(&self) -> u32 {
        let word = self.cons_word();
        assert_eq!(word & 0x787f_ffff & !self.ring.index_mask(), 0, "reserved bits of ECMDQ_CONS {word:#x}");
        word & 0xf_ffff
    }

    /// CONS.ERR_REASON while ERR and ERRACK differ.
    pub fn error(&self) -> Option<u32> {
        let (cons, prod) = (self.cons_word(), self.prod_word());
        ((cons ^ prod) & ERR != 0).then_some(cons >> 24 & 7)
    }

    /// Acknowledges an error, by PROD alone.
    pub fn ack(&mut self) {
        self.acknowledged();
        self.ring();
    }

    /// Remembers ERR as acknowledged, and writes nothing.
    pub fn acknowledged(&mut self) {
        self.errack = self.cons_word() & ERR;
    }

    /// As the drivers do: the command that failed becomes a CMD_SYNC, then the error is acknowledged.
    pub fn skip_err(&mut self) {
        self.put(self.cons(), super::sync_sev());
        self.ack();
    }

    pub fn write_base(&self, value: u64) {
        self.block.store_u64(BASE, value, Release);
    }

    pub fn write_prod(&self, value: u32) {
        self.block.store_u32(PROD, value, Release);
    }

    pub fn write_cons(&self, value: u32) {
        self.block.store_u32(CONS, value, Release);
    }

    pub fn base_word(&self) -> u64 {
        self.block.load_u64(BASE, Acquire)
    }

    pub fn prod_word(&self) -> u32 {
        self.block.load_u32(PROD, Acquire)
    }

    pub fn cons_word(&self) -> u32 {
        self.block.load_u32(CONS, Acquire)
    }
}

/// Where ECMDQ `number` has its ring by default: 256 entries each, in front of the CMDQ's.
pub fn ecmdq_ring(number: usize) -> u64 {
    RAM + 0x1_0000 + 0x1000 * (number as u64 % 0xe0)
}
