//! What registers there are, written from the facts sheet (sections 2 and 4.1): tables, no code of the engine.

use ecmdq_engine::Features;

/// Behind pages 0 and 1 and two control pages, and a little more.
pub const WINDOW: usize = 0x4_0000 + 0x400;

/// A register: offset, value after reset, the bits that can be written.
pub type Register = (usize, u32, u32);

/// What every SMMU has. Offsets that are listed nowhere read as zero and ignore writes.
const COMMON: &[Register] = &[
    (0x28, 0, 0x0000_0fff),     // CR1
    (0x44, 0, 0x801f_3f1f),     // GBPA
    (0x64, 0, 0x0000_07fd),     // GERRORN
    (0x68, 0, 0xffff_fffc),     // GERROR_IRQ_CFG0
    (0x6c, 0, 0x00ff_ffff),     //
    (0x70, 0, 0xffff_ffff),     // GERROR_IRQ_CFG1
    (0x74, 0, 0x0000_003f),     // GERROR_IRQ_CFG2
    (0x80, 0, 0xffff_ffc0),     // STRTAB_BASE
    (0x84, 0, 0x40ff_ffff),     //
    (0x88, 0, 0x0003_07ff),     // STRTAB_BASE_CFG
    (0x90, 0, 0xffff_ffff),     // CMDQ_BASE
    (0x94, 0, 0x40ff_ffff),     //
    (0x98, 0, 0x000f_ffff),     // CMDQ_PROD
    (0x9c, 0, 0x7f0f_ffff),     // CMDQ_CONS
    (0xa0, 0, 0xffff_ffff),     // EVENTQ_BASE
    (0xa4, 0, 0x40ff_ffff),     //
    (0xb0, 0, 0xffff_fffc),     // EVENTQ_IRQ_CFG0
    (0xb4, 0, 0x00ff_ffff),     //
    (0xb8, 0, 0xffff_ffff),     // EVENTQ_IRQ_CFG1
    (0xbc, 0, 0x0000_003f),     // EVENTQ_IRQ_CFG2
    (0x1_00a8, 0, 0x800f_ffff), // EVENTQ_PROD
    (0x1_00ac, 0, 0x800f_ffff), // EVENTQ_CONS
];

/// Stage 1 alone: ID registers, and the fields that depend on them.
const MINIMAL: &[Register] = &[
    (0x00, 0x0948_000a, 0), // IDR0: S1P
    (0x04, 0x00e7_0010, 0), // IDR1
    (0x0c, 0x0000_0004, 0), // IDR3
    (0x14, 0x0000_0054, 0), // IDR5
    (0x1c, 0x0000_0001, 0), // AIDR: SMMUv3.1
    (0x20, 0, 0x0000_000d), // CR0: SMMUEN, EVENTQEN, CMDQEN
    (0x2c, 0, 0x0000_000a), // CR2: RECINVSID, REC_CFG_ATS
    (0x50, 0, 0x0000_0005), // IRQ_CTRL: GERROR, EVENTQ
];

/// The default features.
const LINUX: &[Register] = &[
    (0x00, 0x0948_301a, 0), // IDR0: and COHACC, ASID16, MSI
    (0x04, 0x01e7_0010, 0), // IDR1
    (0x0c, 0x0000_0404, 0), // IDR3: and RIL
    (0x14, 0x0000_0054, 0), // IDR5
    (0x1c, 0x0000_0002, 0), // AIDR: SMMUv3.2
    (0x20, 0, 0x0000_000d),
    (0x2c, 0, 0x0000_000a),
    (0x50, 0, 0x0000_0005),
];

/// The default features with two control pages of four ECMDQs.
const ECMDQS: &[Register] = &[
    (0x00, 0x0948_301a, 0),
    (0x04, 0x81e7_0010, 0), // IDR1: and ECMDQ
    (0x0c, 0x0000_0404, 0),
    (0x14, 0x0000_0054, 0),
    (0x1c, 0x0000_0003, 0), // AIDR: SMMUv3.3
    (0x20, 0, 0x0000_000d),
    (0x2c, 0, 0x0000_000a),
    (0x50, 0, 0x0000_0005),
    (0x190, 0x0102_0000, 0),  // IDR6: LOG2NUMP 1, LOG2NUMQ 2
    (0x4000, 0x0002_0003, 0), // CMDQ_CONTROL_PAGE_BASE0: offset 0x20000, 64 KiB, preset
    (0x4008, 1, 0),           // CMDQ_CONTROL_PAGE_CFG0.EN
    (0x400c, 1, 0),           // CMDQ_CONTROL_PAGE_STATUS0.ENACK
    (0x4020, 0x0003_0003, 0), // and of the second page
    (0x4028, 1, 0),
    (0x402c, 1, 0),
];

