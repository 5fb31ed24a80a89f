//! A guest's place at a worker.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crossbeam::channel::Sender;

use super::events::{EventKind, Teller};
use super::guarded;
use super::share::{Allowance, Share};
use crate::host::HostQueue;
use crate::submission::Submission;
use crate::vsmmu::{Held, VirtualSmmu};

/// A guest, and what the worker keeps of it.
#[derive(Debug)]
pub(super) struct Seat<H> {
    pub guest: VirtualSmmu,
    /// Its own host queue, if it does not share the worker's.
    pub own: Option<Submission<H>>,
    pub allowance: Allowance,
    /// Its doorbells in the sleeper.
    pub keys: Vec<u64>,
    /// Told when it has left, with its own host queue.
    pub leaving: Option<Sender<Option<H>>>,
    pub left: bool,
    /// Its VMM was busy with it in the last sweep: what its own host queue said then it has not been told.
    missed: bool,
}

/// What came of serving a guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// There was nothing to do, and there has not been for a while.
    Nothing,
    /// There was nothing to do, but soon there may be.
    Waiting,
    /// There was.
    Something,
    /// Its VMM is busy with it.
    Missed,
    /// All that was taken from it has been synchronised, and it goes.
    Left,
}

impl<H: HostQueue> Seat<H> {
    pub fn new(guest: VirtualSmmu, own: Option<H>, share: Share) -> Self {
        let (own, allowance) = (own.map(Submission::new), Allowance::new(share));
        Self { guest, own, allowance, keys: Vec::new(), leaving: None, left: false, missed: false }
    }

    /// One visit, to all of its queues or those whose turn it is. With a place for it, the state stays locked for the next one.
    pub fn serve(
        &mut self,
        shared: &mut Option<Submission<H>>,
        now: Duration,
        all: bool,
        held: Option<&mut Option<Held>>,
        teller: &mut Teller,
    ) -> Served {
        let missed = self.missed;
        if let Some(own) = &mut self.own {
            guarded(own, teller, |own| own.begin(!missed || own.failed().is_none()));
        }
        let mut served = self.serve_guest(shared, now, all, held, teller);
        (self.missed, self.left) = (served == Served::Missed, served == Served::Left);
        if let Some(own) = &mut self.own {
            guarded(own, teller, Submission::hand_over);
            if served == Served::Nothing && own.is_outstanding() {
                served = Served::Waiting;
            }
        }
        served
    }

    fn serve_guest(
        &mut self,
        shared: &mut Option<Submission<H>>,
        now: Duration,
        all: bool,
        mut held: Option<&mut Option<Held>>,
        teller: &Teller,
    ) -> Served {
        let Self { guest, own, allowance, leaving, .. } = self;
        let Some(to) = own.as_mut().or(shared.as_mut()) else { return Served::Nothing };
        allowance.begin(now, !to.is_blocked());
        let leaves = leaving.is_some();
        // What a panic leaves half done is the queue that was being served, which is not looked at again.
        let served = catch_unwind(AssertUnwindSafe(|| {
            guest.with_state(held.as_deref_mut(), |state| {
                if !leaves {
                    let busy = state.serve(to, allowance, all);
                    return match () {
                        () if busy => Served::Something,
                        () if state.is_quiet() => Served::Nothing,
                        () => Served::Waiting,
                    };
                }
                match state.leave(to) {
                    (_, true) => Served::Left,
                    (true, false) => Served::Something,
                    (false, false) => Served::Waiting,
                }
            })
        }));
        match served {
            Ok(None) => Served::Missed,
            // What was denied for want of credit gets some in the next sweep; for a limit it takes a while.
            Ok(Some(_)) if allowance.denied && allowance.wait().is_zero() => Served::Something,
            Ok(Some(served)) => served,
            Err(panic) => {
                let queue = guest.quarantine(held);
                let event = EventKind::Quarantined { queue, message: message(&*panic) };
                teller.of(guest.vmid()).tell(event);
                Served::Something
            }
        }
    }
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
        .into()
}
