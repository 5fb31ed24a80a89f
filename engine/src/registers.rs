//! Register offsets and bits of pages 0 and 1 (facts sheet, section 2).

/// The size of pages 0 and 1 together, in bytes.
pub const FRAME_SIZE: usize = 0x2_0000;

/// The first of the ID registers IDR0 to IDR5.
pub const IDR0: usize = 0x00;
/// Queue and identifier sizes.
pub const IDR1: usize = 0x04;
/// The architecture version.
pub const AIDR: usize = 0x1c;
/// Enables.
pub const CR0: usize = 0x20;
/// Acknowledges CR0.
pub const CR0ACK: usize = 0x24;
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
/// Base and log2 size of the command queue (64 bits).
pub const CMDQ_BASE: usize = 0x90;
/// The command queue's doorbell.
pub const CMDQ_PROD: usize = 0x98;
/// The command queue's CONS index and error code.
pub const CMDQ_CONS: usize = 0x9c;

/// SMMUv3.2 in AIDR.
pub const AIDR_V3_2: u32 = 0x02;

/// CR0.SMMUEN.
pub const CR0_SMMUEN: u32 = 1 << 0;
/// CR0.EVENTQEN.
pub const CR0_EVENTQEN: u32 = 1 << 2;
/// CR0.CMDQEN.
pub const CR0_CMDQEN: u32 = 1 << 3;
/// CR0.ATSCHK.
pub const CR0_ATSCHK: u32 = 1 << 4;

/// GBPA.Update.
pub const GBPA_UPDATE: u32 = 1 << 31;

/// IRQ_CTRL: GERROR_IRQEN and EVENTQ_IRQEN.
pub const IRQ_CTRL_BITS: u32 = 1 << 0 | 1 << 2;

/// GERROR.CMDQ_ERR.
pub const GERROR_CMDQ_ERR: u32 = 1 << 0;
/// GERROR.MSI_CMDQ_ABT_ERR.
pub const GERROR_MSI_CMDQ_ABT_ERR: u32 = 1 << 4;

/// CMDQ_BASE.LOG2SIZE.
pub const BASE_LOG2SIZE: u64 = 0x1f;
/// CMDQ_BASE.ADDR, bits `[55:5]`.
pub const BASE_ADDR: u64 = 0x00ff_ffff_ffff_ffe0;

/// The lowest bit of CMDQ_CONS.ERR.
pub const CONS_ERR_SHIFT: u32 = 24;
