//! What a command names among a guest's own entries (facts sheet, sections 1.5 to 1.8). Every command is taken literally, one
//! entry at a time.

use crate::commands::{Cmd, Range};
use crate::entries::{Cached, DESCRIPTOR};
use crate::vm::Shown;

/// What the host can do of what a guest may be shown.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub ril: bool,
    pub ats: bool,
}

/// Longer ranges become an invalidation of everything on a host without ranges, counted as widened.
const LONGEST: u128 = 64;

impl Cmd {
    /// Whether the command names this entry, given what the guest is shown and what the host can do.
    pub fn names(self, entry: Cached, shown: &Shown, host: Host) -> bool {
        match (self, entry) {
            (Self::NhAll(_) | Self::NsnhAll, Cached::Tlb { .. }) => true,
            (Self::Asid(named), Cached::Tlb { asid, .. }) => asid == Some(named),
            (Self::Address { .. }, Cached::Tlb { .. }) if self.is_widened(shown, host) => true,
            (Self::Address { asid: named, leaf, address, range }, Cached::Tlb { asid, .. }) => {
                let whose = named.is_none() || asid.is_none() || named == asid;
                whose
                    && match range {
                        None => at_one_of(entry, leaf, address.into(), 1, 1),
                        Some(range) => in_range(entry, leaf, address, range.counted(shown), host),
                    }
            }
            // A SubstreamID that the guest does not have, and a stream that is not its own, have no effect.
            (Self::Cd { stream, substream, .. }, Cached::Cd(of, which)) => {
                stream == of && substream == which && shown.has(substream)
            }
            (Self::Cd { stream, substream, leaf }, Cached::Cds(of, first, log2)) => {
                let leads_there = first <= substream && substream < first + (1 << log2);
                stream == of && !leaf && leads_there && shown.has(substream)
            }
            (Self::CdAll(stream), Cached::Cd(of, _) | Cached::Cds(of, ..)) => stream == of,
            (Self::Atc { stream, substream, address, size }, Cached::Atc { stream: of, .. }) => {
                // Without SubstreamIDs SSV counts as 0; with SMMUEN=0 the command is ignored.
                let substream = substream.filter(|_| shown.ssid_bits > 0);
                let effective = shown.smmuen && host.ats && substream.is_none_or(|(id, _)| shown.has(id));
                stream == of && effective && in_atc(entry, substream, address, size)
            }
            (Self::Ste(stream), Cached::Ste(of) | Cached::Cd(of, _) | Cached::Cds(of, ..)) => stream == of,
            (Self::Stes(stream, range), Cached::Ste(of) | Cached::Cd(of, _) | Cached::Cds(of, ..)) => {
                u64::from(stream) >> (range + 1) == u64::from(of) >> (range + 1)
            }
            _ => false,
        }
    }

    /// Whether a host without ranges gets an invalidation of everything instead.
    pub fn is_widened(self, shown: &Shown, host: Host) -> bool {
        match self {
            Self::Address { address, range: Some(range), .. } if !host.ril => {
                range.counted(shown).leaves(address).1 > LONGEST
            }
            _ => false,
        }
    }
}

impl Range {
    /// With the hint only if it counts: without IDR5.DS there are no 16K leaves at level 1.
    fn counted(self, shown: &Shown) -> Self {
        let ttl = if self.tg == 2 && self.ttl == 1 && !shown.ds { 0 } else { self.ttl };
        Self { ttl, ..self }
    }

    /// The end of the range; it does not wrap at the top.
    fn end(self, address: u64) -> u128 {
        let bytes = u128::from(self.num + 1) << self.scale << (10 + 2 * self.tg);
        (u128::from(address) + bytes).min(1 << 64)
    }

    /// The first leaf, or granule, that a part of the range is in, and how many these are.
    fn leaves(self, address: u64) -> (u128, u128) {
        let (leaf, end) = (1u128 << self.leaf_log2(), self.end(address));
        let first = u128::from(address) / leaf;
        (first * leaf, (end - 1) / leaf - first + 1)
    }
}

/// Where an entry begins and ends.
fn extent(base: u64, log2: u32) -> (u128, u128) {
    (base.into(), u128::from(base) + (1 << log2))
}

/// Whether one of `count` addresses, `step` apart, is translated by an entry of any granule and level.
fn at_one_of(entry: Cached, leaf_only: bool, first: u128, step: u128, count: u128) -> bool {
    let Cached::Tlb { base, tg, level, leaf, .. } = entry else { return false };
    let (from, to) = extent(base, DESCRIPTOR[tg as usize - 1][level as usize]);
    (leaf || !leaf_only) && (0..count).any(|n| (from..to).contains(&(first + n * step)))
}

/// Whether an entry is meant by a range: on a host with ranges the granule and the hint count. On one without, the range is as
/// many single addresses as there are leaves, which name entries of any granule and level, and so at least the same.
fn in_range(entry: Cached, leaf_only: bool, address: u64, range: Range, host: Host) -> bool {
    let Cached::Tlb { base, tg, level, leaf, .. } = entry else { return false };
    let (from, to) = extent(base, DESCRIPTOR[tg as usize - 1][level as usize]);
    let hinted = match leaf {
        true => range.ttl == 0 || level == range.ttl,
        false => !leaf_only && (range.ttl == 0 || level < range.ttl),
    };
    let meant = tg == range.tg && hinted && from < range.end(address) && u128::from(address) < to;
    if host.ril {
        return meant;
    }
    let (first, count) = range.leaves(address);
    let single = at_one_of(entry, leaf_only, first, 1 << range.leaf_log2(), count);
    assert!(single || !meant, "what is meant is removed: {entry:?}, {range:?} at {address:#x}");
    single
}

fn in_atc(entry: Cached, named: Option<(u32, bool)>, address: u64, size: u32) -> bool {
    let Cached::Atc { substream, base, log2, .. } = entry else { return false };
    let asked_so = match (named, substream) {
        (None, None) => true,
        (Some((named, global)), Some(of)) => global || named == of,
        _ => false,
    };
    let span = 4096u128 << size;
    let first = u128::from(address) / span * span;
    let (from, to) = extent(base, log2);
    asked_so && from < first + span && first < to
}
