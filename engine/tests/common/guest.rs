//! A guest: its memory, its register pages, and a driver that keeps to the architecture.

use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};

use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Command, Config, Features, FrontEnd, HostStreamId, Interrupts, NoInterrupts, OnRequest, StatsReader,
    StreamConfig, StreamId, StreamMap, VirtualSmmu, Vmid,
};
use ecmdq_ring::SharedRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{Ecmdq, Ring, ecmdq_ring, mapped_control_pages};

/// Register offsets (facts sheet, section 2).
pub mod reg {
    pub const IDR0: usize = 0x00;
    pub const IDR1: usize = 0x04;
    pub const IDR3: usize = 0x0c;
    pub const IDR5: usize = 0x14;
    pub const AIDR: usize = 0x1c;
    pub const IDR6: usize = 0x190;
    pub const CR0: usize = 0x20;
    pub const CR0ACK: usize = 0x24;
    pub const GBPA: usize = 0x44;
    pub const IRQ_CTRL: usize = 0x50;
    pub const IRQ_CTRLACK: usize = 0x54;
    pub const GERROR: usize = 0x60;
    pub const GERRORN: usize = 0x64;
    pub const GERROR_IRQ_CFG0: usize = 0x68;
    pub const GERROR_IRQ_CFG1: usize = 0x70;
    pub const CMDQ_BASE: usize = 0x90;
    pub const CMDQ_PROD: usize = 0x98;
    pub const CMDQ_CONS: usize = 0x9c;
}

pub const CMDQEN: u32 = 1 << 3;
pub const CERROR_ILL: u32 = 1;
pub const CERROR_ABT: u32 = 2;
pub const CERROR_ATC_INV_SYNC: u32 = 3;
/// GERROR.CMDQ_ERR and GERROR.MSI_CMDQ_ABT_ERR.
pub const CMDQ_ERR: u32 = 1 << 0;
pub const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
/// GERROR.SFM_ERR.
pub const SFM_ERR: u32 = 1 << 8;
/// CR0.SMMUEN and CR0.EVENTQEN.
pub const SMMUEN: u32 = 1 << 0;
pub const EVENTQEN: u32 = 1 << 2;

/// Guest RAM: 2 MiB and a page, so that a queue can straddle its end.
pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: u64 = 0x20_1000;
/// Where the driver puts its queue.
pub const RING: u64 = RAM + 0x10_0000;
/// Pages 0 and 1.
pub const PAGES: usize = 0x2_0000;

/// The stream that every guest owns, and one that none does.
pub const STREAM: u64 = 0x42;
pub const NO_STREAM: u64 = 0x43;

/// What a guest is made of.
pub struct Setup {
    pub features: Features,
    pub vmid: u16,
    pub host_stream: u32,
    /// How many streams it may own.
    pub max_streams: usize,
    /// Another memory than the default one.
    pub ram: Option<Box<dyn GuestRam>>,
    /// Other register pages than fresh ones.
    pub pages: Option<SharedRegion>,
    /// Pages 0 and 1 trap, and control pages are mapped, instead of all being shared.
    pub direct: bool,
    pub interrupts: Box<dyn Interrupts>,
    /// Another VMM than one that notes configuration commands and completes everything at once.
    pub on_request: Option<OnRequest>,
    /// Called after a configuration command was noted.
    pub on_config: Box<dyn FnMut(&StreamMap) + Send>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            features: Features::default(),
            vmid: 7,
            host_stream: 0x1042,
            max_streams: 8,
            ram: None,
            pages: None,
            direct: false,
            interrupts: Box::new(NoInterrupts),
            on_request: None,
            on_config: Box::new(|_| ()),
        }
    }
}

impl Setup {
    pub fn with(change: impl FnOnce(&mut Features)) -> Self {
        Self { features: super::features(change), ..Self::default() }
    }
}

/// The guest's side: every access is one that a driver could make.
pub struct Guest {
    /// Pages 0 and 1, and the control pages, where they are shared.
    pub pages: SharedRegion,
    /// The control pages.
    pub control: SharedRegion,
    /// Where the registers of pages 0 and 1 trap to.
    trap: Option<VirtualSmmu>,
    ecmdq_stride: usize,
    pub ram: SharedRegion,
    pub streams: Arc<StreamMap>,
    pub stats: StatsReader,
    configs: Arc<Mutex<Vec<StreamConfig>>>,
    ring: Ring,
}

