//! Producer and consumer in turn, against a plain queue.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use ecmdq_ring::{Consumer, Entry, Producer, QueueSize, QueueWords, SharedQueue, SharedRegion};
use proptest::prelude::*;

fn queue(log2: u32) -> (SharedQueue, QueueSize) {
    let size = QueueSize::from_log2(log2).unwrap();
    let memory = SharedRegion::from_words(vec![0; size.bytes() / 8 + 1]);
    (SharedQueue::new(memory.clone(), 0, size, memory, size.bytes(), size.bytes() + 4).unwrap(), size)
}

fn pair(log2: u32, start: u32) -> (Producer<SharedQueue>, Consumer<SharedQueue>) {
    let (words, size) = queue(log2);
    let start = size.index(start);
    words.store_prod(start.raw(), Relaxed);
    words.store_cons(start.raw(), Relaxed);
    (Producer::new(words.clone(), size, start), Consumer::new(words, size, start))
}

#[test]
fn nothing_is_seen_before_it_is_published() {
    let (mut producer, consumer) = pair(2, 0);
    assert_eq!(producer.write(&[[1, 1]]), 1);
    let mut out = [[0; 2]; 4];
    assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(0));
    producer.publish();
    assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(1));
}

#[test]
fn flags_above_prod_stay_through_doorbells_and_do_not_count_as_index() {
    const EN: u32 = 1 << 31;
    const ERRACK: u32 = 1 << 23;
    let (mut producer, mut consumer) = pair(2, 6);
    producer.publish_flags(EN);
    assert_eq!(consumer.prod(), 0x8000_0006);
    producer.write(&[[1, 1]; 3]);
    producer.publish();
    assert_eq!(consumer.prod(), 0x8000_0001, "three on from 6 is 1: two passes of four slots");
    let mut out = [[0; 2]; 4];
    assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(3));
    consumer.publish_flags(EN | ERRACK | 0b1 << 24);
    assert_eq!(producer.unconsumed(), 3, "what CONS says above the index does not count");
    producer.publish_flags(EN | ERRACK);
    assert_eq!((producer.flags(), consumer.prod()), (0x8080_0000, 0x8080_0001));
    consumer.consume(3);
    assert_eq!(producer.unconsumed(), 0);
}

#[test]
fn all_slots_are_usable_and_a_full_queue_takes_nothing() {
    let (mut producer, mut consumer) = pair(2, 6);
    assert_eq!(producer.write(&[[7, 7]; 9]), 4);
    producer.publish();
    assert_eq!(producer.write(&[[8, 8]]), 0);
    let mut out = [[0; 2]; 9];
    assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(4));
    consumer.consume(1);
    assert_eq!(producer.write(&[[8, 8]; 2]), 1);
}

#[test]
fn entries_are_taken_ahead_of_cons_and_consumed_in_parts() {
    let (mut producer, mut consumer) = pair(2, 6);
    producer.write(&[[1, 0], [2, 0], [3, 0], [4, 0]]);
    producer.publish();
    let mut out = [[0; 2]; 3];
    assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(3));
    consumer.take(3);
    assert_eq!((consumer.available(consumer.prod()), producer.unconsumed()), (Ok(1), 4), "CONS stays");
    assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(1));
    assert_eq!(out[0], [4, 0]);
    consumer.consume_to(consumer.size().advance(consumer.cons(), 2));
    assert_eq!((producer.unconsumed(), producer.write(&[[5, 0]; 4])), (2, 2));
    producer.publish();
    // What was taken and not consumed is fetched again.
    consumer.forget();
    assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(3));
    assert_eq!(out, [[3, 0], [4, 0], [5, 0]]);
    consumer.consume(3);
    assert_eq!(producer.unconsumed(), 1);
}

#[test]
fn a_prod_behind_what_has_been_taken_is_inconsistent() {
    let (mut producer, mut consumer) = pair(2, 0);
    producer.write(&[[1, 1]; 3]);
    producer.publish();
    consumer.take(3);
    consumer.words().store_prod(2, Relaxed);
    assert!(consumer.available(consumer.prod()).is_err());
    assert!(consumer.fetch(consumer.prod(), &mut [[0; 2]; 8]).is_err());
    consumer.forget();
    assert_eq!(consumer.available(consumer.prod()), Ok(2));
}

#[test]
fn a_prod_beyond_the_queue_yields_nothing_until_it_is_mended() {
    let (mut producer, consumer) = pair(2, 0);
    producer.write(&[[1, 1]]);
    consumer.words().store_prod(5, Relaxed);
    assert!(consumer.fetch(consumer.prod(), &mut [[0; 2]; 8]).is_err());
    producer.publish();
    assert_eq!(consumer.fetch(consumer.prod(), &mut [[0; 2]; 8]), Ok(1));
}

