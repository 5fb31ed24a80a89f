//! `proof CDEV [cost]`: guests whose invalidations go through the engine and the kernel's iommufd to the host's SMMU, and a device
//! that shows by DMA what they did there.
//!
//! The device reads through page tables of guest 1. After a change of a table it reads stale memory, until the right
//! invalidation of guest 1, and no other, has repaired that. Guest 2 has a vIOMMU of its own, and no device.
//!
//! With `cost`, it says what calls of several sizes take instead.
//!
//! `EXPECT` lines say what must reach the host's SMMU, in the words of the emulator's trace; `run` compares them.

mod conformance;
mod cost;
mod device;
mod guest;

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_engine::host::iommufd::{self, IommufdExecutor, IommufdQueue, Nesting, VIommu};
use ecmdq_engine::memory::{GuestRam, Ram};
use ecmdq_engine::{Command, StreamId, Worker};
use ecmdq_ring::SharedRegion;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use device::Device;
use guest::Guest;

/// Where guest RAM is, and its size.
const RAM: u64 = 0x10_0000_0000;
const RAM_SIZE: usize = 4 << 20;
/// What guest 1 calls the device.
const STREAM: StreamId = StreamId(0x42);
/// A stream of guest 1 that the kernel was not told of.
const UNTOLD: StreamId = StreamId(0x44);
const ASID: u64 = 5;
/// The addresses that the device reads and writes.
const X: u64 = 0x40_0000;
const Y: u64 = X + 0x1000;
/// Where in RAM: the CD, two sets of page tables, pages of 0xaa and of 0xbb, and what the device writes.
const CD: usize = 0;
const TABLES: [usize; 2] = [0x1000, 0x5000];
const PAGES: [usize; 2] = [0x3_0000, 0x3_1000];
const OUT: usize = 0x3_2000;

/// All of the machinery, driven by hand.
struct Rig {
    ram: SharedRegion,
    device: Device,
    guests: [Guest; 2],
    worker: Worker<IommufdQueue>,
    executors: [IommufdExecutor<VIommu>; 2],
    iommufd: File,
    viommu: VIommu,
    failures: u32,
}

