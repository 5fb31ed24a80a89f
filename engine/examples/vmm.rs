//! A VMM in small: a virtual SMMU with ECMDQs, wired as a VMM would, and a guest driver that uses it.
//!
//! `cargo run -p ecmdq-engine --example vmm`
//!
//! What stands for the parts of a VMM: a bus with the trait that VMMs of the rust-vmm family have, a vCPU that is a
//! thread, and KVM's memory slots, which here are a second mapping of the same file.

use std::error::Error;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, mpsc};
use std::thread;

use ecmdq_engine::host::NativeRing;
use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_engine::registers::*;
use ecmdq_engine::rules::Request;
use ecmdq_engine::{
    Config, EventfdInterrupts, Features, FrontEnd, HostStreamId, StreamId, StreamMap, Token, VirtualSmmu,
    Vmid, Worker,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where the guest sees the SMMU's page 0, and its RAM.
const SMMU: u64 = 0x0905_0000;
const RAM: GuestAddress = GuestAddress(0x4000_0000);

/// The bus trait of a VMM; Cloud Hypervisor's and crosvm's look much the same.
trait BusDevice {
    fn read(&mut self, base: u64, offset: u64, data: &mut [u8]);
    fn write(&mut self, base: u64, offset: u64, data: &[u8]);
}

/// The adapter: a handle is all that a bus needs.
struct OnBus(VirtualSmmu);

impl BusDevice for OnBus {
    fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
        self.0.mmio_read(offset, data);
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) {
        self.0.mmio_write(offset, data);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // 1. Guest memory, and the streams of the devices that are passed through.
    let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(RAM, 1 << 20)])?);
    let streams = Arc::new(StreamMap::new(256));
    streams.insert(StreamId(0x8), HostStreamId(0x1300))?;

    // 2. Interrupts: an irqfd of the VMM for the global error wire. Linux does not need the CMD_SYNC wire.
    let gerror = EventFd::new(EFD_NONBLOCK)?;
    let interrupts = EventfdInterrupts { gerror: Some(gerror.try_clone()?), ..EventfdInterrupts::default() };

    // 3. What the guest asks of the VMM goes to a thread that may wait: here it only prints. A request is done when its
    //    token is completed; until then its queue waits.
    let (requests, asked) = mpsc::channel::<(Request, Token)>();
    let vmm = thread::spawn(move || {
        for (request, token) in asked {
            match request {
                Request::Enable(table) => {
                    println!("VMM: attach all streams, stream table at {:#x}", table.base)
                }
                Request::Streams(config) => println!("VMM: read the stream table again for {config:?}"),
                other => println!("VMM: {other:?}"),
            }
            token.complete();
        }
    });

    // 4. The virtual SMMU: ECMDQs on one control page, which the guest gets as memory.
    let features = Features::linux().with_ecmdqs(0, 2);
    let smmu = VirtualSmmu::new(Config {
        features,
        host_features: features,
        quirks: Vec::new(),
        vmid: Vmid(7),
        streams,
        ram: Box::new(Ram::new(ram.clone())),
        front_end: FrontEnd::Direct,
        interrupts: Box::new(interrupts),
        on_request: Box::new(move |request, token| {
            // Never waits: the channel has no bound, but each queue has one request at a time.
            let _ = requests.send((request, token));
        }),
    })?;

    // 5. The host queue, and a worker on a thread of the VMM.
    let (ring, mut host) = NativeRing::with_consumer(8)?;
    let mut worker = Worker::new(ring);
    worker.attach(smmu.clone())?;
    let stop = Arc::new(AtomicBool::new(false));
    let serving = thread::Builder::new().name("smmu-worker".into()).spawn({
        let stop = stop.clone();
        move || worker.run(&stop)
    })?;

    // 6. Registers on the bus, control pages as memory slots.
    let mut bus = OnBus(smmu.clone());
    let mut slots = Vec::new();
    for page in smmu.control_pages() {
        println!("VMM: map {:#x} bytes at guest {:#x}", page.size, SMMU + page.offset);
        let file = std::fs::File::from(page.fd.try_clone_to_owned()?);
        slots.push(memory::map(&file, page.size)?);
    }

    // The guest. Page 0 traps; the queue and its doorbell do not.
    let read = |bus: &mut OnBus, register: usize| {
        let mut data = [0; 4];
        bus.read(SMMU, register as u64, &mut data);
        u32::from_le_bytes(data)
    };
    bus.write(SMMU, STRTAB_BASE as u64, &0x4008_0000_u64.to_le_bytes());
    bus.write(SMMU, CR0 as u64, &CR0_SMMUEN.to_le_bytes());
    while read(&mut bus, CR0ACK) != CR0_SMMUEN {
        thread::yield_now();
    }
    let page = &slots[0];
    let ring = Ram::new(ram).region(RAM, 16 * 16).ok_or("no RAM for the queue")?;
    let sync = [0x46 | 1 << 12, RAM.0 + 2 * 16]; // CMD_SYNC with an MSI, which clears the first word of its own slot
    for (slot, command) in [[0x0005_0000_0000_0011, 0], [0x8 << 32 | 0x03, 1], sync].into_iter().enumerate() {
        ring.store_u64(16 * slot, command[0], Relaxed);
        ring.store_u64(16 * slot + 8, command[1], Relaxed);
    }
    page.store_u64(ECMDQ_BASE, RAM.0 | 4, Release);
    page.store_u32(ECMDQ_PROD, 1 << 31, Release);
    while page.load_u32(ECMDQ_CONS, Acquire) & 1 << 31 == 0 {
        thread::yield_now();
    }
    page.store_u32(ECMDQ_PROD, 1 << 31 | 3, Release);
    while ring.load_u32(2 * 16, Acquire) != 0 {
        // What stands for the host's SMMU.
        host.poll(|commands| commands.iter().for_each(|command| println!("host: {command}")));
        thread::yield_now();
    }
    println!("guest: CMD_SYNC complete");
    println!("{}", smmu.inspect());

    // 7. The end: stop the worker, then drop everything in any order.
    stop.store(true, Relaxed);
    serving.join().map_err(|_| "the worker panicked")?;
    drop((bus, smmu));
    vmm.join().map_err(|_| "the VMM's thread panicked")?;
    assert!(gerror.read().is_err(), "no error was raised");
    Ok(())
}
