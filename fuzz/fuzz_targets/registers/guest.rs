//! A guest that may write anything anywhere, and what can be seen of its SMMU from outside.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex};

use ecmdq_engine::memory::{self, GuestRam};
use ecmdq_engine::registers::{CMDQ_BASE, CONTROL_PAGE_SIZE, CONTROL_PAGES, CR0, CR0ACK, INDEX};
use ecmdq_engine::{
    Command, Config, Features, FrontEnd, HostStreamId, Interrupts, StallModel, Stats, StreamId, StreamMap,
    Token, VirtualSmmu, Vmid,
};
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

use crate::host::{Host, STREAMS, VMIDS};

pub const RAM: u64 = 0x4000_0000;
/// A page for the ring of each queue, and some more.
pub const RAM_SIZE: usize = 0x8000;
/// The CMDQ, and behind it the ECMDQs.
pub const QUEUES: usize = 5;
/// ECMDQ_PROD.EN and ECMDQ_CONS.ENACK.
pub const EN: u32 = 1 << 31;
const CMDQS: u8 = 7;

/// Memory that ends where the VMM says, as soon as the engine looks.
struct ShrinkingRam {
    whole: SharedRegion,
    wanted: Arc<AtomicUsize>,
    len: usize,
}

impl ShrinkingRam {
    fn offset(&self, at: GuestAddress, len: usize) -> Option<usize> {
        let offset = usize::try_from(at.0.checked_sub(RAM)?).ok()?;
        (offset.checked_add(len)? <= self.len).then_some(offset)
    }
}

impl GuestRam for ShrinkingRam {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        self.whole.part(self.offset(at, len)?, len)
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        let offset = self.offset(at, 4).filter(|offset| offset % 4 == 0);
        offset.map(|offset| self.whole.store_u32(offset, value, Release)).is_some()
    }

    fn refresh(&mut self) {
        self.len = self.wanted.load(Relaxed);
    }
}

/// MSIs arrive at low addresses.
struct MsiPage;

impl Interrupts for MsiPage {
    fn msi(&mut self, address: GuestAddress, _: u32) -> bool {
        address.0 < 0x1000_0000
    }
}

/// What is known of a queue from outside.
#[derive(Clone, Copy, Default)]
struct Seen {
    cons: u32,
    /// The commands of the guest that were on their way before the sweep in which CONS came to where it is: a CMD_SYNC there
    /// waits for those of its own queue. Some of that sweep's may be behind it.
    due: u64,
    /// The guest has written CONS where it must not: it says nothing any more.
    overwritten: bool,
    /// The queue had one entry, so that CONS can go all the way round in a sweep.
    one_entry: bool,
}

pub struct Guest {
    pub smmu: VirtualSmmu,
    number: usize,
    pub ram: SharedRegion,
    pub ram_len: Arc<AtomicUsize>,
    pub tokens: Arc<Mutex<Vec<Token>>>,
    pub paused: bool,
    /// The control pages, where they are mapped into the guest.
    control: Option<SharedRegion>,
    queues: [Seen; QUEUES],
    stats: Stats,
}

impl Guest {
    pub fn new(number: usize) -> Self {
        let mut features = Features::linux().with_ecmdqs(0, 2);
        (features.ats, features.pri, features.stall) = (true, true, StallModel::Supported);
        features.priqs = 4;
        (features.ssid_bits, features.cmdqs) = (4, CMDQS);
        let mut host_features = features;
        host_features.ril = number != 0;
        let ram = SharedRegion::from_words(vec![0; RAM_SIZE / 8]);
        let ram_len = Arc::new(AtomicUsize::new(RAM_SIZE));
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let kept = tokens.clone();
        let streams = (0x42..).map(StreamId).zip(STREAMS[number].map(HostStreamId));
        let smmu = VirtualSmmu::new(Config {
            features,
            host_features,
            quirks: Vec::new(),
            vmid: Vmid(VMIDS[number]),
            streams: Arc::new(StreamMap::from_pairs(streams).unwrap()),
            ram: Box::new(ShrinkingRam { whole: ram.clone(), wanted: ram_len.clone(), len: RAM_SIZE }),
            front_end: if number == 0 { FrontEnd::Trapped } else { FrontEnd::Direct },
            interrupts: Box::new(MsiPage),
            on_request: Box::new(move |_, token| kept.lock().unwrap().push(token)),
        })
        .unwrap();
        let control = smmu.control_pages().next().map(|page| {
            let file = page.fd.try_clone_to_owned().unwrap().into();
            memory::map(&file, page.size).unwrap()
        });
        let (queues, stats) = Default::default();
        Self { smmu, number, ram, ram_len, tokens, paused: false, control, queues, stats }
    }

    /// Where the registers of a queue are: BASE, and 8 and 12 bytes further on PROD and CONS.
    pub fn registers(queue: usize) -> usize {
        match queue.checked_sub(1) {
            None => CMDQ_BASE,
            Some(ecmdq) => CONTROL_PAGES + ecmdq * CONTROL_PAGE_SIZE / (QUEUES - 1),
        }
    }

    fn mapped(&self, offset: usize) -> Option<(&SharedRegion, usize)> {
        Some((self.control.as_ref()?, offset.checked_sub(CONTROL_PAGES)?))
    }

