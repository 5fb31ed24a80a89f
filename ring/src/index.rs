//! Index and wrap arithmetic of a queue (facts sheet, section 3.1).

use core::fmt;

/// Number of slots of a queue, a power of two from 2^0 to 2^19.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueSize {
    log2: u8,
}

/// A PROD or CONS index: the slot in the low bits, the wrap bit above it, nothing else.
///
/// It only has a meaning together with the [`QueueSize`] that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Index(u32);

/// PROD and CONS are further apart than the queue is long: no entry may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inconsistent {
    /// The PROD index.
    pub prod: Index,
    /// The CONS index.
    pub cons: Index,
}

impl Index {
    /// Slot 0, wrap bit clear: an index of every queue.
    pub const ZERO: Self = Self(0);

    /// The index as it stands in a PROD or CONS register (bits `[19:0]`).
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl QueueSize {
    /// The largest log2 size of any queue of an SMMUv3.
    pub const MAX_LOG2: u32 = 19;

    /// The largest size.
    pub const MAX: Self = Self { log2: Self::MAX_LOG2 as u8 };

    /// The size 2^`log2`, or `None` above [`Self::MAX_LOG2`].
    pub const fn from_log2(log2: u32) -> Option<Self> {
        if log2 <= Self::MAX_LOG2 { Some(Self { log2: log2 as u8 }) } else { None }
    }

    /// The size 2^`log2`, or 2^`cap` if that is smaller: what an SMMU uses of a LOG2SIZE field.
    pub const fn capped(log2: u32, cap: Self) -> Self {
        if log2 < cap.log2() { Self { log2: log2 as u8 } } else { cap }
    }

    /// The number of index bits.
    pub const fn log2(self) -> u32 {
        self.log2 as u32
    }

    /// The number of slots.
    pub const fn entries(self) -> u32 {
        1 << self.log2
    }

    /// The size of the ring in bytes.
    pub const fn bytes(self) -> usize {
        16 << self.log2
    }

    /// The index in a register word: bits above the wrap bit are ignored.
    pub const fn index(self, word: u32) -> Index {
        Index(word & (2 * self.entries() - 1))
    }

    /// The slot that an index points at.
    pub const fn slot(self, index: Index) -> u32 {
        index.0 & (self.entries() - 1)
    }

    /// The index `n` entries further on; the wrap bit toggles at each pass over the end.
    pub const fn advance(self, index: Index, n: u32) -> Index {
        self.index(index.0.wrapping_add(n))
    }

    /// How many entries `to` is behind `from`, modulo twice the size.
    pub const fn distance(self, to: Index, from: Index) -> u32 {
        self.index(to.0.wrapping_sub(from.0)).0
    }

    /// The number of entries between CONS and PROD: 0 is empty, [`Self::entries`] is full.
    ///
    /// # Errors
    ///
    /// [`Inconsistent`] if that is more than the queue holds.
    pub const fn used(self, prod: Index, cons: Index) -> Result<u32, Inconsistent> {
        let n = self.distance(prod, cons);
        if n <= self.entries() { Ok(n) } else { Err(Inconsistent { prod, cons }) }
    }
}

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PROD {:#x} is further from CONS {:#x} than the queue is long", self.prod.0, self.cons.0)
    }
}

impl core::error::Error for Inconsistent {}
