//! A virtual machine: memory, registers, queues and their driver, and the VMM's part.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};

use ecmdq_engine::host::model::Caches;
use ecmdq_engine::memory::GuestRam;
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Command, Config, Features, FrontEnd, HostStreamId, NoInterrupts, StreamConfig, StreamId, StreamMap,
    Token, VirtualSmmu, Vmid,
};
use ecmdq_ring::SharedRegion;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use crate::entries::STREAMS;

/// What a guest is shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub ril: bool,
    pub ds: bool,
    pub ats: bool,
    pub asid16: bool,
    /// CR0.SMMUEN, which the guest sets and leaves.
    pub smmuen: bool,
    pub ssid_bits: u32,
    /// log2 of its ECMDQs, beside the CMDQ.
    pub ecmdqs_log2: u8,
}

impl Shown {
    /// The bits that an ASID may have.
    pub fn asids(&self) -> u16 {
        if self.asid16 { 0xffff } else { 0xff }
    }

    /// Whether there is such a SubstreamID.
    pub fn has(&self, substream: u32) -> bool {
        substream < 1 << self.ssid_bits
    }

    pub fn features(&self) -> Features {
        let mut features = Features::linux().with_ecmdqs(0, self.ecmdqs_log2);
        (features.ril, features.ds, features.ats) = (self.ril, self.ds, self.ats);
        (features.asid16, features.ssid_bits) = (self.asid16, self.ssid_bits as u8);
        features
    }
}

pub fn shown() -> impl Strategy<Value = Shown> {
    let bits = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.9));
    (bits, prop::sample::select(vec![0, 2, 7]), 0..3u8).prop_map(|(bits, ssid_bits, ecmdqs_log2)| {
        let (ril, ds, ats, asid16, smmuen) = bits;
        Shown { ril, ds: ds && ril, ats, asid16, smmuen, ssid_bits, ecmdqs_log2 }
    })
}

/// The features of a host that suits every guest here.
pub fn host_features(ril: bool, ats: bool) -> Features {
    let mut features = Features::linux();
    (features.ril, features.ats, features.ds, features.ssid_bits) = (ril, ats, true, 7);
    features
}

/// The host's name of a stream that a guest owns. They clash with the guests' names.
pub fn host_stream(guest: u32, guests: u32, stream: u32) -> HostStreamId {
    let which = STREAMS.iter().position(|of| *of == stream).expect("one of its streams") as u32;
    HostStreamId(which * guests + (guest + which) % guests)
}

/// The host's name of a guest.
pub fn vmid(guest: u32, guests: u32) -> u16 {
    (guests - 1 - guest) as u16
}

const RAM: u64 = 0x8000_0000;
const FRAME: usize = 0x2_0000;
const EN: u32 = 1 << 31;
/// ERRACK in PROD, ERR in CONS.
const ERR: u32 = 1 << 23;

struct Memory(SharedRegion);

impl GuestRam for Memory {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        self.0.part(at.0.checked_sub(RAM)? as usize, len)
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        self.region(at, 4).map(|word| word.store_u32(0, value, Release)).is_some()
    }

    fn refresh(&mut self) {}
}

/// What the VMM was asked and has not done.
type Asked = Arc<Mutex<VecDeque<(StreamConfig, Token)>>>;

pub struct Vm {
    pub shown: Shown,
    pub smmu: VirtualSmmu,
    pub queues: Vec<Queue>,
    streams: Arc<StreamMap>,
    asked: Asked,
}

impl Vm {
    /// The `guest`th of `guests`, with queues of 2^`log2` entries, not yet enabled.
    pub fn new(guest: u32, guests: u32, shown: Shown, host: Features, log2: u32) -> Self {
        let ecmdqs = 1 << shown.ecmdqs_log2;
        let words = |bytes: usize| SharedRegion::from_words(vec![0; bytes / 8]);
        let (pages, ram) = (words(FRAME + 0x1_0000), words((ecmdqs + 1) * (16 << log2)));
        let pairs = STREAMS.map(|stream| (StreamId(stream), host_stream(guest, guests, stream)));
        let streams = Arc::new(StreamMap::from_pairs(pairs).unwrap());
        let asked = Asked::default();
        let asks = asked.clone();
        let smmu = VirtualSmmu::new(Config {
            features: shown.features(),
            host_features: host,
            quirks: Vec::new(),
            vmid: Vmid(vmid(guest, guests)),
            streams: streams.clone(),
            ram: Box::new(Memory(ram.clone())),
            front_end: FrontEnd::Shared(pages.clone()),
            interrupts: Box::new(NoInterrupts),
            on_request: Box::new(move |request, token| match request {
                Request::Streams(config) => asks.lock().unwrap().push_back((config, token)),
                _ => token.complete(),
            }),
        })
        .unwrap();
        let queue = |number: usize| {
            let (ecmdq, at) = match number.checked_sub(1) {
                None => (false, 0x90),
                Some(ecmdq) => (true, FRAME + ecmdq * (0x1_0000 / ecmdqs)),
            };
            let ring = ram.part(number * (16 << log2), 16 << log2).unwrap();
            let base = RAM + (number * (16 << log2)) as u64;
            Queue { pages: pages.clone(), ecmdq, at, ring, base, log2, prod: 0, errack: 0 }
        };
        Self { shown, smmu, queues: (0..=ecmdqs).map(queue).collect(), streams, asked }
    }

