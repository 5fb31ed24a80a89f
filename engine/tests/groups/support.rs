//! One guest before a host that is late, with memory that can go, and that is watched.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex};

use ecmdq_engine::memory::{self, GuestRam};
use ecmdq_engine::{Command, VirtualSmmu};
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

use crate::common::reg::{CMDQ_CONS, CR0};
use crate::common::*;

/// A word of RAM that is in no queue, and is there always.
pub const WORD: u64 = RAM + 0x804;
/// The host's name of the guest's stream.
const HOST_STREAM: u64 = 1 << 16;

/// CMD_SYNC with an MSI to [`WORD`].
pub fn msi(data: u32) -> Command {
    sync_msi(WORD, data)
}

/// Three commands, each of a higher rank than the one before, and a CMD_SYNC with an MSI behind each.
pub fn three() -> [Command; 6] {
    [cfgi_cd(STREAM), msi(1), nh_asid(1), msi(2), atc_inv(STREAM), msi(3)]
}

/// The same as the host gets it.
pub fn host_three() -> [Command; 3] {
    [cfgi_cd(HOST_STREAM), host_asid(1, 1), host_atc()]
}

pub fn host_atc() -> Command {
    atc_inv(HOST_STREAM)
}

/// Guest memory from which the CMDQ can go.
struct Memory {
    ram: SharedRegion,
    pages: SharedRegion,
    /// Whether the CMDQ's memory is there, and whether that has been followed.
    is_there: Arc<AtomicBool>,
    is_mapped: bool,
    msis: Arc<Mutex<Vec<(u32, u32)>>>,
}

impl GuestRam for Memory {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        let offset = at.0.checked_sub(RAM)? as usize;
        (self.is_mapped || at.0 < RING).then(|| self.ram.part(offset, len))?
    }

    fn store_u32(&self, at: GuestAddress, value: u32) -> bool {
        let cons = self.pages.load_u32(CMDQ_CONS, Acquire);
        self.msis.lock().unwrap().push((value, cons));
        self.region(at, 4).map(|word| word.store_u32(0, value.to_le(), Release)).is_some()
    }

    fn refresh(&mut self) {
        // Relaxed: the test has one thread.
        self.is_mapped = self.is_there.load(Relaxed);
    }
}

/// The guest, with ATS, two ECMDQs, and SMMUEN set.
pub struct Yard {
    pub rig: Rig,
    pub smmu: VirtualSmmu,
    is_there: Arc<AtomicBool>,
    msis: Arc<Mutex<Vec<(u32, u32)>>>,
}

impl Yard {
    /// With a CMDQ of 2^`log2` entries.
    pub fn new(log2: u32) -> Self {
        Self::with(Rig::ats_setup(1), log2)
    }

    pub fn with(setup: Setup, log2: u32) -> Self {
        let ram = SharedRegion::from_words(vec![0; RAM_SIZE as usize / 8]);
        let pages = memory::memfd("test-registers", PAGES + 0x1_0000).unwrap().1;
        let (is_there, msis) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let memory = Memory {
            ram: ram.clone(),
            pages: pages.clone(),
            is_there: Arc::clone(&is_there),
            is_mapped: true,
            msis: Arc::clone(&msis),
        };
        let (mut guest, smmu) =
            Guest::new(Setup { ram: Some(Box::new(memory)), pages: Some(pages), ..setup });
        let mut rig = Rig::new(0, log2, Script::default());
        rig.worker.attach(smmu.clone()).unwrap();
        guest.ram = ram;
        guest.start(log2);
        guest.write(CR0, CMDQEN | SMMUEN);
        rig.poll_times(2);
        assert!(guest.enabled());
        rig.guests.push(guest);
        Self { rig, smmu, is_there, msis }
    }

    /// With queues of 2^4 entries, the second of which is an ECMDQ.
    pub fn with_ecmdq() -> (Self, Ecmdq) {
        let mut yard = Self::new(4);
        let mut ecmdq = yard.rig.guests[0].ecmdq(0);
        ecmdq.start(4);
        yard.rig.poll_times(2);
        (yard, ecmdq)
    }

    pub fn send(&mut self, commands: &[Command]) {
        self.rig.guests[0].send(commands);
        self.rig.poll_times(2);
    }

    /// The host completes all tickets up to this one.
    pub fn finish(&mut self, ticket: usize) {
        self.rig.host.finish(ticket);
        self.rig.poll_times(2);
    }

    /// The host completes whatever it is asked for.
    pub fn finish_all(&mut self) {
        for _ in 0..4 {
            self.rig.host.finish_all();
            self.rig.poll_times(2);
        }
    }

    pub fn cons(&self) -> u32 {
        self.rig.cons(0)
    }

    pub fn error(&self) -> Option<u32> {
        self.rig.guests[0].error()
    }

    /// The MSIs so far: their data, and CMDQ_CONS when they were written.
    pub fn msis(&self) -> Vec<(u32, u32)> {
        self.msis.lock().unwrap().clone()
    }

    pub fn received(&self) -> Vec<Command> {
        self.rig.host.received().to_vec()
    }

    /// The CMDQ's memory comes or goes, and the VMM says so.
    pub fn set_memory(&mut self, is_there: bool) {
        // Relaxed: the test has one thread.
        self.is_there.store(is_there, Relaxed);
        self.smmu.memory_changed();
        self.rig.poll_times(2);
    }
}
