//! A guest's driver, as far as it goes: a CMDQ behind trapped registers.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;

use ecmdq_engine::memory::{GuestRam, Ram};
use ecmdq_engine::registers::*;
use ecmdq_engine::{
    Command, Config, Features, FrontEnd, HostStreamId, NoInterrupts, StreamId, StreamMap, VirtualSmmu, Vmid,
};
use ecmdq_ring::SharedRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const LOG2: u32 = 8;

pub struct Guest {
    pub smmu: VirtualSmmu,
    ring: SharedRegion,
    base: u64,
    prod: u32,
}

impl Guest {
    pub fn new(
        memory: Arc<GuestMemoryMmap<()>>,
        base: u64,
        host_features: Features,
        streams: &[StreamId],
    ) -> Result<Self, Box<dyn Error>> {
        let mut features = Features::linux().limited_to(&host_features);
        features.ril = host_features.ril;
        let ram = Ram::new(memory);
        let ring = ram.region(GuestAddress(base), 16 << LOG2).ok_or("no memory for the queue")?;
        // The kernel maps StreamIDs itself; what the map says of the host is not used.
        let pairs = streams.iter().map(|stream| (*stream, HostStreamId(0)));
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features,
            quirks: Vec::new(),
            vmid: Vmid(0),
            streams: Arc::new(StreamMap::from_pairs(pairs)?),
            ram: Box::new(ram),
            front_end: FrontEnd::Trapped,
            interrupts: Box::new(NoInterrupts),
            on_request: Box::new(|_, token| token.complete()),
        })?;
        Ok(Self { smmu, ring, base, prod: 0 })
    }

    pub fn enable(&self) {
        self.smmu.mmio_write(CMDQ_BASE as u64, &(self.base | u64::from(LOG2)).to_le_bytes());
        self.smmu.mmio_write(CR0 as u64, &(CR0_CMDQEN | CR0_SMMUEN).to_le_bytes());
    }

    /// Writes commands and a CMD_SYNC, and rings.
    pub fn send(&mut self, commands: &[Command]) {
        for command in commands.iter().copied().chain([Command([0x46, 0])]) {
            let slot = 16 * (self.prod as usize & ((1 << LOG2) - 1));
            self.ring.store_u64(slot, command.0[0], Release);
            self.ring.store_u64(slot + 8, command.0[1], Release);
            self.prod = (self.prod + 1) & ((2 << LOG2) - 1);
        }
        self.smmu.mmio_write(CMDQ_PROD as u64, &self.prod.to_le_bytes());
    }

    /// Whether everything is complete.
    pub fn is_done(&self) -> bool {
        self.error().is_none() && self.read(CMDQ_CONS) & 0xf_ffff == self.prod
    }

    /// CMDQ_CONS.ERR and where CONS stands before PROD, while an error is active.
    pub fn error(&self) -> Option<(u32, u32)> {
        let cons = self.read(CMDQ_CONS);
        let before = self.prod.wrapping_sub(cons) & ((2 << LOG2) - 1);
        (self.read(GERROR) != self.read(GERRORN)).then_some((cons >> 24 & 0x7f, before))
    }

    pub fn acknowledge(&self) {
        self.smmu.mmio_write(GERRORN as u64, &self.read(GERROR).to_le_bytes());
    }

    fn read(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.smmu.mmio_read(register as u64, &mut data);
        u32::from_le_bytes(data)
    }
}
