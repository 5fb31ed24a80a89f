//! Who is who: VMIDs, and StreamIDs of the guest and of the host.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

/// The host's VMID of a virtual SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vmid(pub u16);

/// A StreamID as the guest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// A StreamID of the host's SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostStreamId(pub u32);

/// Streams whose stream table entries the guest has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamConfig {
    /// CFGI_STE: one stream.
    One(StreamId),
    /// CFGI_STE_RANGE: the 2^`log2` streams from `first` on, `log2` from 1 to 31.
    Range {
        /// The first, aligned to the size of the range.
        first: StreamId,
        /// log2 of their number.
        log2: u32,
    },
    /// CFGI_ALL: every stream.
    All,
}

impl StreamConfig {
    /// Whether a stream is among them.
    pub fn contains(&self, stream: StreamId) -> bool {
        match *self {
            Self::One(one) => stream == one,
            Self::Range { first, log2 } => stream.0 >> log2 == first.0 >> log2,
            Self::All => true,
        }
    }
}

/// Why a [`StreamMap`] refused an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamMapError {
    /// The map holds as many streams as it was made for.
    #[error("the stream map is full: it was made for {capacity} streams")]
    Full {
        /// The number of streams it was made for.
        capacity: usize,
    },
    /// StreamID 0xffff_ffff, which marks free entries, cannot be mapped.
    #[error("StreamID 0xffffffff cannot be mapped")]
    Reserved,
}

/// The streams that a guest owns: guest StreamID to host StreamID.
///
/// Workers look streams up while others change the map: a look-up takes no lock and sees an entry either as it
/// was or as it is; one that starts after a change has returned sees that change. Look-ups take constant time.
#[derive(Debug)]
pub struct StreamMap {
    /// Open addressing with linear probing. An entry is one word, guest StreamID above host StreamID, so that
    /// it cannot tear. A removed stream keeps its slot, with [`NO_HOST`], so that probing goes on past it.
    slots: Box<[AtomicU64]>,
    capacity: usize,
    /// Serialises changes, and counts the slots in use.
    used: Mutex<usize>,
}

const NO_HOST: u32 = u32::MAX;
const FREE: u64 = u64::MAX;

impl StreamMap {
    /// An empty map for up to `capacity` different streams over its life.
    pub fn new(capacity: usize) -> Self {
        let slots = (2 * capacity.max(1)).next_power_of_two();
        Self { slots: (0..slots).map(|_| AtomicU64::new(FREE)).collect(), capacity, used: Mutex::new(0) }
    }

    /// A map of the given pairs.
    ///
    /// # Errors
    ///
    /// As [`Self::insert`].
    pub fn from_pairs(
        pairs: impl IntoIterator<Item = (StreamId, HostStreamId)>,
    ) -> Result<Self, StreamMapError> {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let map = Self::new(pairs.len());
        for (guest, host) in pairs {
            map.insert(guest, host)?;
        }
        Ok(map)
    }

    /// Maps a guest stream to a host stream, in place of what it was mapped to.
    ///
    /// # Errors
    ///
    /// [`StreamMapError::Full`], [`StreamMapError::Reserved`].
    pub fn insert(&self, guest: StreamId, host: HostStreamId) -> Result<(), StreamMapError> {
        if guest.0 == u32::MAX || host.0 == NO_HOST {
            return Err(StreamMapError::Reserved);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, word) = self.find(guest);
        if word == FREE {
            if *used == self.capacity {
                return Err(StreamMapError::Full { capacity: self.capacity });
            }
            *used += 1;
        }
        // Release: pairs with the acquire load in `find`, so that what the caller set up for the stream before
        // is seen by a worker that finds it.
        self.slots[slot].store(u64::from(guest.0) << 32 | u64::from(host.0), Release);
        Ok(())
    }

    /// Takes a guest stream away; says whether it was mapped.
    pub fn remove(&self, guest: StreamId) -> bool {
        let _used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, word) = self.find(guest);
        let mapped = word != FREE && word as u32 != NO_HOST;
        if mapped {
            self.slots[slot].store(u64::from(guest.0) << 32 | u64::from(NO_HOST), Release);
        }
        mapped
    }

    /// The host stream of a guest stream.
    pub fn get(&self, guest: StreamId) -> Option<HostStreamId> {
        let host = self.find(guest).1 as u32;
        (host != NO_HOST).then_some(HostStreamId(host))
    }

    /// The streams that the guest owns among those of a configuration command, in no order. It takes as long as the map
    /// is large, however many streams the command names.
    pub fn owned(&self, config: StreamConfig) -> impl Iterator<Item = (StreamId, HostStreamId)> + '_ {
        let all = (0..self.slots()).filter_map(|slot| self.at(slot));
        all.filter(move |(guest, _)| config.contains(*guest))
    }

    /// The number of places where a stream may be.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The stream at one of these places.
    pub(crate) fn at(&self, slot: usize) -> Option<(StreamId, HostStreamId)> {
        // Acquire: as in `find`.
        let word = self.slots[slot].load(Acquire);
        let (guest, host) = (StreamId((word >> 32) as u32), word as u32);
        (host != NO_HOST).then_some((guest, HostStreamId(host)))
    }

    /// The slot of a stream and its word, or the free slot where it would go. At most half of the slots are in
    /// use, so there is a free one.
    fn find(&self, guest: StreamId) -> (usize, u64) {
        let mask = self.slots.len() - 1;
        // Fibonacci hashing: neighbouring StreamIDs (functions of one device) spread out.
        let mut slot = (guest.0.wrapping_mul(0x9e37_79b9) >> 7) as usize & mask;
        loop {
            // Acquire: pairs with the release stores of `insert` and `remove`.
            let word = self.slots[slot].load(Acquire);
            if word == FREE || (word >> 32) as u32 == guest.0 {
                return (slot, word);
            }
            slot = (slot + 1) & mask;
        }
    }
}
