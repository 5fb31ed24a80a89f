//! What an SMMU and the endpoints behind it cache.

use crate::identity::{HostStreamId, Vmid};

/// Anything that is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// In the TLB.
    Tlb(TlbEntry),
    /// A configuration structure.
    Config(ConfigEntry),
    /// In the ATC of an endpoint.
    Atc(AtcEntry),
}

/// A stage 1 translation, or a step of a table walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TlbEntry {
    /// Whose it is.
    pub vmid: Vmid,
    /// `None` is global: it belongs to every ASID.
    pub asid: Option<u16>,
    /// The first address that it translates; [`Caches::insert`](super::Caches::insert) aligns it.
    pub address: u64,
    /// The granule of its table.
    pub granule: Granule,
    /// The level of its descriptor, 0 to 3.
    pub level: u8,
    /// Whether its descriptor is a leaf, a page or a block; else it points to the table of the next level.
    pub leaf: bool,
}

/// A translation granule, by its encoding in TG (facts sheet, section 1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Granule {
    /// 4 KiB.
    K4 = 1,
    /// 16 KiB.
    K16 = 2,
    /// 64 KiB.
    K64 = 3,
}

/// A configuration structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfigEntry {
    /// A stream table entry.
    Ste(HostStreamId),
    /// An L1 context descriptor, which points to a table of the CDs of 2^`log2` substreams from `first` on.
    L1Cd {
        /// Its stream.
        stream: HostStreamId,
        /// The first SubstreamID; [`Caches::insert`](super::Caches::insert) aligns it.
        first: u32,
        /// 6 or 10 (facts sheet, section 1.6).
        log2: u8,
    },
    /// A context descriptor.
    Cd(HostStreamId, u32),
}

/// A translation that an endpoint keeps. None is global: the SMMU answers no request with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AtcEntry {
    /// The endpoint.
    pub stream: HostStreamId,
    /// The PASID, if it was asked for with one.
    pub substream: Option<u32>,
    /// The first address; [`Caches::insert`](super::Caches::insert) aligns it.
    pub address: u64,
    /// log2 of the bytes that it translates, 12 to 63.
    pub bytes_log2: u8,
}

impl Granule {
    /// The granule that TG names; `None` for 0, any.
    pub fn of_tg(tg: u64) -> Option<Self> {
        [None, Some(Self::K4), Some(Self::K16), Some(Self::K64)][(tg & 3) as usize]
    }

    /// log2 of its bytes.
    pub const fn bytes_log2(self) -> u32 {
        10 + 2 * self as u32
    }
}

impl TlbEntry {
    /// The addresses that it translates, the last one included: a descriptor of the last level translates a granule, one of
    /// the level above as many of these as a table of a granule has descriptors of 8 bytes.
    pub fn addresses(&self) -> (u64, u64) {
        let (granule, above_last) = (self.granule.bytes_log2(), 3 - u32::from(self.level.min(3)));
        span(self.address, granule + above_last * (granule - 3))
    }
}

impl AtcEntry {
    /// The addresses that it translates, the last one included.
    pub fn addresses(&self) -> (u64, u64) {
        span(self.address, self.bytes_log2.into())
    }
}

impl ConfigEntry {
    /// The stream that it belongs to.
    pub fn stream(&self) -> HostStreamId {
        match *self {
            Self::Ste(stream) | Self::Cd(stream, _) | Self::L1Cd { stream, .. } => stream,
        }
    }
}

/// The aligned 2^`log2` bytes around an address.
pub(super) fn span(address: u64, log2: u32) -> (u64, u64) {
    let inside = 1_u64.checked_shl(log2).map_or(u64::MAX, |bytes| bytes - 1);
    (address & !inside, address | inside)
}
