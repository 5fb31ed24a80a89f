//! The CMDQ: what its registers say on page 0. The worker does its loads and stores in the order in which the engine does
//! them, with the code that ships: `Toggle`, `Consumer`.

mod common;

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use common::{LoomQueue, Plain, Weak, check, wait, wait_cons};
use ecmdq_ring::{Consumer, Index, QueueSize, QueueWords, Toggle};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;

const SIZE: QueueSize = match QueueSize::from_log2(1) {
    Some(size) => size,
    None => panic!(),
};
const GOOD: [u64; 2] = [1, 1];
const BAD: [u64; 2] = [9, 9];
const CMDQEN: u32 = 1 << 3;
/// CMDQ_CONS.ERR is CERROR_ILL.
const ILL: u32 = 1 << 24;

/// The orderings of a register that the engine writes, and of one that the guest writes.
#[derive(Clone, Copy)]
struct Orders {
    store: Ordering,
    load: Ordering,
    guest_store: Ordering,
    guest_load: Ordering,
}

const RIGHT: Orders = Orders { store: Release, load: Acquire, guest_store: Release, guest_load: Acquire };

/// A guest that enables the CMDQ by CR0, rings, disables it at once, and uses its memory for something else.
fn cmdqen(orders: Orders) {
    check(move || {
        let words = LoomQueue::new(SIZE, 0, Weak::Nothing);
        let [cr0, cr0ack] = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
        let base = Arc::new(Plain::default());
        let guest = thread::spawn({
            let (words, cr0, cr0ack, base) = (words.clone(), cr0.clone(), cr0ack.clone(), base.clone());
            let acknowledged = move |value| wait(|| (cr0ack.load(orders.guest_load) == value).then_some(()));
            move || {
                base.write(7);
                words.store_prod(3, Relaxed);
                words.store_cons(3, Relaxed);
                cr0.store(CMDQEN, orders.guest_store);
                acknowledged(CMDQEN);
                words.store_entry(1, GOOD);
                words.store_prod(0, Release);
                cr0.store(0, orders.guest_store);
                acknowledged(0);
                base.write(0);
                words.store_entry(1, BAD);
                words.load_cons(Relaxed)
            }
        });
        let (mut consumer, mut enabled, mut consumed) = (None, 0, 0);
        wait(|| {
            let wanted = cr0.load(orders.load);
            if wanted != enabled {
                consumer = (wanted != 0).then(|| {
                    assert_eq!(base.read(), 7, "BASE was written before CR0");
                    Consumer::new(words.clone(), SIZE, SIZE.index(words.load_cons(Relaxed)))
                });
                enabled = wanted;
                cr0ack.store(enabled, orders.store);
                return (enabled == 0).then_some(());
            }
            let consumer = consumer.as_mut()?;
            let mut entries = [[0; 2]; 2];
            let n = consumer.fetch(consumer.prod(), &mut entries).expect("PROD was written before CR0");
            if n > 0 {
                assert_eq!(entries[..n], [GOOD]);
                consumer.consume(n);
                consumed += n;
            }
            None
        });
        assert_eq!(guest.join().unwrap(), [3, 0][consumed], "CONS is final when the queue is disabled");
    });
}

#[test]
fn cr0ack_falls_when_nothing_is_read_any_more_and_cons_is_final() {
    cmdqen(RIGHT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn cr0_without_release_is_caught() {
    cmdqen(Orders { guest_store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn cr0_without_acquire_is_caught() {
    cmdqen(Orders { load: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn cr0ack_without_release_is_caught() {
    cmdqen(Orders { store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn cr0ack_without_acquire_is_caught() {
    cmdqen(Orders { guest_load: Relaxed, ..RIGHT });
}

/// An illegal command, told by CONS.ERR and GERROR, mended, and acknowledged by GERRORN.
fn gerrorn(orders: Orders) {
    check(move || {
        let words = LoomQueue::new(SIZE, 0, Weak::Nothing);
        let [gerror, gerrorn] = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
        let mut consumer = Consumer::new(words.clone(), SIZE, Index::ZERO);
        words.store_entry(0, BAD);
        words.store_prod(1, Release);
        let guest = thread::spawn({
            let (gerror, gerrorn) = (gerror.clone(), gerrorn.clone());
            move || {
                wait(|| (gerror.load(orders.guest_load) != 0).then_some(()));
                assert_eq!(words.load_cons(Relaxed), ILL, "CONS tells of it before GERROR");
                words.store_entry(0, GOOD);
                gerrorn.store(1, orders.guest_store);
                wait_cons(&words, |cons| cons == 1);
            }
        });
        let mut errors = Toggle::default();
        wait(|| {
            if errors.follow(gerrorn.load(orders.load)) == 1 {
                consumer.publish_flags(0);
            }
            if errors.active() != 0 {
                return None;
            }
            let mut entries = [[0; 2]; 2];
            let n = consumer.fetch(consumer.prod(), &mut entries).unwrap();
            if entries[..n] == [GOOD] {
                consumer.consume(1);
                return Some(());
            }
            assert_eq!((&entries[..n], errors.raised()), (&[BAD][..], 0), "the old command once only");
            consumer.publish_flags(ILL);
            errors.raise(1);
            gerror.store(errors.raised(), orders.store);
            None
        });
        guest.join().unwrap();
    });
}

#[test]
fn gerrorn_alone_has_the_mended_command_fetched() {
    gerrorn(RIGHT);
}

#[test]
#[should_panic]
fn gerror_without_release_is_caught() {
    gerrorn(Orders { store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic]
fn gerror_without_acquire_is_caught() {
    gerrorn(Orders { guest_load: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn gerrorn_without_release_is_caught() {
    gerrorn(Orders { guest_store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn gerrorn_without_acquire_is_caught() {
    gerrorn(Orders { load: Relaxed, ..RIGHT });
}
