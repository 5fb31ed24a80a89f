//! What no mask expresses: ranges, ATC_INV, CMD_SYNC.

use vm_memory::GuestAddress;

use super::{Reason, Rules, Signal};
use crate::command::{Command, Opcode};

/// The most commands that one range becomes on a host without range invalidation.
///
/// A longer range becomes one TLBI_NH_ALL of the guest's VMID, counted as widened. The ASID is given up because
/// TLBI_NH_ASID leaves global entries alone, which TLBI_NH_VA removes; so it would be too little.
pub const MAX_EXPANSION: usize = 64;

pub(super) const NUM_SCALE: u64 = 0x1f << 12 | 0x3f << 20;
pub(super) const TTL128: u64 = 1 << 7;
pub(super) const TTL: u64 = 0b11 << 8;
pub(super) const TG: u64 = 0b11 << 10;
const TG_16K: u64 = 0b10 << 10;
const TTL_1: u64 = 0b01 << 8;

const SSV: u64 = 1 << 11;
pub(super) const SUBSTREAM: u64 = 0xf_ffff << 12;
/// What counts only with SSV, and SSV itself.
pub(super) const SSV_AND_WITH_IT: u64 = SUBSTREAM | SSV | 1 << 9;
/// Size 52 is the whole address space.
pub(super) const ATC_SIZE_MAX: u64 = 52;

/// Commands that stand for a range on a host without range invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expanded {
    /// `count` commands: this one, and then each `step` bytes further on.
    Each { first: Command, step: u64, count: usize },
    /// More than [`MAX_EXPANSION`].
    All,
}

impl Rules {
    /// The checks of a TLBI by address, and the range fields as every host accepts them (facts sheet, section 1.7).
    /// Fields that the guest's SMMU lacks were found zero before.
    #[inline]
    pub(super) fn range(&self, [low, high]: [u64; 2]) -> Result<[u64; 2], Reason> {
        if high & TG == 0 {
            return if low & NUM_SCALE | high & (TTL | TTL128) == 0 {
                Ok([low, high])
            } else {
                Err(without_granule([low, high]))
            };
        }
        // 16K granules have no leaves at level 1 without IDR5.DS: the hint counts as none.
        let no_such_level = high & (TG | TTL) == TG_16K | TTL_1 && !self.ds;
        let high = if no_such_level { high & !TTL } else { high };
        if high & TTL128 != 0 {
            return without_ttl128([low, high]);
        }
        if low & NUM_SCALE | high & TTL != 0 {
            return Ok([low, high]);
        }
        // One page and no hint is reserved. For guests that send it: the one address, without a granule.
        if self.one_page_range { Ok([low, high & !TG]) } else { Err(Reason::Field("TG", (high & TG) >> 10)) }
    }

    /// A checked range as commands without range fields, which cover it.
    pub(super) fn expand([low, high]: [u64; 2], kept: impl Fn([u64; 2]) -> [u64; 2]) -> Expanded {
        let field = |word: u64, lsb: u32, bits: u32| word >> lsb & ((1 << bits) - 1);
        let (tg, ttl) = (field(high, 10, 2) as u32, field(high, 8, 2) as u32);
        if tg == 0 {
            return Expanded::Each { first: Command(kept([low, high])), step: 0, count: 1 };
        }
        let granule_log2 = 10 + 2 * tg;
        let (num, scale) = (field(low, 12, 5), field(low, 20, 6).min(39));
        let bytes = (num + 1) << scale << granule_log2;
        // A leaf at a level above the last spans 2^(granule_log2 - 3) of the next: one command removes all of it.
        let levels_above_last = if ttl == 0 { 0 } else { 3 - ttl };
        let step = 1_u64 << (granule_log2 + levels_above_last * (granule_log2 - 3));
        let address = high & !0xfff;
        let first = address & !(step - 1);
        let last = address.saturating_add(bytes - 1) & !(step - 1);
        let count = (last - first) / step + 1;
        if count > MAX_EXPANSION as u64 {
            return Expanded::All;
        }
        Expanded::Each { first: Command(kept([low, first | high & 0xfff])), step, count: count as usize }
    }

    /// The checks of ATC_INV: which bits of the first word do not count (facts sheet, section 1.8).
    #[inline]
    pub(super) fn atc_ignored(&self, command: Command) -> Result<u64, Reason> {
        let size = command.bits(1, 5, 0);
        if size > ATC_SIZE_MAX {
            return Err(Reason::Field("Size", size));
        }
        let with_substream = command.0[0] & SSV != 0 && self.ssid_bits > 0;
        Ok(if with_substream { 0 } else { SSV_AND_WITH_IT })
    }

    /// Whether the SubstreamID exists; a command that names one that does not has no effect.
    #[inline]
    pub(super) fn has_substream(&self, low: u64) -> bool {
        (low & SUBSTREAM) >> 12 >> self.ssid_bits == 0
    }
}

/// A range with TTL128, which goes with a TTL only, and which no host gets. Without it the TTL could name the wrong size, so
/// both go; and if that leaves one page and no hint, which is reserved, the granule goes too.
#[cold]
fn without_ttl128([low, high]: [u64; 2]) -> Result<[u64; 2], Reason> {
    if high & TTL == 0 {
        return Err(Reason::Field("TTL128", 1));
    }
    let granule = if low & NUM_SCALE == 0 { TG } else { 0 };
    Ok([low, high & !(TTL | TTL128 | granule)])
}

/// What is wrong with a range field where there is no granule.
#[cold]
fn without_granule([low, high]: [u64; 2]) -> Reason {
    let command = Command([low, high]);
    let fields = [("NUM", 0, 16, 12), ("SCALE", 0, 25, 20), ("TTL", 1, 9, 8), ("TTL128", 1, 7, 7)];
    let wrong = fields.map(|(name, word, msb, lsb)| (name, command.bits(word, msb, lsb)));
    let (name, value) = wrong.into_iter().find(|(_, value)| *value != 0).unwrap_or(("TG", 0));
    Reason::Field(name, value)
}

/// The checks of CMD_SYNC. The MSI fields count only with CS=SIG_IRQ.
#[inline]
pub(super) fn signal(command: Command) -> Result<Signal, Reason> {
    debug_assert_eq!(command.opcode(), Opcode::CMD_SYNC);
    match command.bits(0, 13, 12) {
        0b00 => Ok(Signal::None),
        0b01 => Ok(Signal::Irq {
            address: GuestAddress(command.bits(1, 55, 2) << 2),
            data: command.bits(0, 63, 32) as u32,
        }),
        0b10 => Ok(Signal::Sev),
        cs => Err(Reason::Field("CS", cs)),
    }
}