/// Stage 1 with EL2 contexts.
const EL2: &[Register] = &[
    (0x00, 0x0948_020a, 0), // IDR0: S1P, Hyp
    (0x04, 0x00e7_0010, 0),
    (0x0c, 0x0000_0004, 0),
    (0x14, 0x0000_0054, 0),
    (0x1c, 0x0000_0001, 0),
    (0x20, 0, 0x0000_000d),
    (0x2c, 0, 0x0000_000b), // CR2: and E2H
    (0x50, 0, 0x0000_0005),
];

/// All features that a preset has, with one control page of 256 ECMDQs.
const EVERYTHING: &[Register] = &[
    (0x00, 0x084d_349b, 0), // IDR0: and S2P, HTTU 2, ATS, PRI, VMID16, STALL_MODEL 0
    (0x04, 0x8273_9d20, 0), // IDR1: CMDQS, EVENTQS and PRIQS 19, SSIDSIZE 20, SIDSIZE 32
    (0x0c, 0x0000_8484, 0), // IDR3: and MPAM, DPT
    (0x14, 0x0000_01f6, 0), // IDR5: and GRAN16K, DS, D128, OAS 6
    (0x1c, 0x0000_0004, 0), // AIDR: SMMUv3.4
    (0x20, 0, 0x0000_001f), // CR0: and PRIQEN, ATSCHK
    (0x2c, 0, 0x0000_000a),
    (0x50, 0, 0x0000_0007), // IRQ_CTRL: and PRIQ
    (0x190, 0x0008_0000, 0),
    (0x4000, 0x0002_0003, 0),
    (0x4008, 1, 0),
    (0x400c, 1, 0),
    (0xc0, 0, 0xffff_ffff),     // PRIQ_BASE
    (0xc4, 0, 0x40ff_ffff),     //
    (0xd0, 0, 0xffff_fffc),     // PRIQ_IRQ_CFG0
    (0xd4, 0, 0x00ff_ffff),     //
    (0xd8, 0, 0xffff_ffff),     // PRIQ_IRQ_CFG1
    (0xdc, 0, 0x8000_003f),     // PRIQ_IRQ_CFG2
    (0x1_00c8, 0, 0x800f_ffff), // PRIQ_PROD
    (0x1_00cc, 0, 0x800f_ffff), // PRIQ_CONS
];

/// The four words of an ECMDQ's block.
const BLOCK: [Register; 4] = [
    (0x0, 0, 0xffff_ffff), // ECMDQ_BASE
    (0x4, 0, 0x40ff_ffff),
    (0x8, 0, 0x808f_ffff), // ECMDQ_PROD: EN, ERRACK, WR
    (0xc, 0, 0x078f_ffff), // ECMDQ_CONS: ERR_REASON, ERR, RD; not ENACK
];

/// The 64-bit registers of pages 0 and 1; besides them there are BASE of each ECMDQ and of each control page.
const WIDE: [usize; 7] = [0x68, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0];

/// An SMMU and its registers.
pub struct Smmu {
    pub name: &'static str,
    pub features: Features,
    /// In order of their offsets.
    registers: Vec<Register>,
    /// Where the blocks of the ECMDQs are.
    blocks: Vec<usize>,
}

impl Smmu {
    fn new(name: &'static str, features: Features, own: &[Register], blocks: Vec<usize>) -> Self {
        let mut registers: Vec<_> = COMMON.iter().chain(own).copied().collect();
        let block = |at: &usize| BLOCK.map(|(offset, reset, bits)| (at + offset, reset, bits));
        registers.extend(blocks.iter().flat_map(block));
        registers.sort_unstable();
        Self { name, features, registers, blocks }
    }

    pub fn all() -> [Self; 5] {
        let mut el2 = Features::minimal();
        el2.hyp = true;
        let eight = (0x2_0000..0x4_0000).step_by(0x4000).collect();
        let many = (0x2_0000..0x3_0000).step_by(0x100).collect();
        [
            Self::new("minimal", Features::minimal(), MINIMAL, vec![]),
            Self::new("minimal at EL2", el2, EL2, vec![]),
            Self::new("linux", Features::linux(), LINUX, vec![]),
            Self::new("linux with ECMDQs", Features::linux().with_ecmdqs(1, 2), ECMDQS, eight),
            Self::new("everything", Features::everything(), EVERYTHING, many),
        ]
    }

    pub fn registers(&self) -> &[Register] {
        &self.registers
    }

    /// The value after reset, and the bits that can be written, of any word.
    pub fn word(&self, offset: usize) -> (u32, u32) {
        let listed = self.registers.binary_search_by_key(&offset, |(at, ..)| *at);
        listed.map_or((0, 0), |index| (self.registers[index].1, self.registers[index].2))
    }

    /// Where a 64-bit register starts.
    pub fn wide(&self) -> Vec<usize> {
        let pages = self.registers.iter().map(|(at, ..)| *at).filter(|at| [0x4000, 0x4020].contains(at));
        let frame = WIDE.into_iter().filter(|at| self.word(*at) != (0, 0));
        frame.chain(pages).chain(self.blocks.iter().copied()).collect()
    }
}
