//! One producer against one consumer.

mod common;

use common::{LoomQueue, Weak};
use ecmdq_ring::{Consumer, Entry, Producer, QueueSize};
use loom::thread;

/// A producer sends `count` entries in batches of up to two through a ring of 2^`log2` slots that starts at the
/// index `start`, while a consumer takes them in batches of up to two. Every entry must come out once, whole
/// and in order.
fn explore(log2: u32, start: u32, count: u64, weak: Weak) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(3);
    model.check(move || {
        let size = QueueSize::from_log2(log2).unwrap();
        let words = LoomQueue::new(size, start, weak);
        let mut producer = Producer::new(words.clone(), size, size.index(start));
        let mut consumer = Consumer::new(words, size, size.index(start));

        let sender = thread::spawn(move || {
            let mut next = 0;
            while next < count {
                let batch: Vec<Entry> = (next..count.min(next + 2)).map(|i| [i, !i]).collect();
                match producer.write(&batch) {
                    0 => thread::yield_now(),
                    n => {
                        producer.publish();
                        next += n as u64;
                    }
                }
            }
        });

        let mut next = 0;
        let mut out = [[0; 2]; 2];
        while next < count {
            let n = consumer.fetch(consumer.prod(), &mut out).expect("PROD and CONS stay consistent");
            if n == 0 {
                thread::yield_now();
                continue;
            }
            for entry in &out[..n] {
                assert_eq!(*entry, [next, !next], "lost, duplicated, torn or early");
                next += 1;
            }
            consumer.consume(n);
        }
        assert_eq!(consumer.fetch(consumer.prod(), &mut out), Ok(0), "nothing is left over");
        sender.join().unwrap();
    });
}

#[test]
fn one_slot_twice_around() {
    explore(0, 0, 4, Weak::Nothing);
}

#[test]
fn two_slots_across_the_wrap() {
    explore(1, 1, 5, Weak::Nothing);
}

#[test]
fn two_slots_from_the_last_index() {
    explore(1, 3, 4, Weak::Nothing);
}

#[test]
fn four_slots_across_the_wrap() {
    explore(2, 2, 6, Weak::Nothing);
}

#[test]
fn four_slots_from_the_last_index() {
    explore(2, 7, 6, Weak::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_prod_store_without_release_is_caught() {
    explore(1, 1, 3, Weak::ProdStore);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_prod_load_without_acquire_is_caught() {
    explore(1, 1, 3, Weak::ProdLoad);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_cons_store_without_release_is_caught() {
    explore(1, 1, 3, Weak::ConsStore);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_cons_load_without_acquire_is_caught() {
    explore(1, 1, 3, Weak::ConsLoad);
}
