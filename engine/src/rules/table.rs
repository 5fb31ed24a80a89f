//! The commands as data: names, fields, conditions, and where each command goes (facts sheet, section 1).
//!
//! Everything else about commands follows from this table: the compiled rules of the hot path, names, printing.

use crate::command::{Command, Opcode};
use crate::features::Features;

/// A condition on the features of the SMMU that executes a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// On every SMMU.
    Always,
    /// IDR0.ATS.
    Ats,
    /// IDR0.ASID16.
    Asid16,
    /// IDR3.RIL.
    Ril,
    /// IDR3.RIL and IDR5.DS; this virtual SMMU never has DS.
    Ds,
    /// IDR3.RIL and IDR5.D128; this virtual SMMU never has D128.
    D128,
}

impl When {
    /// Whether the condition holds.
    pub fn holds(self, features: &Features) -> bool {
        match self {
            Self::Always => true,
            Self::Ats => features.ats,
            Self::Asid16 => features.asid16,
            Self::Ril => features.ril,
            Self::Ds | Self::D128 => false,
        }
    }
}

/// What becomes of a field on the way to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Kept.
    Kept,
    /// Replaced by the host's VMID; the guest's value does not matter.
    Vmid,
    /// Replaced by the host's StreamID.
    Stream,
}

/// A field of a command.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The architecture's name.
    pub name: &'static str,
    /// The word it is in.
    pub word: usize,
    /// Its highest bit.
    pub msb: u32,
    /// Its lowest bit.
    pub lsb: u32,
    /// Without this feature the field does not exist: its bits are reserved.
    pub when: When,
    /// Without this feature the field ends at this bit.
    pub narrow: Option<(When, u32)>,
    /// What becomes of it.
    pub role: Role,
    /// Printed shifted left by this (addresses).
    pub shown_shift: u32,
}

impl Field {
    const fn new(name: &'static str, word: usize, msb: u32, lsb: u32) -> Self {
        let (when, narrow, role) = (When::Always, None, Role::Kept);
        Self { name, word, msb, lsb, when, narrow, role, shown_shift: 0 }
    }

    const fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    const fn narrow_without(self, when: When, msb: u32) -> Self {
        Self { narrow: Some((when, msb)), ..self }
    }

    const fn role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    const fn address(self) -> Self {
        Self { shown_shift: self.lsb, ..self }
    }

    /// The value in a command.
    pub const fn of(&self, command: Command) -> u64 {
        command.bits(self.word, self.msb, self.lsb)
    }

    /// The bits of its word that it has at most.
    pub const fn mask(&self) -> u64 {
        u64::MAX >> (63 - self.msb) & u64::MAX << self.lsb
    }

    /// The bits of its word that it has on an SMMU with these features.
    pub fn mask_for(&self, features: &Features) -> u64 {
        match self.narrow {
            _ if !self.when.holds(features) => 0,
            Some((when, msb)) if !when.holds(features) => Self { msb, ..*self }.mask(),
            _ => self.mask(),
        }
    }
}

/// Where a command goes, and with which checks that no mask expresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Not a command of this SMMU: CERROR_ILL.
    Illegal,
    /// To the host; the masks say everything.
    Host,
    /// To the host, after the checks on NUM, SCALE, TG and TTL (section 1.7).
    HostRange,
    /// To the host with the StreamID mapped; dropped if the guest owns no such stream or substream.
    HostStream,
    /// As `HostStream`, after the check on Size, with SubstreamID and Global cleared unless SSV (section 1.8).
    HostAtc,
    /// To the VMM, which has the stream table.
    StreamConfig,
    /// Nowhere: a hint.
    Nowhere,
    /// Ends a group: CMD_SYNC.
    Sync,
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Its opcode.
    pub opcode: Opcode,
    /// The architecture's name.
    pub name: &'static str,
    /// Without this feature the command is CERROR_ILL.
    pub needs: When,
    /// Its fields. All other bits are reserved, which raise CERROR_ILL.
    pub fields: &'static [Field],
    /// Where it goes.
    pub handling: Handling,
    /// The opcode that the host gets.
    pub host: Opcode,
}

impl Spec {
    const fn new(opcode: Opcode, name: &'static str, handling: Handling, fields: &'static [Field]) -> Self {
        Self { opcode, name, needs: When::Always, fields, handling, host: opcode }
    }
}

