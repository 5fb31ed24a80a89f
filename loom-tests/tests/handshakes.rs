//! What guest and worker say to each other besides commands: enabling, errors, completion. The worker does its loads and
//! stores in the order in which the engine does them, with the code that ships: `Handshake`, `Toggle`, `Consumer`.

mod common;

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use common::{LoomQueue, Weak};
use ecmdq_ring::handshake::{EN, ERR, Handshake, REASON_SHIFT, Step};
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
const ILL: u8 = 1;
/// Under the surface of CONS: the MSI is on its way.
const MSI_ON_ITS_WAY: u32 = 1 << 22;

fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(3);
    model.check(test);
}

/// Waits until `what` holds of CONS.
fn wait_cons(words: &LoomQueue, what: impl Fn(u32) -> bool) -> u32 {
    loop {
        let cons = words.load_cons(Acquire);
        if what(cons) {
            return cons;
        }
        thread::yield_now();
    }
}

/// An ECMDQ as the engine serves it: one sweep.
struct Ecmdq {
    words: LoomQueue,
    base: Arc<AtomicU32>,
    handshake: Handshake,
    consumer: Option<Consumer<LoomQueue>>,
    consumed: u32,
}

impl Ecmdq {
    fn new(words: LoomQueue, base: Arc<AtomicU32>) -> Self {
        Self { words, base, handshake: Handshake::default(), consumer: None, consumed: 0 }
    }

    fn sweep(&mut self) {
        let prod = self.words.load_prod(Acquire);
        match self.handshake.follow(prod) {
            Step::Nothing => {}
            Step::Enable => {
                assert_eq!(self.base.load(Relaxed), 7, "BASE was written before EN");
                let cons = self.words.load_cons(Relaxed);
                self.handshake.enable(cons);
                self.consumer = Some(Consumer::new(self.words.clone(), SIZE, SIZE.index(cons)));
                self.publish();
            }
            Step::Disable => {
                self.publish();
                self.consumer = None;
            }
            Step::Resume => self.publish(),
        }
        if self.handshake.is_stopped() {
            return;
        }
        let Some(consumer) = &mut self.consumer else { return };
        let mut entries = [[0; 2]; 2];
        let n = consumer.fetch(prod, &mut entries, |_| false).expect("PROD and CONS stay consistent");
        let good = entries[..n].iter().take_while(|entry| **entry == GOOD).count();
        if good > 0 {
            consumer.consume(good);
            self.consumed += good as u32;
        }
        if good < n {
            self.handshake.fail(ILL);
            self.publish();
        }
    }

    fn publish(&mut self) {
        let flags = self.handshake.flags();
        if let Some(consumer) = &mut self.consumer {
            consumer.publish_flags(flags);
        }
    }
}

/// A guest that enables a queue, rings once, disables it at once, and then uses the memory for something else.
fn enabling(weak: Weak) {
    check(move || {
        let (words, base) = (LoomQueue::new(SIZE, 0, weak), Arc::new(AtomicU32::new(0)));
        let mut worker = Ecmdq::new(words.clone(), base.clone());
        let guest = thread::spawn(move || {
            base.store(7, Relaxed);
            words.store_prod(EN, Release);
            wait_cons(&words, |cons| cons & EN != 0);
            words.store_entry(0, GOOD);
            words.store_prod(EN | 1, Release);
            words.store_prod(1, Release);
            let cons = wait_cons(&words, |cons| cons & EN == 0);
            // The worker has ended with the slot, whether it took the command or not.
            words.store_entry(0, BAD);
            cons & 3
        });
        while worker.handshake.is_enabled()
            || worker.consumer.is_none() && worker.words.load_prod(Acquire) != 1
        {
            worker.sweep();
            thread::yield_now();
        }
        worker.sweep();
        assert_eq!(guest.join().unwrap(), worker.consumed, "CONS is what was consumed");
    });
}

#[test]
fn enack_falls_when_nothing_is_read_any_more() {
    enabling(Weak::Nothing);
}

#[test]
#[should_panic]
fn en_without_release_is_caught() {
    enabling(Weak::ProdStore);
}

