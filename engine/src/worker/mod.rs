//! The polling loop: many virtual SMMUs, one host queue or several.
//!
//! One sweep: see what each host has completed; visit every guest, which completes what it waits for and hands over a batch
//! of each of its queues; hand all of it to the hosts; ask each for one synchronisation for all CMD_SYNCs that were met.

mod events;
mod handle;
mod idle;
mod seat;
mod share;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use crate::host::HostQueue;
use crate::rota::Rota;
use crate::submission::Submission;
use crate::vsmmu::{Served, VirtualSmmu};
use handle::{Order, Orders};
use idle::Sleep;
use seat::Seat;

pub(crate) use events::Teller;
pub use events::{Event, EventKind};
pub use handle::{AttachError, Leaving, Running, WorkerHandle};
pub use idle::{Idle, Nap};
pub(crate) use seat::message;
pub(crate) use share::{Allowance, MOST, price};
pub use share::{RateLimit, Share};

/// Quiet guests that are looked at now and then, beside those that are not.
const GUESTS: usize = 1;

/// How often a worker that does not sleep looks for host queues that stand still, in sweeps.
const STALL_SWEEPS: u32 = 1 << 14;

/// Events that wait for the VMM.
const EVENTS: usize = 256;

/// Serves virtual SMMUs from one thread, or from a caller that polls.
///
/// Nothing is spawned, and without [`Self::with_sleep`] nothing is opened. Dropping it leaves its guests without a worker;
/// they may be attached to another one.
#[derive(Debug)]
pub struct Worker<H> {
    /// The host queue of guests that have none of their own.
    shared: Option<Submission<H>>,
    seats: Vec<Seat<H>>,
    /// Which guests are visited, and in which order: each is the first in turn, so that none has the outbox to itself.
    rota: Rota,
    /// There was something to do in the last sweep.
    busy: bool,
    /// What was done in it, in units of cost.
    work: u64,
    /// A guest was left out in the last sweep, because its VMM was busy with it.
    missed: bool,
    orders: Arc<Orders<H>>,
    sleep: Option<Sleep>,
    teller: Teller,
    events: Receiver<Event>,
    start: Instant,
    /// How many guests have a rate limit.
    limited: usize,
    /// How many sweeps there have been.
    sweeps: u32,
}

impl<H: HostQueue> Worker<H> {
    /// A worker in front of a host queue, with no guests yet. It polls, and never sleeps.
    pub fn new(host: H) -> Self {
        Self::with_host(Some(Submission::new(host)))
    }

    /// A worker without a host queue: each guest brings its own.
    pub fn without_host() -> Self {
        Self::with_host(None)
    }

    /// Asks its host queue for a synchronisation only while fewer than `most` are outstanding: 1 to 64, which is the default.
    ///
    /// With 64 a CMD_SYNC waits for no other ticket than its own. With 1 or 2, CMD_SYNCs gather while the host is at work, and
    /// more of them share one of the host's: for a host queue whose synchronisation takes longer than a sweep, and is what bounds
    /// it (`docs/scaling.md`). Host queues of single guests are not concerned.
    pub fn with_tickets(mut self, most: usize) -> Self {
        if let Some(shared) = &mut self.shared {
            shared.set_tickets(most);
        }
        self
    }

    fn with_host(shared: Option<Submission<H>>) -> Self {
        let (teller, events) = events::channel(EVENTS);
        let orders = Arc::new(Orders::new(shared.is_some()));
        Self {
            shared,
            seats: Vec::new(),
            rota: Rota::new(0, GUESTS, usize::MAX),
            busy: false,
            work: 0,
            missed: false,
            orders,
            sleep: None,
            teller,
            events,
            start: Instant::now(),
            limited: 0,
            sweeps: 0,
        }
    }

    /// Adds a guest in front of the worker's host queue.
    ///
    /// # Errors
    ///
    /// [`AttachError`]; then nothing has changed.
    pub fn attach(&mut self, guest: VirtualSmmu) -> Result<(), AttachError> {
        self.attach_sharing(guest, None, Share::default())
    }

    /// Adds a guest with a host queue of its own, as one behind iommufd has.
    ///
    /// # Errors
    ///
    /// As [`Self::attach`].
    pub fn attach_with(&mut self, guest: VirtualSmmu, host: H) -> Result<(), AttachError> {
        self.attach_sharing(guest, Some(host), Share::default())
    }

    /// The same with a share that is not the default; without a host queue, in front of the worker's.
    ///
    /// # Errors
    ///
    /// As [`Self::attach`].
    pub fn attach_sharing(
        &mut self,
        guest: VirtualSmmu,
        host: Option<H>,
        share: Share,
    ) -> Result<(), AttachError> {
        self.orders.claim(&guest, host.is_some())?;
        self.seat(guest, host, share);
        Ok(())
    }

    /// Adds a guest that has been claimed.
    fn seat(&mut self, guest: VirtualSmmu, own: Option<H>, share: Share) {
        let mut seat = Seat::new(guest, own, share);
        let Some(to) = seat.own.as_mut().or(self.shared.as_mut()) else { return };
        seat.guest.join(to.identities(), self.teller.of(seat.guest.vmid()));
        if let Some(sleep) = &mut self.sleep {
            sleep.watch(&mut seat);
        }
        seat.guest.set_waker(self.orders.waker());
        self.limited += usize::from(seat.allowance.is_limited());
        self.seats.push(seat);
        self.rota.resize(self.seats.len());
    }

