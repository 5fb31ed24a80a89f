//! What a guest and a worker say to each other by the PROD and CONS of an ECMDQ besides commands. The worker does its loads
//! and stores in the order in which the engine does them, with the code that ships: `Handshake`, `Consumer`.

mod common;

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use common::{LoomQueue, Plain, Weak, check, wait_cons};
use ecmdq_ring::handshake::{EN, ERR, Handshake, REASON_SHIFT, Step};
use ecmdq_ring::{Consumer, QueueSize, QueueWords};
use loom::sync::Arc;
use loom::thread;

const SIZE: QueueSize = match QueueSize::from_log2(1) {
    Some(size) => size,
    None => panic!(),
};
const GOOD: [u64; 2] = [1, 1];
const BAD: [u64; 2] = [9, 9];
const ILL: u8 = 1;

/// An ECMDQ as the engine serves it: one sweep.
struct Ecmdq {
    words: LoomQueue,
    base: Arc<Plain>,
    handshake: Handshake,
    consumer: Option<Consumer<LoomQueue>>,
    consumed: u32,
    /// What BASE was whenever the queue was enabled.
    bases: Vec<u32>,
}

impl Ecmdq {
    fn new(words: LoomQueue, base: Arc<Plain>) -> Self {
        Self { words, base, handshake: Handshake::default(), consumer: None, consumed: 0, bases: Vec::new() }
    }

    fn sweep(&mut self) {
        let prod = self.words.load_prod(Acquire);
        match self.handshake.follow(prod) {
            Step::Nothing => {}
            Step::Enable => {
                self.bases.push(self.base.read());
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
        let n = consumer.fetch(prod, &mut entries).expect("PROD and CONS stay consistent");
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
        let (words, base) = (LoomQueue::new(SIZE, 0, weak), Arc::new(Plain::default()));
        let mut worker = Ecmdq::new(words.clone(), base.clone());
        let guest = thread::spawn(move || {
            base.write(7);
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
        assert_eq!(worker.bases, [7]);
    });
}

#[test]
fn enack_falls_when_nothing_is_read_any_more() {
    enabling(Weak::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn en_without_release_is_caught() {
    enabling(Weak::ProdStore);
}

#[test]
#[should_panic(expected = "Causality violation")]
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

/// A guest that uses a queue, disables it, and enables it again elsewhere and at another index.
fn enabling_again(weak: Weak) {
    check(move || {
        let (words, base) = (LoomQueue::new(SIZE, 0, weak), Arc::new(Plain::default()));
        let mut worker = Ecmdq::new(words.clone(), base.clone());
        let guest = thread::spawn(move || {
            base.write(7);
            words.store_entry(0, GOOD);
            words.store_prod(EN | 1, Release);
            wait_cons(&words, |cons| cons == EN | 1);
            words.store_prod(1, Release);
            wait_cons(&words, |cons| cons == 1);
            base.write(8);
            words.store_entry(0, BAD);
            words.store_entry(1, GOOD);
            words.store_cons(3, Relaxed);
            words.store_prod(EN, Release);
            // The command behind the wrap, and no other.
            wait_cons(&words, |cons| cons == EN);
        });
        while worker.consumed < 2 {
            worker.sweep();
            thread::yield_now();
        }
        guest.join().unwrap();
        assert_eq!(worker.bases, [7, 8]);
    });
}

#[test]
fn a_queue_that_is_enabled_again_is_where_base_and_cons_say() {
    enabling_again(Weak::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn enabling_again_without_release_is_caught() {
    enabling_again(Weak::ProdStore);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn enabling_again_without_acquire_is_caught() {
    enabling_again(Weak::ProdLoad);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn changing_base_before_enack_has_fallen_is_caught() {
    enabling_again(Weak::ConsStore);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn changing_base_after_an_unordered_load_of_enack_is_caught() {
    enabling_again(Weak::ConsLoad);
}

/// A guest whose command is illegal, which mends it and acknowledges by ERRACK.
fn errack(weak: Weak) {
    check(move || {
        let (words, base) = (LoomQueue::new(SIZE, 0, weak), Arc::new(Plain::default()));
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

#[test]
#[should_panic(expected = "Causality violation")]
fn err_without_acquire_is_caught() {
    errack(Weak::ConsLoad);
}
