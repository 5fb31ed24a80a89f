//! Who is who: VMIDs, and StreamIDs of the guest and of the host.

use std::sync::{Mutex, PoisonError};

use ecmdq_ring::LookupTable;
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
    table: LookupTable,
    capacity: usize,
    /// Serialises changes, and counts the streams that were ever mapped.
    used: Mutex<usize>,
}

impl StreamMap {
    /// An empty map for up to `capacity` different streams over its life.
    pub fn new(capacity: usize) -> Self {
        Self { table: LookupTable::new(capacity), capacity, used: Mutex::new(0) }
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
        if guest.0 == u32::MAX || host.0 == u32::MAX {
            return Err(StreamMapError::Reserved);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.table.knows(guest.0) {
            if *used == self.capacity {
                return Err(StreamMapError::Full { capacity: self.capacity });
            }
            *used += 1;
        }
        self.table.set(guest.0, Some(host.0));
        Ok(())
    }

    /// Takes a guest stream away; says whether it was mapped.
    pub fn remove(&self, guest: StreamId) -> bool {
        let _used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mapped = self.get(guest).is_some();
        if mapped {
            self.table.set(guest.0, None);
        }
        mapped
    }

    /// The host stream of a guest stream.
    pub fn get(&self, guest: StreamId) -> Option<HostStreamId> {
        self.table.get(guest.0).map(HostStreamId)
    }

    /// The guest stream of a host stream. It takes as long as the map is large.
    pub fn guest_of(&self, host: HostStreamId) -> Option<StreamId> {
        self.owned(StreamConfig::All).find(|(_, mapped)| *mapped == host).map(|(guest, _)| guest)
    }

    /// The streams that the guest owns among those of a configuration command, in no order. It takes as long as the map
    /// is large, however many streams the command names.
    pub fn owned(&self, config: StreamConfig) -> impl Iterator<Item = (StreamId, HostStreamId)> + '_ {
        let all = (0..self.slots()).filter_map(|slot| self.at(slot));
        all.filter(move |(guest, _)| config.contains(*guest))
    }

    /// The number of places where a stream may be.
    pub(crate) fn slots(&self) -> usize {
        self.table.rows()
    }

    /// The stream at one of these places.
    pub(crate) fn at(&self, slot: usize) -> Option<(StreamId, HostStreamId)> {
        self.table.at(slot).map(|(guest, host)| (StreamId(guest), HostStreamId(host)))
    }
}