    /// How many synchronisations of its host queues have failed.
    pub fn host_failures(&self) -> u64 {
        self.hosts().map(Submission::failures).sum()
    }

    /// The guests, in the order in which they were added.
    pub fn guests(&self) -> impl ExactSizeIterator<Item = &VirtualSmmu> {
        self.seats.iter().map(|seat| &seat.guest)
    }

    /// What the VMM may want to know. A receiver may wait for events on any thread; while 256 wait, more are left out.
    pub fn events(&self) -> Receiver<Event> {
        self.events.clone()
    }

    /// Takes a guest from the worker, which goes on serving the others. [`Leaving`] tells when nothing of the guest's memory is used any more and
    /// all that was taken from it has been synchronised; then another worker may have it. The worker must run, or be
    /// polled, until then.
    pub fn detach(&self, guest: &VirtualSmmu) -> Leaving<H> {
        self.handle().detach(guest)
    }

    /// A handle for other threads.
    pub fn handle(&self) -> WorkerHandle<H> {
        WorkerHandle::new(self.orders.clone())
    }

    /// One sweep; never waits. It takes no more than a batch of each queue and the share of each guest. Says whether there was
    /// anything to do.
    pub fn poll(&mut self) -> bool {
        if let Some(sleep) = &mut self.sleep {
            sleep.awake();
        }
        // One that found nothing, and has not looked at everybody, says nothing.
        let all = !self.busy;
        self.sweep() || !all && self.sweep()
    }

    fn hosts(&self) -> impl Iterator<Item = &Submission<H>> {
        self.shared.iter().chain(self.seats.iter().filter_map(|seat| seat.own.as_ref()))
    }

    fn sweep(&mut self) -> bool {
        self.follow_orders();
        self.sweeps = self.sweeps.wrapping_add(1);
        if self.sweeps.is_multiple_of(STALL_SWEEPS) {
            self.look_for_stalls();
        }
        let now = if self.limited > 0 { self.start.elapsed() } else { Duration::ZERO };
        let Self { shared, seats, missed, teller, rota, work, .. } = self;
        if let Some(host) = shared {
            // A failure stays until every guest has been told; else one whose VMM is busy keeps nobody waiting.
            let look = !*missed || host.failed().is_none();
            guarded(host, teller, |host| host.begin(look));
        }
        *missed = false;
        // While there is nothing to do a look at everything costs nobody anything; and a failure must be told to everybody.
        let all = !self.busy || shared.as_ref().is_some_and(|host| host.failed().is_some());
        let (mut busy, mut left, mut held_up) = (false, false, None);
        let turns = rota.begin(all, std::mem::take(work));
        for turn in 0..turns {
            let number = rota.turn(turn);
            let Some(seat) = seats.get_mut(number) else { continue };
            let served = seat.serve(shared, now, all, teller);
            rota.note(number, served != Served::Nothing);
            *work += seat.allowance.spent();
            if seat.allowance.held_up && seat.own.is_none() {
                held_up.get_or_insert(number);
            }
            match served {
                Served::Nothing | Served::Waiting => {}
                Served::Something => busy = true,
                Served::Missed => *missed = true,
                Served::Left => left = true,
            }
        }
        rota.end(held_up);
        self.busy = busy;
        if let Some(host) = shared {
            guarded(host, teller, Submission::hand_over);
        }
        if left {
            self.part();
        }
        busy
    }

    fn follow_orders(&mut self) {
        for order in self.orders.take() {
            match order {
                Order::Attach(guest, host, share) => self.seat(guest, host, share),
                Order::Detach(guest, told) => {
                    // One that is not here needs not be waited for: `told` is dropped.
                    if let Some(seat) = self.seats.iter_mut().find(|seat| seat.guest.is(&guest)) {
                        seat.leaving.push(told);
                    }
                }
            }
        }
    }

    /// Lets go of the guests that have left.
    fn part(&mut self) {
        for seat in self.seats.extract_if(.., |seat| seat.left) {
            self.limited -= usize::from(seat.allowance.is_limited());
            if let Some(sleep) = &mut self.sleep {
                sleep.forget(&seat);
            }
            seat.guest.part();
            let mut own = seat.own.map(Submission::into_host);
            for told in seat.leaving {
                // Whoever waits may have gone.
                let _ = told.send(own.take());
            }
        }
        self.rota.resize(self.seats.len());
    }
}

/// Does something with a host queue. One that panics counts as gone: what that leaves half done is not used any more.
#[inline]
fn guarded<H: HostQueue>(host: &mut Submission<H>, teller: &mut Teller, f: impl FnOnce(&mut Submission<H>)) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(host))) {
        host.give_up(&*panic);
    }
    if host.has_news() {
        tell(host, teller);
    }
}

/// Tells the VMM what it has not been told of a host queue.
fn tell<H: HostQueue>(host: &mut Submission<H>, teller: &mut Teller) {
    if let Some(message) = host.take_panic() {
        teller.tell(EventKind::Quarantined { queue: None, message });
    }
    if let Some(failure) = host.take_news() {
        teller.tell(EventKind::HostFailed(failure));
    }
}

impl<H> Drop for Worker<H> {
    /// Guests that have not left lose what is on its way to the host; their next worker makes good for that.
    fn drop(&mut self) {
        // Whoever waits for a guest to leave learns it, when the last of this is dropped, after that.
        let orders = self.orders.close();
        for order in &orders {
            if let Order::Attach(guest, ..) = order {
                guest.part();
            }
        }
        self.seats.iter().for_each(|seat| seat.guest.abandon());
    }
}
