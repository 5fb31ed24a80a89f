//! A virtual SMMU in front of 64 KiB of RAM, by any front end, whose interrupts are written down with what the guest saw.

use std::mem;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, OnceLock};

use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::memory::{self, GuestRam};
use ecmdq_engine::{
    Config, Features, FrontEnd, HostStreamId, Interrupts, StreamId, StreamMap, VirtualSmmu, Vmid, Worker,
};
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: usize = 0x1_0000;
/// An address that takes MSIs, and one where there is nothing.
pub const MSI: u64 = 0x0802_0040;
pub const HOLE: u64 = 0x1000;

pub const CR0: u64 = 0x20;
pub const IRQ_CTRL: u64 = 0x50;
pub const GERROR: u64 = 0x60;
pub const GERRORN: u64 = 0x64;
/// SMMUEN, PRIQEN, EVENTQEN.
pub const ALL: u32 = 7;

/// Where the registers of an output queue are.
pub struct Queue {
    pub base: u64,
    pub prod: u64,
    pub cons: u64,
    pub irq_cfg: u64,
    pub entry: u64,
}

pub const EVENTQ: Queue = Queue { base: 0xa0, prod: 0x1_00a8, cons: 0x1_00ac, irq_cfg: 0xb0, entry: 32 };
pub const PRIQ: Queue = Queue { base: 0xc0, prod: 0x1_00c8, cons: 0x1_00cc, irq_cfg: 0xd0, entry: 16 };

/// What reached the guest, and PROD of the queue that it tells of when it came, or GERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    EventWire(u32),
    PageRequestWire(u32),
    Gerror(u32),
    Msi(u64, u32),
}

#[derive(Clone, Default)]
struct Notes {
    smmu: Arc<OnceLock<VirtualSmmu>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Notes {
    fn note(&self, register: u64, what: impl FnOnce(u32) -> Seen) {
        let mut data = [0; 4];
        self.smmu.get().unwrap().mmio_read(register, &mut data);
        self.seen.lock().unwrap().push(what(u32::from_le_bytes(data)));
    }
}

impl Interrupts for Notes {
    fn gerror(&mut self) {
        self.note(GERROR, Seen::Gerror);
    }

    fn event_queue(&mut self) {
        self.note(EVENTQ.prod, Seen::EventWire);
    }

    fn page_request_queue(&mut self) {
        self.note(PRIQ.prod, Seen::PageRequestWire);
    }

    fn msi(&mut self, address: GuestAddress, data: u32) -> bool {
        self.seen.lock().unwrap().push(Seen::Msi(address.0, data));
        address.0 == MSI
    }
}

/// What happens when the engine next stores a word.
type OnStore = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Memory that ends where the VMM says, once it has called `memory_changed`.
struct Ram {
    on_store: OnStore,
    whole: SharedRegion,
    wanted: Arc<AtomicUsize>,
    len: usize,
}

impl GuestRam for Ram {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        let offset = usize::try_from(at.0.checked_sub(RAM)?).ok()?;
        self.whole.part(offset, len).filter(|_| offset + len <= self.len)
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        if let Some(what) = self.on_store.lock().unwrap().take() {
            what();
        }
        self.region(at, 4).map(|word| word.store_u32(0, value, Release)).is_some()
    }

    fn refresh(&mut self) {
        self.len = self.wanted.load(Relaxed);
    }
}

pub struct Vm {
    pub smmu: VirtualSmmu,
    worker: Worker<NativeRing>,
    host: RingConsumer,
    pub ram: SharedRegion,
    ram_len: Arc<AtomicUsize>,
    /// Pages 0 and 1, where they do not trap.
    pages: Option<SharedRegion>,
    seen: Arc<Mutex<Vec<Seen>>>,
    on_store: OnStore,
}

pub fn features() -> Features {
    let mut features = Features::linux();
    (features.ats, features.pri, features.priqs, features.eventqs) = (true, true, 7, 7);
    features
}

/// A virtual SMMU that owns a stream, 0x42, which the host calls 0x1042.
pub fn smmu(
    ram: impl GuestRam + 'static,
    front_end: FrontEnd,
    interrupts: impl Interrupts + 'static,
) -> VirtualSmmu {
    VirtualSmmu::new(Config {
        features: features(),
        host_features: features(),
        quirks: Vec::new(),
        vmid: Vmid(7),
        streams: Arc::new(StreamMap::from_pairs([(StreamId(0x42), HostStreamId(0x1042))]).unwrap()),
        ram: Box::new(ram),
        front_end,
        interrupts: Box::new(interrupts),
        on_request: Box::new(|_, token| token.complete()),
    })
    .unwrap()
}

