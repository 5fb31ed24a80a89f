//! Instructions of each step that commands go through, and of their whole way on one thread, counted by callgrind: figures that do
//! not depend on the machine's mood.
//!
//! Everything is warm: what is counted has been done before, many times. It is behind boxes, so that no moves are counted.
//! `cargo run -p ecmdq-bench --example instructions` compares with the figures in `bench/instructions.json`.

#![allow(missing_docs, reason = "the harness makes public items")]

use std::hint::black_box;

use ecmdq_bench::compare::{Engine, Guest, Guests, Limit, Server, Transport};
use ecmdq_bench::trace;
use ecmdq_engine::host::{HostQueue, NativeRing, RingConsumer};
use ecmdq_engine::rules::{MAX_EXPANSION, Rules};
use ecmdq_engine::{Command, Features, HostStreamId, StreamId, StreamMap, Vmid};
use ecmdq_ring::{Consumer, Entry, Index, Producer, QueueSize, SharedQueue, SharedRegion};
use gungraun::prelude::*;

const LOG2: u32 = 10;
/// What is done before anything is counted.
const WARM: usize = 300;

/// TLBI_NH_VA, and a CMD_SYNC at the end.
fn group(n: usize) -> Vec<Command> {
    let tlbi = (0..n as u64 - 1).map(|page| Command([0x0001_0000_0000_0012, page << 12 | 1]));
    tlbi.chain([Command([0x2046, 0])]).collect()
}

/// A TLBI_NH_VA and a CMD_SYNC, `n` times: vCPUs that share a queue, and come together.
fn pairs(n: usize) -> Vec<Command> {
    (0..n).flat_map(|_| group(2)).collect()
}

fn rules() -> (Rules, StreamMap) {
    let mut features = Features::default();
    features.ats = true;
    let rules = Rules::new(&features, &features, Vmid(7), &[]).expect("the host has what the guest is shown");
    let pairs = [0x42, 0x8, 0x100].map(|stream| (StreamId(stream), HostStreamId(0x1000 + stream)));
    (rules, StreamMap::from_pairs(pairs).expect("three streams"))
}

fn ring() -> (SharedQueue, QueueSize) {
    let size = QueueSize::capped(LOG2, QueueSize::MAX);
    let memory = SharedRegion::from_words(vec![0; size.bytes() / 8 + 64]);
    let queue = SharedQueue::new(memory.clone(), 0, size, memory, size.bytes(), size.bytes() + 4);
    (queue.expect("it fits"), size)
}

/// A guest writes a group and rings.
struct Writing(Producer<SharedQueue>, Vec<Command>);

fn writing(n: usize) -> Box<Writing> {
    let (queue, size) = ring();
    Box::new(Writing(Producer::new(queue, size, Index::ZERO), group(n)))
}

#[library_benchmark]
#[benches::of(args = [2, 64], setup = writing)]
fn write(mut writing: Box<Writing>) -> Box<Writing> {
    let Writing(producer, group) = &mut *writing;
    producer.write(black_box(bytemuck::cast_slice(group)));
    producer.publish();
    writing
}

/// The engine copies a group out of the guest's memory.
struct Fetching(Consumer<SharedQueue>, [Entry; 64]);

fn fetching(n: usize) -> Box<Fetching> {
    let (queue, size) = ring();
    let mut producer = Producer::new(queue.clone(), size, Index::ZERO);
    producer.write(bytemuck::cast_slice(&group(n)));
    producer.publish();
    Box::new(Fetching(Consumer::new(queue, size, Index::ZERO), [[0; 2]; 64]))
}

#[library_benchmark]
#[benches::of(args = [2, 64], setup = fetching)]
fn fetch(mut fetching: Box<Fetching>) -> Box<Fetching> {
    let Fetching(consumer, to) = &mut *fetching;
    assert!(consumer.fetch(consumer.prod(), to).is_ok());
    fetching
}

/// Rules check and rewrite, in batches as the worker fetches them.
struct Checking(Rules, StreamMap, Vec<Vec<Command>>, Vec<Command>);

fn checking(commands: &[Command]) -> Box<Checking> {
    let (rules, streams) = rules();
    let parts = commands.split_inclusive(|command| rules.ends_batch(*command));
    let batches: Vec<_> = parts.flat_map(|part| part.chunks(64)).map(<[Command]>::to_vec).collect();
    Box::new(Checking(rules, streams, batches, vec![Command::default(); 64 + MAX_EXPANSION]))
}

fn checking_group(n: usize) -> Box<Checking> {
    checking(&group(n))
}

/// The first 2,000 commands of a recorded stream, behind those of its start.
fn checking_recorded(name: &str) -> Box<Checking> {
    checking(&trace::named(name)[1000..3000])
}

fn check_all(mut checking: Box<Checking>) -> Box<Checking> {
    let Checking(rules, streams, batches, to) = &mut *checking;
    for batch in batches {
        black_box(rules.apply(streams, black_box(batch), to).host);
    }
    checking
}

#[library_benchmark]
#[benches::of(args = [2, 64], setup = checking_group)]
fn check(checking: Box<Checking>) -> Box<Checking> {
    check_all(checking)
}