impl Guest {
    /// A guest and the virtual SMMU that it sees.
    pub fn new(setup: Setup) -> (Self, VirtualSmmu) {
        let Setup { features, vmid, host_stream, max_streams, ram, pages, direct, interrupts, .. } = setup;
        let (on_request, mut on_config) = (setup.on_request, setup.on_config);
        let mapped = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_SIZE as usize)])
            .map(Arc::new)
            .unwrap();
        let control_len = if features.ecmdq { 0x1_0000 << features.control_pages_log2 } else { 0 };
        let pages = pages.unwrap_or_else(|| memory::memfd("test-registers", PAGES + control_len).unwrap().1);
        let stream = (StreamId(STREAM as u32), HostStreamId(host_stream));
        let streams = Arc::new(StreamMap::new(max_streams));
        streams.insert(stream.0, stream.1).unwrap();
        let configs = Arc::new(Mutex::new(Vec::new()));
        let (seen, map) = (configs.clone(), streams.clone());
        let at_once: OnRequest = Box::new(move |request, token| {
            if let Request::Streams(config) = request {
                seen.lock().unwrap().push(config);
                on_config(&map);
            }
            token.complete();
        });
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features: features,
            quirks: Vec::new(),
            vmid: Vmid(vmid),
            streams: streams.clone(),
            ram: ram.unwrap_or_else(|| Box::new(Ram::new(mapped.clone()))),
            front_end: if direct { FrontEnd::Direct } else { FrontEnd::Shared(pages.clone()) },
            interrupts,
            on_request: on_request.unwrap_or(at_once),
        })
        .unwrap();
        let ram = Ram::new(mapped).region(GuestAddress(RAM), RAM_SIZE as usize).unwrap();
        let control = if direct { None } else { pages.part(PAGES, control_len) };
        let guest = Self {
            pages,
            control: control.unwrap_or_else(|| mapped_control_pages(&smmu)),
            trap: direct.then(|| smmu.clone()),
            ecmdq_stride: 0x1_0000 >> features.page_queues_log2,
            ring: Ring::new(ram.clone(), RING, 0, 0),
            ram,
            streams,
            stats: smmu.stats_reader(),
            configs,
        };
        (guest, smmu)
    }

    /// The driver of an ECMDQ, counted over all control pages, whose registers are as after reset.
    pub fn ecmdq(&self, number: usize) -> Ecmdq {
        Ecmdq::new(&self.control, number * self.ecmdq_stride, self.ram.clone(), ecmdq_ring(number))
    }

    pub fn read(&self, register: usize) -> u32 {
        let Some(smmu) = &self.trap else { return self.pages.load_u32(register, Acquire) };
        let mut data = [0; 4];
        smmu.mmio_read(register as u64, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: usize, value: u32) {
        match &self.trap {
            Some(smmu) => smmu.mmio_write(register as u64, &value.to_le_bytes()),
            None => self.pages.store_u32(register, value, Release),
        }
    }

    pub fn read_u64(&self, register: usize) -> u64 {
        let Some(smmu) = &self.trap else { return self.pages.load_u64(register, Acquire) };
        let mut data = [0; 8];
        smmu.mmio_read(register as u64, &mut data);
        u64::from_le_bytes(data)
    }

    pub fn write_u64(&self, register: usize, value: u64) {
        match &self.trap {
            Some(smmu) => smmu.mmio_write(register as u64, &value.to_le_bytes()),
            None => self.pages.store_u64(register, value, Release),
        }
    }

    /// Describes a queue of 2^`log2` entries that is empty at `index`, and asks for it to be enabled.
    pub fn start_at(&mut self, base: u64, log2: u32, index: u32) {
        self.write_base(base | u64::from(log2));
        self.ring = Ring::new(self.ram.clone(), base, log2, index);
        self.write(reg::CMDQ_PROD, index);
        self.write(reg::CMDQ_CONS, index);
        self.write(reg::CR0, self.read(reg::CR0) | CMDQEN);
    }

    pub fn start(&mut self, log2: u32) {
        self.start_at(RING, log2, 0);
    }

    /// Asks for the queue to be disabled.
    pub fn stop(&self) {
        self.write(reg::CR0, self.read(reg::CR0) & !CMDQEN);
    }

    pub fn write_base(&self, value: u64) {
        self.write_u64(reg::CMDQ_BASE, value);
    }

    pub fn enabled(&self) -> bool {
        self.read(reg::CR0ACK) & CMDQEN != 0
    }

    /// Adds commands without telling.
    pub fn push(&mut self, commands: &[Command]) {
        self.ring.push(commands, self.cons());
    }

    /// Tells how far the queue is filled: the doorbell.
    pub fn ring(&self) {
        self.write(reg::CMDQ_PROD, self.prod());
    }

    pub fn send(&mut self, commands: &[Command]) {
        self.push(commands);
        self.ring();
    }

    /// Writes the entry at an index.
    pub fn put(&self, index: u32, command: Command) {
        self.ring.put(index, command);
    }

    /// The address of the entry at an index.
    pub fn slot(&self, index: u32) -> u64 {
        self.ring.slot(index)
    }

    /// The index, with wrap bit, where the next command goes.
    pub fn prod(&self) -> u32 {
        self.ring.prod()
    }

    /// Free entries.
    pub fn room(&self) -> u32 {
        self.ring.room(self.cons())
    }

    /// CMDQ_CONS.RD with its wrap bit; everything that must read as zero does.
    pub fn cons(&self) -> u32 {
        let word = self.read(reg::CMDQ_CONS);
        assert_eq!(word & 0x80ff_ffff & !self.ring.index_mask(), 0, "reserved bits of CMDQ_CONS {word:#x}");
        word & 0xf_ffff
    }

    /// GERROR bits that are active.
    pub fn active(&self) -> u32 {
        self.read(reg::GERROR) ^ self.read(reg::GERRORN)
    }

    /// CMDQ_CONS.ERR while a command error is active.
    pub fn error(&self) -> Option<u32> {
        (self.active() & CMDQ_ERR != 0).then(|| self.read(reg::CMDQ_CONS) >> 24 & 0x7f)
    }

    /// Acknowledges all errors.
    pub fn ack(&self) {
        self.write(reg::GERRORN, self.read(reg::GERROR));
    }

    pub fn u32_at(&self, at: u64) -> u32 {
        self.ram.load_u32((at - RAM) as usize, Acquire)
    }

    pub fn set_u32(&self, at: u64, value: u32) {
        self.ram.store_u32((at - RAM) as usize, value, Release);
    }

    pub fn set_u64(&self, at: u64, value: u64) {
        self.ram.store_u64(at.wrapping_sub(RAM) as usize, value, Release);
    }

    /// The configuration commands that the VMM was told of since the last call.
    pub fn take_configs(&self) -> Vec<StreamConfig> {
        std::mem::take(&mut self.configs.lock().unwrap())
    }
}