/// Each front end, with its name.
pub fn front_ends() -> [(&'static str, FrontEnd); 3] {
    let pages = memory::memfd("test-registers", 0x2_0000).unwrap().1;
    [("trapped", FrontEnd::Trapped), ("direct", FrontEnd::Direct), ("shared", FrontEnd::Shared(pages))]
}

impl Vm {
    pub fn new(front_end: FrontEnd) -> Self {
        let ram = SharedRegion::from_words(vec![0; RAM_SIZE / 8]);
        let ram_len = Arc::new(AtomicUsize::new(RAM_SIZE));
        let (notes, on_store) = (Notes::default(), OnStore::default());
        let pages = match &front_end {
            FrontEnd::Shared(pages) => Some(pages.clone()),
            _ => None,
        };
        let memory =
            Ram { on_store: on_store.clone(), whole: ram.clone(), wanted: ram_len.clone(), len: RAM_SIZE };
        let smmu = smmu(memory, front_end, notes.clone());
        notes.smmu.set(smmu.clone()).unwrap();
        let (ring, host) = NativeRing::with_consumer(8).unwrap();
        let mut worker = Worker::new(ring);
        worker.attach(smmu.clone()).unwrap();
        Self { smmu, worker, host, ram, ram_len, pages, seen: notes.seen, on_store }
    }

    /// Both queues of 2^`log2` entries, events at the start of RAM and page requests in its middle; all enabled, interrupts by
    /// wire.
    pub fn enabled(front_end: FrontEnd, log2: u64) -> Self {
        let mut vm = Self::new(front_end);
        vm.write_u64(EVENTQ.base, RAM | log2);
        vm.write_u64(PRIQ.base, (RAM + 0x8000) | log2);
        vm.set(CR0, ALL);
        vm.set(IRQ_CTRL, ALL);
        vm
    }

    pub fn read(&self, register: u64) -> u32 {
        match &self.pages {
            Some(pages) => pages.load_u32(register as usize, Acquire),
            None => {
                let mut data = [0; 4];
                self.smmu.mmio_read(register, &mut data);
                u32::from_le_bytes(data)
            }
        }
    }

    pub fn write(&self, register: u64, value: u32) {
        match &self.pages {
            Some(pages) => pages.store_u32(register as usize, value, Release),
            None => self.smmu.mmio_write(register, &value.to_le_bytes()),
        }
    }

    pub fn write_u64(&self, register: u64, value: u64) {
        match &self.pages {
            Some(pages) => pages.store_u64(register as usize, value, Release),
            None => self.smmu.mmio_write(register, &value.to_le_bytes()),
        }
    }

    /// Writes a register, and waits until it is acknowledged.
    pub fn set(&mut self, register: u64, value: u32) {
        self.write(register, value);
        self.settle();
        assert_eq!(self.read(register + 4), value);
    }

    pub fn settle(&mut self) {
        for _ in 0..1_000 {
            let busy = self.worker.poll();
            if self.host.poll(|_| ()) == 0 && !busy {
                return;
            }
        }
        panic!("the engine does not come to rest");
    }

    /// What came since the last call, when everything has come to rest.
    pub fn seen(&mut self) -> Vec<Seen> {
        self.settle();
        mem::take(&mut self.seen.lock().unwrap())
    }

    /// PROD and CONS of a queue.
    pub fn indices(&self, queue: &Queue) -> (u32, u32) {
        (self.read(queue.prod), self.read(queue.cons))
    }

    /// Errors that are active.
    pub fn active(&self) -> u32 {
        self.read(GERROR) ^ self.read(GERRORN)
    }

    pub fn acknowledge(&mut self) {
        self.write(GERRORN, self.read(GERROR));
        self.settle();
    }

    pub fn word(&self, at: u64) -> u64 {
        self.ram.load_u64((at - RAM) as usize, Acquire)
    }

    /// When the engine next stores a word, the guest stores a register that does not trap.
    pub fn meanwhile(&self, register: u64, value: u32) {
        let pages = self.pages.clone().unwrap();
        let store = move || pages.store_u32(register as usize, value, Release);
        *self.on_store.lock().unwrap() = Some(Box::new(store));
    }

    /// RAM ends after so many bytes.
    pub fn shrink(&self, len: usize) {
        self.ram_len.store(len, Relaxed);
        self.smmu.memory_changed();
    }
}
