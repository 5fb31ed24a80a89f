//! Register offsets and bits (facts sheet, section 2), and the table of registers that a guest can write.

mod words;

use crate::features::Features;

pub(crate) use words::{RegisterWords, Word};

/// The size of pages 0 and 1 together, in bytes.
pub const FRAME_SIZE: usize = 0x2_0000;
/// The size of an ECMDQ control page in bytes.
pub const CONTROL_PAGE_SIZE: usize = 0x1_0000;
/// Where the first ECMDQ control page is, from page 0: right behind page 1.
pub const CONTROL_PAGES: usize = FRAME_SIZE;

/// The first of the ID registers IDR0 to IDR5.
pub const IDR0: usize = 0x00;
/// Queue and identifier sizes.
pub const IDR1: usize = 0x04;
/// Who made it.
pub const IIDR: usize = 0x18;
/// The architecture version.
pub const AIDR: usize = 0x1c;
/// Enables.
pub const CR0: usize = 0x20;
/// Acknowledges CR0.
pub const CR0ACK: usize = 0x24;
/// Memory attributes of tables and queues.
pub const CR1: usize = 0x28;
/// Miscellaneous controls.
pub const CR2: usize = 0x2c;
/// Dormancy status.
pub const STATUSR: usize = 0x40;
/// Global bypass attributes.
pub const GBPA: usize = 0x44;
/// Interrupt enables.
pub const IRQ_CTRL: usize = 0x50;
/// Acknowledges IRQ_CTRL.
pub const IRQ_CTRLACK: usize = 0x54;
/// Global errors, toggled by the SMMU.
pub const GERROR: usize = 0x60;
/// Global errors as acknowledged by software.
pub const GERRORN: usize = 0x64;
/// The address of the global error MSI (64 bits).
pub const GERROR_IRQ_CFG0: usize = 0x68;
/// The data of the global error MSI.
pub const GERROR_IRQ_CFG1: usize = 0x70;
/// The attributes of the global error MSI.
pub const GERROR_IRQ_CFG2: usize = 0x74;
/// The stream table's base (64 bits).
pub const STRTAB_BASE: usize = 0x80;
/// The stream table's format and size.
pub const STRTAB_BASE_CFG: usize = 0x88;
/// Base and log2 size of the command queue (64 bits).
pub const CMDQ_BASE: usize = 0x90;
/// The command queue's doorbell.
pub const CMDQ_PROD: usize = 0x98;
/// The command queue's CONS index and error code.
pub const CMDQ_CONS: usize = 0x9c;
/// Base and log2 size of the event queue (64 bits).
pub const EVENTQ_BASE: usize = 0xa0;
/// The address of the event queue's MSI (64 bits).
pub const EVENTQ_IRQ_CFG0: usize = 0xb0;
/// The data of the event queue's MSI.
pub const EVENTQ_IRQ_CFG1: usize = 0xb8;
/// The attributes of the event queue's MSI.
pub const EVENTQ_IRQ_CFG2: usize = 0xbc;
/// Base and log2 size of the page request queue (64 bits).
pub const PRIQ_BASE: usize = 0xc0;
/// The address of the page request queue's MSI (64 bits).
pub const PRIQ_IRQ_CFG0: usize = 0xd0;
/// The data of the page request queue's MSI.
pub const PRIQ_IRQ_CFG1: usize = 0xd8;
/// The attributes of the page request queue's MSI.
pub const PRIQ_IRQ_CFG2: usize = 0xdc;
/// Number of control pages, and of queues on each.
pub const IDR6: usize = 0x190;
/// The first of the control page descriptions, 32 bytes each: CMDQ_CONTROL_PAGE_BASE (64 bits), CFG, STATUS.
pub const CONTROL_PAGE_BASE: usize = 0x4000;
/// The distance from one control page description to the next.
pub const CONTROL_PAGE_STRIDE: usize = 32;
/// The event queue's PROD, on page 1.
pub const EVENTQ_PROD: usize = 0x1_00a8;
/// The event queue's CONS, on page 1.
pub const EVENTQ_CONS: usize = 0x1_00ac;
/// The page request queue's PROD, on page 1.
pub const PRIQ_PROD: usize = 0x1_00c8;
/// The page request queue's CONS, on page 1.
pub const PRIQ_CONS: usize = 0x1_00cc;

/// ECMDQ_BASE (64 bits) from the start of a queue's block on its control page.
pub const ECMDQ_BASE: usize = 0x0;
/// ECMDQ_PROD, likewise.
pub const ECMDQ_PROD: usize = 0x8;
/// ECMDQ_CONS, likewise.
pub const ECMDQ_CONS: usize = 0xc;

/// CR0.SMMUEN.
pub const CR0_SMMUEN: u32 = 1 << 0;
/// CR0.PRIQEN.
pub const CR0_PRIQEN: u32 = 1 << 1;
/// CR0.EVENTQEN.
pub const CR0_EVENTQEN: u32 = 1 << 2;
/// CR0.CMDQEN.
pub const CR0_CMDQEN: u32 = 1 << 3;
/// CR0.ATSCHK.
pub const CR0_ATSCHK: u32 = 1 << 4;

