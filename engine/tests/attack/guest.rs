//! A guest: what it is to do, its memory, and its registers by each front end.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};

use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Config, Doorbell, DoorbellTraps, Features, FrontEnd, HostStreamId, NoInterrupts, StreamId, StreamMap,
    Token, VirtualSmmu, Vmid,
};
use ecmdq_ring::SharedRegion;
use parking_lot::{Mutex, RwLock};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::fleet::Placement;
use crate::hostile::OWN;
use crate::hosts::Status;
use crate::random::Random;
use crate::world::Faults;

pub const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x4_0000;
/// A ring of 2^9 entries for each queue.
pub const RING_SIZE: u64 = 0x2000;
/// Where MSIs go, a cache line for each queue.
pub const MSIS: u64 = 0x2_0000;
/// Memory that comes and goes.
pub const HOLE: u64 = RAM + 0x10_0000;
const HOLE_SIZE: usize = 0x1_0000;
/// Memory that cannot be written.
pub const READ_ONLY: u64 = RAM + 0x20_0000;
/// Pages 0 and 1; behind them the control pages.
pub const FRAME: usize = 0x2_0000;
const CONTROL_PAGE: usize = 0x1_0000;
/// The streams that each guest owns.
pub const STREAMS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Shared,
    Direct,
    Trapped,
}

/// What a guest is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub front: Front,
    /// log2 of its ECMDQs.
    pub ecmdqs_log2: u8,
    /// Queues by number: 0 is the CMDQ.
    pub honest: Vec<usize>,
    pub hostile: Vec<usize>,
    /// Its hostile queues send anything, what invalidates entries of its honest ones included.
    pub wild: bool,
    /// It has a host queue of its own, behind iommufd.
    pub own_host: bool,
}

/// What the VMM was asked and has not answered.
pub type Requests = Arc<Mutex<VecDeque<(Request, Token)>>>;

pub struct Guest {
    pub number: u32,
    pub vmid: u16,
    pub plan: Plan,
    pub streams: Arc<StreamMap>,
    space: GuestMemoryAtomic<GuestMemoryMmap>,
    /// The part of its memory that is always there.
    pub ram: SharedRegion,
    /// vCPUs hold it for reading while they run; whoever stops them, for writing.
    pub machine: RwLock<Machine>,
    /// The VMM's control of the guest.
    pub placement: Mutex<Placement>,
    pub requests: Requests,
    /// Odd while it is being reset.
    pub resets: AtomicU64,
    /// How often all that it may have cached may have been invalidated.
    pub widened: AtomicU64,
    /// The faults of its own host queue.
    pub faults: Faults,
    /// For each queue when the oldest CMD_SYNC that waits was sent; 0 if none does.
    pub since: Vec<AtomicU64>,
    /// How many wait.
    pub waiting: AtomicU64,
    /// Hosts that may still have commands of workers that were lost.
    pub ghosts: Mutex<Vec<Arc<Status>>>,
    hole: Mutex<Option<Arc<GuestRegionMmap>>>,
}

/// A virtual SMMU and how a vCPU reaches it.
pub struct Machine {
    pub smmu: VirtualSmmu,
    frame: Option<SharedRegion>,
    control: Option<SharedRegion>,
    /// Stores to pages that are written without a trap do trap.
    armed: Arc<RwLock<bool>>,
    eventfd: RwLock<Option<EventFd>>,
    pub stride: usize,
    /// What callbacks look at.
    itself: Arc<Mutex<Option<VirtualSmmu>>>,
}

pub fn host_features() -> Features {
    let mut features = Features::linux().with_ecmdqs(0, 3);
    (features.ats, features.ssid_bits) = (true, 20);
    features
}

/// The guests of an attack: one of each kind, and some more.
pub fn all(random: &mut Random) -> Vec<Arc<Guest>> {
    use Front::*;
    let plan = |front, ecmdqs_log2, honest: &[usize], hostile: &[usize], wild, own_host| Plan {
        front,
        ecmdqs_log2,
        honest: honest.into(),
        hostile: hostile.into(),
        wild,
        own_host,
    };
    let kinds = [
        plan(Shared, 1, &[0, 1, 2], &[], false, false),
        plan(Direct, 2, &[0, 1, 2], &[3, 4], false, false),
        plan(Direct, 1, &[0, 1], &[2], false, true),
        plan(Shared, 1, &[], &[0, 1, 2], true, false),
        plan(Trapped, 1, &[0, 1, 2], &[], false, false),
        plan(Shared, 2, &[1, 2], &[3, 4], true, false),
        plan(Direct, 1, &[], &[0, 1, 2], true, false),
        plan(Trapped, 0, &[0], &[1], false, true),
        plan(Trapped, 1, &[], &[0, 1, 2], true, true),
    ];
    let n = 6 + random.below(7) as u32;
    (0..n).map(|number| Guest::new(number, n, kinds[number as usize % kinds.len()].clone())).collect()
}

