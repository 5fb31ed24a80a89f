//! An emulated guest's hardware: RAM, registers, identities.

use std::fs::File;
use std::io;
use std::sync::Arc;

use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_engine::registers::FRAME_SIZE;
use ecmdq_engine::{
    Config, Features, FrontEnd, HostStreamId, NoInterrupts, StreamId, StreamMap, VirtualSmmu, Vmid,
};
use ecmdq_ring::SharedRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::registers::Registers;

/// The memory, registers and identities of one emulated guest.
///
/// Its VMID is its number plus one; its StreamID s is the host's StreamID s plus 0x10000 times its VMID.
#[derive(Debug)]
pub struct Machine {
    /// Which guest it is, from 0 on.
    pub number: u16,
    /// The RAM, shared memory from [`Machine::RAM_BASE`] on.
    pub ram: Arc<GuestMemoryMmap>,
    /// Its SMMU.
    pub smmu: VirtualSmmu,
    /// How the guest reaches its registers.
    pub registers: Registers,
}

impl Machine {
    /// Where RAM starts.
    pub const RAM_BASE: GuestAddress = GuestAddress(0x4000_0000);
    /// Its size in bytes: what is not used takes no memory.
    pub const RAM_SIZE: usize = 32 << 20;

    /// A machine whose guest owns the given streams. With ECMDQs it is wired as a VMM would: pages 0 and 1 trap, the control
    /// pages are mapped. Without, its CMDQ is driven through pages 0 and 1, which are memory.
    ///
    /// # Errors
    ///
    /// Features that cannot be; what the system said when it refused the memory.
    pub fn new(number: u16, features: Features, streams: &[StreamId]) -> io::Result<Self> {
        let (file, _) = memory::memfd("emulated-guest-ram", Self::RAM_SIZE)?;
        let range = (Self::RAM_BASE, Self::RAM_SIZE, Some(FileOffset::new(file, 0)));
        let ram = GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?;
        let ram = Arc::new(ram);
        let pages = match features.ecmdq {
            true => None,
            false => Some(memory::memfd("emulated-guest-registers", FRAME_SIZE)?.1),
        };
        let pairs = streams.iter().map(|stream| (*stream, Self::host_stream(number, *stream)));
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features: features,
            quirks: Vec::new(),
            vmid: Self::vmid(number),
            streams: Arc::new(StreamMap::from_pairs(pairs).map_err(io::Error::other)?),
            ram: Box::new(Ram::new(ram.clone())),
            front_end: pages.clone().map_or(FrontEnd::Direct, FrontEnd::Shared),
            interrupts: Box::new(NoInterrupts),
            on_request: Box::new(|_, token| token.complete()),
        })
        .map_err(io::Error::other)?;
        let registers = match pages {
            Some(pages) => Registers::Memory(pages),
            None => Registers::Trapped(smmu.clone(), map_control_pages(&smmu)?),
        };
        Ok(Self { number, ram, smmu, registers })
    }

    /// The VMID of a guest.
    pub fn vmid(number: u16) -> Vmid {
        Vmid(number + 1)
    }

    /// The host's name of a guest's stream.
    pub fn host_stream(number: u16, stream: StreamId) -> HostStreamId {
        HostStreamId(stream.0 & 0xffff | u32::from(Self::vmid(number).0) << 16)
    }

    /// A part of RAM.
    pub fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        Ram::new(self.ram.clone()).region(at, len)
    }
}

/// The control pages as the guest gets them: a mapping of its own of the same memory.
fn map_control_pages(smmu: &VirtualSmmu) -> io::Result<SharedRegion> {
    let pages: Vec<_> = smmu.control_pages().collect();
    let first = pages.first().ok_or(io::ErrorKind::InvalidInput)?;
    // They follow each other, in the file as in the guest's map.
    let len = pages.iter().map(|page| page.size).sum();
    memory::map(&File::from(first.fd.try_clone_to_owned()?), len)
}
