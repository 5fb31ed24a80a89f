//! Every command as data: names, fields, conditions, and where it goes (facts sheet, section 1).
//!
//! Everything else about commands follows from this table: the compiled rules of the hot path, printing and
//! parsing, `docs/commands.md`, the tests' generators.

use super::{Command, Opcode};
use crate::features::{Features, StallModel};

/// A condition on the features of an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always true.
    Always,
    /// Never true: a command of another security state.
    Never,
    /// Never true: the positions of its fields are not confirmed by a public source, so it cannot be checked.
    Unconfirmed,
    /// IDR0.S1P.
    S1p,
    /// IDR0.S2P.
    S2p,
    /// IDR0.Hyp and IDR0.S1P.
    Hyp,
    /// IDR0.ATS.
    Ats,
    /// IDR0.PRI.
    Pri,
    /// IDR0.STALL_MODEL is not 0b01.
    Stall,
    /// IDR0.ASID16.
    Asid16,
    /// IDR3.MPAM.
    Mpam,
    /// IDR3.DPT.
    Dpt,
    /// IDR3.RIL.
    Ril,
    /// IDR3.RIL and IDR5.DS.
    RilDs,
    /// IDR3.RIL and IDR5.D128. (That TTL128 needs D128 is unconfirmed; without it no table has such descriptors.)
    RilD128,
}

impl When {
    /// Whether the condition holds.
    pub fn holds(self, f: &Features) -> bool {
        match self {
            Self::Always => true,
            Self::Never | Self::Unconfirmed => false,
            Self::S1p => f.s1p,
            Self::S2p => f.s2p,
            Self::Hyp => f.hyp && f.s1p,
            Self::Ats => f.ats,
            Self::Pri => f.pri,
            Self::Stall => f.stall != StallModel::None,
            Self::Asid16 => f.asid16,
            Self::Mpam => f.mpam,
            Self::Dpt => f.dpt,
            Self::Ril => f.ril,
            Self::RilDs => f.ril && f.ds,
            Self::RilD128 => f.ril && f.d128,
        }
    }

    /// The condition in the architecture's words; empty for [`When::Always`].
    pub fn text(self) -> &'static str {
        match self {
            Self::Always => "",
            Self::Never => "other security states only",
            Self::Unconfirmed => "not offered: fields unconfirmed",
            Self::S1p => "IDR0.S1P",
            Self::S2p => "IDR0.S2P",
            Self::Hyp => "IDR0.Hyp and S1P",
            Self::Ats => "IDR0.ATS",
            Self::Pri => "IDR0.PRI",
            Self::Stall => "IDR0.STALL_MODEL != 1",
            Self::Asid16 => "IDR0.ASID16",
            Self::Mpam => "IDR3.MPAM",
            Self::Dpt => "IDR3.DPT",
            Self::Ril => "IDR3.RIL",
            Self::RilDs => "IDR3.RIL and IDR5.DS",
            Self::RilD128 => "IDR3.RIL and IDR5.D128",
        }
    }
}

/// What a field means on its way to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Kept.
    Kept,
    /// Replaced by the host's VMID; the guest's value does not matter.
    Vmid,
    /// Replaced by the host's StreamID.
    Stream,
    /// Must be zero on a Non-secure queue: anything else is CERROR_ILL.
    Zero,
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
    /// Without this the field does not exist: its bits are reserved.
    pub when: When,
    /// Without this the field ends at this bit.
    pub narrow: Option<(When, u32)>,
    /// What it means on the way to the host.
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

    /// The bits of its word that may be set on an SMMU with these features.
    pub fn mask_for(&self, features: &Features) -> u64 {
        match self.narrow {
            _ if self.role == Role::Zero || !self.when.holds(features) => 0,
            Some((when, msb)) if !when.holds(features) => Self { msb, ..*self }.mask(),
            _ => self.mask(),
        }
    }
}

/// Where a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the host queue.
    Host,
    /// To the VMM, as a typed request.
    Vmm,
    /// Nowhere: a hint.
    Nowhere,
    /// Ends a group: CMD_SYNC.
    Sync,
}

