//! The register file: values, the bits that can be written, guards (facts sheet, sections 2 and 4.1).

use std::collections::BTreeMap;

pub const CR0: usize = 0x20;
pub const CR0ACK: usize = 0x24;
pub const CR1: usize = 0x28;
pub const CR2: usize = 0x2c;
pub const GBPA: usize = 0x44;
pub const IRQ_CTRL: usize = 0x50;
pub const IRQ_CTRLACK: usize = 0x54;
pub const GERROR: usize = 0x60;
pub const GERRORN: usize = 0x64;
pub const GERROR_IRQ_CFG0: usize = 0x68;
pub const GERROR_IRQ_CFG1: usize = 0x70;
pub const STRTAB_BASE: usize = 0x80;
pub const STRTAB_BASE_CFG: usize = 0x88;
pub const SMMUEN: u32 = 1;
pub const PRIQEN: u32 = 1 << 1;
pub const EVENTQEN: u32 = 1 << 2;
pub const CMDQEN: u32 = 1 << 3;
pub const UPDATE: u32 = 1 << 31;
/// On a control page.
pub const EN: u32 = 1 << 31;
pub const ERR: u32 = 1 << 23;

/// BASE, PROD and CONS of the CMDQ and of two ECMDQs on one page.
pub const QUEUES: [[usize; 3]; 3] =
    [[0x90, 0x98, 0x9c], [0x2_0000, 0x2_0008, 0x2_000c], [0x2_8000, 0x2_8008, 0x2_800c]];

/// What is constant.
const IDS: [(usize, u32); 14] = [
    (0x00, 0x0949_341a), // IDR0: the default features, ATS, PRI
    (0x04, 0x80e7_0010), // IDR1: ECMDQ, CMDQS 7
    (0x08, 0),
    (0x0c, 0x404),
    (0x10, 0),
    (0x14, 0x54),
    (0x18, 0),
    (0x1c, 3),
    (0x40, 0),
    (0x190, 0x1_0000), // IDR6: one page, two queues
    (0x4000, 0x2_0003),
    (0x4004, 0),
    (0x4008, 1),
    (0x400c, 1),
];

/// What can be written, or changes, and is zero after reset.
const OTHERS: [usize; 49] = [
    CR0,
    CR0ACK,
    CR1,
    CR2,
    GBPA,
    0x48,
    IRQ_CTRL,
    IRQ_CTRLACK,
    GERROR,
    GERRORN,
    0x68,
    0x6c,
    0x70,
    0x74,
    0x80,
    0x84,
    0x88,
    0x8c,
    0x90,
    0x94,
    0x98,
    0x9c,
    0xa0,
    0xa4,
    0xb0,
    0xb4,
    0xb8,
    0xbc,
    0xc0,
    0xc4,
    0xd0,
    0xd4,
    0xd8,
    0xdc,
    0x1_00a8,
    0x1_00ac,
    0x1_00c8,
    0x1_00cc,
    0x2_0000,
    0x2_0004,
    0x2_0008,
    0x2_000c,
    0x2_0010,
    0x2_8000,
    0x2_8004,
    0x2_8008,
    0x2_800c,
    0x3_0000,
    0x3_0008,
];

/// All offsets at which something may be read.
pub fn offsets() -> impl Iterator<Item = usize> {
    IDS.into_iter().map(|(offset, _)| offset).chain(OTHERS)
}

/// All words as the guest reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct Registers(BTreeMap<usize, u32>);

impl Registers {
    pub fn new() -> Self {
        Self(IDS.into_iter().chain(OTHERS.map(|offset| (offset, 0))).collect())
    }

    pub fn all(&self) -> impl Iterator<Item = (usize, u32)> {
        self.0.iter().map(|(offset, value)| (*offset, *value))
    }

    pub fn get(&self, offset: usize) -> u32 {
        self.0[&offset]
    }

    pub fn get_u64(&self, offset: usize) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    /// By the SMMU.
    pub fn set(&mut self, offset: usize, value: u32) {
        self.0.insert(offset, value);
    }

