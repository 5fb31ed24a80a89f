//! A CMD_SYNC that completes with an MSI: CONS, the MSI, and the bit under the surface of CONS where reading it traps.

mod common;

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use common::{LoomQueue, Weak, check, wait, wait_cons};
use ecmdq_ring::{Consumer, Index, QueueSize, QueueWords};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;

const SIZE: QueueSize = match QueueSize::from_log2(1) {
    Some(size) => size,
    None => panic!(),
};
const SYNC: [u64; 2] = [0x46, 0];
const NEXT: [u64; 2] = [1, 1];
/// Under the surface of CONS: the MSI is on its way.
const MSI_ON_ITS_WAY: u32 = 1 << 22;

/// The orderings of the MSI.
#[derive(Clone, Copy)]
struct Orders {
    store: Ordering,
    load: Ordering,
}

const RIGHT: Orders = Orders { store: Release, load: Acquire };

/// Whoever sees the MSI sees CONS passed, and may use the slot again, where the MSI was sent to: the engine has read it.
fn msi(orders: Orders) {
    check(move || {
        let words = LoomQueue::new(SIZE, 0, Weak::Nothing);
        let msi = Arc::new(AtomicU32::new(0));
        let mut consumer = Consumer::new(words.clone(), SIZE, Index::ZERO);
        words.store_entry(0, SYNC);
        words.store_prod(1, Release);
        let guest = thread::spawn({
            let msi = msi.clone();
            move || {
                wait(|| (msi.load(orders.load) != 0).then_some(()));
                assert_eq!(words.load_cons(Relaxed), 1, "CONS passed before the MSI");
                words.store_entry(0, NEXT);
            }
        });
        let mut entries = [[0; 2]; 2];
        assert_eq!(consumer.fetch(consumer.prod(), &mut entries), Ok(1));
        consumer.consume(1);
        msi.store(1, orders.store);
        guest.join().unwrap();
    });
}

#[test]
fn cons_is_visible_before_the_msi() {
    msi(RIGHT);
}

#[test]
#[should_panic(expected = "CONS passed before the MSI")]
fn an_msi_without_release_is_caught() {
    msi(Orders { store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "CONS passed before the MSI")]
fn an_msi_load_without_acquire_is_caught() {
    msi(Orders { load: Relaxed, ..RIGHT });
}

/// CONS as a trap reads it: passed only when the MSI has been written, and passed for whoever has seen the MSI.
fn trapped_cons(weak: Weak, held: u32, orders: Orders) {
    check(move || {
        let words = LoomQueue::new(SIZE, 0, weak);
        let msi = Arc::new(AtomicU32::new(0));
        let mut consumer = Consumer::new(words.clone(), SIZE, Index::ZERO);
        let guest = thread::spawn({
            let msi = msi.clone();
            move || {
                let seen = msi.load(orders.load) == 1;
                let cons = wait_cons(&words, |cons| cons & MSI_ON_ITS_WAY == 0);
                match cons {
                    0 => assert!(!seen, "the MSI was there before CONS"),
                    _ => assert_eq!(msi.load(Relaxed), 1, "CONS was there before the MSI"),
                }
            }
        });
        consumer.publish_flags(held);
        consumer.consume(1);
        msi.store(1, orders.store);
        consumer.publish_flags(0);
        guest.join().unwrap();
    });
}

#[test]
fn a_trap_shows_cons_and_the_msi_together() {
    trapped_cons(Weak::Nothing, MSI_ON_ITS_WAY, RIGHT);
}

#[test]
#[should_panic(expected = "CONS was there before the MSI")]
fn without_the_mark_cons_is_seen_too_early() {
    trapped_cons(Weak::Nothing, 0, RIGHT);
}

#[test]
#[should_panic(expected = "CONS was there before the MSI")]
fn a_cons_store_without_release_is_caught() {
    trapped_cons(Weak::ConsStore, MSI_ON_ITS_WAY, RIGHT);
}

#[test]
#[should_panic(expected = "CONS was there before the MSI")]
fn a_trap_that_loads_cons_without_acquire_is_caught() {
    trapped_cons(Weak::ConsLoad, MSI_ON_ITS_WAY, RIGHT);
}

#[test]
#[should_panic(expected = "the MSI was there before CONS")]
fn an_msi_without_release_is_caught_by_a_trap() {
    trapped_cons(Weak::Nothing, MSI_ON_ITS_WAY, Orders { store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "the MSI was there before CONS")]
fn an_msi_load_without_acquire_is_caught_by_a_trap() {
    trapped_cons(Weak::Nothing, MSI_ON_ITS_WAY, Orders { load: Relaxed, ..RIGHT });
}
