//! The native ring beside what else could carry commands from workers to the host: a mutex around the same ring, and a
//! general queue; beside a ring for each producer; and the round trip of a CMD_SYNC beside that of one word.
//!
//! A group is 64 TLBIs and a CMD_SYNC. With two producers, each on a thread of its own, the first also takes the commands
//! out again, in all of them: the machine may have two processors only. Times are per group, whoever sent it.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use ecmdq_engine::Command;
use ecmdq_engine::host::{HostQueue, NativeRing, RingConsumer};

const LOG2: u32 = 12;
const SYNC: Command = Command([0x46, 0]);

fn group() -> Vec<Command> {
    (0..64).map(|i| Command([0x0005_0007_0000_0012, i << 12 | 1])).collect()
}

/// Submits a group and asks for a ticket; calls `drain` while the ring is full.
fn send(ring: &mut impl HostQueue, group: &[Command], mut drain: impl FnMut()) {
    let mut sent = 0;
    loop {
        let (taken, ticket) = ring.submit_and_sync(&group[sent..]);
        if ticket.is_some() {
            return;
        }
        sent += taken;
        drain();
        thread::yield_now();
    }
}

/// Has one or two producers send `groups` in all, at the same time, and says how long that took. A producer is a function that
/// sends one group; the first also drains.
fn race<P: FnMut() + Send>(groups: u64, producers: Vec<P>) -> Duration {
    let each = groups.div_ceil(producers.len() as u64);
    let barrier = Barrier::new(producers.len());
    let barrier = &barrier;
    thread::scope(|scope| {
        let threads: Vec<_> = producers
            .into_iter()
            .map(|mut producer| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    (0..each).for_each(|_| producer());
                    start.elapsed()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).max().unwrap_or_default()
    })
}

/// The first producer does it after each group, the others when the ring is full: the first may have ended.
fn drain(smmu: &Mutex<RingConsumer>) {
    if let Ok(mut smmu) = smmu.try_lock() {
        smmu.poll(|_| ());
    }
}

fn ring(groups: u64, producers: u32) -> Duration {
    let (rings, smmu) = NativeRing::several_with_consumer(LOG2, producers).expect("memory for a ring");
    let (smmu, group) = (Mutex::new(smmu), group());
    let (smmu, group) = (&smmu, &group);
    let producer = |(number, mut ring): (usize, NativeRing)| {
        move || {
            send(&mut ring, group, || drain(smmu));
            if number == 0 {
                drain(smmu);
            }
        }
    };
    race(groups, rings.into_iter().enumerate().map(producer).collect())
}

/// A ring for each, so that they share nothing: what the two processors can do at most.
fn apart(groups: u64, producers: u32) -> Duration {
    let pairs = (0..producers).map(|_| NativeRing::with_consumer(LOG2).expect("memory for a ring"));
    let (rings, smmus): (Vec<_>, Vec<_>) = pairs.map(|(ring, smmu)| (ring, Mutex::new(smmu))).unzip();
    let (smmus, group) = (&smmus, &group());
    let producer = |(number, mut ring): (usize, NativeRing)| {
        move || {
            send(&mut ring, group, || drain(&smmus[number]));
            if number == 0 {
                smmus.iter().for_each(drain);
            }
        }
    };
    race(groups, rings.into_iter().enumerate().map(producer).collect())
}

fn mutex(groups: u64, producers: u32) -> Duration {
    let (ring, smmu) = NativeRing::with_consumer(LOG2).expect("memory for a ring");
    let (ring, smmu, group) = (Mutex::new(ring), Mutex::new(smmu), group());
    let (ring, smmu, group) = (&ring, &smmu, &group);
    let producer = |number: u32| {
        move || {
            if let Ok(mut ring) = ring.lock() {
                send(&mut *ring, group, || drain(smmu));
            }
            if number == 0 {
                drain(smmu);
            }
        }
    };
    race(groups, (0..producers).map(producer).collect())
}

fn array_queue(groups: u64, producers: u32) -> Duration {
    let (queue, group) = (ArrayQueue::new(1 << LOG2), group());
    let (queue, group) = (&queue, &group);
    let producer = |number: u32| {
        move || {
            let take = |n: usize| (0..n).map_while(|_| queue.pop()).count();
            for command in group.iter().chain([&SYNC]) {
                while queue.push(*command).is_err() {
                    take(256);
                    thread::yield_now();
                }
            }
            if number == 0 {
                take(256);
            }
        }
    };
    race(groups, (0..producers).map(producer).collect())
}

fn submit(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("submit");
    benches.throughput(Throughput::Elements(65));
    for producers in [1, 2] {
        type Run = fn(u64, u32) -> Duration;
        let runs: [(_, Run); 4] =
            [("ring", ring), ("apart", apart), ("mutex", mutex), ("ArrayQueue", array_queue)];
        for (name, run) in runs {
            benches.bench_function(BenchmarkId::new(name, producers), |b| {
                b.iter_custom(|groups| run(groups, producers));
            });
        }
    }
    benches.finish();
}

/// One TLBI and a CMD_SYNC to a host on another thread, until it is complete.
fn sync_round_trip(rounds: u64) -> Duration {
    let (mut ring, mut smmu) = NativeRing::with_consumer(LOG2).expect("memory for a ring");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                smmu.poll(|_| ());
                spin_loop();
            }
        });
        let start = Instant::now();
        for _ in 0..rounds {
            let (_, ticket) = ring.submit_and_sync(&[Command([0x0005_0007_0000_0012, 1])]);
            while Some(ring.completed()) < ticket {
                spin_loop();
            }
        }
        let time = start.elapsed();
        stop.store(true, Relaxed);
        time
    })
}

/// One word there, one word back.
fn ping_pong(rounds: u64) -> Duration {
    let [there, back] = [(); 2].map(|()| CachePadded::new(AtomicU64::new(0)));
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=rounds {
                while there.load(Acquire) != round {
                    spin_loop();
                }
                back.store(round, Release);
            }
        });
        let start = Instant::now();
        for round in 1..=rounds {
            there.store(round, Release);
            while back.load(Acquire) != round {
                spin_loop();
            }
        }
        start.elapsed()
    })
}

/// The same with what a ring needs besides: two entries in the next slots before the word there, which are read before the word
/// back.
fn ping_pong_of_entries(rounds: u64) -> Duration {
    let [there, back] = [(); 2].map(|()| CachePadded::new(AtomicU64::new(0)));
    let slots: Vec<_> = (0..4 << LOG2).map(|_| AtomicU64::new(0)).collect();
    let two = |round: u64| slots.iter().skip(4 * (round as usize % (1 << LOG2))).take(4);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sum = 0;
            for round in 1..=rounds {
                while there.load(Acquire) != round {
                    spin_loop();
                }
                sum += two(round).map(|word| word.load(Relaxed)).sum::<u64>();
                back.store(round, Release);
            }
            black_box(sum);
        });
        let start = Instant::now();
        for round in 1..=rounds {
            two(round).for_each(|word| word.store(round, Relaxed));
            there.store(round, Release);
            while back.load(Acquire) != round {
                spin_loop();
            }
        }
        start.elapsed()
    })
}

fn round_trip(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("round trip");
    benches.bench_function("CMD_SYNC", |b| b.iter_custom(sync_round_trip));
    benches.bench_function("word", |b| b.iter_custom(ping_pong));
    benches.bench_function("word and entries", |b| b.iter_custom(ping_pong_of_entries));
    benches.finish();
}

criterion_group!(benches, submit, round_trip);
criterion_main!(benches);