/// CR2.E2H.
pub const CR2_E2H: u32 = 1 << 0;

/// CR1: the TABLE_* fields.
pub const CR1_TABLE: u32 = 0xfc0;
/// CR1: the QUEUE_* fields.
pub const CR1_QUEUE: u32 = 0x03f;

/// GBPA.Update.
pub const GBPA_UPDATE: u32 = 1 << 31;

/// IRQ_CTRL.GERROR_IRQEN.
pub const IRQ_CTRL_GERROR: u32 = 1 << 0;
/// IRQ_CTRL.PRIQ_IRQEN.
pub const IRQ_CTRL_PRIQ: u32 = 1 << 1;
/// IRQ_CTRL.EVENTQ_IRQEN.
pub const IRQ_CTRL_EVENTQ: u32 = 1 << 2;

/// GERROR.CMDQ_ERR.
pub const GERROR_CMDQ_ERR: u32 = 1 << 0;
/// GERROR.EVENTQ_ABT_ERR.
pub const GERROR_EVENTQ_ABT_ERR: u32 = 1 << 2;
/// GERROR.PRIQ_ABT_ERR.
pub const GERROR_PRIQ_ABT_ERR: u32 = 1 << 3;
/// GERROR.MSI_CMDQ_ABT_ERR.
pub const GERROR_MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
/// GERROR.MSI_EVENTQ_ABT_ERR.
pub const GERROR_MSI_EVENTQ_ABT_ERR: u32 = 1 << 5;
/// GERROR.MSI_PRIQ_ABT_ERR.
pub const GERROR_MSI_PRIQ_ABT_ERR: u32 = 1 << 6;
/// GERROR.MSI_GERROR_ABT_ERR.
pub const GERROR_MSI_GERROR_ABT_ERR: u32 = 1 << 7;
/// GERROR.SFM_ERR.
pub const GERROR_SFM_ERR: u32 = 1 << 8;
/// GERROR.CMDQP_ERR.
pub const GERROR_CMDQP_ERR: u32 = 1 << 9;

/// The bits of GERROR and GERRORN.
pub const GERROR_BITS: u32 = 0x7fd;

/// The errors of GERROR that the engine raises.
pub(crate) const GERROR_RAISED: u32 = GERROR_CMDQ_ERR
    | GERROR_EVENTQ_ABT_ERR
    | GERROR_PRIQ_ABT_ERR
    | GERROR_MSI_CMDQ_ABT_ERR
    | GERROR_MSI_EVENTQ_ABT_ERR
    | GERROR_MSI_PRIQ_ABT_ERR
    | GERROR_MSI_GERROR_ABT_ERR
    | GERROR_SFM_ERR
    | GERROR_CMDQP_ERR;

/// CMDQ_BASE.LOG2SIZE.
pub const BASE_LOG2SIZE: u64 = 0x1f;
/// CMDQ_BASE.ADDR, bits `[55:5]`.
pub const BASE_ADDR: u64 = 0x00ff_ffff_ffff_ffe0;
/// The address of an MSI, bits `[55:2]`.
pub const MSI_ADDR: u64 = 0x00ff_ffff_ffff_fffc;

/// WR or RD: the index of a PROD or CONS register.
pub const INDEX: u32 = 0xf_ffff;
/// The lowest bit of CMDQ_CONS.ERR.
pub const CONS_ERR_SHIFT: u32 = 24;

/// When a register can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    Always,
    /// Field by field, while the field equals its acknowledgement.
    Handshake,
    /// With Update=1, while Update=0.
    Update,
    /// While none of these bits of CR0 and CR0ACK is set.
    Disabled(u32),
    /// While none of these bits of IRQ_CTRL and IRQ_CTRLACK is set.
    Masked(u32),
    /// TABLE_* while SMMUEN is 0, QUEUE_* while no queue is enabled.
    Attributes,
}

/// A register of pages 0 and 1 that the guest can write. Any other reads as the engine wrote it, or as zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writable {
    pub name: &'static str,
    pub offset: usize,
    /// 4 or 8.
    pub bytes: usize,
    /// The bits that exist, if their features do.
    pub bits: u64,
    pub guard: Guard,
    /// It exists with page requests (IDR0.PRI) only.
    pub pri: bool,
}

impl Writable {
    /// The bits that exist with these features.
    pub fn bits(&self, features: &Features) -> u64 {
        let without = |has: bool, bits: u32| if has { 0 } else { u64::from(bits) };
        match self.offset {
            _ if self.pri && !features.pri => 0,
            CR0 => self.bits & !without(features.pri, CR0_PRIQEN) & !without(features.ats, CR0_ATSCHK),
            IRQ_CTRL => self.bits & !without(features.pri, IRQ_CTRL_PRIQ),
            CR2 => self.bits & !without(features.hyp, CR2_E2H),
            _ => self.bits,
        }
    }
}