#[test]
fn a_cons_that_contradicts_prod_is_not_believed() {
    let (mut producer, consumer) = pair(2, 0);
    producer.write(&[[1, 1]; 2]);
    producer.publish();
    consumer.words().store_cons(3, Relaxed);
    assert_eq!(producer.unconsumed(), 2);
    assert_eq!(producer.room(4), 2);
}

#[test]
fn flags_stay_above_the_index_until_replaced() {
    let (mut producer, mut consumer) = pair(2, 0);
    producer.write(&[[1, 1]; 2]);
    producer.publish();
    consumer.consume(1);
    consumer.publish_flags(1 << 24);
    assert_eq!(consumer.words().load_cons(Relaxed), 1 | 1 << 24);
    consumer.consume(1);
    assert_eq!(consumer.words().load_cons(Relaxed), 2 | 1 << 24);
    consumer.publish_flags(0);
    assert_eq!(consumer.words().load_cons(Relaxed), 2);
}

#[test]
fn a_queue_that_does_not_fit_its_memory_is_refused() {
    let size = QueueSize::from_log2(2).unwrap();
    let new = |offset, prod, cons| {
        let memory = SharedRegion::from_words(vec![0; 9]);
        SharedQueue::new(memory.clone(), offset, size, memory, prod, cons)
    };
    assert!(new(0, 64, 68).is_some());
    assert!(new(8, 64, 68).is_some());
    assert!(new(16, 64, 68).is_none(), "slots past the end");
    assert!(new(4, 64, 68).is_none(), "slots not aligned");
    assert!(new(0, 72, 68).is_none(), "PROD past the end");
    assert!(new(0, 64, 66).is_none(), "CONS not aligned");
    assert!(new(usize::MAX, 64, 68).is_none(), "offset overflows");
}

#[test]
fn accesses_outside_a_region_read_zero_and_write_nothing() {
    let region = SharedRegion::from_words(vec![u64::MAX; 2]);
    assert_eq!(region.load_u32(12, Relaxed), u32::MAX);
    assert_eq!(region.load_u32(16, Relaxed), 0);
    assert_eq!(region.load_u32(2, Relaxed), 0);
    assert_eq!(region.load_u64(12, Relaxed), 0);
    assert_eq!(region.load_u64(usize::MAX, Relaxed), 0);
    region.store_u32(14, 0, Relaxed);
    region.store_u64(16, 0, Relaxed);
    assert_eq!(region.load_u64(8, Relaxed), u64::MAX);
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Publish,
    Take(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..12).prop_map(Step::Write),
        Just(Step::Publish),
        (0usize..12).prop_map(Step::Take)
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn entries_come_out_once_and_in_order(log2 in 0u32..5, start: u32, steps in steps()) {
        let (mut producer, mut consumer) = pair(log2, start);
        let slots = producer.size().entries() as usize;
        let (mut written, mut published) = (VecDeque::<Entry>::new(), VecDeque::<Entry>::new());
        let mut next = 0u64;
        for step in steps {
            match step {
                Step::Write(n) => {
                    let entries: Vec<Entry> = (next..next + n as u64).map(|i| [i, !i]).collect();
                    let done = producer.write(&entries);
                    prop_assert_eq!(done, n.min(slots - written.len() - published.len()));
                    written.extend(&entries[..done]);
                    next += done as u64;
                }
                Step::Publish => {
                    producer.publish();
                    published.append(&mut written);
                }
                Step::Take(n) => {
                    let mut out = vec![[0; 2]; n];
                    let got = consumer.fetch(consumer.prod(), &mut out).unwrap();
                    prop_assert_eq!(got, n.min(published.len()));
                    let expected: Vec<Entry> = published.drain(..got).collect();
                    prop_assert_eq!(&out[..got], &expected[..]);
                    consumer.consume(got);
                }
            }
        }
        prop_assert_eq!(producer.unconsumed() as usize, written.len() + published.len());
    }

    #[test]
    fn any_prod_word_yields_at_most_the_queue(log2 in 0u32..8, cons: u32, prod: u32) {
        let (words, size) = queue(log2);
        words.store_prod(prod, Relaxed);
        let consumer = Consumer::new(words, size, size.index(cons));
        if let Ok(n) = consumer.fetch(consumer.prod(), &mut vec![[0; 2]; 600]) {
            prop_assert!(n <= size.entries() as usize);
            prop_assert_eq!(size.advance(consumer.cons(), n as u32), size.index(prod));
        }
    }
}
