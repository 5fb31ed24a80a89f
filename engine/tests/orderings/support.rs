//! A guest that makes plain accesses, in front of a worker on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{
    Command, Config, Features, FrontEnd, HostStreamId, NoInterrupts, OnRequest, StreamId, StreamMap,
    VirtualSmmu, Vmid, Worker,
};

use super::memory::Memory;
use crate::common::reg::*;
use crate::common::{CMDQEN, PAGES, RAM, STREAM, SetOnDrop};

/// Where in guest memory the ring of the CMDQ is, and those of ECMDQs; 16 entries each.
pub const RING: usize = 0x1000;
pub const ECMDQ_RINGS: [usize; 2] = [0x2000, 0x3000];
/// log2 of the number of their entries.
pub const LOG2: u32 = 4;
/// Where in guest memory MSIs go.
pub const MSI: usize = 0x4000;
/// Where in guest memory there is something that the guest and the VMM use.
pub const DATA: usize = 0x5000;
/// Where the registers of two ECMDQs are.
pub const ECMDQS: [usize; 2] = [PAGES, PAGES + 0x8000];
/// PROD and CONS of an ECMDQ from the start of its registers.
pub const ECMDQ_PROD: usize = 8;
pub const ECMDQ_CONS: usize = 12;

/// Waits as long as it takes on however busy a machine: only what has failed takes longer.
pub fn until(mut is_there: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(120);
    while !is_there() {
        assert!(Instant::now() < patience, "what is waited for does not come");
        thread::yield_now();
    }
}

/// A host that has completed everything whenever it is asked. It shares nothing with anybody.
#[derive(Debug, Default)]
pub struct AtOnce(u64);

impl HostQueue for AtOnce {
    fn submit(&mut self, commands: &[Command]) -> usize {
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        self.0 += 1;
        Ticket(self.0)
    }

    fn completed(&mut self) -> Ticket {
        Ticket(self.0)
    }
}

/// How the guest reaches the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Shared,
    Trapped,
}

/// A guest's memory, its registers, and the virtual SMMU behind them.
pub struct Guest {
    pub ram: Memory,
    pub pages: Memory,
    pub smmu: VirtualSmmu,
}

impl Guest {
    /// With two ECMDQs, and a VMM that completes everything at once.
    pub fn new(front: Front) -> Self {
        Self::with_vmm(front, |_| Box::new(|_, token| token.complete()))
    }

    /// With a VMM that reaches the guest's memory.
    pub fn with_vmm(front: Front, on_request: impl FnOnce(Memory) -> OnRequest) -> Self {
        let features = Features::default().with_ecmdqs(0, 1);
        let (ram, map) = Memory::ram(RAM, 0x10_000);
        let pages = Memory::new(PAGES + 0x1_0000);
        let streams = Arc::new(StreamMap::new(8));
        streams.insert(StreamId(STREAM as u32), HostStreamId(0x1042)).unwrap();
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features: features,
            quirks: Vec::new(),
            vmid: Vmid(7),
            streams,
            ram: map,
            front_end: match front {
                Front::Shared => FrontEnd::Shared(pages.region.clone()),
                Front::Trapped => FrontEnd::Trapped,
            },
            interrupts: Box::new(NoInterrupts),
            on_request: on_request(ram.clone()),
        });
        Self { ram, pages, smmu: smmu.unwrap() }
    }

    /// Runs the guest on this thread while a worker serves it on another one.
    pub fn run(&self, guest: impl FnOnce(&Self)) {
        let mut worker = Worker::new(AtOnce::default());
        worker.attach(self.smmu.clone()).unwrap();
        serve(&mut worker, || guest(self));
    }

    /// Plain stores of commands to the slots of a ring from an index on.
    pub fn put(&self, ring: usize, index: u32, commands: &[Command]) {
        for (index, command) in (index..).zip(commands) {
            self.ram.write_entry(slot(ring, index), command.0);
        }
    }

    /// Plain stores that describe an empty CMDQ, and PROD, which the worker polls.
    pub fn describe_cmdq(&self, index: u32) {
        self.pages.write_u64(CMDQ_BASE, base(RING));
        self.pages.store(CMDQ_PROD, index, Relaxed);
        self.pages.write(CMDQ_CONS, index);
    }

    /// Enables the CMDQ.
    pub fn start_cmdq(&self) {
        self.describe_cmdq(0);
        self.pages.store(CR0, CMDQEN, Release);
        self.pages.wait(CR0ACK, Acquire, |ack| ack == CMDQEN);
    }

    /// A trapped write.
    pub fn trap_write(&self, register: usize, value: u32) {
        self.smmu.mmio_write(register as u64, &value.to_le_bytes());
    }

    pub fn trap_write_u64(&self, register: usize, value: u64) {
        self.smmu.mmio_write(register as u64, &value.to_le_bytes());
    }

    /// A trapped read.
    pub fn trap_read(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.smmu.mmio_read(register as u64, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn trap_read_u64(&self, register: usize) -> u64 {
        let mut data = [0; 8];
        self.smmu.mmio_read(register as u64, &mut data);
        u64::from_le_bytes(data)
    }
}

/// Runs `guest` on this thread while a worker runs on another one.
pub fn serve<H: HostQueue + Send>(worker: &mut Worker<H>, guest: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| worker.run(&stop));
        let finished = SetOnDrop(&stop);
        guest();
        drop(finished);
    });
}

/// What a BASE register says of a ring.
pub fn base(ring: usize) -> u64 {
    (RAM + ring as u64) | u64::from(LOG2)
}

/// Where in guest memory the slot at an index is.
pub fn slot(ring: usize, index: u32) -> usize {
    ring + 16 * (index as usize % (1 << LOG2))
}

/// The index behind `n` entries.
pub fn index(n: u32) -> u32 {
    n % (2 << LOG2)
}
