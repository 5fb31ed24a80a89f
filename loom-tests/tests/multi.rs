//! Several producers against one consumer.

mod common;

use common::{
    LoomQueue, LoomWord, NOTHING, OWNER, Plain, STAMP_LOAD, STAMP_STORE, SYNCED_LOAD, SYNCED_STORE, Weak,
};
use ecmdq_ring::{Consumer, Entry, Index, MultiProducer, QueueSize};
use loom::sync::Arc;
use loom::thread;

/// `producers` add batches of `batch` entries, `batches` times, to a ring of 2^`log2` slots that starts at the index
/// `start`: one of them on the thread that also consumes. Every entry must come out once and whole, those of a producer in
/// order.
fn explore<const WEAK: u8>(log2: u32, start: u32, producers: u64, batches: u64, batch: u64, bound: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(bound);
    model.check(move || {
        let size = QueueSize::from_log2(log2).unwrap();
        let words = LoomQueue::new(size, start, Weak::Nothing);
        let mut all: Vec<MultiProducer<_, LoomWord<WEAK>>> =
            MultiProducer::new(words.clone(), size, size.index(start), 0, producers as usize);
        let first = all.remove(0);
        let mut consumer = Consumer::new(words, size, size.index(start));
        let senders: Vec<_> = (1..)
            .zip(all)
            .map(|(number, producer)| {
                thread::spawn(move || {
                    let mut sent = 0;
                    while sent < batches * batch {
                        match send(&producer, number, sent, batch) {
                            0 => thread::yield_now(),
                            n => sent += n,
                        }
                    }
                })
            })
            .collect();
        let mut next = vec![0; producers as usize];
        let (mut sent, mut received) = (0, 0);
        while received < producers * batches * batch {
            if sent < batches * batch {
                sent += send(&first, 0, sent, batch);
            }
            match receive(&mut consumer, &mut next) {
                0 => thread::yield_now(),
                n => received += n,
            }
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(
            first.consumed(),
            Some(u64::from(start) + received),
            "all of it was published and consumed"
        );
    });
}

/// Adds what is left of the batch that entry `sent` of a producer is in; says how many fitted.
fn send<const WEAK: u8>(
    producer: &MultiProducer<LoomQueue, LoomWord<WEAK>>,
    number: u64,
    sent: u64,
    batch: u64,
) -> u64 {
    let tag = |i| number << 32 | i;
    let end = (sent / batch + 1) * batch;
    let entries: Vec<Entry> = (sent..end).map(|i| [tag(i), !tag(i)]).collect();
    producer.add(&entries, 0).0 as u64
}

/// Consumes what is there, and checks it against what each producer's next entry must be.
fn receive(consumer: &mut Consumer<LoomQueue>, next: &mut [u64]) -> u64 {
    let mut out = [[0; 2]; 4];
    let n = consumer.fetch(consumer.prod(), &mut out).expect("PROD is consistent");
    for entry in &out[..n] {
        let number = (entry[0] >> 32) as usize;
        assert_eq!(entry[1], !entry[0], "torn or early");
        assert_eq!(entry[0] & 0xffff_ffff, next[number], "lost, duplicated or out of order");
        next[number] += 1;
    }
    if n > 0 {
        consumer.consume(n);
    }
    n as u64
}

#[test]
fn two_producers_on_two_slots() {
    explore::<NOTHING>(1, 0, 2, 1, 1, 2);
}

#[test]
fn two_producers_on_two_slots_twice_across_the_wrap() {
    explore::<NOTHING>(1, 3, 2, 2, 1, 2);
}

#[test]
fn two_producers_of_batches_on_four_slots_across_the_wrap() {
    explore::<NOTHING>(2, 7, 2, 1, 3, 2);
}

#[test]
fn three_producers_on_four_slots() {
    explore::<NOTHING>(2, 2, 3, 1, 1, 1);
}

#[test]
fn three_producers_on_two_slots() {
    explore::<NOTHING>(1, 0, 3, 1, 1, 1);
}

#[test]
fn a_full_ring_takes_nothing_and_a_spare_slot_stays_free() {
    loom::model(|| {
        let size = QueueSize::from_log2(1).unwrap();
        let words = LoomQueue::new(size, 0, Weak::Nothing);
        let mut all: Vec<MultiProducer<_, LoomWord<NOTHING>>> =
            MultiProducer::new(words, size, Index::ZERO, 0, 2);
        let producer = all.remove(0);
        assert_eq!(producer.add(&[[1, 1], [2, 2]], 1), (1, 1), "one of two");
        assert_eq!(producer.add(&[[2, 2]], 1), (0, 1));
        assert_eq!(producer.add(&[[2, 2]], 0), (1, 2), "but the spare slot can be had");
        assert_eq!(producer.add(&[[3, 3]], 0), (0, 2));
    });
}

/// Each producer adds an entry, and then asks for a synchronisation of it: its own, or another's that covers it. Says how
/// many were added. Whoever takes another's finds all done that the other did before: so what it adds afterwards is behind that. (The
/// positions alone would not show it: loom does not let a load see a store that comes later.)
fn merge<const WEAK: u8>() -> u64 {
    const SYNC: Entry = [7, 7];
    let size = QueueSize::from_log2(2).unwrap();
    let words = LoomQueue::new(size, 0, Weak::Nothing);
    let all: Vec<MultiProducer<_, LoomWord<WEAK>>> =
        MultiProducer::new(words.clone(), size, Index::ZERO, 0, 2);
    let did = [(); 2].map(|()| Arc::new(Plain::default()));
    let ask = |producer: MultiProducer<LoomQueue, LoomWord<WEAK>>, mine: Arc<Plain>, others: Arc<Plain>| {
        let (_, end) = producer.add(&[[1, 1]], 1);
        let synced = producer.synced();
        if synced > end {
            assert_eq!(others.read(), 1);
            return (end, synced);
        }
        mine.write(1);
        (end, producer.add_with(&[], 1, Some(|_| SYNC)).1)
    };
    let mut all = all.into_iter();
    let (first, second) = (all.next().unwrap(), all.next().unwrap());
    let (mine, others) = (did[1].clone(), did[0].clone());
    let other = thread::spawn(move || ask(second, mine, others));
    let [mine, others] = did;
    let tickets = [ask(first, mine, others), other.join().unwrap()];
    let consumer = Consumer::new(words, size, Index::ZERO);
    let mut out = [[0; 2]; 4];
    let n = consumer.fetch(consumer.prod(), &mut out).unwrap();
    for (end, ticket) in tickets {
        assert!(end < ticket, "it covers what was added");
        assert_eq!(out[ticket as usize - 1], SYNC);
    }
    n as u64 - 2
}

#[test]
fn a_synchronisation_serves_whoever_it_covers() {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static FEWEST: AtomicU64 = AtomicU64::new(u64::MAX);
    static MOST: AtomicU64 = AtomicU64::new(0);
    common::check(|| {
        let n = merge::<NOTHING>();
        FEWEST.fetch_min(n, Relaxed);
        MOST.fetch_max(n, Relaxed);
    });
    assert_eq!((FEWEST.load(Relaxed), MOST.load(Relaxed)), (1, 2));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_synchronisation_told_without_release_is_caught() {
    common::check(|| _ = merge::<SYNCED_STORE>());
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_synchronisation_seen_without_acquire_is_caught() {
    common::check(|| _ = merge::<SYNCED_LOAD>());
}

#[test]
fn one_producer_alone_on_two_slots_twice_around() {
    explore::<NOTHING>(1, 2, 1, 5, 1, 3);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_stamp_store_without_release_is_caught() {
    explore::<STAMP_STORE>(1, 0, 2, 1, 1, 3);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_stamp_load_without_acquire_is_caught() {
    explore::<STAMP_LOAD>(1, 0, 2, 1, 1, 3);
}

#[test]
#[should_panic]
fn an_owner_that_is_not_ordered_is_caught() {
    explore::<OWNER>(1, 0, 2, 1, 1, 3);
}