    /// Asks for all queues to be enabled.
    pub fn start(&self) {
        self.queues.iter().for_each(Queue::start);
        let smmuen = u32::from(self.shown.smmuen);
        self.queues[0].pages.store_u32(0x20, 1 << 3 | smmuen, Release);
    }

    /// Whether that has come to pass.
    pub fn is_started(&self) -> bool {
        let acks = self.queues[0].pages.load_u32(0x24, Acquire) == 1 << 3 | u32::from(self.shown.smmuen);
        acks && self.queues[1..].iter().all(|queue| queue.word(0xc) & EN != 0)
    }

    /// The VMM does one thing that it was asked for: it invalidates the host's STEs of the streams, and what came by them.
    pub fn serve(&self, caches: &mut Caches) -> bool {
        let Some((config, token)) = self.asked.lock().unwrap().pop_front() else { return false };
        for (_, host) in self.streams.owned(config) {
            caches.execute(Command([0x03 | u64::from(host.0) << 32, 1])).unwrap();
        }
        token.complete();
        true
    }
}

/// A queue and its driver (facts sheet, sections 2.5 and 4.1).
pub struct Queue {
    pages: SharedRegion,
    ecmdq: bool,
    /// Where BASE is; PROD and CONS are behind it.
    at: usize,
    ring: SharedRegion,
    base: u64,
    log2: u32,
    /// PROD with its wrap bit.
    prod: u32,
    /// ERRACK, in its place.
    errack: u32,
}

impl Queue {
    fn start(&self) {
        self.pages.store_u64(self.at, self.base | u64::from(self.log2), Release);
        self.ring_doorbell();
    }

    fn word(&self, offset: usize) -> u32 {
        self.pages.load_u32(self.at + offset, Acquire)
    }

    /// How many entries are free when `outstanding` are not.
    pub fn room(&self, outstanding: usize) -> usize {
        (1 << self.log2) - outstanding
    }

    /// Adds commands, and rings.
    pub fn send(&mut self, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            self.put(self.prod, command);
            self.prod = (self.prod + 1) & self.mask();
        }
        self.ring_doorbell();
    }

    fn put(&self, index: u32, Command([low, high]): Command) {
        let at = 16 * (index & (self.mask() >> 1)) as usize;
        self.ring.store_u64(at, low, Release);
        self.ring.store_u64(at + 8, high, Release);
    }

    fn ring_doorbell(&self) {
        let flags = if self.ecmdq { EN | self.errack } else { 0 };
        self.pages.store_u32(self.at + 8, self.prod | flags, Release);
    }

    fn mask(&self) -> u32 {
        (2 << self.log2) - 1
    }

    /// How many of the commands sent have not been consumed.
    pub fn outstanding(&self) -> usize {
        (self.prod.wrapping_sub(self.word(0xc)) & self.mask()) as usize
    }

    /// The error that stopped the queue.
    pub fn error(&self) -> Option<u32> {
        let cons = self.word(0xc);
        if self.ecmdq {
            return ((cons ^ self.errack) & ERR != 0).then_some(cons >> 24 & 7);
        }
        let active = self.pages.load_u32(0x60, Acquire) ^ self.pages.load_u32(0x64, Acquire);
        // GERROR first: CONS may be older.
        (active & 1 != 0).then(|| self.word(0xc) >> 24 & 0x7f)
    }

    /// Replaces the command at CONS, if something else is to be there, and acknowledges the error.
    pub fn mend(&mut self, with: Option<Command>) {
        if let Some(command) = with {
            self.put(self.word(0xc) & self.mask(), command);
        }
        let toggle = |bit| {
            let gerrorn = self.pages.load_u32(0x64, Acquire);
            if (gerrorn ^ self.pages.load_u32(0x60, Acquire)) & bit != 0 {
                self.pages.store_u32(0x64, gerrorn ^ bit, Release);
            }
        };
        if self.ecmdq {
            toggle(1 << 9);
            self.errack ^= ERR;
            self.ring_doorbell();
        } else {
            toggle(1);
        }
    }
}