/// A check that no mask expresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// None.
    Nothing,
    /// NUM, SCALE, TG and TTL (section 1.7).
    Range,
    /// SubstreamID within SSIDSIZE (section 1.6).
    Substream,
    /// Size; SubstreamID and Global count only with SSV (section 1.8).
    AtcInv,
    /// Resp is not 0b11 (section 1.9).
    Resp,
    /// CS is not 0b11 (section 1.11).
    Signal,
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Its opcode.
    pub opcode: Opcode,
    /// The architecture's name.
    pub name: &'static str,
    /// Without this the command is CERROR_ILL.
    pub needs: When,
    /// Where it goes.
    pub to: Destination,
    /// What masks do not express.
    pub check: Check,
    /// Its fields. All other bits are reserved, which raise CERROR_ILL.
    pub fields: &'static [Field],
    /// The opcode that the host gets.
    pub host: Opcode,
}

impl Spec {
    const fn new(
        opcode: u8,
        name: &'static str,
        needs: When,
        to: Destination,
        fields: &'static [Field],
    ) -> Self {
        let (opcode, check) = (Opcode(opcode), Check::Nothing);
        Self { opcode, name, needs, to, check, fields, host: opcode }
    }

    const fn check(self, check: Check) -> Self {
        Self { check, ..self }
    }

    const fn as_host(self, host: Opcode) -> Self {
        Self { host, ..self }
    }

    /// Whether the command has a StreamID to be mapped.
    pub fn has_stream(&self) -> bool {
        self.fields.iter().any(|field| field.role == Role::Stream)
    }
}

const SSEC: Field = Field::new("SSec", 0, 10, 10).role(Role::Zero);
const SSV: Field = Field::new("SSV", 0, 11, 11);
const SUBSTREAM: Field = Field::new("SubstreamID", 0, 31, 12);
const STREAM: Field = Field::new("StreamID", 0, 63, 32).role(Role::Stream);
const VMID: Field = Field::new("VMID", 0, 47, 32).role(Role::Vmid);
const ASID: Field = Field::new("ASID", 0, 63, 48).narrow_without(When::Asid16, 55);
const NUM: Field = Field::new("NUM", 0, 16, 12).when(When::Ril);
const SCALE: Field = Field::new("SCALE", 0, 25, 20).when(When::Ril).narrow_without(When::RilDs, 24);
const LEAF: Field = Field::new("Leaf", 1, 0, 0);
const TTL128: Field = Field::new("TTL128", 1, 7, 7).when(When::RilD128);
const TTL: Field = Field::new("TTL", 1, 9, 8).when(When::Ril);
const TG: Field = Field::new("TG", 1, 11, 10).when(When::Ril);
const ADDRESS: Field = Field::new("Address", 1, 63, 12).address();
const IPA: Field = Field::new("Address", 1, 55, 12).address();

use Check::{AtcInv, Range, Resp, Signal, Substream};
use Destination::{Host, Nowhere, Sync, Vmm};
use When::{Always, Ats, Dpt, Hyp, Mpam, Never, Pri, S1p, S2p, Stall, Unconfirmed};

