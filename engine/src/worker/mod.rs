//! The polling loop: many virtual SMMUs, one host queue or several.

mod attachment;
mod doorbells;
mod handle;
mod idle;
mod sweep;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::events::{self, EventSink, Events};
use crate::host::HostQueue;
use crate::share::Share;
use crate::sleep::Notified;
use crate::submission::Submission;
use crate::vsmmu::VirtualSmmu;
use attachment::Attachment;
use doorbells::Doorbells;
use handle::{Order, Orders};
use idle::Sleep;
use sweep::Serving;

pub use handle::{AttachError, Detaching, Running, WorkerHandle};
pub use idle::{Idle, Nap};

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
    attachments: Vec<Attachment<H>>,
    doorbells: Doorbells,
    /// The guests that have a turn in the next sweep, in their order.
    turns: VecDeque<u32>,
    /// The guest whose registers are looked at next, while the worker is busy.
    registers: usize,
    /// Whose code runs, should it panic.
    serving: Serving,
    /// There was something to do in the last sweep.
    busy: bool,
    /// What was done in it, in units of cost.
    work: u64,
    /// A guest was left out in the last sweep, because its VMM was busy with it.
    missed: bool,
    orders: Arc<Orders<H>>,
    /// Set when there is an order, or a guest is notified.
    notified: Notified,
    sleep: Option<Sleep>,
    events: EventSink,
    received: Events,
    start: Instant,
    /// How many guests have a rate limit.
    limited: usize,
    /// How many guests have a host queue of their own.
    own_hosts: usize,
    /// How many sweeps there have been.
    sweeps: u64,
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

    fn with_host(shared: Option<Submission<H>>) -> Self {
        let (events, received) = events::channel(EVENTS);
        let orders = Arc::new(Orders::new(shared.is_some()));
        Self {
            shared,
            attachments: Vec::new(),
            doorbells: Doorbells::default(),
            turns: VecDeque::new(),
            registers: 0,
            serving: Serving::Nobody,
            busy: false,
            work: 0,
            missed: false,
            notified: orders.notified(),
            orders,
            sleep: None,
            events,
            received,
            start: Instant::now(),
            limited: 0,
            own_hosts: 0,
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
        self.add(guest, host, share);
        Ok(())
    }

    /// Adds a guest that has been claimed.
    fn add(&mut self, guest: VirtualSmmu, own: Option<H>, share: Share) {
        let doorbells = guest.doorbells();
        let mut attachment = Attachment::new(guest, own, share, doorbells.len());
        let Some(to) = attachment.own.as_mut().or(self.shared.as_mut()) else { return };
        attachment.guest.join(to.identities(), self.events.of(attachment.guest.vmid()));
        if let Some(sleep) = &mut self.sleep {
            sleep.watch(&mut attachment);
        }
        attachment.guest.set_worker(Some(self.orders.notified()));
        self.limited += usize::from(attachment.allowance.is_limited());
        self.own_hosts += usize::from(attachment.own.is_some());
        self.doorbells.add(doorbells);
        self.attachments.push(attachment);
        self.turns.reserve(self.attachments.len());
        self.give_turn(self.attachments.len() - 1);
    }

    /// How many synchronisations of its host queues have failed.
    pub fn host_failures(&self) -> u64 {
        self.hosts().map(Submission::failures).sum()
    }

    /// The guests, in the order in which they were added.
    pub fn guests(&self) -> impl ExactSizeIterator<Item = &VirtualSmmu> {
        self.attachments.iter().map(|attachment| &attachment.guest)
    }

    /// What the VMM may want to know. Any thread may wait for events; while 256 wait, more are left out.
    pub fn events(&self) -> Events {
        self.received.clone()
    }

    /// Takes a guest from the worker, which goes on serving the others. [`Detaching`] tells when nothing of the guest's memory is used any more and
    /// all that was taken from it has been synchronised; then another worker may have it. The worker must run, or be
    /// polled, until then.
    pub fn detach(&self, guest: &VirtualSmmu) -> Detaching<H> {
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
        self.shared.iter().chain(self.attachments.iter().filter_map(|attachment| attachment.own.as_ref()))
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
        self.attachments.iter().for_each(|attachment| attachment.guest.abandon());
    }
}