impl Guest {
    fn new(number: u32, guests: u32, plan: Plan) -> Arc<Self> {
        let map = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap();
        let space = GuestMemoryAtomic::new(map.insert_region(read_only()).unwrap());
        let ram = Ram::new(space.clone()).region(GuestAddress(RAM), RAM_SIZE).unwrap();
        // Hosts' names clash with the guests'.
        let pairs = (0..STREAMS)
            .map(|stream| (StreamId(stream), HostStreamId(stream * guests + (number + stream) % guests)));
        let streams = Arc::new(StreamMap::from_pairs(pairs).unwrap());
        let queues = (1 << plan.ecmdqs_log2) + 1;
        let (vmid, requests) = ((guests - number) as u16, Requests::default());
        let machine = Machine::new(&plan, vmid, &streams, &space, &requests);
        Arc::new(Self {
            number,
            vmid,
            plan,
            streams,
            space,
            ram,
            machine: RwLock::new(machine),
            placement: Mutex::default(),
            requests,
            resets: AtomicU64::new(0),
            widened: AtomicU64::new(0),
            faults: Faults::default(),
            since: (0..queues).map(|_| AtomicU64::new(0)).collect(),
            waiting: AtomicU64::new(0),
            ghosts: Mutex::default(),
            hole: Mutex::default(),
        })
    }

    /// Another virtual SMMU for the same guest.
    pub fn another_machine(&self) -> Machine {
        Machine::new(&self.plan, self.vmid, &self.streams, &self.space, &self.requests)
    }

    /// Whether no command can come from a worker that was lost.
    pub fn has_no_ghosts(&self) -> bool {
        let mut ghosts = self.ghosts.lock();
        ghosts.retain(|host| !host.has_ended());
        ghosts.is_empty()
    }

    /// The host's name of a stream.
    pub fn host_stream(&self, stream: u32) -> Option<HostStreamId> {
        self.streams.get(StreamId(stream))
    }

    /// The VMM adds memory, or takes it away; says whether memory that has gone is still used.
    pub fn change_memory(&self, smmu: &VirtualSmmu, random: &mut Random) -> bool {
        let mut hole = self.hole.lock();
        let Ok(change) = self.space.lock() else { return false };
        let now = self.space.memory().clone();
        match hole.take() {
            None => {
                let region = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(HOLE), HOLE_SIZE)]).unwrap();
                let (_, region) = region.remove_region(GuestAddress(HOLE), HOLE_SIZE as u64).unwrap();
                for at in (0..4096).step_by(16) {
                    // What harms nobody, whichever queue finds it there.
                    let words = random.of(&OWN);
                    region.write_obj(words, MemoryRegionAddress(at)).unwrap();
                }
                change.replace((*now).insert_region(region.clone()).unwrap());
                *hole = Some(region);
                drop(now);
                smmu.memory_changed();
                false
            }
            Some(region) => {
                let (map, _) = (*now).remove_region(GuestAddress(HOLE), HOLE_SIZE as u64).unwrap();
                change.replace(map);
                drop(now);
                smmu.memory_changed();
                // Ours is the last.
                Arc::strong_count(&region) > 1
            }
        }
    }
}

