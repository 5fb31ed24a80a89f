//! Going to sleep: no doorbell is lost, in each way of ringing.
//!
//! The one who sleeps waits for an eventfd, which here is a counter behind a lock. It sleeps until everybody else has ended; if
//! nobody has written the eventfd by then, it sleeps for ever, and must have seen everything.

mod common;

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use common::{FENCES, LoomWord, NOTHING};
use ecmdq_ring::SleepWord;
use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Mutex};
use loom::thread::{self, JoinHandle};

/// What a worker and those who ring share.
struct Shared<const WEAK: u8> {
    word: SleepWord<LoomWord<WEAK>>,
    eventfd: Mutex<u32>,
    /// PROD as the worker reads it.
    prod: AtomicU32,
    page: Mutex<Page>,
}

/// A doorbell page: while it is armed a store exits. That the two go together is the hardware's doing, and here the lock's.
#[derive(Default)]
struct Page {
    trapped: bool,
    /// What the engine believes.
    armed: bool,
    arms: u32,
}

impl<const WEAK: u8> Shared<WEAK> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            word: SleepWord::default(),
            eventfd: Mutex::new(0),
            prod: AtomicU32::new(0),
            page: Mutex::default(),
        })
    }

    /// As a register write that traps, a token that is completed, or any call of the VMM.
    fn ring(&self) {
        if self.word.must_wake() {
            *self.eventfd.lock().unwrap() += 1;
        }
    }

    /// Whether anybody wakes it.
    fn sleep(&self, others: &mut Vec<JoinHandle<()>>) -> bool {
        let woken = |shared: &Self| std::mem::take(&mut *shared.eventfd.lock().unwrap()) > 0;
        if woken(self) {
            return true;
        }
        others.drain(..).for_each(|other| other.join().unwrap());
        woken(self)
    }
}

/// Two threads each make work visible and ring; the worker sleeps whenever there is none. Ends when all of it is done.
fn rings<const WEAK: u8>() {
    common::check(|| {
        let shared = Shared::<WEAK>::new();
        let mut ringers: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.prod.fetch_add(1, Release);
                    shared.ring();
                })
            })
            .collect();
        let mut seen = 0;
        while seen < 2 {
            shared.word.announce();
            let prod = shared.prod.load(Acquire);
            assert!(prod != seen || shared.sleep(&mut ringers), "a doorbell was lost");
            shared.word.awake();
            seen = prod;
        }
        ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
    });
}

#[test]
fn whoever_rings_is_heard() {
    rings::<NOTHING>();
}

#[test]
#[should_panic(expected = "a doorbell was lost")]
fn without_fences_a_doorbell_is_lost() {
    rings::<FENCES>();
}

/// What the worker leaves out of going to sleep.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// It does not look again whether the page is armed.
    CheckOfArmed,
    /// It arms the page before it looks for the last time, but not again.
    LastLook,
}

/// A guest's vCPUs store to a page that is plain memory while the worker is awake, and exits once when it is not.
fn traps(without: Without, stores: &'static [&'static [u32]]) {
    common::check(move || {
        let shared = Shared::<NOTHING>::new();
        let mut vcpus: Vec<_> = stores
            .iter()
            .map(|stores| {
                let shared = shared.clone();
                thread::spawn(move || stores.iter().for_each(|prod| store(&shared, *prod)))
            })
            .collect();
        let last = stores.iter().flat_map(|stores| stores.iter()).fold(0, |last, prod| last.max(*prod));
        let mut seen = 0;
        while seen < last {
            let before = (without == Without::LastLook).then(|| shared.prod.load(Acquire));
            arm(&shared);
            shared.word.announce();
            let prod = before.unwrap_or_else(|| shared.prod.load(Acquire));
            let armed = without == Without::CheckOfArmed || shared.page.lock().unwrap().armed;
            assert!(prod > seen || !armed || shared.sleep(&mut vcpus), "a doorbell was lost");
            shared.word.awake();
            seen = seen.max(prod);
        }
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        assert!(shared.page.lock().unwrap().arms <= 4, "once for each sleep");
    });
}

fn arm(shared: &Shared<NOTHING>) {
    let mut page = shared.page.lock().unwrap();
    if !page.armed {
        assert!(!page.trapped, "armed twice");
        (page.trapped, page.armed, page.arms) = (true, true, page.arms + 1);
    }
}

/// A vCPU's store. PROD only moves on; a store that changes nothing is one as well.
fn store(shared: &Shared<NOTHING>, prod: u32) {
    let mut page = shared.page.lock().unwrap();
    let trapped = page.trapped;
    // Relaxed: the exit, and plain memory in `arm`'s system call, order it; the lock stands for both.
    if shared.prod.load(Relaxed) < prod {
        shared.prod.store(prod, Release);
    }
    if trapped {
        (page.trapped, page.armed) = (false, false);
        drop(page);
        shared.ring();
    }
}

#[test]
fn a_store_to_a_page_that_traps_once_is_heard() {
    traps(Without::Nothing, &[&[1, 2]]);
}

#[test]
fn so_are_stores_of_two_vcpus_one_of_which_changes_nothing() {
    traps(Without::Nothing, &[&[0], &[1]]);
}

#[test]
#[should_panic(expected = "a doorbell was lost")]
fn a_page_that_was_disarmed_meanwhile_must_be_seen() {
    traps(Without::CheckOfArmed, &[&[0], &[1]]);
}

#[test]
#[should_panic(expected = "a doorbell was lost")]
fn the_last_look_comes_after_arming() {
    traps(Without::LastLook, &[&[1]]);
}
