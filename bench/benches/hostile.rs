//! How long a neighbour's CMD_SYNC takes beside a guest that does its worst with many queues, relative to the same beside a legal
//! flood. The neighbour has been quiet before each. One thread is the bad guest; the other polls the worker.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_bench::{Machine, Registers};
use ecmdq_engine::host::NativeRing;
use ecmdq_engine::registers::{
    CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CR0, CR0_CMDQEN, ECMDQ_BASE, ECMDQ_CONS, ECMDQ_PROD,
};
use ecmdq_engine::{Features, Worker};
use ecmdq_ring::{Index, Producer, QueueSize, SharedQueue, SharedRegion};

const EN: u32 = 1 << 31;
const ERR: u32 = 1 << 23;
/// Entries of each bad queue: all queues have the same ring.
const LOG2: u32 = 8;
/// Sweeps for which the neighbour is quiet: longer than the worker has patience.
const QUIET: usize = 100;

/// What the guest does to one queue, again and again.
type Worst = fn(&SharedRegion, usize);

const TLBI: [u64; 2] = [0x0001_0000_0000_0012, 1];
const SYNC: [u64; 2] = [0x2046, 0];
const ILLEGAL: [u64; 2] = [0xff, 0];

/// Everything is always full: a flood.
fn fill(control: &SharedRegion, at: usize) {
    let cons = control.load_u32(at + ECMDQ_CONS, Acquire);
    control.store_u32(at + ECMDQ_PROD, EN | (cons ^ (1 << LOG2)) & ((2 << LOG2) - 1), Release);
}

/// Each error is acknowledged at once.
fn err(control: &SharedRegion, at: usize) {
    let cons = control.load_u32(at + ECMDQ_CONS, Acquire);
    control.store_u32(at + ECMDQ_PROD, EN | cons & ERR | 1 << LOG2, Release);
}

/// Enabled as soon as it is disabled, and the other way around.
fn toggle(control: &SharedRegion, at: usize) {
    let enabled = control.load_u32(at + ECMDQ_CONS, Acquire) & EN != 0;
    control.store_u32(at + ECMDQ_PROD, if enabled { 0 } else { EN }, Release);
}

/// PROD contradicts CONS, and then no longer.
fn contradict(control: &SharedRegion, at: usize) {
    let wrong = EN | 0x1ff;
    let before = control.load_u32(at + ECMDQ_PROD, Acquire);
    control.store_u32(at + ECMDQ_PROD, if before == wrong { EN } else { wrong }, Release);
}

/// A name, what the guest does, the commands in its ring, how many pages and queues on each it has, as log2.
type Case = (&'static str, Worst, &'static [[u64; 2]], u8, u8);

const ALL: [Case; 8] = [
    ("a legal flood of TLBIs in one queue", fill, &[TLBI], 0, 0),
    ("TLBIs and CMD_SYNCs in 256 queues", fill, &[TLBI, SYNC], 0, 8),
    ("illegal commands in 256 queues", err, &[ILLEGAL], 0, 8),
    ("TLBIs and CMD_SYNCs in 65,536 queues", fill, &[TLBI, SYNC], 8, 8),
    ("illegal commands in 65,536 queues", err, &[ILLEGAL], 8, 8),
    ("EN toggled in 65,536 queues", toggle, &[TLBI], 8, 8),
    ("PROD that contradicts CONS in 65,536 queues", contradict, &[TLBI], 8, 8),
    ("CMD_SYNCs alone in 65,536 queues", fill, &[SYNC], 8, 8),
];

/// A bad guest's control pages, and how far its queues are apart.
fn bad_guest(
    worker: &mut Worker<NativeRing>,
    ring: &[[u64; 2]],
    pages: u8,
    queues: u8,
) -> (SharedRegion, usize) {
    let machine = Machine::new(1, Features::default().with_ecmdqs(pages, queues), &[]).expect("memory");
    let Registers::Trapped(smmu, control) = &machine.registers else { panic!("ECMDQs are mapped") };
    let slots = machine.region(Machine::RAM_BASE, 16 << LOG2).expect("it fits");
    for (n, entry) in ring.iter().cycle().take(1 << LOG2).enumerate() {
        slots.store_u64(16 * n, entry[0], Release);
        slots.store_u64(16 * n + 8, entry[1], Release);
    }
    let stride = 0x1_0000 >> queues;
    for at in (0..control.len()).step_by(stride) {
        control.store_u64(at + ECMDQ_BASE, Machine::RAM_BASE.0 | u64::from(LOG2), Release);
        control.store_u32(at + ECMDQ_PROD, EN, Release);
    }
    worker.attach(smmu.clone()).expect("it has no worker");
    (control.clone(), stride)
}

fn neighbour(worker: &mut Worker<NativeRing>) -> Producer<SharedQueue> {
    let machine = Machine::new(0, Features::default(), &[]).expect("memory");
    let size = QueueSize::capped(8, QueueSize::MAX);
    let ring = machine.region(Machine::RAM_BASE, size.bytes()).expect("it fits");
    let Registers::Memory(registers) = &machine.registers else { panic!("registers are memory") };
    registers.store_u64(CMDQ_BASE, Machine::RAM_BASE.0 | 8, Release);
    registers.store_u32(CR0, CR0_CMDQEN, Release);
    worker.attach(machine.smmu.clone()).expect("it has no worker");
    let words = SharedQueue::new(ring, 0, size, registers.clone(), CMDQ_PROD, CMDQ_CONS);
    Producer::new(words.expect("it fits"), size, Index::ZERO)
}

/// The times of so many CMD_SYNCs, in order of length.
fn times(worst: Worst, ring: &[[u64; 2]], pages: u8, queues: u8, n: usize) -> Vec<Duration> {
    let (native, mut host) = NativeRing::with_consumer(13).expect("memory");
    let mut worker = Worker::new(native);
    let mut neighbour = neighbour(&mut worker);
    let (control, stride) = bad_guest(&mut worker, ring, pages, queues);
    let stop = AtomicBool::new(false);
    let mut sweep = || {
        worker.poll();
        while host.poll(|_| ()) > 0 {}
    };
    let mut times: Vec<_> = thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            while !stop.load(Relaxed) {
                worst(&control, at);
                at = if at + stride < control.len() { at + stride } else { 0 };
            }
        });
        // All queues are enabled by then.
        (0..4000).for_each(|_| sweep());
        let times = (0..n).map(|_| {
            (0..QUIET).for_each(|_| sweep());
            neighbour.write(&[TLBI, SYNC]);
            let start = Instant::now();
            neighbour.publish();
            while neighbour.unconsumed() > 0 {
                sweep();
            }
            start.elapsed()
        });
        let times = times.collect();
        stop.store(true, Relaxed);
        times
    });
    times.sort_unstable();
    times
}

fn main() {
    let n = if std::env::args().any(|argument| argument == "--test") { 3 } else { 1000 };
    let mut legal = None;
    for (what, worst, ring, pages, queues) in ALL {
        let times = times(worst, ring, pages, queues, n);
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        let ratio = at(0.99).as_secs_f64() / legal.get_or_insert(at(0.99)).as_secs_f64();
        println!(
            "{what:<44} p50 {:>9.1?}  p99 {:>9.1?}  max {:>9.1?}  p99 x {ratio:.1}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
