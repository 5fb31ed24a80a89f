//! A worker that looks streams up while the VMM takes one away and gives it back as another.

mod common;

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use common::{LoomWord, NOTHING, Plain, ROW_LOAD, ROW_STORE, check};
use ecmdq_ring::LookupTable;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;

/// Two streams whose places collide in a table made for two: the second is found behind the first.
const CHANGED: u32 = 2;
const BEHIND: u32 = 3;
/// What the changed stream is mapped to in turn.
const HISTORY: [Option<u32>; 3] = [Some(10), None, Some(11)];

/// `told` is the ordering of the VMM's saying how many changes have returned.
fn explore<const WEAK: u8>(told: Ordering) {
    check(move || {
        let table = Arc::new(LookupTable::<LoomWord<WEAK>>::new(2));
        table.set(CHANGED, HISTORY[0]);
        table.set(BEHIND, Some(30));
        let (returned, device) = (Arc::new(AtomicU32::new(0)), Arc::new(Plain::default()));
        let vmm = thread::spawn({
            let (table, returned, device) = (table.clone(), returned.clone(), device.clone());
            move || {
                table.set(CHANGED, HISTORY[1]);
                returned.store(1, told);
                device.write(11);
                table.set(CHANGED, HISTORY[2]);
                returned.store(2, told);
            }
        });
        let mut at_least = 0;
        for _ in 0..2 {
            at_least = at_least.max(returned.load(Acquire) as usize);
            let found = table.get(CHANGED);
            let state = HISTORY.iter().position(|value| *value == found).expect("old or new, never torn");
            assert!(state >= at_least, "a stale answer: {found:?} after {at_least} changes");
            at_least = state;
            if found == Some(11) {
                assert_eq!(device.read(), 11, "what was set up before is seen");
            }
            assert_eq!(table.get(BEHIND), Some(30), "the other one is always found");
        }
        vmm.join().unwrap();
        assert_eq!((table.get(CHANGED), table.get(BEHIND)), (Some(11), Some(30)));
    });
}

#[test]
fn a_look_up_finds_the_old_or_the_new_and_the_new_once_the_change_has_returned() {
    explore::<NOTHING>(Release);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_change_without_release_is_caught() {
    explore::<ROW_STORE>(Release);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_look_up_without_acquire_is_caught() {
    explore::<ROW_LOAD>(Release);
}

#[test]
#[should_panic(expected = "a stale answer")]
fn a_look_up_that_is_not_ordered_after_the_change_may_be_stale() {
    explore::<NOTHING>(Relaxed);
}