const fn writable(name: &'static str, offset: usize, bytes: usize, bits: u64, guard: Guard) -> Writable {
    Writable { name, offset, bytes, bits, guard, pri: false }
}

const fn pri(name: &'static str, offset: usize, bytes: usize, bits: u64, guard: Guard) -> Writable {
    Writable { name, offset, bytes, bits, guard, pri: true }
}

/// The bits of a queue's BASE register.
pub(crate) const QUEUE_BASE: u64 = 1 << 62 | BASE_ADDR | BASE_LOG2SIZE;
/// SH and MemAttr.
const MSI_ATTR: u64 = 0x3f;

/// In order of their offsets.
pub(crate) const WRITABLE: &[Writable] = &[
    writable("CR0", CR0, 4, 0x1f, Guard::Handshake),
    writable("CR1", CR1, 4, 0xfff, Guard::Attributes),
    writable("CR2", CR2, 4, 0x0b, Guard::Disabled(CR0_SMMUEN)),
    writable("GBPA", GBPA, 4, 0x801f_3f1f, Guard::Update),
    writable("IRQ_CTRL", IRQ_CTRL, 4, 0x7, Guard::Handshake),
    writable("GERRORN", GERRORN, 4, GERROR_BITS as u64, Guard::Always),
    writable("GERROR_IRQ_CFG0", GERROR_IRQ_CFG0, 8, MSI_ADDR, Guard::Masked(IRQ_CTRL_GERROR)),
    writable("GERROR_IRQ_CFG1", GERROR_IRQ_CFG1, 4, 0xffff_ffff, Guard::Masked(IRQ_CTRL_GERROR)),
    writable("GERROR_IRQ_CFG2", GERROR_IRQ_CFG2, 4, MSI_ATTR, Guard::Masked(IRQ_CTRL_GERROR)),
    writable("STRTAB_BASE", STRTAB_BASE, 8, 1 << 62 | 0x00ff_ffff_ffff_ffc0, Guard::Disabled(CR0_SMMUEN)),
    writable("STRTAB_BASE_CFG", STRTAB_BASE_CFG, 4, 0x3_07ff, Guard::Disabled(CR0_SMMUEN)),
    writable("CMDQ_BASE", CMDQ_BASE, 8, QUEUE_BASE, Guard::Disabled(CR0_CMDQEN)),
    writable("CMDQ_PROD", CMDQ_PROD, 4, INDEX as u64, Guard::Always),
    writable("CMDQ_CONS", CMDQ_CONS, 4, 0x7f00_0000 | INDEX as u64, Guard::Disabled(CR0_CMDQEN)),
    writable("EVENTQ_BASE", EVENTQ_BASE, 8, QUEUE_BASE, Guard::Disabled(CR0_EVENTQEN)),
    writable("EVENTQ_IRQ_CFG0", EVENTQ_IRQ_CFG0, 8, MSI_ADDR, Guard::Masked(IRQ_CTRL_EVENTQ)),
    writable("EVENTQ_IRQ_CFG1", EVENTQ_IRQ_CFG1, 4, 0xffff_ffff, Guard::Masked(IRQ_CTRL_EVENTQ)),
    writable("EVENTQ_IRQ_CFG2", EVENTQ_IRQ_CFG2, 4, MSI_ATTR, Guard::Masked(IRQ_CTRL_EVENTQ)),
    pri("PRIQ_BASE", PRIQ_BASE, 8, QUEUE_BASE, Guard::Disabled(CR0_PRIQEN)),
    pri("PRIQ_IRQ_CFG0", PRIQ_IRQ_CFG0, 8, MSI_ADDR, Guard::Masked(IRQ_CTRL_PRIQ)),
    pri("PRIQ_IRQ_CFG1", PRIQ_IRQ_CFG1, 4, 0xffff_ffff, Guard::Masked(IRQ_CTRL_PRIQ)),
    pri("PRIQ_IRQ_CFG2", PRIQ_IRQ_CFG2, 4, 1 << 31 | MSI_ATTR, Guard::Masked(IRQ_CTRL_PRIQ)),
    writable("EVENTQ_PROD", EVENTQ_PROD, 4, 1 << 31 | INDEX as u64, Guard::Disabled(CR0_EVENTQEN)),
    writable("EVENTQ_CONS", EVENTQ_CONS, 4, 1 << 31 | INDEX as u64, Guard::Always),
    pri("PRIQ_PROD", PRIQ_PROD, 4, 1 << 31 | INDEX as u64, Guard::Disabled(CR0_PRIQEN)),
    pri("PRIQ_CONS", PRIQ_CONS, 4, 1 << 31 | INDEX as u64, Guard::Always),
];

/// The queues whose memory attributes are in CR1.
pub(crate) const CR0_QUEUES: u32 = CR0_CMDQEN | CR0_EVENTQEN | CR0_PRIQEN;
