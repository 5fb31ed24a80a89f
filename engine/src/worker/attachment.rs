//! A guest, and what its worker keeps of it.

use std::any::Any;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam::channel::Sender;
use ecmdq_ring::SharedWord;

use super::sweep::Serving;
use crate::events::{EventKind, EventSink, panic_message};
use crate::host::HostQueue;
use crate::share::{Allowance, Share};
use crate::submission::Submission;
use crate::vsmmu::{Ready, State, VirtualSmmu, Visit};

#[derive(Debug)]
pub(super) struct Attachment<H> {
    pub guest: VirtualSmmu,
    /// Its own host queue, if it does not share the worker's.
    pub own: Option<Submission<H>>,
    pub allowance: Allowance,
    /// Its queues that are to be looked at.
    pub ready: Ready,
    /// The guest has written registers that are no queue's own, or the VMM has done something.
    pub news: bool,
    /// It has its place among those that have a turn in the next sweep.
    pub has_turn: bool,
    /// The sweep of its last turn.
    last_turn: u64,
    /// The oldest round that it waits for; `u64::MAX` if it waits for none.
    pub waits_for: u64,
    registers: GlobalRegisters,
    /// Its doorbells in the sleeper.
    pub keys: Vec<u64>,
    /// Told when it has left, the first with its own host queue.
    pub detaching: Vec<Sender<Option<H>>>,
    pub left: bool,
    /// Its VMM was busy with it in the last sweep: what its own host queue said then it has not been told.
    pub missed: bool,
}

/// What came of a guest's turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    pub busy: bool,
    /// It has another turn in the next sweep.
    pub again: bool,
    /// There was no room at the host for what it has.
    pub held_up: bool,
}

/// The registers that are no queue's own, as they were last looked at.
#[derive(Debug)]
struct GlobalRegisters([Option<(SharedWord, u32)>; 4]);

impl GlobalRegisters {
    fn has_changed(&mut self) -> bool {
        let mut changed = false;
        for (word, seen) in self.0.iter_mut().flatten() {
            // Relaxed: whoever follows them loads them once more.
            let now = word.load(Relaxed);
            changed |= now != *seen;
            *seen = now;
        }
        changed
    }
}

impl<H: HostQueue> Attachment<H> {
    pub fn new(guest: VirtualSmmu, own: Option<H>, share: Share, queues: usize) -> Self {
        let registers = GlobalRegisters(guest.global_registers().map(|word| Some((word?, 0))));
        Self {
            guest,
            own: own.map(Submission::new),
            allowance: Allowance::new(share),
            ready: Ready::new(queues),
            news: true,
            has_turn: false,
            last_turn: 0,
            waits_for: u64::MAX,
            registers,
            keys: Vec::new(),
            detaching: Vec::new(),
            left: false,
            missed: false,
        }
    }

    /// Whether the guest has written registers that are no queue's own since this was last asked.
    #[inline]
    pub fn registers_have_changed(&mut self) -> bool {
        self.registers.has_changed()
    }

    /// One turn: a visit, and further ones while the guest has credit and the outbox had too little room. Host queues and callbacks are called
    /// between visits, when nothing of the guest is locked.
    pub fn serve(
        &mut self,
        shared: &mut Option<Submission<H>>,
        now: Duration,
        sweep: u64,
        events: &EventSink,
        serving: &mut Serving,
    ) -> Turn {
        let Self { guest, own, allowance, ready, detaching, news, .. } = self;
        let is_own = own.is_some();
        let Some(to) = own.as_mut().or(shared.as_mut()) else { return Turn::default() };
        // Whoever has taken its share before a ticket is asked for must not put that off.
        let open = !to.is_blocked() && !to.gathers();
        allowance.begin(now, open, sweep - self.last_turn);
        self.last_turn = sweep;
        let leaves = !detaching.is_empty();
        let (mut visited, mut again) = visit(guest, events, |state| {
            if let Some((round, failure)) = to.failed() {
                state.on_sync_failed(round, failure, ready);
            }
            if leaves { state.leave(to, ready) } else { state.serve(to, allowance, ready, *news) }
        });
        let mut busy = visited.is_some_and(|visit| visit.busy);
        // Once more for what the VMM has done at once, and as often as the outbox can be emptied.
        loop {
            let has_room = to.is_cramped() && serving.host(is_own, || to.make_room());
            if leaves || !has_room && !std::mem::take(&mut again) {
                break;
            }
            if has_room {
                allowance.go_on();
            }
            let (next, _) = visit(guest, events, |state| state.serve(to, allowance, ready, true));
            visited = next.or(visited);
            busy = true;
        }
        self.missed = visited.is_none();
        let Some(visit) = visited else {
            return Turn { busy, again: true, held_up: false };
        };
        self.news = visit.news;
        (self.left, self.waits_for) = (visit.left, visit.waits_for);
        // What was denied for want of credit gets some in the next sweep; for a limit it takes a while.
        busy |= allowance.denied && allowance.wait().is_zero();
        Turn { busy, again: visit.again || visit.news, held_up: allowance.held_up }
    }
}

/// One visit: looks at the state while it is locked, and makes the calls of the VMM's code that are noted meanwhile. `None` if the VMM is busy with
/// the guest. Also says whether the guest has asked the VMM for something.
#[inline]
fn visit(
    guest: &VirtualSmmu,
    events: &EventSink,
    f: impl FnOnce(&mut State) -> Visit,
) -> (Option<Visit>, bool) {
    match guest.with_state(|state| (f(state), state.has_calls())) {
        None => (None, false),
        Some((visit, calls)) => (Some(visit), calls && make_calls(guest, events)),
    }
}

#[inline(never)]
fn make_calls(guest: &VirtualSmmu, events: &EventSink) -> bool {
    guest.make_calls(|queue, panic| quarantined(guest, events, queue, panic))
}

/// Tells the VMM that a queue is not served any more, or nothing of the guest is.
pub(super) fn quarantined(
    guest: &VirtualSmmu,
    events: &EventSink,
    queue: Option<usize>,
    panic: &(dyn Any + Send),
) {
    events.of(guest.vmid()).emit(EventKind::Quarantined { queue, message: panic_message(panic) });
}
