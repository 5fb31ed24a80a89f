//! From the table of commands to one flat rule an opcode.

use super::checks::NUM_SCALE;
use crate::command::table::{COMMANDS, Check, Destination, Role, Spec, find};
use crate::features::Features;
use crate::identity::Vmid;

/// What remains to be done for a command when its reserved bits have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// CERROR_ILL.
    Illegal,
    /// Masks, then to the host.
    Masked,
    /// The checks of a range, masks, then to the host.
    Range,
    /// The same for a host without ranges.
    Expand,
    /// The StreamID, masks, then to the host.
    Stream,
    /// The same after the check of the SubstreamID.
    Substream,
    /// The same after the checks of ATC_INV.
    AtcInv,
    /// The checks of ATC_INV, then nowhere: the host has no ATS.
    AtcIgnored,
    /// Nowhere.
    Nowhere,
    /// To the VMM.
    Vmm,
    /// CMD_SYNC.
    Sync,
}

/// What the host gets of the bits of a command, and what it gets from us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Masks {
    /// Bits that go to the host as they are.
    pub kept: [u64; 2],
    /// Bits that the host gets from us: opcode and VMID.
    pub set: [u64; 2],
}

/// The compiled form of one opcode: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Rule {
    /// Bits that the guest must not set.
    pub reserved: [u64; 2],
    pub masks: Masks,
    /// See [`Self::is_plain`].
    pub plain: [u32; 2],
    pub kind: Kind,
}

impl Rule {
    /// What the host gets of a command whose bits all count.
    #[inline]
    pub fn masked(&self, [low, high]: [u64; 2]) -> [u64; 2] {
        let Masks { kept, set } = &self.masks;
        [low & kept[0] | set[0], high & kept[1] | set[1]]
    }

    /// Whether a bit is set that must not be.
    #[inline]
    pub fn has_reserved(&self, [low, high]: [u64; 2]) -> bool {
        low & self.reserved[0] | high & self.reserved[1] != 0
    }

    /// Whether there is nothing more to it than reserved bits and masks. What decides that is whether NUM or SCALE is set, and
    /// TTL128, TTL and TG; a bit for each combination.
    #[inline]
    pub fn is_plain(&self, [low, high]: [u64; 2]) -> bool {
        self.plain[usize::from(low & NUM_SCALE != 0)] >> (high >> 7 & 0x1f) & 1 != 0
            && low & self.reserved[0] == 0
            && high & self.reserved[1] == 0
    }
}

const ILLEGAL: Rule =
    Rule { reserved: [0; 2], masks: Masks { kept: [0; 2], set: [0; 2] }, plain: [0; 2], kind: Kind::Illegal };

/// The rules of all opcodes.
pub(super) fn table(guest: &Features, host: &Features, vmid: Vmid) -> Box<[Rule; 256]> {
    let mut table = Box::new([ILLEGAL; 256]);
    for spec in COMMANDS.iter().filter(|spec| spec.needs.holds(guest)) {
        table[usize::from(spec.opcode.0)] = rule(spec, guest, host);
    }
    set_vmid(&mut table, vmid);
    table
}

/// The VMID in what the host gets.
pub(super) fn set_vmid(table: &mut [Rule; 256], vmid: Vmid) {
    for spec in COMMANDS {
        let host_fields = find(spec.host).map_or(&[][..], |host| host.fields);
        if let Some(field) = host_fields.iter().find(|field| field.role == Role::Vmid) {
            let set = &mut table[usize::from(spec.opcode.0)].masks.set[field.word];
            *set = *set & !field.mask() | u64::from(vmid.0) << field.lsb;
        }
    }
}

fn rule(spec: &Spec, guest: &Features, host: &Features) -> Rule {
    let masks = Masks { kept: [0; 2], set: [u64::from(spec.host.0), 0] };
    let mut rule = Rule { reserved: [!0xff, !0], masks, ..ILLEGAL };
    for field in spec.fields {
        let mask = field.mask_for(guest);
        rule.reserved[field.word] &= !mask;
        if field.role == Role::Kept {
            rule.masks.kept[field.word] |= mask & field.mask_for(host);
        }
    }
    rule.kind = match (spec.to, spec.check) {
        (Destination::Vmm, _) => Kind::Vmm,
        (Destination::Nowhere, _) => Kind::Nowhere,
        (Destination::Sync, _) => Kind::Sync,
        (Destination::Host, Check::Range) if guest.ril && host.ril => Kind::Range,
        (Destination::Host, Check::Range) if guest.ril => Kind::Expand,
        (Destination::Host, Check::AtcInv) if host.ats => Kind::AtcInv,
        (Destination::Host, Check::AtcInv) => Kind::AtcIgnored,
        (Destination::Host, Check::Substream) => Kind::Substream,
        (Destination::Host, _) if spec.has_stream() => Kind::Stream,
        (Destination::Host, _) => Kind::Masked,
    };
    rule
}
