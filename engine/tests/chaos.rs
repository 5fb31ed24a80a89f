//! Guests that do anything at all, at random: the host only ever sees canonical commands, and a guest that comes
//! to its senses is served again.

mod common;

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use common::reg::*;
use common::*;
use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{Command, Worker};
use ecmdq_ring::SharedRegion;
use proptest::prelude::*;

const VMID: u16 = 0x5a;
const HOST_STREAM: u32 = 0x1042;

/// A host that completes everything at once, and panics at whatever it must not see.
struct Strict {
    received: u64,
}

impl HostQueue for Strict {
    fn submit(&mut self, commands: &[Command]) -> usize {
        commands.iter().for_each(|command| assert_canonical(*command, VMID, HOST_STREAM));
        self.received += commands.len() as u64;
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        Ticket(self.received)
    }

    fn completed(&mut self) -> Ticket {
        Ticket(self.received)
    }
}

/// A guest with every feature before a strict host.
fn strict() -> (Guest, Worker<Strict>) {
    let setup = Setup::with(|f| (f.ats, f.ssid_bits) = (true, 4));
    let (guest, smmu) = Guest::new(Setup { vmid: VMID, host_stream: HOST_STREAM, ..setup });
    let mut worker = Worker::new(Strict { received: 0 });
    worker.attach(smmu).unwrap();
    (guest, worker)
}

fn poll_times(worker: &mut Worker<Strict>, n: usize) {
    for _ in 0..n {
        worker.poll();
    }
}

#[test]
fn the_strict_host_knows_a_foreign_command_when_it_sees_one() {
    let (vmid, stream) = (u64::from(VMID) << 32, u64::from(HOST_STREAM) << 32);
    let foreign = [
        [0x10, 0],
        [0x10 | vmid | 1 << 32, 0],
        [0x11 | vmid | 1 << 20, 0],
        [0x13 | vmid, 0x400],
        [0x13 | vmid | 1 << 48, 0],
        [0x05 | 0x42 << 32, 0],
        [0x06 | stream, 1],
        [0x40 | stream | 1 << 9, 0],
        [0x40 | stream, 53],
        [0x30, 0],
        [0x46, 0],
    ];
    for command in foreign.map(Command) {
        let refused = std::panic::catch_unwind(|| assert_canonical(command, VMID, HOST_STREAM));
        assert!(refused.is_err(), "{command}");
    }
}

/// Numbers without a pattern, the same ones at each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() as usize % all.len()]
    }
}

/// First words that are legal with some second word, and a few that never are.
const LOW: [u64; 16] = [
    0x10,
    0x11,
    0x5b_0000_0011,
    0x12,
    0x7_0000_0013,
    0x13,
    0x30,
    0x42_0000_0005,
    0x42_0000_f005,
    0x42_0000_0006,
    0x42_0000_0040,
    0x43_0000_0005,
    0x1042_0000_0040,
    0x46,
    0x50,
    0x5b_0100_0113,
];
const HIGH: [u64; 10] = [0, 0, 0, 0, 0, 0x1000, 0x1501, 0x34, 0x35, 0x80];

/// Rewrites entries, half by half, moves PROD about, and acknowledges all errors; counts how often.
fn scribble(pages: &SharedRegion, ram: &SharedRegion, stop: &AtomicBool, rounds: &AtomicU64) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let ring = (RING - RAM) as usize;
    while !stop.load(Relaxed) {
        for _ in 0..16 {
            let slot = ring + 16 * (random.next() as usize % 64);
            ram.store_u64(slot, random.of(&LOW), Relaxed);
            ram.store_u64(slot + 8, random.of(&HIGH), Relaxed);
        }
        let flipped = ring + 8 * (random.next() as usize % 128);
        ram.store_u64(flipped, ram.load_u64(flipped, Relaxed) ^ 1 << (random.next() % 64), Relaxed);
        pages.store_u32(GERRORN, pages.load_u32(GERROR, Acquire), Release);
        let ahead = random.next() as u32 % 80;
        pages.store_u32(CMDQ_PROD, (pages.load_u32(CMDQ_CONS, Acquire) + ahead) & 0x7f, Release);
        rounds.fetch_add(1, Relaxed);
        thread::yield_now();
    }
}

