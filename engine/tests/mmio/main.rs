//! Registers as a guest sees them through traps: reset values, write guards, sizes, and a model of the whole.

#[path = "../common/mod.rs"]
mod common;
mod guards;
mod model;
#[path = "../commands/support/seed.rs"]
mod seed;
mod sweep;

use std::sync::{Arc, Mutex};

use common::Script;
use ecmdq_engine::memory::Ram;
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Config, Features, FrontEnd, HostStreamId, NoInterrupts, StreamId, StreamMap, Token, VirtualSmmu, Vmid,
    Worker,
};
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

/// Guest RAM.
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x1_0000;

/// A virtual SMMU behind traps, polled by hand, whose VMM acts when the test says so.
struct Trapped {
    smmu: VirtualSmmu,
    worker: Worker<Script>,
    asked: Arc<Mutex<Vec<(Request, Token)>>>,
    ram: Ram<GuestMemoryAtomic<GuestMemoryMmap<()>>>,
    space: GuestMemoryAtomic<GuestMemoryMmap<()>>,
    /// The memory map with RAM and without it.
    maps: [GuestMemoryMmap<()>; 2],
}

impl Trapped {
    fn new(features: Features) -> Self {
        let elsewhere = (GuestAddress(0x8000_0000), 0x1000);
        let with = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_SIZE), elsewhere]).unwrap();
        let (without, _) = with.remove_region(GuestAddress(RAM), RAM_SIZE as u64).unwrap();
        let space = GuestMemoryAtomic::new(with.clone());
        let ram = Ram::new(space.clone());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let asking = asked.clone();
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features: features,
            quirks: Vec::new(),
            vmid: Vmid(7),
            streams: Arc::new(StreamMap::from_pairs([(StreamId(1), HostStreamId(2))]).unwrap()),
            ram: Box::new(ram.clone()),
            front_end: FrontEnd::Trapped,
            interrupts: Box::new(NoInterrupts),
            on_request: Box::new(move |request, token| asking.lock().unwrap().push((request, token))),
        })
        .unwrap();
        let mut worker = Worker::new(Script::at_once());
        worker.attach(smmu.clone());
        Self { smmu, worker, asked, ram, space, maps: [without, with] }
    }

    fn read(&self, offset: usize) -> u32 {
        let mut data = [0xee; 4];
        self.smmu.mmio_read(offset as u64, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: usize, value: u32) {
        self.smmu.mmio_write(offset as u64, &value.to_le_bytes());
    }

    /// Takes RAM out of the guest's memory map, or puts it back.
    fn set_memory(&self, there: bool) {
        self.space.lock().unwrap().replace(self.maps[usize::from(there)].clone());
        self.smmu.memory_changed();
    }

    /// Lets the worker come to rest.
    fn settle(&mut self) {
        assert!((0..100).any(|_| !self.worker.poll()), "the worker does not come to rest");
    }

    /// Carries out all that the VMM was asked for.
    fn complete_requests(&mut self) {
        self.asked.lock().unwrap().drain(..).for_each(|(_, token)| token.complete());
        self.settle();
    }
}
