//! What a command costs on its way from a guest's queue to the host's, on one thread: a guest writes a group and
//! a CMD_SYNC, the worker sweeps, the host executes, the worker completes.
//!
//! `copy` is the limit: the same commands through the same two rings, VMID replaced, nothing checked.

use std::hint::black_box;
use std::sync::atomic::Ordering::Release;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use ecmdq_bench::report::Spread;
use ecmdq_bench::{Machine, Registers};
use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::registers::{CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CR0, CR0_CMDQEN, ECMDQ_BASE, ECMDQ_PROD};
use ecmdq_engine::{Features, Worker};
use ecmdq_ring::{Consumer, Entry, Index, Producer, QueueSize, SharedQueue, SharedRegion};

const LOG2: u32 = 13;

fn group(n: usize) -> Vec<Entry> {
    let tlbi = (0..n as u64 - 1).map(|i| [0x0001_0000_0000_0012, i << 12 | 1]);
    tlbi.chain([[0x2046, 0]]).collect()
}

fn ring() -> (SharedQueue, QueueSize) {
    let size = QueueSize::capped(LOG2, QueueSize::MAX);
    let memory = SharedRegion::from_words(vec![0; size.bytes() / 8 + 32]);
    let queue = SharedQueue::new(memory.clone(), 0, size, memory, size.bytes(), size.bytes() + 128);
    (queue.expect("it fits"), size)
}

struct Engine {
    guest: Producer<SharedQueue>,
    worker: Worker<NativeRing>,
    host: RingConsumer,
}

impl Engine {
    fn new() -> Self {
        Self::beside(0, 0)
    }

    /// Beside idle guests, each with so many idle ECMDQs and a CMDQ.
    fn beside(guests: u16, ecmdqs_log2: u8) -> Self {
        let machine = Machine::new(0, Features::default(), &[]).expect("memory");
        let (native, host) = NativeRing::with_consumer(LOG2).expect("memory");
        let mut worker = Worker::new(native);
        worker.attach(machine.smmu.clone()).unwrap();
        for number in 1..=guests {
            let idle = Machine::new(number, Features::default().with_ecmdqs(0, ecmdqs_log2), &[]);
            let idle = idle.expect("memory");
            let Registers::Trapped(smmu, control) = &idle.registers else { panic!("ECMDQs are mapped") };
            for queue in 0..1 << ecmdqs_log2 {
                let at = queue * (0x1_0000 >> ecmdqs_log2);
                control.store_u64(at + ECMDQ_BASE, Machine::RAM_BASE.0 | 4, Release);
                control.store_u32(at + ECMDQ_PROD, 1 << 31, Release);
            }
            worker.attach(smmu.clone()).unwrap();
        }
        // All is enabled, and has been quiet for a while.
        (0..1000).for_each(|_| {
            worker.poll();
        });
        let size = QueueSize::capped(LOG2, QueueSize::MAX);
        let ring = machine.region(Machine::RAM_BASE, size.bytes()).expect("it fits");
        let Registers::Memory(registers) = &machine.registers else {
            panic!("without ECMDQs, registers are memory");
        };
        registers.store_u64(CMDQ_BASE, Machine::RAM_BASE.0 | u64::from(LOG2), Release);
        registers.store_u32(CR0, CR0_CMDQEN, Release);
        worker.poll();
        let words = SharedQueue::new(ring, 0, size, registers.clone(), CMDQ_PROD, CMDQ_CONS);
        Self { guest: Producer::new(words.expect("it fits"), size, Index::ZERO), worker, host }
    }

    fn round(&mut self, group: &[Entry]) {
        self.guest.write(group);
        self.guest.publish();
        while self.guest.unconsumed() > 0 {
            self.worker.poll();
            self.host.poll(|commands| {
                black_box(commands);
            });
        }
    }
}

struct Copy {
    guest: Producer<SharedQueue>,
    taken: Consumer<SharedQueue>,
    native: Producer<SharedQueue>,
    host: Consumer<SharedQueue>,
}

impl Copy {
    fn new() -> Self {
        let ((guest, size), (host, _)) = (ring(), ring());
        Self {
            guest: Producer::new(guest.clone(), size, Index::ZERO),
            taken: Consumer::new(guest, size, Index::ZERO),
            native: Producer::new(host.clone(), size, Index::ZERO),
            host: Consumer::new(host, size, Index::ZERO),
        }
    }

    fn round(&mut self, group: &[Entry]) {
        self.guest.write(group);
        self.guest.publish();
        let mut batch = [[0; 2]; 64];
        while let Ok(n @ 1..) = self.taken.fetch(self.taken.prod(), &mut batch) {
            for entry in &mut batch[..n] {
                entry[0] = entry[0] & !0x0000_ffff_0000_0000 | 1 << 32;
            }
            self.native.write(&batch[..n]);
            self.native.publish();
            self.taken.consume(n);
        }
        let mut batch = [[0; 2]; 256];
        while let Ok(n @ 1..) = self.host.fetch(self.host.prod(), &mut batch) {
            black_box(&batch[..n]);
            self.host.consume(n);
        }
    }
}

fn path(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("path");
    for n in [2, 17, 64, 254] {
        let commands = group(n);
        benches.throughput(Throughput::Elements(n as u64));
        let mut engine = Engine::new();
        benches.bench_function(BenchmarkId::new("engine", n), |b| b.iter(|| engine.round(&commands)));
        let mut copy = Copy::new();
        benches.bench_function(BenchmarkId::new("copy", n), |b| b.iter(|| copy.round(&commands)));
    }
    benches.finish();
}

/// 64 commands beside queues that are idle, relative to the same beside nothing: in turn, since the machine's speed changes.
fn beside(slices: usize) {
    let commands = group(64);
    let all = [("nothing", 0, 0), ("256 queues of a guest", 1, 8), ("256 guests", 256, 0)];
    let mut engines = all.map(|(_, guests, ecmdqs_log2)| Engine::beside(guests, ecmdqs_log2));
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..slices {
        for (engine, times) in engines.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (0..512).for_each(|_| engine.round(&commands));
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let [nothing, others @ ..] = &times;
    for ((what, ..), others) in all[1..].iter().zip(others) {
        let ratios = Spread::of_ratios(others, nothing);
        println!("beside {what}: {:.2} ({:.2} to {:.2})", ratios.median, ratios.low, ratios.high);
    }
}

criterion_group!(benches, path);

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    benches();
    Criterion::default().configure_from_args().final_summary();
    beside(if test { 1 } else { 2000 });
}
