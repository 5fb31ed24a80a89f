//! Registers as a guest sees them through traps: values, sizes, write guards, a model of the whole, and threads.
//!
//! Random tests have a fixed seed; see `commands/support/seed.rs` for how to have more cases and other ones.

#[path = "../common/mod.rs"]
mod common;
mod expected;
mod guards;
mod model;
#[path = "../commands/support/seed.rs"]
mod seed;
mod sweep;
mod threads;

use std::sync::{Arc, Mutex};

use common::{Act, Script};
use ecmdq_engine::memory::Ram;
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Config, Features, FrontEnd, HostStreamId, NoInterrupts, OnRequest, StreamId, StreamMap, Token,
    VirtualSmmu, Vmid, Worker,
};
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

/// Guest RAM.
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x1_0000;

type Space = GuestMemoryAtomic<GuestMemoryMmap<()>>;
type GuestMemory = Ram<Space>;

/// RAM, and some memory elsewhere.
fn map() -> GuestMemoryMmap<()> {
    let elsewhere = (GuestAddress(0x8000_0000), 0x1000);
    GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE), elsewhere]).unwrap()
}

fn memory() -> GuestMemory {
    Ram::new(Space::new(map()))
}

/// A virtual SMMU all of whose registers trap.
fn trapped(features: Features, ram: &GuestMemory, on_request: OnRequest) -> VirtualSmmu {
    VirtualSmmu::new(Config {
        features,
        host_features: features,
        quirks: Vec::new(),
        vmid: Vmid(7),
        streams: Arc::new(StreamMap::from_pairs([(StreamId(1), HostStreamId(2))]).unwrap()),
        ram: Box::new(ram.clone()),
        front_end: FrontEnd::Trapped,
        interrupts: Box::new(NoInterrupts),
        on_request,
    })
    .unwrap()
}

fn read(smmu: &VirtualSmmu, offset: usize) -> u32 {
    let mut data = [0xee; 4];
    smmu.mmio_read(offset as u64, &mut data);
    u32::from_le_bytes(data)
}

fn write(smmu: &VirtualSmmu, offset: usize, value: u32) {
    smmu.mmio_write(offset as u64, &value.to_le_bytes());
}

fn write_u64(smmu: &VirtualSmmu, offset: usize, value: u64) {
    smmu.mmio_write(offset as u64, &value.to_le_bytes());
}

/// A VMM that acts when the test says so, or at once.
#[derive(Default)]
struct Vmm {
    at_once: Option<Act>,
    /// All that it was asked, with the tokens that it still has.
    asked: Vec<(Request, Option<Token>)>,
}

/// One that is polled by hand.
struct Trapped {
    smmu: VirtualSmmu,
    worker: Worker<Script>,
    vmm: Arc<Mutex<Vmm>>,
    ram: GuestMemory,
    space: Space,
    /// The memory map without RAM and with it.
    maps: [GuestMemoryMmap<()>; 2],
}

impl Trapped {
    fn new(features: Features) -> Self {
        let with = map();
        let (without, _) = with.remove_region(GuestAddress(RAM), RAM_SIZE as u64).unwrap();
        let space = GuestMemoryAtomic::new(with.clone());
        let vmm = Arc::new(Mutex::new(Vmm::default()));
        let asking = vmm.clone();
        let ask = move |request, token| {
            let Vmm { at_once, asked } = &mut *asking.lock().unwrap();
            match at_once {
                Some(act) => {
                    act.on(token);
                    asked.push((request, None));
                }
                None => asked.push((request, Some(token))),
            }
        };
        let ram = Ram::new(space.clone());
        let smmu = trapped(features, &ram, Box::new(ask));
        let mut worker = Worker::new(Script::at_once());
        worker.attach(smmu.clone()).unwrap();
        Self { smmu, worker, vmm, ram, space, maps: [without, with] }
    }

    fn read(&self, offset: usize) -> u32 {
        read(&self.smmu, offset)
    }

    fn write(&self, offset: usize, value: u32) {
        write(&self.smmu, offset, value);
    }

    fn read_u64(&self, offset: usize) -> u64 {
        let mut data = [0xee; 8];
        self.smmu.mmio_read(offset as u64, &mut data);
        u64::from_le_bytes(data)
    }

    fn write_u64(&self, offset: usize, value: u64) {
        write_u64(&self.smmu, offset, value);
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

    /// Carries out all that the VMM was asked for, and says what that was.
    fn complete_requests(&mut self) -> Vec<Request> {
        let asked: Vec<_> = self.vmm.lock().unwrap().asked.drain(..).collect();
        let complete = |(request, token): (Request, Option<Token>)| {
            token.into_iter().for_each(Token::complete);
            request
        };
        let requests = asked.into_iter().map(complete).collect();
        self.settle();
        requests
    }
}
