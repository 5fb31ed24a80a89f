//! A virtual machine as a VMM wires it: pages 0 and 1 trap, the control pages are mapped. Everything is polled by hand.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};

use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Command, Config, Features, FrontEnd, HostStreamId, NoInterrupts, Snapshot, StreamId, StreamMap, Token,
    VirtualSmmu, Vmid, Worker,
};
use ecmdq_ring::SharedRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::common::{RAM, Script};

pub const VMID: u64 = 7;
/// Host streams of the two streams that the guest owns.
pub const HOST_STREAMS: [u64; 2] = [0x1001, 0x1002];
const RAM_BYTES: usize = 0x1_0000;

/// The CMDQ, and behind it the ECMDQs: two pages with two each.
pub const QUEUES: usize = 5;

pub const EN: u32 = 1 << 31;
pub const ERR: u32 = 1 << 23;

type Asked = Arc<Mutex<VecDeque<(Request, Token)>>>;

pub struct Vm {
    pub smmu: VirtualSmmu,
    pub worker: Worker<Script>,
    pub host: Script,
    pub ram: SharedRegion,
    pub control: SharedRegion,
    /// What the guest has asked for and has not got.
    pub asked: Asked,
}

pub fn features() -> Features {
    let mut features = Features::default().with_ecmdqs(1, 1);
    features.ats = true;
    features
}

/// A virtual SMMU in front of 64 KiB of RAM, and that RAM.
pub fn smmu(features: Features, asked: Asked) -> (VirtualSmmu, SharedRegion) {
    let mapped = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_BYTES)]).unwrap();
    let ram = Ram::new(Arc::new(mapped));
    let pairs = [1, 2].map(|n| (StreamId(n), HostStreamId(0x1000 + n)));
    let region = ram.region(GuestAddress(RAM), RAM_BYTES).unwrap();
    let smmu = VirtualSmmu::new(Config {
        features,
        host_features: features,
        quirks: Vec::new(),
        vmid: Vmid(VMID as u16),
        streams: Arc::new(StreamMap::from_pairs(pairs).unwrap()),
        ram: Box::new(ram),
        front_end: FrontEnd::Direct,
        interrupts: Box::new(NoInterrupts),
        on_request: Box::new(move |request, token| asked.lock().unwrap().push_back((request, token))),
    });
    (smmu.unwrap(), region)
}

/// The control pages as the guest has them.
pub fn map_control_pages(smmu: &VirtualSmmu) -> SharedRegion {
    let pages: Vec<_> = smmu.control_pages().collect();
    let file = File::from(pages[0].fd.try_clone_to_owned().unwrap());
    memory::map(&file, pages.iter().map(|page| page.size).sum()).unwrap()
}

impl Vm {
    pub fn new() -> Self {
        let asked = Asked::default();
        let (smmu, ram) = smmu(features(), asked.clone());
        let host = Script::default();
        let mut worker = Worker::new(host.clone());
        worker.attach(smmu.clone()).unwrap();
        let control = map_control_pages(&smmu);
        Self { smmu, worker, host, ram, control, asked }
    }

    /// The same SMMU and guest in front of a new host queue, as after a reboot.
    pub fn replaced_host(old: Self) -> Self {
        let Self { smmu, mut worker, host: old_host, ram, control, asked } = old;
        // It leaves with nothing to be made good.
        let leaving = worker.detach(&smmu);
        old_host.set_room(usize::MAX);
        for _ in 0..4 {
            worker.poll();
            old_host.finish_all();
        }
        assert!(leaving.has_left());
        let host = Script::default();
        let mut worker = Worker::new(host.clone());
        worker.attach(smmu.clone()).unwrap();
        Self { smmu, worker, host, ram, control, asked }
    }

    pub fn read(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.smmu.mmio_read(register as u64, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: usize, value: u32) {
        self.smmu.mmio_write(register as u64, &value.to_le_bytes());
    }

    pub fn write_u64(&self, register: usize, value: u64) {
        self.smmu.mmio_write(register as u64, &value.to_le_bytes());
    }

    pub fn poll(&mut self, times: usize) {
        for _ in 0..times {
            self.worker.poll();
        }
    }

    /// Registers of a queue: 0 is BASE, 8 PROD, 12 CONS.
    fn at(queue: usize, register: usize) -> usize {
        // Two queues a page: 32 KiB apart (facts sheet, section 4.1).
        (queue - 1) * 0x8000 + register
    }

    pub fn queue_read(&self, queue: usize, register: usize) -> u32 {
        match queue {
            0 => self.read(0x90 + register),
            _ => self.control.load_u32(Self::at(queue, register), Acquire),
        }
    }

    pub fn queue_write(&self, queue: usize, register: usize, value: u32) {
        match queue {
            0 => self.write(0x90 + register, value),
            _ => self.control.store_u32(Self::at(queue, register), value, Release),
        }
    }

    pub fn write_base(&self, queue: usize, value: u64) {
        match queue {
            0 => self.write_u64(0x90, value),
            _ => self.control.store_u64(Self::at(queue, 0), value, Release),
        }
    }

    /// Every register that is not zero, with its offset from page 0.
    pub fn registers(&self) -> Vec<(usize, u32)> {
        let frame = (0..0x200).chain(0x4000..0x4040).chain(0x1_0000..0x1_0100).step_by(4);
        let frame = frame.map(|at| (at, self.read(at)));
        let control = (1..QUEUES).flat_map(|queue| [0, 4, 8, 12].map(|register| Self::at(queue, register)));
        let control = control.map(|at| (0x2_0000 + at, self.control.load_u32(at, Acquire)));
        frame.chain(control).filter(|(_, value)| *value != 0).collect()
    }

    pub fn put(&self, at: u64, Command([low, high]): Command) {
        let at = (at - RAM) as usize;
        self.ram.store_u64(at, low, Release);
        self.ram.store_u64(at + 8, high, Release);
    }

    /// Pauses and saves, by way of JSON and of bytes as between two processes, and restores into a new machine with a new host queue and
    /// a copy of RAM, which is left paused. What the guest sees must be the same, and so must what is saved again.
    pub fn moved(&self) -> Self {
        let before = self.registers();
        let new = self.moved_without_comparing();
        assert_eq!(new.registers(), before, "the guest sees what it saw");
        new
    }

    /// As [`Self::moved`], where the guest has written what it must not.
    pub fn moved_without_comparing(&self) -> Self {
        self.smmu.pause();
        let before = self.registers();
        let saved = self.smmu.save().unwrap();
        assert_eq!(self.registers(), before, "saving changes nothing");
        let text = serde_json::to_string(&saved).unwrap();
        let read: Snapshot = serde_json::from_str(&text).unwrap();
        assert_eq!(read, saved);
        let read = Snapshot::from_bytes(&saved.to_bytes()).unwrap();
        assert_eq!(read, saved);
        let new = Self::new();
        for at in (0..RAM_BYTES).step_by(8) {
            new.ram.store_u64(at, self.ram.load_u64(at, Acquire), Release);
        }
        new.smmu.pause();
        new.smmu.restore(&read).unwrap();
        assert_eq!(new.smmu.save().unwrap(), saved, "what is saved again is the same");
        new
    }

    /// What a host gets first after a restore, its first command before the others.
    pub fn full_invalidation() -> Vec<Command> {
        let of_streams =
            |low: u64, high| HOST_STREAMS.iter().map(move |stream| Command([low | stream << 32, high]));
        of_streams(0x06, 0).chain([Command([0x10 | VMID << 32, 0])]).chain(of_streams(0x40, 52)).collect()
    }
}