const SSV: Field = Field::new("SSV", 0, 11, 11);
const SUBSTREAM: Field = Field::new("SubstreamID", 0, 31, 12);
const STREAM: Field = Field::new("StreamID", 0, 63, 32).role(Role::Stream);
const VMID: Field = Field::new("VMID", 0, 47, 32).role(Role::Vmid);
const ASID: Field = Field::new("ASID", 0, 63, 48).narrow_without(When::Asid16, 55);
const NUM: Field = Field::new("NUM", 0, 16, 12).when(When::Ril);
const SCALE: Field = Field::new("SCALE", 0, 25, 20).when(When::Ril).narrow_without(When::Ds, 24);
const LEAF: Field = Field::new("Leaf", 1, 0, 0);
const TTL128: Field = Field::new("TTL128", 1, 7, 7).when(When::D128);
const TTL: Field = Field::new("TTL", 1, 9, 8).when(When::Ril);
const TG: Field = Field::new("TG", 1, 11, 10).when(When::Ril);
const ADDRESS: Field = Field::new("Address", 1, 63, 12).address();

use Handling::{HostAtc, HostRange, HostStream, Nowhere, StreamConfig, Sync};

/// The commands of a stage 1 SMMU that Linux sends, by opcode.
pub static COMMANDS: &[Spec] = &[
    Spec::new(Opcode::PREFETCH_CONFIG, "PREFETCH_CONFIG", Nowhere, &[SSV, SUBSTREAM, STREAM]),
    Spec::new(
        Opcode::PREFETCH_ADDR,
        "PREFETCH_ADDR",
        Nowhere,
        &[SSV, SUBSTREAM, STREAM, Field::new("Size", 1, 4, 0), Field::new("Stride", 1, 9, 5), ADDRESS],
    ),
    Spec::new(Opcode::CFGI_STE, "CFGI_STE", StreamConfig, &[STREAM, LEAF]),
    Spec::new(
        Opcode::CFGI_STE_RANGE,
        "CFGI_STE_RANGE",
        StreamConfig,
        &[STREAM, Field::new("Range", 1, 4, 0)],
    ),
    Spec::new(Opcode::CFGI_CD, "CFGI_CD", HostStream, &[SUBSTREAM, STREAM, LEAF]),
    Spec::new(Opcode::CFGI_CD_ALL, "CFGI_CD_ALL", HostStream, &[STREAM]),
    Spec::new(Opcode::TLBI_NH_ALL, "TLBI_NH_ALL", Handling::Host, &[VMID]),
    Spec::new(Opcode::TLBI_NH_ASID, "TLBI_NH_ASID", Handling::Host, &[VMID, ASID]),
    Spec::new(
        Opcode::TLBI_NH_VA,
        "TLBI_NH_VA",
        HostRange,
        &[NUM, SCALE, VMID, ASID, LEAF, TTL128, TTL, TG, ADDRESS],
    ),
    Spec::new(
        Opcode::TLBI_NH_VAA,
        "TLBI_NH_VAA",
        HostRange,
        &[NUM, SCALE, VMID, LEAF, TTL128, TTL, TG, ADDRESS],
    ),
    Spec {
        host: Opcode::TLBI_NH_ALL,
        ..Spec::new(Opcode::TLBI_NSNH_ALL, "TLBI_NSNH_ALL", Handling::Host, &[])
    },
    Spec {
        needs: When::Ats,
        ..Spec::new(
            Opcode::ATC_INV,
            "ATC_INV",
            HostAtc,
            &[Field::new("Global", 0, 9, 9), SSV, SUBSTREAM, STREAM, Field::new("Size", 1, 5, 0), ADDRESS],
        )
    },
    Spec::new(
        Opcode::CMD_SYNC,
        "CMD_SYNC",
        Sync,
        &[
            Field::new("CS", 0, 13, 12),
            Field::new("MSH", 0, 23, 22),
            Field::new("MSIAttr", 0, 27, 24),
            Field::new("MSIData", 0, 63, 32),
            Field::new("MSIAddress", 1, 55, 2).address(),
        ],
    ),
];

/// The command with an opcode.
pub fn find(opcode: Opcode) -> Option<&'static Spec> {
    COMMANDS.iter().find(|spec| spec.opcode == opcode)
}