/// Turns of worker and guest that are more than enough: some 2,500 will do.
const TURNS: u64 = 100_000;

#[test]
fn entries_rewritten_while_the_engine_reads_them_never_reach_the_host_unchecked() {
    let (mut guest, mut worker) = strict();
    guest.start(6);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut seen, mut turns) = (0, 0);
    thread::scope(|scope| {
        let scribbler = scope.spawn(|| scribble(&guest.pages, &guest.ram, &stop, &rounds));
        let _stop = SetOnDrop(&stop);
        while guest.stats.read().forwarded < 10_000 || guest.stats.read().rejected < 300 {
            // Progress is due when both have had a turn, however long that takes.
            let now = rounds.load(Relaxed);
            turns += u64::from(now != seen);
            seen = now;
            assert!(turns < TURNS && !scribbler.is_finished(), "no progress: {:?}", guest.stats.read());
            poll_times(&mut worker, 100);
            thread::yield_now();
        }
    });
    recover(&mut guest, &mut worker);
}

/// A guest in its right mind: it resets the queue, and one of these acknowledges all errors, whatever it has
/// written over GERROR before.
fn recover(guest: &mut Guest, worker: &mut Worker<Strict>) {
    guest.write(CR0, 0);
    poll_times(worker, 4);
    guest.start(4);
    guest.put(0, nh_asid(1));
    guest.put(1, sync());
    guest.write(CMDQ_PROD, 2);
    let recovered = [0x00, 0x11, 0x01, 0x10].into_iter().any(|gerrorn| {
        guest.write(GERRORN, gerrorn);
        poll_times(worker, 4);
        guest.enabled() && guest.read(CMDQ_CONS) == 2
    });
    assert!(recovered, "CONS {:#x}, {:?}", guest.read(CMDQ_CONS), worker.guests().next().unwrap());
}

#[derive(Clone, Debug)]
enum Act {
    Register(usize, u32),
    Base(u64),
    Entry(u32, [u64; 2]),
    Prod(u32),
    Acknowledge,
    Poll,
}

fn act() -> impl Strategy<Value = Act> {
    let known = [CR0, CR0ACK, GBPA, IRQ_CTRL, GERROR, GERRORN, CMDQ_PROD, CMDQ_CONS, CMDQ_BASE, IDR0];
    let register = prop_oneof![proptest::sample::select(known.to_vec()), (0..PAGES / 4).prop_map(|n| 4 * n)];
    let base = prop_oneof![
        (0..RAM_SIZE + 0x1000).prop_map(|at| RAM + at),
        (0u64..8).prop_map(|log2| RING | log2),
        any::<u64>(),
    ];
    let word = |from: &'static [u64]| {
        (proptest::sample::select(from), any::<u64>(), any::<u64>(), any::<bool>())
            .prop_map(|(legal, a, b, flip)| if flip { legal ^ (a & b & b << 1 & a >> 1) } else { legal })
    };
    prop_oneof![
        2 => (register, any::<u32>()).prop_map(|(at, value)| Act::Register(at, value)),
        1 => (0u32..16).prop_map(|bits| Act::Register(CR0, bits)),
        1 => base.prop_map(Act::Base),
        8 => (0u32..64, word(&LOW), word(&HIGH)).prop_map(|(slot, low, high)| Act::Entry(slot, [low, high])),
        3 => prop_oneof![any::<u32>(), 0u32..64].prop_map(Act::Prod),
        2 => Just(Act::Acknowledge),
        6 => Just(Act::Poll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_sequence_of_writes_does_harm(acts in proptest::collection::vec(act(), 0..120)) {
        let (mut guest, mut worker) = strict();
        guest.start(6);
        for act in acts {
            match act {
                Act::Register(at, value) => guest.write(at, value),
                Act::Base(base) => guest.write_base(base),
                Act::Entry(slot, words) => guest.put(slot, Command(words)),
                Act::Prod(prod) => guest.write(CMDQ_PROD, prod),
                Act::Acknowledge => guest.ack(),
                Act::Poll => poll_times(&mut worker, 1),
            }
        }
        recover(&mut guest, &mut worker);
    }
}