    /// By the guest.
    pub fn write(&mut self, offset: usize, value: u32) {
        let old = self.get(offset);
        let bits = self.writable(offset, old, value);
        self.set(offset, old & !bits | value & bits);
    }

    /// Neither the field nor its acknowledgement is set.
    fn off(&self, control: usize, bits: u32) -> bool {
        (self.get(control) | self.get(control + 4)) & bits == 0
    }

    fn disabled(&self, [_, prod, cons]: [usize; 3]) -> bool {
        (self.get(prod) | self.get(cons)) & EN == 0
    }

    fn writable(&self, offset: usize, old: u32, value: u32) -> u32 {
        let when = |condition: bool, bits: u32| if condition { bits } else { 0 };
        match offset {
            CR0 => 0x1f & !(old ^ self.get(CR0ACK)),
            IRQ_CTRL => 0x7 & !(old ^ self.get(IRQ_CTRLACK)),
            CR1 => {
                let queues = self.off(CR0, CMDQEN | EVENTQEN | PRIQEN)
                    && self.disabled(QUEUES[1])
                    && self.disabled(QUEUES[2]);
                when(self.off(CR0, SMMUEN), 0xfc0) | when(queues, 0x3f)
            }
            CR2 => when(self.off(CR0, SMMUEN), 0xa),
            GBPA => when(old & UPDATE == 0 && value & UPDATE != 0, 0x801f_3f1f),
            GERRORN => 0x7fd,
            0x68..0x78 => when(self.off(IRQ_CTRL, 1), msi_bits(offset - 0x68)),
            0xb0..0xc0 => when(self.off(IRQ_CTRL, 4), msi_bits(offset - 0xb0)),
            0xd0..0xe0 => {
                let last_one = when(offset == 0xdc, 1 << 31);
                when(self.off(IRQ_CTRL, 2), msi_bits(offset - 0xd0) | last_one)
            }
            STRTAB_BASE => when(self.off(CR0, SMMUEN), 0xffff_ffc0),
            0x84 => when(self.off(CR0, SMMUEN), 0x40ff_ffff),
            STRTAB_BASE_CFG => when(self.off(CR0, SMMUEN), 0x3_07ff),
            0x90 | 0x94 => when(self.off(CR0, CMDQEN), base_bits(offset)),
            0x98 => 0xf_ffff,
            0x9c => when(self.off(CR0, CMDQEN), 0x7f0f_ffff),
            0xa0 | 0xa4 => when(self.off(CR0, EVENTQEN), base_bits(offset)),
            0xc0 | 0xc4 => when(self.off(CR0, PRIQEN), base_bits(offset)),
            0x1_00a8 => when(self.off(CR0, EVENTQEN), 0x800f_ffff),
            0x1_00c8 => when(self.off(CR0, PRIQEN), 0x800f_ffff),
            0x1_00ac | 0x1_00cc => 0x800f_ffff,
            0x2_0000..0x2_0010 => self.ecmdq(QUEUES[1], offset),
            0x2_8000..0x2_8010 => self.ecmdq(QUEUES[2], offset),
            _ => 0,
        }
    }

    fn ecmdq(&self, queue: [usize; 3], offset: usize) -> u32 {
        let [_, prod, cons] = queue;
        let disabled = self.disabled(queue);
        match offset & 0xf {
            0x8 if (self.get(prod) ^ self.get(cons)) & EN == 0 => 0x808f_ffff,
            0xc if disabled => 0x078f_ffff,
            0x0 | 0x4 if disabled => base_bits(offset),
            _ => 0,
        }
    }
}

/// Of a queue's BASE, whose halves are at multiples of 8 and 8 plus 4: RA, ADDR and LOG2SIZE.
fn base_bits(offset: usize) -> u32 {
    if offset.is_multiple_of(8) { 0xffff_ffff } else { 0x40ff_ffff }
}

/// Of the four words IRQ_CFG0 (64 bits), 1 and 2.
fn msi_bits(offset: usize) -> u32 {
    [0xffff_fffc, 0x00ff_ffff, 0xffff_ffff, 0x3f][offset / 4]
}