#[test]
#[should_panic]
fn en_without_acquire_is_caught() {
    enabling(Weak::ProdLoad);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn enack_without_release_is_caught() {
    enabling(Weak::ConsStore);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn enack_without_acquire_is_caught() {
    enabling(Weak::ConsLoad);
}

/// A guest whose command is illegal, which mends it and acknowledges by ERRACK.
fn errack(weak: Weak) {
    check(move || {
        let (words, base) = (LoomQueue::new(SIZE, 0, weak), Arc::new(AtomicU32::new(7)));
        let mut worker = Ecmdq::new(words.clone(), base);
        let guest = thread::spawn(move || {
            words.store_entry(0, BAD);
            words.store_prod(EN | 1, Release);
            let cons = wait_cons(&words, |cons| cons & ERR != 0);
            assert_eq!(cons, EN | ERR | u32::from(ILL) << REASON_SHIFT, "RD is at the command");
            words.store_entry(0, GOOD);
            words.store_prod(EN | ERR | 1, Release);
            wait_cons(&words, |cons| cons & 3 == 1);
        });
        while worker.consumed == 0 {
            worker.sweep();
            thread::yield_now();
        }
        guest.join().unwrap();
    });
}

#[test]
fn errack_alone_has_the_mended_command_fetched() {
    errack(Weak::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn errack_without_release_is_caught() {
    errack(Weak::ProdStore);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn errack_without_acquire_is_caught() {
    errack(Weak::ProdLoad);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn err_without_release_is_caught() {
    errack(Weak::ConsStore);
}

/// The orderings of GERROR, GERRORN and the MSI.
#[derive(Clone, Copy)]
struct Orders {
    store: Ordering,
    load: Ordering,
    ack_store: Ordering,
    ack_load: Ordering,
}

const RIGHT: Orders = Orders { store: Release, load: Acquire, ack_store: Release, ack_load: Acquire };

/// The CMDQ: an illegal command, told by CONS.ERR and GERROR, mended, and acknowledged by GERRORN.
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
                while gerror.load(orders.load) == 0 {
                    thread::yield_now();
                }
                assert_eq!(words.load_cons(Relaxed), u32::from(ILL) << 24, "CONS tells of it before GERROR");
                words.store_entry(0, GOOD);
                gerrorn.store(1, orders.ack_store);
                wait_cons(&words, |cons| cons == 1);
            }
        });
        let mut errors = Toggle::default();
        let mut consumed = 0;
        while consumed == 0 {
            if errors.follow(gerrorn.load(orders.ack_load)) == 1 {
                consumer.publish_flags(0);
            }
            let mut entries = [[0; 2]; 2];
            if errors.active() == 0 {
                let n = consumer.fetch(consumer.prod(), &mut entries, |_| false).unwrap();
                if entries[..n] == [GOOD] {
                    consumer.consume(1);
                    consumed += 1;
                } else {
                    consumer.publish_flags(u32::from(ILL) << 24);
                    errors.raise(1);
                    gerror.store(errors.raised(), orders.store);
                }
            }
            thread::yield_now();
        }
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
    gerrorn(Orders { load: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn gerrorn_without_release_is_caught() {
    gerrorn(Orders { ack_store: Relaxed, ..RIGHT });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn gerrorn_without_acquire_is_caught() {
    gerrorn(Orders { ack_load: Relaxed, ..RIGHT });
}

/// A CMD_SYNC that completes with an MSI: whoever sees the MSI sees CONS passed.
fn msi(orders: Orders) {
    check(move || {
        let words = LoomQueue::new(SIZE, 0, Weak::Nothing);
        let msi = Arc::new(AtomicU32::new(0));
        let mut consumer = Consumer::new(words.clone(), SIZE, Index::ZERO);
        let guest = thread::spawn({
            let msi = msi.clone();
            move || {
                while msi.load(orders.load) == 0 {
                    thread::yield_now();
                }
                assert_eq!(words.load_cons(Relaxed), 1, "CONS passed before the MSI");
            }
        });
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
fn trapped_cons(weak: Weak, held: u32) {
    check(move || {
        let words = LoomQueue::new(SIZE, 0, weak);
        let msi = Arc::new(AtomicU32::new(0));
        let mut consumer = Consumer::new(words.clone(), SIZE, Index::ZERO);
        let guest = thread::spawn({
            let msi = msi.clone();
            move || {
                let seen = msi.load(Acquire) == 1;
                let cons = wait_cons(&words, |cons| cons & MSI_ON_ITS_WAY == 0);
                match cons {
                    0 => assert!(!seen, "the MSI was there before CONS"),
                    _ => assert_eq!(msi.load(Relaxed), 1, "CONS was there before the MSI"),
                }
            }
        });
        consumer.publish_flags(held);
        consumer.consume(1);
        msi.store(1, Release);
        consumer.publish_flags(0);
        guest.join().unwrap();
    });
}

#[test]
fn a_trap_shows_cons_and_the_msi_together() {
    trapped_cons(Weak::Nothing, MSI_ON_ITS_WAY);
}

#[test]
#[should_panic(expected = "CONS was there before the MSI")]
fn without_the_mark_cons_is_seen_too_early() {
    trapped_cons(Weak::Nothing, 0);
}

#[test]
#[should_panic(expected = "CONS was there before the MSI")]
fn a_cons_store_without_release_is_caught() {
    trapped_cons(Weak::ConsStore, MSI_ON_ITS_WAY);
}

#[test]
#[should_panic(expected = "CONS was there before the MSI")]
fn a_trap_that_loads_cons_without_acquire_is_caught() {
    trapped_cons(Weak::ConsLoad, MSI_ON_ITS_WAY);
}