    /// Reads a register as the guest does.
    pub fn load(&self, offset: usize) -> u32 {
        if let Some((page, offset)) = self.mapped(offset) {
            return page.load_u32(offset, Acquire);
        }
        let mut data = [0; 4];
        self.smmu.mmio_read(offset as u64, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes registers as the guest does: by a trap, or by a store where they are mapped.
    pub fn store(&mut self, offset: usize, data: &[u8]) {
        let before: [u32; QUEUES] = std::array::from_fn(|queue| self.load(Self::registers(queue) + 12));
        match (self.mapped(offset), data.len()) {
            (Some((page, at)), 4) => {
                page.store_u32(at, u32::from_le_bytes(data.try_into().unwrap()), Release)
            }
            (Some((page, at)), 8) => {
                page.store_u64(at, u64::from_le_bytes(data.try_into().unwrap()), Release)
            }
            _ => self.smmu.mmio_write(offset as u64, data),
        }
        for (queue, before) in before.into_iter().enumerate().skip(1) {
            let cons = self.load(Self::registers(queue) + 12);
            self.queues[queue].overwritten |= cons != before && (cons | before) & EN != 0;
        }
    }

    pub fn store_u32(&mut self, offset: usize, value: u32) {
        self.store(offset, &value.to_le_bytes());
    }

    pub fn put(&self, slot: usize, command: Command) {
        let at = 16 * slot % RAM_SIZE;
        self.ram.store_u64(at, command.0[0], Release);
        self.ram.store_u64(at + 8, command.0[1], Release);
    }

    pub fn is_enabled(&self, queue: usize) -> bool {
        match queue {
            0 => self.load(CR0ACK) & 8 != 0,
            _ => self.load(Self::registers(queue) + 12) & EN != 0,
        }
    }

    /// What a failed or refused call must leave as it is.
    pub fn everything(&self) -> (String, Option<String>) {
        let saved = self.smmu.save().ok().map(|snapshot| serde_json::to_string(&snapshot).unwrap());
        (self.smmu.inspect().to_string(), saved)
    }

    /// Before a sweep.
    pub fn before(&mut self) {
        self.stats = self.smmu.stats();
        for queue in 0..QUEUES {
            let base = self.load(Self::registers(queue));
            let cons = self.load(Self::registers(queue) + 12) & INDEX;
            let seen = &mut self.queues[queue];
            seen.cons = cons;
            seen.one_entry |= base != 0 && base & 0x1f == 0;
        }
    }

    /// After a sweep: what has changed was allowed to.
    pub fn after(&mut self, host: &Host) {
        let now = self.smmu.stats();
        assert!(!self.paused || now == self.stats, "a paused guest was served");
        assert!(host.received(self.number) <= now.forwarded, "a command under a foreign identity");
        let covered = host.covered(self.number);
        let mut may_complete = 0;
        for queue in 0..QUEUES {
            let at = Self::registers(queue);
            let cons = self.load(at + 12) & INDEX;
            let mut seen = self.queues[queue];
            let moved = cons != seen.cons;
            // The largest queue's distance is at least that of a smaller one.
            let passed = match u64::from(cons.wrapping_sub(seen.cons) & (2 << CMDQS) - 1) {
                _ if seen.overwritten => 1 << CMDQS,
                0 if seen.one_entry => 1,
                passed => passed,
            };
            may_complete += if seen.due <= covered { passed } else { 0 };
            if moved {
                seen.due = self.stats.forwarded;
            }
            if self.is_enabled(queue) && !seen.overwritten {
                // Where the guest can write BASE at any time, it is known that there are no larger queues.
                let guarded = self.number == 0 || queue == 0;
                let log2 = (self.load(at) & 0x1f).min(u32::from(CMDQS));
                let log2 = if guarded { log2 } else { u32::from(CMDQS) };
                assert!(cons < 2 << log2, "queue {queue} of 2^{log2} commands: CONS {cons:#x}");
            }
            self.queues[queue] = seen;
        }
        let completed = now.syncs - self.stats.syncs;
        assert!(completed <= may_complete, "{completed} CMD_SYNCs passed, {may_complete} could");
    }

    /// Everything has come to rest: nothing is waited for, nothing is left.
    pub fn at_rest(&self, host: &Host) {
        let text = self.smmu.inspect().to_string();
        assert_eq!(host.received(self.number), self.smmu.stats().forwarded, "{text}");
        for line in text.lines().filter(|line| line.contains("; BASE")) {
            let stopped = line.contains("stopped") || line.contains("contradict");
            assert!(stopped || !line.contains("waits") && line.contains("; 0 commands;"), "{text}");
        }
        assert_eq!(self.load(CR0), self.load(CR0ACK), "{text}");
        assert_eq!(self.load(0x50), self.load(0x54), "IRQ_CTRL: {text}");
        assert_eq!(self.load(0x44) >> 31, 0, "GBPA.Update: {text}");
        for queue in (1..QUEUES).filter(|queue| !self.queues[*queue].overwritten) {
            let enabled = self.load(Self::registers(queue) + 8) & EN != 0;
            assert_eq!(self.is_enabled(queue), enabled, "ECMDQ {}: {text}", queue - 1);
        }
    }
}