#[library_benchmark]
#[benches::of(args = ["msi-ril-2cpu-mixed", "sev-noril-64k", "ats-msi-ril-2cpu"], setup = checking_recorded)]
fn check_recorded(checking: Box<Checking>) -> Box<Checking> {
    check_all(checking)
}

/// The host's ring, and the SMMU behind it.
struct Host(NativeRing, RingConsumer, Vec<Command>);

fn submitting(n: usize) -> Box<Host> {
    let (mut ring, mut smmu) = NativeRing::with_consumer(LOG2).expect("memory");
    let group = group(n);
    let group = group[..n - 1].to_vec();
    for _ in 0..WARM {
        ring.submit_and_sync(&group);
        smmu.poll(|_| ());
        ring.completed();
    }
    Box::new(Host(ring, smmu, group))
}

fn executing(n: usize) -> Box<Host> {
    let mut host = submitting(n);
    let Host(ring, _, group) = &mut *host;
    ring.submit_and_sync(group);
    host
}

#[library_benchmark]
#[benches::of(args = [2, 64], setup = submitting)]
fn submit(mut host: Box<Host>) -> Box<Host> {
    let Host(ring, _, group) = &mut *host;
    black_box(ring.submit_and_sync(black_box(group)));
    host
}

#[library_benchmark]
#[benches::of(args = [2, 64], setup = executing)]
fn execute(mut host: Box<Host>) -> Box<Host> {
    black_box(host.1.poll(|commands| {
        black_box(commands);
    }));
    host
}

/// Guests, and who serves them, on one thread.
struct Way<T: Transport> {
    guests: Vec<T::Guest>,
    server: T::Server,
    group: Vec<Command>,
}

impl<T: Transport> Way<T> {
    fn new(queues: usize, group: Vec<Command>) -> Box<Self> {
        let (guests, server) = T::open(queues).expect("memory");
        let mut way = Box::new(Self { guests, server, group });
        (0..WARM).for_each(|_| way.round());
        way
    }

    /// Each guest sends a group, and all are served until they have completed.
    fn round(&mut self) {
        for guest in &mut self.guests {
            assert!(guest.send(&self.group));
        }
        while !self.guests.iter_mut().all(Guest::is_done) {
            self.server.serve();
        }
    }
}

fn limit(n: usize) -> Box<Way<Limit>> {
    Way::new(1, group(n))
}

fn engine(n: usize) -> Box<Way<Engine>> {
    Way::new(1, group(n))
}

fn limit_pairs(n: usize) -> Box<Way<Limit>> {
    Way::new(1, pairs(n))
}

fn engine_pairs(n: usize) -> Box<Way<Engine>> {
    Way::new(1, pairs(n))
}

fn guests(n: usize) -> Box<Way<Guests>> {
    Way::new(n, group(2))
}

/// After a round, nothing is to be done.
fn idle<T: Transport>(queues: usize) -> Box<Way<T>> {
    let mut way: Box<Way<T>> = Way::new(queues, group(2));
    (0..WARM).for_each(|_| {
        way.server.serve();
    });
    way
}

fn idle_queues(queues: usize) -> Box<Way<Engine>> {
    idle(queues)
}

fn idle_guests(guests: usize) -> Box<Way<Guests>> {
    idle(guests)
}

#[library_benchmark]
#[benches::of(args = [2, 17, 64, 254], setup = limit)]
fn way_limit(mut way: Box<Way<Limit>>) -> Box<Way<Limit>> {
    way.round();
    way
}

#[library_benchmark]
#[benches::of(args = [2, 17, 64, 254], setup = engine)]
fn way_engine(mut way: Box<Way<Engine>>) -> Box<Way<Engine>> {
    way.round();
    way
}

#[library_benchmark]
#[benches::of(args = [30], setup = limit_pairs)]
fn way_limit_pairs(mut way: Box<Way<Limit>>) -> Box<Way<Limit>> {
    way.round();
    way
}

#[library_benchmark]
#[benches::of(args = [30], setup = engine_pairs)]
fn way_engine_pairs(mut way: Box<Way<Engine>>) -> Box<Way<Engine>> {
    way.round();
    way
}

#[library_benchmark]
#[benches::of(args = [64], setup = guests)]
fn way_guests(mut way: Box<Way<Guests>>) -> Box<Way<Guests>> {
    way.round();
    way
}

#[library_benchmark]
#[benches::of(args = [1, 256], setup = idle_queues)]
fn sweep_idle(mut way: Box<Way<Engine>>) -> Box<Way<Engine>> {
    way.server.serve();
    way
}

#[library_benchmark]
#[benches::of(args = [256], setup = idle_guests)]
fn guests_idle(mut way: Box<Way<Guests>>) -> Box<Way<Guests>> {
    way.server.serve();
    way
}

library_benchmark_group!(
    name = steps,
    benchmarks = [write, fetch, check, check_recorded, submit, execute, sweep_idle, guests_idle]
);
library_benchmark_group!(
    name = ways,
    benchmarks = [way_limit, way_engine, way_limit_pairs, way_engine_pairs, way_guests]
);
main!(library_benchmark_groups = [steps, ways]);
