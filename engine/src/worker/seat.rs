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
use crate::vsmmu::{Served, State, VirtualSmmu};

/// A guest, and what the worker keeps of it.
#[derive(Debug)]
pub(super) struct Seat<H> {
    pub guest: VirtualSmmu,
    /// Its own host queue, if it does not share the worker's.
    pub own: Option<Submission<H>>,
    pub allowance: Allowance,
    /// Its doorbells in the sleeper.
    pub keys: Vec<u64>,
    /// Told when it has left, the first with its own host queue.
    pub leaving: Vec<Sender<Option<H>>>,
    pub left: bool,
    /// Its VMM was busy with it in the last sweep: what its own host queue said then it has not been told.
    missed: bool,
}

impl<H: HostQueue> Seat<H> {
    pub fn new(guest: VirtualSmmu, own: Option<H>, share: Share) -> Self {
        let (own, allowance) = (own.map(Submission::new), Allowance::new(share));
        Self { guest, own, allowance, keys: Vec::new(), leaving: Vec::new(), left: false, missed: false }
    }

    /// One turn: a visit to all of its queues or those whose turn it is, and further ones while it has credit and the outbox had too little
    /// room. Host queues and callbacks are called between visits, when nothing of the guest is locked.
    pub fn serve(
        &mut self,
        shared: &mut Option<Submission<H>>,
        now: Duration,
        all: bool,
        teller: &mut Teller,
    ) -> Served {
        let missed = self.missed;
        if let Some(own) = &mut self.own {
            guarded(own, teller, |own| own.begin(!missed || own.failed().is_none()));
        }
        let served = self.turn(shared, now, all, teller);
        (self.missed, self.left) = (served == Served::Missed, served == Served::Left);
        if let Some(own) = &mut self.own {
            guarded(own, teller, |own| own.hand_over());
            if served == Served::Nothing && own.is_outstanding() {
                return Served::Waiting;
            }
        }
        served
    }

    fn turn(
        &mut self,
        shared: &mut Option<Submission<H>>,
        now: Duration,
        all: bool,
        teller: &mut Teller,
    ) -> Served {
        let Self { guest, own, allowance, leaving, .. } = self;
        let Some(to) = own.as_mut().or(shared.as_mut()) else { return Served::Nothing };
        allowance.begin(now, !to.is_blocked());
        let leaves = !leaving.is_empty();
        let (mut served, mut again) = visit(guest, teller, |state| {
            if let Some((round, failure)) = to.failed() {
                state.on_sync_failed(round, failure);
            }
            if leaves { state.leave(to) } else { state.serve(to, allowance, all, false) }
        });
        // Once more for what the VMM has done at once, and as often as the outbox can be emptied.
        loop {
            let mut has_room = false;
            guarded(to, teller, |to| has_room = to.make_room());
            if leaves || !has_room && !std::mem::take(&mut again) {
                break;
            }
            if has_room {
                allowance.go_on();
            }
            visit(guest, teller, |state| state.serve(to, allowance, all, has_room));
            served = Served::Something;
        }
        // What was denied for want of credit gets some in the next sweep; for a limit it takes a while.
        match served {
            Served::Nothing | Served::Waiting if allowance.denied && allowance.wait().is_zero() => {
                Served::Something
            }
            served => served,
        }
    }
}

/// One visit: looks at the state while it is locked, and makes the calls of the VMM's code that are noted meanwhile. Also says
/// whether the guest has asked the VMM for something.
fn visit(guest: &VirtualSmmu, teller: &Teller, f: impl FnOnce(&mut State) -> Served) -> (Served, bool) {
    let quarantined = |queue, panic: &(dyn Any + Send)| {
        teller.of(guest.vmid()).tell(EventKind::Quarantined { queue, message: message(panic) });
    };
    // What a panic leaves half done is the queue that was being served, which is not looked at again.
    let visited = catch_unwind(AssertUnwindSafe(|| guest.with_state(|state| (f(state), state.has_calls()))));
    match visited {
        Ok(None) => (Served::Missed, false),
        Ok(Some((served, calls))) => (served, calls && guest.make_calls(quarantined)),
        Err(panic) => {
            quarantined(guest.quarantine(), &*panic);
            (Served::Something, false)
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