/// All commands that have a name, by opcode. Opcodes that are not here are reserved. Commands of the Secure, Realm
/// and EL3 states are named, and are CERROR_ILL on a Non-secure queue whatever their fields say.
#[rustfmt::skip]
pub static COMMANDS: &[Spec] = &[
    Spec::new(0x01, "PREFETCH_CONFIG", Always, Nowhere, &[SSEC, SSV, SUBSTREAM, STREAM]),
    Spec::new(0x02, "PREFETCH_ADDR", Always, Nowhere, &[
        SSEC, SSV, SUBSTREAM, STREAM,
        Field::new("Size", 1, 4, 0), Field::new("Stride", 1, 9, 5), Field::new("NS", 1, 11, 11).role(Role::Zero), ADDRESS,
    ]),
    Spec::new(0x03, "CFGI_STE", Always, Vmm, &[SSEC, STREAM, LEAF]),
    Spec::new(0x04, "CFGI_STE_RANGE", Always, Vmm, &[SSEC, STREAM, Field::new("Range", 1, 4, 0)]),
    Spec::new(0x05, "CFGI_CD", S1p, Host, &[SSEC, SUBSTREAM, STREAM, LEAF]).check(Substream),
    Spec::new(0x06, "CFGI_CD_ALL", S1p, Host, &[SSEC, STREAM]),
    Spec::new(0x07, "CFGI_VMS_PIDM", Mpam, Vmm, &[SSEC, VMID]),
    Spec::new(0x10, "TLBI_NH_ALL", S1p, Host, &[VMID]),
    Spec::new(0x11, "TLBI_NH_ASID", S1p, Host, &[VMID, ASID]),
    Spec::new(0x12, "TLBI_NH_VA", S1p, Host, &[NUM, SCALE, VMID, ASID, LEAF, TTL128, TTL, TG, ADDRESS]).check(Range),
    Spec::new(0x13, "TLBI_NH_VAA", S1p, Host, &[NUM, SCALE, VMID, LEAF, TTL128, TTL, TG, ADDRESS]).check(Range),
    Spec::new(0x18, "TLBI_EL3_ALL", Never, Vmm, &[]),
    Spec::new(0x1a, "TLBI_EL3_VA", Never, Vmm, &[NUM, SCALE, LEAF, TTL128, TTL, TG, ADDRESS]),
    Spec::new(0x20, "TLBI_EL2_ALL", Hyp, Vmm, &[]),
    Spec::new(0x21, "TLBI_EL2_ASID", Hyp, Vmm, &[ASID]),
    Spec::new(0x22, "TLBI_EL2_VA", Hyp, Vmm, &[NUM, SCALE, ASID, LEAF, TTL128, TTL, TG, ADDRESS]).check(Range),
    Spec::new(0x23, "TLBI_EL2_VAA", Hyp, Vmm, &[NUM, SCALE, LEAF, TTL128, TTL, TG, ADDRESS]).check(Range),
    Spec::new(0x28, "TLBI_S12_VMALL", S2p, Vmm, &[VMID]),
    Spec::new(0x2a, "TLBI_S2_IPA", S2p, Vmm, &[NUM, SCALE, VMID, LEAF, TTL128, TTL, TG, IPA]).check(Range),
    Spec::new(0x30, "TLBI_NSNH_ALL", Always, Host, &[]).as_host(Opcode::TLBI_NH_ALL),
    Spec::new(0x40, "ATC_INV", Ats, Host, &[
        Field::new("Global", 0, 9, 9), SSV, SUBSTREAM, STREAM, Field::new("Size", 1, 5, 0), ADDRESS,
    ]).check(AtcInv),
    Spec::new(0x41, "PRI_RESP", Pri, Vmm, &[
        SSV, SUBSTREAM, STREAM, Field::new("PRGIndex", 1, 8, 0), Field::new("Resp", 1, 13, 12),
    ]).check(Resp),
    Spec::new(0x44, "RESUME", Stall, Vmm, &[
        SSEC, Field::new("Ac", 0, 12, 12), Field::new("Ab", 0, 13, 13), STREAM, Field::new("STAG", 1, 15, 0),
    ]),
    Spec::new(0x45, "STALL_TERM", Stall, Vmm, &[SSEC, STREAM]),
    Spec::new(0x46, "CMD_SYNC", Always, Sync, &[
        Field::new("CS", 0, 13, 12), Field::new("MSH", 0, 23, 22), Field::new("MSIAttr", 0, 27, 24),
        Field::new("MSIData", 0, 63, 32), Field::new("MSIAddress", 1, 55, 2).address(),
    ]).check(Signal),
    Spec::new(0x50, "TLBI_S_EL2_ALL", Never, Vmm, &[]),
    Spec::new(0x51, "TLBI_S_EL2_ASID", Never, Vmm, &[ASID]),
    Spec::new(0x52, "TLBI_S_EL2_VA", Never, Vmm, &[NUM, SCALE, ASID, LEAF, TTL128, TTL, TG, ADDRESS]),
    Spec::new(0x53, "TLBI_S_EL2_VAA", Never, Vmm, &[NUM, SCALE, LEAF, TTL128, TTL, TG, ADDRESS]),
    Spec::new(0x58, "TLBI_S_S12_VMALL", Never, Vmm, &[VMID]),
    Spec::new(0x5a, "TLBI_S_S2_IPA", Never, Vmm, &[NUM, SCALE, VMID, LEAF, TTL128, TTL, TG, IPA]),
    Spec::new(0x60, "TLBI_SNH_ALL", Never, Vmm, &[]),
    Spec::new(0x70, "DPTI_ALL", Dpt, Vmm, &[]),
    Spec::new(0x73, "DPTI_PA", Unconfirmed, Vmm, &[]),
];

/// The command with an opcode.
pub fn find(opcode: Opcode) -> Option<&'static Spec> {
    COMMANDS.iter().find(|spec| spec.opcode == opcode)
}