fn main() -> ExitCode {
    let Some(cdev) = std::env::args().nth(1) else {
        eprintln!("usage: proof CDEV [cost]");
        return ExitCode::from(2);
    };
    let result = match std::env::args().nth(2).as_deref() {
        Some("cost") => Rig::new(&cdev).and_then(|rig| cost::print(&rig.viommu)).map(|()| 0),
        _ => run(&cdev),
    };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            println!("{failures} checks failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("cannot be set up: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cdev: &str) -> Result<u32, Box<dyn Error>> {
    let mut rig = Rig::new(cdev)?;
    rig.send(0, &[marker(0)]);
    rig.send(1, &[marker(1)]);
    rig.translations();
    rig.configuration();
    rig.many();
    rig.refused();
    rig.threads();
    rig.failures += conformance::run(rig.iommufd.try_clone()?.into(), &rig.viommu);
    // Where the trace ends that is compared: an ASID that nobody else uses.
    rig.send(0, &[(Command([0x11 | 0xffff << 48, 0]), Some("smmuv3_cmdq_tlbi_nh_asid asid=65535".into()))]);
    Ok(rig.failures)
}

/// TLBI_NH_VA or NH_VAA in the words of the emulator's trace.
fn traced(guest: usize, asid: i64, address: u64, granule: u32, pages: u32) -> Option<String> {
    let range = format!("tg={granule} num_pages={pages:#x} ttl=0 leaf=1 stage=1");
    Some(format!("smmuv3_range_inval vmid=V{guest} asid={asid} addr={address:#x} {range}"))
}

/// TLBI_NH_ALL: the first command of each guest tells the trace's reader which VMID it has.
fn marker(guest: usize) -> (Command, Option<String>) {
    (Command([0x10, 0]), Some(format!("smmuv3_cmdq_tlbi_nh vmid=V{}", guest + 1)))
}

fn nh_va(asid: u64, address: u64) -> Command {
    Command([0x12 | asid << 48, address | 1])
}

impl Rig {
    fn new(cdev: &str) -> Result<Self, Box<dyn Error>> {
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)])?);
        let ram = Ram::new(memory.clone()).region(GuestAddress(RAM), RAM_SIZE).ok_or("no RAM")?;
        let iommufd = OpenOptions::new().read(true).write(true).open("/dev/iommu")?;
        let mut device = Device::open(cdev)?;
        let id = device.bind(&iommufd)?;
        let host = memory.get_host_address(GuestAddress(RAM))? as u64;
        let ioas = device::map(&iommufd, RAM, host, RAM_SIZE as u64)?;
        let nestings = [
            Nesting::new(iommufd.try_clone()?.into(), id, ioas)?,
            Nesting::new(iommufd.try_clone()?.into(), id, ioas)?,
        ];
        let host_features = nestings[0].host_features(false)?;
        println!("host: {host_features:?}");

        let queue = |nesting: &Nesting| iommufd::queue(nesting.viommu(), 8);
        let ((queue1, executor1), (queue2, executor2)) = (queue(&nestings[0])?, queue(&nestings[1])?);
        let guest1 = Guest::new(memory.clone(), RAM + 0x4_0000, host_features, &[STREAM, UNTOLD])?;
        let guest2 = Guest::new(memory, RAM + 0x5_0000, host_features, &[])?;
        let mut worker = Worker::new(queue1);
        worker.attach(guest1.smmu.clone())?;
        worker.attach_with(guest2.smmu.clone(), queue2)?;

        let mut rig = Self {
            ram,
            device,
            guests: [guest1, guest2],
            worker,
            executors: [executor1, executor2],
            iommufd,
            viommu: nestings[0].viommu(),
            failures: 0,
        };
        rig.write_memory();
        nestings[0].add_stream(id, STREAM)?;
        // V, Config=stage 1 translates, one CD; cacheable and shareable accesses to it.
        let stage1 = nestings[0].stage1(id, [1 | 5 << 1 | (RAM + CD as u64), 1 << 2 | 1 << 4 | 3 << 6])?;
        rig.device.attach(stage1)?;
        rig.device.start()?;
        for guest in 0..2 {
            rig.guests[guest].enable();
            rig.settle();
        }
        Ok(rig)
    }

    fn write_memory(&self) {
        for (page, byte) in PAGES.into_iter().zip([0xaaaa_aaaa_aaaa_aaaa, 0xbbbb_bbbb_bbbb_bbbb]) {
            (0..0x1000).step_by(8).for_each(|at| self.ram.store_u64(page + at, byte, Release));
        }
        for (tables, page) in TABLES.into_iter().zip(PAGES) {
            // 4K granule, 39 bits: level 1, 2, 3.
            self.ram.store_u64(tables, RAM + tables as u64 + 0x1000 | 3, Release);
            let level2 = tables + 0x1000 + 8 * (X >> 21) as usize;
            self.ram.store_u64(level2, RAM + tables as u64 + 0x2000 | 3, Release);
            self.map(tables, X, page);
            self.map(tables, Y, OUT);
        }
        self.point_cd(TABLES[0]);
    }

    /// Maps an address to a page of RAM: unprivileged, writable, inner shareable, accessed, not global.
    fn map(&self, tables: usize, address: u64, page: usize) {
        let entry = tables + 0x2000 + 8 * (address >> 12 & 511) as usize;
        let attributes = 3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11;
        self.ram.store_u64(entry, RAM + page as u64 | attributes, Release);
    }

    /// The CD: T0SZ=25, cacheable, inner shareable, no TTB1, valid, 44 bits, AArch64; each set of tables has an ASID.
    fn point_cd(&self, tables: usize) {
        let asid = if tables == TABLES[0] { ASID } else { ASID + 1 };
        let fields = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 7 << 45;
        self.ram.store_u64(CD + 8, RAM + tables as u64, Release);
        self.ram.store_u64(CD + 24, 0xff, Release);
        self.ram.store_u64(CD, fields | asid << 48, Release);
    }

    /// Lets worker and executors work until there is nothing left to do.
    fn settle(&mut self) {
        let mut idle = 0;
        while idle < 10 {
            let executed: usize = self.executors.iter_mut().map(IommufdExecutor::step).sum();
            idle = if self.worker.poll() || executed > 0 { 0 } else { idle + 1 };
        }
    }

    /// A guest sends commands and a CMD_SYNC, which must complete. With each command goes what the trace must say of it.
    fn send(&mut self, guest: usize, commands: &[(Command, Option<String>)]) {
        self.start(guest, commands);
        let done = self.guests[guest].is_done();
        self.expect(done, || format!("guest {} waits for its CMD_SYNC", guest + 1));
    }

    fn start(&mut self, guest: usize, commands: &[(Command, Option<String>)]) {
        for (_, expected) in commands {
            expected.iter().for_each(|expected| println!("EXPECT {expected}"));
        }
        let commands: Vec<_> = commands.iter().map(|(command, _)| *command).collect();
        self.guests[guest].send(&commands);
        self.settle();
    }

    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            println!("FAILED {}: {:?}", otherwise(), self.guests[0].smmu.inspect());
            self.failures += 1;
        }
    }

    /// What the device reads at X: the first byte of a page.
    fn check(&mut self, what: &str, page: u8) {
        self.ram.store_u64(OUT, 0, Release);
        let done = self.device.copy(X, Y);
        let read = self.ram.load_u64(OUT, Acquire) as u8;
        let fine = done && read == page;
        println!("{} {what}: the device reads {read:#x}", if fine { "ok    " } else { "FAILED" });
        self.failures += u32::from(!fine);
    }

    fn translations(&mut self) {
        let (a, b) = (0xaa, 0xbb);
        let tlbi = |asid: u64, address: u64, guest: usize| {
            (nh_va(asid, address), traced(guest, asid as i64, address, 0, 1))
        };
        self.check("first access", a);
        self.map(TABLES[0], X, PAGES[1]);
        self.check("table changed, nothing invalidated", a);
        self.send(0, &[tlbi(ASID + 1, X, 1)]);
        self.check("TLBI_NH_VA of a neighbouring ASID", a);
        self.send(0, &[tlbi(ASID, X + 0x20_0000, 1)]);
        self.check("TLBI_NH_VA of a neighbouring address", a);
        self.send(1, &[tlbi(ASID, X, 2)]);
        self.check("TLBI_NH_VA of the other guest", a);
        self.send(1, &[(Command([0x30, 0]), Some("smmuv3_cmdq_tlbi_nh vmid=V2".into()))]);
        self.check("TLBI_NSNH_ALL of the other guest", a);
        self.send(0, &[tlbi(ASID, X, 1)]);
        self.check("TLBI_NH_VA", b);
        let asid = (Command([0x11 | ASID << 48, 0]), Some(format!("smmuv3_cmdq_tlbi_nh_asid asid={ASID}")));
        let vaa = (Command([0x13, X | 1]), traced(1, -1, X, 0, 1));
        let all = (Command([0x10, 0]), Some("smmuv3_cmdq_tlbi_nh vmid=V1".to_string()));
        let nsnh = (Command([0x30, 0]), Some("smmuv3_cmdq_tlbi_nh vmid=V1".to_string()));
        let range =
            (Command([0x12 | 3 << 12 | ASID << 48, X | 1 << 10 | 1]), traced(1, ASID as i64, X, 1, 4));
        let repairs =
            [("TLBI_NH_ASID", asid), ("TLBI_NH_VAA", vaa), ("TLBI_NH_ALL", all), ("TLBI_NSNH_ALL", nsnh)];
        let mut now = b;
        for (name, command) in repairs.into_iter().chain([("TLBI_NH_VA of four pages", range)]) {
            let next = if now == a { b } else { a };
            self.map(TABLES[0], X, PAGES[usize::from(next == b)]);
            self.check("table changed", now);
            self.send(0, &[command]);
            self.check(name, next);
            now = next;
        }
        self.map(TABLES[0], X, PAGES[0]);
        self.send(0, &[tlbi(ASID, X, 1)]);
        self.check("back again", a);
    }

    fn configuration(&mut self) {
        let all = || (Command([0x10, 0]), Some("smmuv3_cmdq_tlbi_nh vmid=V1".to_string()));
        let stream = u64::from(STREAM.0) << 32;
        let cd = |opcode: u64, stream: u64| Command([opcode | stream, u64::from(opcode == 5)]);
        self.point_cd(TABLES[1]);
        self.send(0, &[all()]);
        self.check("CD changed, TLB invalidated", 0xaa);
        self.send(0, &[(cd(5, stream + (1 << 32)), None)]);
        self.check("CFGI_CD of a stream that the guest does not own", 0xaa);
        self.send(0, &[(cd(5, stream), Some("smmuv3_cmdq_cfgi_cd sid=SID".into()))]);
        self.check("CFGI_CD", 0xbb);
        self.point_cd(TABLES[0]);
        self.send(0, &[all()]);
        self.check("CD changed, TLB invalidated", 0xbb);
        self.send(0, &[(cd(6, stream), Some("smmuv3_cmdq_cfgi_cd sid=SID".into()))]);
        self.check("CFGI_CD_ALL", 0xaa);
    }

    /// Many at once, across the kernel's groups, and hints that the host must not see.
    fn many(&mut self) {
        let hint = (Command([0x01 | u64::from(STREAM.0) << 32, 0]), None);
        let pages = (0..150).map(|i| {
            let address = X + 0x1000 * i;
            (nh_va(ASID, address), traced(1, ASID as i64, address, 0, 1))
        });
        let commands: Vec<_> = [hint].into_iter().chain(pages).collect();
        self.send(0, &commands);
        self.check("after 150 commands at once", 0xaa);
    }
    /// Sixty-two commands in one call, of which the kernel refuses one: it executes none of them, and says to have handled those
    /// before. The guest hears of that one at its CMD_SYNC; all others are executed, once.
    fn refused(&mut self) {
        const BAD: u64 = 40;
        self.map(TABLES[0], X, PAGES[1]);
        self.check("table changed", 0xaa);
        let commands: Vec<_> = (0..62)
            .map(|i| {
                let address = X + 0x1000 * i;
                match i {
                    BAD => (Command([0x5 | u64::from(UNTOLD.0) << 32, 1]), None),
                    _ => (nh_va(ASID, address), traced(1, ASID as i64, address, 0, 1)),
                }
            })
            .collect();
        self.start(0, &commands);
        let error = self.guests[0].error();
        // CERROR_ILL, at the CMD_SYNC.
        self.expect(error == Some((1, 1)), || format!("a refused command makes {error:?}"));
        self.guests[0].acknowledge();
        self.settle();
        let done = self.guests[0].is_done();
        self.expect(done, || "it does not go on after a refused command".into());
        self.check("TLBI_NH_VA before a command that the kernel refuses", 0xbb);
        self.map(TABLES[0], X, PAGES[0]);
        self.send(0, &[(nh_va(ASID, X), traced(1, ASID as i64, X, 0, 1))]);
        self.check("back again", 0xaa);
    }

    /// The same way with a thread for the worker, one for each executor, and one for the guest.
    fn threads(&mut self) {
        let Self { worker, executors, guests: [guest, _], .. } = self;
        let stop = AtomicBool::new(false);
        let wakers = executors.each_ref().map(|executor| executor.waker());
        let done = thread::scope(|scope| {
            scope.spawn(|| worker.run(&stop));
            for executor in executors {
                scope.spawn(|| executor.run(&stop));
            }
            let done = (0x7000..0x7080_u64).all(|asid| {
                println!("EXPECT smmuv3_cmdq_tlbi_nh_asid asid={asid}");
                guest.send(&[Command([0x11 | asid << 48, 0])]);
                let start = Instant::now();
                while !guest.is_done() && start.elapsed() < Duration::from_secs(300) {
                    thread::yield_now();
                }
                guest.is_done()
            });
            stop.store(true, Relaxed);
            wakers.iter().for_each(|waker| waker.wake());
            done
        });
        self.expect(done, || "on threads, a CMD_SYNC was not completed".into());
        println!("{} on threads of their own: 128 CMD_SYNCs", if done { "ok    " } else { "FAILED" });
    }
}
