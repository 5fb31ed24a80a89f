//! Stream table entries, as a VMM needs them: where the guest's table is, what it says of a stream, and what of that the host may be told.
//!
//! The virtual SMMU looks at no table itself. A VMM that nests translations reads an entry when the guest enables its SMMU, and again when
//! the guest has invalidated it ([`Request`](crate::rules::Request)), and hands it to its host.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::features::{Features, StallModel};
use crate::identity::StreamId;
use crate::memory::GuestRam;

/// Where the stream table is, as the registers say (IHI 0070 §6.3.24, §6.3.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTable {
    /// STRTAB_BASE.
    pub base: u64,
    /// STRTAB_BASE_CFG.
    pub config: u32,
    /// CR1: the attributes of its memory.
    pub cr1: u32,
}

/// What becomes of a stream's transactions (IHI 0070 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ste {
    /// They are aborted, and no event tells of it.
    Abort,
    /// They are not translated.
    Bypass,
    /// They are translated by stage 1: the first two words of the entry, canonical. V, Config, S1Fmt, S1ContextPtr, S1CDMax, S1DSS, S1CIR, S1COR,
    /// S1CSH, S1STALLD and EATS as far as they count, and no other bit: what Linux takes for `IOMMU_HWPT_ALLOC`.
    Stage1([u64; 2]),
}

/// Why there is no entry: transactions of the stream are aborted, and the VMM records the event (IHI 0070 §7.3) with
/// [`VirtualSmmu::record_event`](crate::VirtualSmmu::record_event).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamFault {
    /// C_BAD_STREAMID: the table does not reach as far. To be recorded with CR2.RECINVSID only.
    #[error("no such stream")]
    BadStreamId,
    /// F_STE_FETCH: this address, of an entry or of a first-level descriptor, is not guest memory.
    #[error("the stream table is not memory at {:#x}", .0.0)]
    SteFetch(GuestAddress),
    /// C_BAD_STE: the entry is not valid, or is one that the guest's SMMU does not know. So is one that asks for stage 2, which a
    /// guest's table cannot have here.
    #[error("the stream table entry is not valid")]
    BadSte,
}

impl StreamFault {
    /// The number of the event.
    pub fn event(self) -> u8 {
        match self {
            Self::BadStreamId => 0x02,
            Self::SteFetch(_) => 0x03,
            Self::BadSte => 0x04,
        }
    }
}

/// Bytes of an entry.
const STE_BYTES: usize = 64;
/// Bytes of a first-level descriptor.
const L1STD_BYTES: usize = 8;
/// The bits of an address in STRTAB_BASE, L1STD.L2Ptr and STE.S1ContextPtr.
const POINTER: u64 = 0x00ff_ffff_ffff_ffc0;

impl StreamTable {
    /// What the table says of a stream, now, to an SMMU with these features, which is enabled: while CR0.SMMUEN is 0, GBPA counts.
    ///
    /// # Errors
    ///
    /// [`StreamFault`].
    pub fn entry(
        &self,
        features: &Features,
        ram: &dyn GuestRam,
        stream: StreamId,
    ) -> Result<Ste, StreamFault> {
        let at = self.address(features, ram, stream)?;
        let words = ram.region(at, STE_BYTES).ok_or(StreamFault::SteFetch(at))?;
        // Acquire: pairs with the guest's barrier between the entry's other words and V, which is in this one. Relaxed: behind it.
        let first = words.load_u64(0, Acquire);
        ste([first, words.load_u64(8, Relaxed)], features)
    }

