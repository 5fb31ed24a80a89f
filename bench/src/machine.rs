//! An emulated guest's hardware: RAM, register pages, identities.

use std::io;
use std::sync::Arc;

use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_engine::registers::FRAME_SIZE;
use ecmdq_engine::{
    Config, ConfigError, Features, FrontEnd, HostStreamId, NoInterrupts, StreamId, StreamMap, StreamMapError,
    VirtualSmmu, Vmid,
};
use ecmdq_ring::SharedRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// The memory, registers and identities of one emulated guest.
///
/// Its VMID is its number plus one; its StreamID s is the host's StreamID s plus 0x10000 times its VMID.
#[derive(Debug)]
pub struct Machine {
    /// Which guest it is, from 0 on.
    pub number: u16,
    /// What its SMMU shows.
    pub features: Features,
    /// The RAM, shared memory from [`Machine::RAM_BASE`] on.
    pub ram: Arc<GuestMemoryMmap>,
    /// Register pages 0 and 1.
    pub registers: SharedRegion,
    streams: Arc<StreamMap>,
}

impl Machine {
    /// Where RAM starts.
    pub const RAM_BASE: GuestAddress = GuestAddress(0x4000_0000);
    /// Its size in bytes.
    pub const RAM_SIZE: usize = 4 << 20;

    /// A machine whose guest owns the given streams.
    ///
    /// # Errors
    ///
    /// What the system said when it refused the memory.
    pub fn new(number: u16, features: Features, streams: &[StreamId]) -> io::Result<Self> {
        let (file, _) = memory::memfd("emulated-guest-ram", Self::RAM_SIZE)?;
        let range = (Self::RAM_BASE, Self::RAM_SIZE, Some(FileOffset::new(file, 0)));
        let ram = GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?;
        let (_file, registers) = memory::memfd("emulated-guest-registers", FRAME_SIZE)?;
        let pairs = streams.iter().map(|stream| (*stream, Self::host_stream(number, *stream)));
        let streams = StreamMap::from_pairs(pairs).map_err(|e: StreamMapError| io::Error::other(e))?;
        Ok(Self { number, features, ram: Arc::new(ram), registers, streams: Arc::new(streams) })
    }

    /// The VMID of a guest.
    pub fn vmid(number: u16) -> Vmid {
        Vmid(number + 1)
    }

    /// The host's name of a guest's stream.
    pub fn host_stream(number: u16, stream: StreamId) -> HostStreamId {
        HostStreamId(stream.0 & 0xffff | u32::from(Self::vmid(number).0) << 16)
    }

    /// The machine's virtual SMMU, after reset.
    ///
    /// # Errors
    ///
    /// Features that cannot be.
    pub fn virtual_smmu(&self) -> Result<VirtualSmmu, ConfigError> {
        VirtualSmmu::new(Config {
            features: self.features,
            host_features: self.features,
            quirks: Vec::new(),
            vmid: Self::vmid(self.number),
            streams: self.streams.clone(),
            ram: Box::new(Ram::new(self.ram.clone())),
            front_end: FrontEnd::Shared(self.registers.clone()),
            interrupts: Box::new(NoInterrupts),
            on_request: Box::new(|_, token| token.complete()),
        })
    }

    /// A part of RAM.
    pub fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        Ram::new(self.ram.clone()).region(at, len)
    }
}
