//! Several CMD_SYNCs of a queue under way: taken ahead of CONS, completed by a host that is late, in their order.

mod common;

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use common::{LoomQueue, Weak, check};
use ecmdq_ring::{Consumer, Index, QueueSize, QueueWords};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;

const SIZE: QueueSize = match QueueSize::from_log2(2) {
    Some(size) => size,
    None => panic!(),
};
const SYNC: [u64; 2] = [0x46, 0];
/// Two groups, which fill the ring.
const RING: [[u64; 2]; 4] = [[1, 0], SYNC, [2, 0], SYNC];
const NEXT: [u64; 2] = [3, 3];

/// What happens while both groups are under way.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    /// What was taken is forgotten, and taken again.
    Forgotten,
    /// The queue is disabled: CONS stays, and what was taken has no effect on it any more.
    Disabled,
}

/// The orderings of what the host has reached.
#[derive(Clone, Copy)]
struct Orders {
    store: Ordering,
    load: Ordering,
}

const RIGHT: Orders = Orders { store: Release, load: Acquire };

/// The guest has published both groups at once; it looks at CONS at some moment, and the engine at what the host has reached. Nobody waits, or
/// there would be too much to explore. The guest uses the slots of a group again when CONS has passed them.
fn groups(weak: Weak, meanwhile: Meanwhile, orders: Orders) {
    check(move || {
        let words = LoomQueue::new(SIZE, 0, weak);
        let (executed, reached) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        (0..).zip(RING).for_each(|(slot, entry)| words.store_entry(slot, entry));
        words.store_prod(4, Release);
        let guest = thread::spawn({
            let (words, executed) = (words.clone(), executed.clone());
            move || {
                let groups = words.load_cons(Acquire) / 2;
                assert!(executed.load(Relaxed) >= groups, "a group is complete, and was not executed");
                if groups > 0 {
                    words.store_entry(0, NEXT);
                }
            }
        });
        let host = thread::spawn({
            let reached = reached.clone();
            move || {
                for group in 1..=2 {
                    executed.store(group, Relaxed);
                    reached.store(group, orders.store);
                }
            }
        });
        let mut consumer = Consumer::new(words.clone(), SIZE, Index::ZERO);
        let mut entries = [[0; 2]; 4];
        for _ in 0..if meanwhile == Meanwhile::Forgotten { 2 } else { 1 } {
            consumer.forget();
            assert_eq!(consumer.fetch(consumer.prod(), &mut entries), Ok(4));
            assert_eq!(entries, RING, "the guest leaves alone what CONS has not passed");
            consumer.take(4);
        }
        if meanwhile == Meanwhile::Disabled {
            consumer.forget();
            consumer.publish_flags(0);
        } else {
            // Both in one store, if both have been completed by then.
            for _ in 0..2 {
                consumer.consume_to(SIZE.index(2 * reached.load(orders.load)));
            }
        }
        guest.join().unwrap();
        host.join().unwrap();
        assert!(meanwhile != Meanwhile::Disabled || words.load_cons(Relaxed) == 0);
    });
}

#[test]
fn each_group_is_complete_when_the_host_has_executed_it() {
    groups(Weak::Nothing, Meanwhile::Nothing, RIGHT);
}

#[test]
fn what_is_forgotten_is_taken_again_as_it_was() {
    groups(Weak::Nothing, Meanwhile::Forgotten, RIGHT);
}

#[test]
fn a_queue_that_is_disabled_stays_where_it_is() {
    groups(Weak::Nothing, Meanwhile::Disabled, RIGHT);
}

#[test]
#[should_panic(expected = "a group is complete, and was not executed")]
fn a_cons_store_without_release_is_caught() {
    groups(Weak::ConsStore, Meanwhile::Nothing, RIGHT);
}

#[test]
#[should_panic(expected = "a group is complete, and was not executed")]
fn a_host_that_says_too_early_what_it_has_reached_is_caught() {
    groups(Weak::Nothing, Meanwhile::Nothing, Orders { store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "a group is complete, and was not executed")]
fn a_look_at_the_host_without_acquire_is_caught() {
    groups(Weak::Nothing, Meanwhile::Nothing, Orders { load: Relaxed, ..RIGHT });
}