impl Machine {
    fn new(
        plan: &Plan,
        vmid: u16,
        streams: &Arc<StreamMap>,
        space: &GuestMemoryAtomic<GuestMemoryMmap>,
        requests: &Requests,
    ) -> Self {
        let mut features = host_features();
        features.page_queues_log2 = plan.ecmdqs_log2;
        let shared = SharedRegion::from_words(vec![0; (FRAME + CONTROL_PAGE) / 8]);
        let itself = Arc::<Mutex<Option<VirtualSmmu>>>::default();
        let mut answer = Answer {
            asked: requests.clone(),
            itself: itself.clone(),
            random: Random::new(vmid.into()),
            panics: plan.honest.is_empty(),
        };
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features: host_features(),
            quirks: Vec::new(),
            vmid: Vmid(vmid),
            streams: streams.clone(),
            ram: Box::new(Ram::new(space.clone())),
            front_end: match plan.front {
                Front::Shared => FrontEnd::Shared(shared.clone()),
                Front::Direct => FrontEnd::Direct,
                Front::Trapped => FrontEnd::Trapped,
            },
            interrupts: Box::new(NoInterrupts),
            on_request: Box::new(move |request, token| answer.to(request, token)),
        })
        .unwrap();
        *itself.lock() = Some(smmu.clone());
        let (frame, control) = match plan.front {
            Front::Shared => (shared.part(0, FRAME), shared.part(FRAME, CONTROL_PAGE)),
            Front::Direct => {
                let page = smmu.control_pages().next().unwrap();
                let file = File::from(page.fd.try_clone_to_owned().unwrap());
                (None, Some(memory::map(&file, page.size).unwrap()))
            }
            Front::Trapped => (None, None),
        };
        let stride = CONTROL_PAGE >> plan.ecmdqs_log2;
        Self { smmu, frame, control, armed: Arc::default(), eventfd: RwLock::new(None), stride, itself }
    }

    /// Its virtual SMMU is not used any more.
    pub fn end(self) {
        *self.itself.lock() = None;
    }

    /// Where a register of a queue is, from page 0: 0 is BASE, 8 PROD, 12 CONS.
    pub fn at(&self, queue: usize, register: usize) -> usize {
        match queue.checked_sub(1) {
            None => 0x90 + register,
            Some(ecmdq) => FRAME + ecmdq * self.stride + register,
        }
    }

    /// The memory of a register that is reached without a trap.
    fn memory(&self, at: usize) -> Option<(&SharedRegion, usize)> {
        match at.checked_sub(FRAME) {
            None => self.frame.as_ref().map(|frame| (frame, at)),
            Some(at) => self.control.as_ref().map(|control| (control, at)),
        }
    }

    pub fn load(&self, at: usize) -> u32 {
        if let Some((region, at)) = self.memory(at) {
            return region.load_u32(at, Acquire);
        }
        let mut data = [0; 4];
        self.smmu.mmio_read(at as u64, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn store(&self, at: usize, value: u32) {
        self.store_by(at, &value.to_le_bytes(), |region, at| region.store_u32(at, value, Release));
    }

    pub fn store_u64(&self, at: usize, value: u64) {
        self.store_by(at, &value.to_le_bytes(), |region, at| region.store_u64(at, value, Release));
    }

    /// As KVM does it: a page that is armed traps, and an ioeventfd is written behind the store.
    fn store_by(&self, at: usize, data: &[u8], store: impl Fn(&SharedRegion, usize)) {
        if let Some((region, offset)) = self.memory(at) {
            let armed = self.armed.read();
            if !*armed {
                store(region, offset);
                drop(armed);
                if let Some(eventfd) = &*self.eventfd.read() {
                    let _ = eventfd.write(1);
                }
                return;
            }
        }
        self.smmu.mmio_write(at as u64, data);
    }

    /// Another kind of doorbell; before it is attached.
    pub fn choose_doorbell(&self, random: &mut Random) -> &'static str {
        let (name, eventfd, doorbell) = match random.below(3) {
            0 => ("timer", None, Doorbell::Timer),
            1 => {
                let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
                let ours = eventfd.try_clone().unwrap();
                ("eventfd", Some(ours), Doorbell::Eventfds(vec![eventfd]))
            }
            _ => {
                ("traps", None, Doorbell::Traps(Box::new(Traps(self.armed.clone(), AtomicBool::new(false)))))
            }
        };
        *self.eventfd.write() = eventfd;
        self.smmu.set_doorbell(doorbell);
        name
    }
}

/// A page that can only be read: PROT_READ, MAP_PRIVATE and MAP_ANONYMOUS.
fn read_only() -> Arc<GuestRegionMmap> {
    let pages = MmapRegion::build(None, 0x1000, 1, 0x22).unwrap();
    Arc::new(GuestRegionMmap::new(pages, GuestAddress(READ_ONLY)).unwrap())
}

/// What a callback says when it panics.
pub const ON_PURPOSE: &str = "on purpose";

/// The VMM's callback: guests without an honest queue have one that panics.
struct Answer {
    asked: Requests,
    itself: Arc<Mutex<Option<VirtualSmmu>>>,
    random: Random,
    panics: bool,
}

impl Answer {
    /// At once, later, or not at all; it may look at whose request it is, and pause it.
    fn to(&mut self, request: Request, token: Token) {
        let random = &mut self.random;
        match random.below(6) {
            0 => {
                if let Some(smmu) = self.itself.lock().clone() {
                    drop((smmu.inspect(), smmu.last_rejected()));
                }
            }
            1 if self.panics && random.one_in(16) => panic!("{ON_PURPOSE}"),
            _ => {}
        }
        match random.below(3) {
            0 => token.complete(),
            _ => self.asked.lock().push_back((request, token)),
        }
    }
}

/// Pages that trap: stores to them are held back while that changes.
struct Traps(Arc<RwLock<bool>>, AtomicBool);

impl DoorbellTraps for Traps {
    fn arm(&mut self) -> io::Result<()> {
        assert!(!self.1.swap(true, Acquire), "armed twice");
        *self.0.write() = true;
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        assert!(self.1.swap(false, Acquire), "disarmed twice");
        *self.0.write() = false;
        Ok(())
    }
}
