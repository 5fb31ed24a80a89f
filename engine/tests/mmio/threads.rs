//! Traps of several vCPUs while a worker runs on a thread of its own: CONS against the MSI (facts sheet, section 3.4), and
//! writes that must be ignored, which may meet the worker's own store of the same word.
//!
//! `ECMDQ_CASES` is the number of CMD_SYNCs and errors.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::Instant;

use ecmdq_engine::memory::GuestRam;
use ecmdq_engine::{Features, VirtualSmmu, Worker};
use ecmdq_ring::SharedRegion;
use vm_memory::GuestAddress;

use super::common::{PATIENCE, Script, SetOnDrop};
use super::{RAM, memory, read, seed, trapped, write, write_u64};

const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
const GERROR: usize = 0x60;
const GERRORN: usize = 0x64;
const CMDQEN: u32 = 1 << 3;
const EN: u32 = 1 << 31;
/// A ring of 2^4 entries; an index has a wrap bit.
const SLOTS: u32 = 16;
const INDEX: u32 = 2 * SLOTS - 1;

/// A queue whose ring starts with RAM: BASE, PROD, CONS, and what stands above the index in PROD and CONS while it is enabled.
struct Queue {
    base: usize,
    prod: usize,
    cons: usize,
    enabled: u32,
}

const CMDQ: Queue = Queue { base: 0x90, prod: 0x98, cons: 0x9c, enabled: 0 };
/// The second of two on a page.
const ECMDQ: Queue = Queue { base: 0x2_8000, prod: 0x2_8008, cons: 0x2_800c, enabled: EN };

/// A guest in front of a worker that runs.
struct Guest<'a> {
    smmu: &'a VirtualSmmu,
    ring: &'a SharedRegion,
    queue: &'a Queue,
}

impl Guest<'_> {
    /// The index in CONS; nothing else must be seen there.
    fn cons(&self) -> u32 {
        let cons = read(self.smmu, self.queue.cons);
        assert_eq!(cons & !INDEX, self.queue.enabled, "CONS {cons:#x}");
        cons & INDEX
    }

    fn ring(&self, prod: u32) {
        write(self.smmu, self.queue.prod, self.queue.enabled | prod & INDEX);
    }

    fn put(&self, index: u32, entry: [u64; 2]) {
        let at = 16 * (index % SLOTS) as usize;
        self.ring.store_u64(at, entry[0], Release);
        self.ring.store_u64(at + 8, entry[1], Release);
    }

    /// Waits for what is due. What hangs is let go by a reset, so that a test fails and does not hang itself.
    fn wait(&self, what: &str, due: impl Fn() -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !due() {
            if Instant::now() > patience {
                self.smmu.reset();
                panic!("waited in vain for {what}");
            }
            thread::yield_now();
        }
    }
}

/// Runs a guest with an enabled queue and its worker, and besides them a vCPU that writes to all that it must not write to.
fn run(queue: &Queue, guest: impl FnOnce(&Guest<'_>) + Send) {
    let ram = memory();
    let smmu = trapped(Features::linux().with_ecmdqs(0, 1), &ram, Box::new(|_, token| token.complete()));
    let ring = ram.region(GuestAddress(RAM), 16 * SLOTS as usize).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _finished = SetOnDrop(&stop);
        scope.spawn(|| {
            let mut worker = Worker::new(Script::at_once());
            worker.attach(smmu.clone()).unwrap();
            worker.run(&stop);
        });
        let handle = Guest { smmu: &smmu, ring: &ring, queue };
        write_u64(&smmu, queue.base, RAM | 4);
        if queue.enabled == 0 {
            write(&smmu, CR0, CMDQEN);
            handle.wait("CR0ACK", || read(&smmu, CR0ACK) == CMDQEN);
        } else {
            write(&smmu, queue.prod, EN);
            handle.wait("ENACK", || read(&smmu, queue.cons) == EN);
        }
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                for _ in 0..64 {
                    write(&smmu, queue.cons, u32::MAX);
                    write(&smmu, GERROR, u32::MAX);
                }
                thread::yield_now();
            }
        });
        guest(&handle);
    });
}

/// What the MSI of CMD_SYNC number `n` writes over the first word of its slot.
fn data(n: u32) -> u32 {
    n << 8
}

/// One vCPU sends CMD_SYNCs with MSIs to their own slots. Another one reads CONS: what it has passed, the MSI of has been
/// written; and what the MSI of has been seen, CONS has passed.
fn cons_and_msi_are_seen_together(queue: &Queue) {
    let syncs = seed::config(10_000).cases;
    run(queue, |guest| {
        let first_word = |n: u32| guest.ring.load_u32(16 * (n % SLOTS) as usize, Acquire);
        let seen = AtomicU32::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..syncs {
                    guest.wait("room", || n - seen.load(Acquire) < SLOTS);
                    let slot = RAM + 16 * u64::from(n % SLOTS);
                    guest.put(n, [0x1046 | u64::from(data(n)) << 32, slot]);
                    guest.ring(n + 1);
                }
            });
            let mut next = 0;
            let mut patience = Instant::now() + PATIENCE;
            while next < syncs && Instant::now() < patience {
                // The sender has written it before CONS can pass it; until then it holds the one before.
                let came = next > 0 && first_word(next) == data(next);
                let passed = guest.cons().wrapping_sub(next) & INDEX;
                assert!(passed <= SLOTS, "CONS went back by {}", INDEX + 1 - passed);
                assert!(!came || passed > 0, "the MSI of CMD_SYNC {next} came, and CONS had not passed it");
                for n in next..next + passed {
                    assert_eq!(first_word(n), data(n), "CONS passed CMD_SYNC {n}, and its MSI had not come");
                }
                if passed == 0 {
                    thread::yield_now();
                } else {
                    patience = Instant::now() + PATIENCE;
                }
                next += passed;
                seen.store(next, Release);
            }
            assert_eq!(next, syncs);
        });
    });
}

#[test]
fn the_msi_and_cons_of_the_cmdq_are_seen_together() {
    cons_and_msi_are_seen_together(&CMDQ);
}

#[test]
fn the_msi_and_cons_of_an_ecmdq_are_seen_together() {
    cons_and_msi_are_seen_together(&ECMDQ);
}

/// Section 2.4: GERROR is read-only.
#[test]
fn an_error_is_not_lost_to_a_write_to_gerror() {
    let errors = seed::config(2_000).cases;
    run(&CMDQ, |guest| {
        for n in 0..errors {
            guest.put(n, [0xff, 0]);
            guest.ring(n + 1);
            let before = read(guest.smmu, GERRORN);
            guest.wait("an error", || read(guest.smmu, GERROR) ^ before == 1);
            let cons = read(guest.smmu, guest.queue.cons);
            assert_eq!(cons, 1 << 24 | n & INDEX, "CERROR_ILL at the command");
            guest.put(n, [0x10, 0]);
            write(guest.smmu, GERRORN, before ^ 1);
            guest.wait("CONS", || read(guest.smmu, guest.queue.cons) & INDEX == (n + 1) & INDEX);
        }
    });
}
