//! The data path allocates nothing, whatever the guest does.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::reg::*;
use common::*;
use ecmdq_engine::Worker;
use ecmdq_engine::host::{NativeRing, RingConsumer};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count of what each thread asks of it.
struct Counting;

// SAFETY: every call goes on to the system's allocator unchanged; the counter is a plain thread-local cell that
// is initialised at compile time and has no destructor, so that it neither allocates nor re-enters.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps to the contract of `dealloc`, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and deallocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// As `Machine`, but the host keeps nothing of what it gets.
struct Lean {
    guest: Guest,
    worker: Worker<NativeRing>,
    host: RingConsumer,
}

impl Lean {
    fn new() -> Self {
        let (ring, host) = NativeRing::with_consumer(8).unwrap();
        let mut worker = Worker::new(ring);
        let (mut guest, smmu) = Guest::new(Setup::default());
        worker.attach(smmu).unwrap();
        guest.start(8);
        worker.poll();
        Self { guest, worker, host }
    }

    fn settle(&mut self) {
        while self.worker.poll() || self.host.poll(|_| ()) > 0 {}
        // What the host has taken last is completed now.
        self.worker.poll();
    }

    fn run(&mut self, commands: &[ecmdq_engine::Command]) {
        self.guest.send(commands);
        self.settle();
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 2);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn commands_and_syncs_allocate_nothing() {
    let mut lean = Lean::new();
    let mut batch = [nh_page(1); 100];
    batch[10] = cfgi_cd(STREAM);
    batch[20] = cfgi_cd(NO_STREAM);
    batch[30] = sync();
    batch[99] = sync_msi(RAM, 1);
    assert_eq!(allocations(|| (0..1000).for_each(|_| lean.run(&batch))), 0);
    let stats = lean.guest.stats.read();
    assert_eq!((stats.commands, stats.syncs, stats.dropped), (100_000, 2_000, 1_000));
}

#[test]
fn errors_allocate_nothing() {
    let mut lean = Lean::new();
    let provoke = |lean: &mut Lean| {
        lean.run(&[nh_asid(1), illegal(), sync_msi(0x1000, 1)]);
        assert_eq!(lean.guest.error(), Some(CERROR_ILL));
        lean.guest.put(lean.guest.cons(), sync_sev());
        lean.guest.ack();
        lean.settle();
        lean.guest.ack();
        lean.settle();
        assert_eq!(lean.guest.cons(), lean.guest.prod());
    };
    assert_eq!(allocations(|| (0..1000).for_each(|_| provoke(&mut lean))), 0);
    assert_eq!((lean.guest.stats.read().rejected, lean.guest.stats.read().msi_aborts), (1_000, 1_000));
}

#[test]
fn registers_allocate_nothing() {
    let mut lean = Lean::new();
    let exercise = |lean: &mut Lean| {
        lean.guest.stop();
        lean.settle();
        lean.guest.start_at(0x1000, 8, 0);
        lean.guest.write(CMDQ_PROD, 1);
        lean.settle();
        assert_eq!(lean.guest.error(), Some(CERROR_ABT));
        lean.guest.stop();
        lean.settle();
        lean.guest.ack();
        lean.guest.write(GBPA, 1 << 31);
        lean.guest.start(8);
        lean.settle();
        lean.guest.write(CMDQ_PROD, 0x1ff);
        lean.settle();
        lean.run(&[nh_asid(1), sync()]);
        assert_eq!(lean.guest.cons(), 2);
    };
    assert_eq!(allocations(|| (0..1000).for_each(|_| exercise(&mut lean))), 0);
    assert_eq!((lean.guest.stats.read().aborts, lean.guest.stats.read().inconsistent), (1_000, 1_000));
}