    /// Where the entry of a stream is.
    fn address(
        &self,
        features: &Features,
        ram: &dyn GuestRam,
        StreamId(stream): StreamId,
    ) -> Result<GuestAddress, StreamFault> {
        let log2size = self.config & 0x3f;
        let stream = u64::from(stream);
        // The effective size is capped by SIDSIZE; alignment goes by what was written.
        if stream >> log2size.min(features.sid_bits.into()) != 0 {
            return Err(StreamFault::BadStreamId);
        }
        let base = self.base & POINTER & features.address_mask();
        if !(features.st2l && self.config >> 16 & 0b11 == 0b01) {
            return Ok(GuestAddress(aligned(base, log2size + 6) | stream << 6));
        }
        let split = match self.config >> 6 & 0x1f {
            split @ (8 | 10) => split,
            _ => 6,
        };
        let first_level = aligned(base, (log2size.saturating_sub(split) + 3).max(6));
        let at = GuestAddress(first_level + (stream >> split) * L1STD_BYTES as u64);
        // Acquire: pairs with the guest's barrier between the second level and the descriptor that points at it.
        let descriptor = ram.region(at, L1STD_BYTES).ok_or(StreamFault::SteFetch(at))?.load_u64(0, Acquire);
        let span = (descriptor & 0x1f) as u32;
        let index = stream & ((1 << split) - 1);
        if span == 0 || span > split + 1 || index >> (span - 1) != 0 {
            return Err(StreamFault::BadStreamId);
        }
        Ok(GuestAddress(aligned(descriptor & POINTER, span + 5) | index << 6))
    }
}

/// An address without its low bits.
fn aligned(address: u64, bits: u32) -> u64 {
    address & u64::MAX.checked_shl(bits).unwrap_or(0)
}

/// What an entry says. Only fields that count are looked at: IHI 0070 §5.2 calls the others ignored.
fn ste([low, high]: [u64; 2], features: &Features) -> Result<Ste, StreamFault> {
    const STAGE_1: u64 = 0b101;
    match (low & 1, low >> 1 & 0b111) {
        (0, _) => Err(StreamFault::BadSte),
        (_, 0b000..=0b011) => Ok(Ste::Abort),
        (_, 0b100) => Ok(Ste::Bypass),
        (_, STAGE_1) if features.s1p => {
            stage1([low, high], features).ok_or(StreamFault::BadSte).map(Ste::Stage1)
        }
        _ => Err(StreamFault::BadSte),
    }
}

/// The canonical form of an entry with stage 1; `None` if it is illegal.
fn stage1([low, high]: [u64; 2], features: &Features) -> Option<[u64; 2]> {
    const V_CONFIG: u64 = 0xf;
    const S1CIR_S1COR: u64 = 0x3c;
    const S1STALLD: u64 = 1 << 27;
    let context = low & POINTER;
    let stalls_are_wrong = high & S1STALLD != 0 && features.stall != StallModel::Supported;
    if context & !features.address_mask() != 0 || context >> 52 != 0 || stalls_are_wrong {
        return None;
    }
    let (cd_max, format, default) = (low >> 59, low >> 4 & 0b11, high & 0b11);
    let substreams = match cd_max {
        _ if features.ssid_bits == 0 => [0, 0],
        0 => [0, 0],
        _ if cd_max > features.ssid_bits.into() || format != 0 && !features.cd2l => return None,
        _ => [cd_max << 59 | not_reserved(format, 0b11) << 4, not_reserved(default, 0b11)],
    };
    let shareability = not_reserved(high >> 6 & 0b11, 0b01) << 6;
    // 0b10 is for two stages, 0b11 needs device permission tables: the host gets neither.
    let eats = match high >> 28 & 0b11 {
        _ if !features.ats => 0,
        0b10 => return None,
        0b11 if features.dpt => return None,
        eats => not_reserved(eats, 0b11) << 28,
    };
    let kept = high & (S1CIR_S1COR | S1STALLD);
    Some([low & V_CONFIG | context | substreams[0], kept | shareability | eats | substreams[1]])
}

/// A value of a field of which one is reserved, and behaves as 0.
fn not_reserved(value: u64, reserved: u64) -> u64 {
    if value == reserved { 0 } else { value }
}
