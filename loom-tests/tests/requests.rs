//! A request of the worker, which the VMM settles from a thread of its own.

mod common;

use common::{LoomWord, NOTHING, Plain, REQUEST_BLIND, REQUEST_LOOK, REQUEST_SETTLE, check, wait};
use ecmdq_ring::{Outcome, RequestCell};
use loom::sync::Arc;
use loom::thread;

/// What the VMM did before it settled the request is there when the worker sees the outcome.
fn settled<const WEAK: u8>(with: Outcome) {
    check(move || {
        let cell = Arc::new(RequestCell::<LoomWord<WEAK>>::default());
        let done = Arc::new(Plain::default());
        let request = cell.issue();
        let vmm = thread::spawn({
            let (cell, done) = (cell.clone(), done.clone());
            move || {
                done.write(1);
                cell.settle(request, with);
            }
        });
        assert_eq!(wait(|| cell.outcome()), with);
        assert_eq!(done.read(), 1);
        vmm.join().unwrap();
    });
}

#[test]
fn what_was_done_is_seen_with_the_outcome() {
    [Outcome::Completed, Outcome::Rejected, Outcome::Dropped].into_iter().for_each(settled::<NOTHING>);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn settling_without_release_is_caught() {
    settled::<REQUEST_SETTLE>(Outcome::Completed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_outcome_without_acquire_is_caught() {
    settled::<REQUEST_LOOK>(Outcome::Completed);
}

/// A reset takes a request back while the VMM settles it, and another one is made.
fn revoked<const WEAK: u8>() {
    check(|| {
        let cell = Arc::new(RequestCell::<LoomWord<WEAK>>::default());
        let old = cell.issue();
        let vmm = thread::spawn({
            let cell = cell.clone();
            move || cell.settle(old, Outcome::Rejected)
        });
        let new = cell.issue();
        assert_eq!(cell.outcome(), None, "what becomes of the old one has no effect");
        vmm.join().unwrap();
        assert_eq!(cell.outcome(), None, "what became of the old one has no effect");
        cell.settle(new, Outcome::Completed);
        assert_eq!(cell.outcome(), Some(Outcome::Completed));
    });
}

#[test]
fn settling_a_request_that_was_taken_back_has_no_effect() {
    revoked::<NOTHING>();
}

#[test]
#[should_panic(expected = "has no effect")]
fn settling_blindly_is_caught() {
    revoked::<REQUEST_BLIND>();
}

#[test]
fn the_first_outcome_counts() {
    check(|| {
        let cell = RequestCell::<LoomWord<NOTHING>>::default();
        let request = cell.issue();
        cell.settle(request, Outcome::Completed);
        cell.settle(request, Outcome::Dropped);
        assert_eq!(cell.outcome(), Some(Outcome::Completed));
    });
}
