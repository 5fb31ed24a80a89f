//! The polling loop: many virtual SMMUs, one host queue or several.
//!
//! One sweep: see what each host has completed; look at the doorbells; visit the guests that have something to do, which complete what has
//! been waited for and hand over batches of their queues; hand all of it to the hosts; ask each for one synchronisation for all CMD_SYNCs that
//! were met.

mod attachment;
mod doorbells;
mod handle;
mod idle;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use crate::events::{self, Event, EventKind, EventSink};
use crate::host::HostQueue;
use crate::share::Share;
use crate::sleep::Notified;
use crate::submission::Submission;
use crate::vsmmu::VirtualSmmu;
use attachment::Attachment;
use doorbells::{Doorbells, Looks, QueueId};
use handle::{Order, Orders};
use idle::Sleep;

pub use handle::{AttachError, Leaving, Running, WorkerHandle};
pub use idle::{Idle, Nap};

/// How often a worker that does not sleep looks for host queues that stand still, in sweeps.
const STALL_SWEEPS: u64 = 1 << 14;

/// How many guests' registers a busy worker looks at in a sweep.
const REGISTERS: usize = 4;

/// How many quiet doorbells a busy worker looks at in a sweep, one more for so many units of work, and so many while it waits for the host.
const LOOKS: usize = 16;
const WORK: u64 = 32;
const LOOKS_WHILE_WAITING: usize = 256;

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
    received: Receiver<Event>,
    start: Instant,
    /// How many guests have a rate limit.
    limited: usize,
    /// How many guests have a host queue of their own.
    own_hosts: usize,
    /// The newest round of the worker's host queue for which guests have been looked for that wait for it.
    over: u64,
    /// How many sweeps there have been.
    sweeps: u64,
}

/// Whose code a sweep runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serving {
    Nobody,
    /// A guest's, by its place.
    Guest(usize),
    /// That of the guest's own host queue.
    OwnHost(usize),
    /// That of the worker's host queue.
    Host,
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
            over: 0,
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

    /// What the VMM may want to know. A receiver may wait for events on any thread; while 256 wait, more are left out.
    pub fn events(&self) -> Receiver<Event> {
        self.received.clone()
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
        self.shared.iter().chain(self.attachments.iter().filter_map(|attachment| attachment.own.as_ref()))
    }

    /// Says whether there was anything to do.
    fn sweep(&mut self) -> bool {
        self.sweeps += 1;
        match catch_unwind(AssertUnwindSafe(|| self.sweep_guests())) {
            Ok(busy) => self.busy = busy,
            Err(panic) => self.contain(panic),
        }
        if self.has_news() {
            self.tell_of_hosts();
        }
        self.busy
    }

    fn sweep_guests(&mut self) -> bool {
        if self.notified.take() {
            self.look_for_orders();
        }
        if self.sweeps.is_multiple_of(STALL_SWEEPS) {
            self.look_for_stalls();
        }
        self.look_at_hosts();
        // While there is nothing to do, a look at everything costs nobody anything.
        let all = !self.busy;
        let looks = if all { Looks::All } else { Looks::Some(self.looks()) };
        let Self { doorbells, attachments, turns, .. } = self;
        doorbells.sweep(looks, |QueueId { guest, queue }| {
            if let Some(attachment) = attachments.get_mut(guest) {
                attachment.ready.push(queue);
                give_turn(turns, attachment, guest as u32);
            }
        });
        self.look_at_registers(all);
        let busy = self.serve_guests();
        if let Some(host) = &mut self.shared {
            self.serving = Serving::Host;
            host.hand_over();
        }
        self.serving = Serving::Nobody;
        busy
    }

    /// How many quiet doorbells a busy worker looks at: in proportion to the work of the last sweep, and more while the host is waited for anyway.
    fn looks(&mut self) -> usize {
        let gathers = self.shared.as_ref().is_some_and(Submission::gathers);
        LOOKS
            + (std::mem::take(&mut self.work) / WORK) as usize
            + if gathers { LOOKS_WHILE_WAITING } else { 0 }
    }

    /// Sees what the host queues have completed, and which guests wait for that.
    fn look_at_hosts(&mut self) {
        let Self { shared, attachments, turns, over, missed, serving, .. } = self;
        if let Some(host) = shared
            && host.wants_a_look()
        {
            *serving = Serving::Host;
            // A failure stays until every guest has been told; else one whose VMM is busy keeps nobody waiting.
            host.begin(!*missed || host.failed().is_none());
            *serving = Serving::Nobody;
            let failed = host.failed().is_some();
            if std::mem::replace(over, host.over()) != host.over() || failed {
                for (number, attachment) in (0..).zip(attachments.iter_mut()) {
                    if attachment.own.is_none() && (failed || attachment.waits_for <= host.over()) {
                        give_turn(turns, attachment, number);
                    }
                }
            }
        }
        *missed = false;
        if self.own_hosts > 0 {
            self.look_at_own_hosts();
        }
    }

    fn look_at_own_hosts(&mut self) {
        let Self { attachments, turns, serving, .. } = self;
        for (number, attachment) in (0..).zip(attachments) {
            if let Some(host) = attachment.own.as_mut().filter(|host| host.wants_a_look()) {
                *serving = Serving::OwnHost(number as usize);
                host.begin(!attachment.missed || host.failed().is_none());
                if host.failed().is_some() || attachment.waits_for <= host.over() {
                    give_turn(turns, attachment, number);
                }
            }
        }
        *serving = Serving::Nobody;
    }

    /// Finds guests that have written registers that are no queue's own: among all, or the next few.
    fn look_at_registers(&mut self, all: bool) {
        let Self { attachments, turns, registers, .. } = self;
        let len = attachments.len();
        for _ in 0..if all { len } else { len.min(REGISTERS) } {
            *registers = if *registers + 1 < len { *registers + 1 } else { 0 };
            let attachment = &mut attachments[*registers];
            if attachment.registers_have_changed() {
                attachment.news = true;
                give_turn(turns, attachment, *registers as u32);
            }
        }
    }

    /// The turns of this sweep. Says whether there was anything to do.
    fn serve_guests(&mut self) -> bool {
        let now = if self.limited > 0 { self.start.elapsed() } else { Duration::ZERO };
        let Self { shared, attachments, turns, missed, events, work, serving, sweeps, .. } = self;
        let (mut busy, mut left, mut first) = (false, false, None);
        // Those that get another turn are put behind those that have one.
        let mut again = 0;
        for _ in 0..turns.len() {
            let Some(number) = turns.pop_front() else { break };
            let Some(attachment) = attachments.get_mut(number as usize) else { continue };
            attachment.has_turn = false;
            *serving = Serving::Guest(number as usize);
            let turn = attachment.serve(shared, now, *sweeps, events, serving);
            if let Some(host) = &mut attachment.own {
                *serving = Serving::OwnHost(number as usize);
                host.hand_over();
            }
            *work += attachment.allowance.spent();
            (busy, left) = (busy | turn.busy, left | attachment.left);
            *missed |= attachment.missed;
            if turn.held_up && attachment.own.is_none() {
                first.get_or_insert(again);
            }
            if turn.again || !attachment.detaching.is_empty() {
                give_turn(turns, attachment, number);
                again += 1;
            }
        }
        // Whoever found no room has the first turn, else the second has, so that nobody has the outbox to itself.
        match first {
            Some(first) => turns.rotate_left(first),
            None if again > 1 => turns.rotate_left(1),
            None => {}
        }
        if left {
            self.release();
        }
        busy
    }

    fn give_turn(&mut self, number: usize) {
        let Self { attachments, turns, .. } = self;
        if let Some(attachment) = attachments.get_mut(number) {
            give_turn(turns, attachment, number as u32);
        }
    }

    #[inline(never)]
    fn look_for_orders(&mut self) {
        for order in self.orders.take() {
            match order {
                Order::Attach(guest, host, share) => self.add(guest, host, share),
                Order::Detach(guest, told) => {
                    // One that is not here needs not be waited for: `told` is dropped.
                    let found = self.attachments.iter().position(|attachment| attachment.guest.is(&guest));
                    if let Some(number) = found {
                        self.attachments[number].detaching.push(told);
                        self.give_turn(number);
                    }
                }
            }
        }
        for number in 0..self.attachments.len() {
            if self.attachments[number].guest.take_notified() {
                self.attachments[number].news = true;
                self.give_turn(number);
            }
        }
    }

    /// Lets go of the guests that have left.
    fn release(&mut self) {
        while let Some(number) = self.attachments.iter().position(|attachment| attachment.left) {
            let attachment = self.attachments.remove(number);
            self.doorbells.remove(number);
            self.limited -= usize::from(attachment.allowance.is_limited());
            self.own_hosts -= usize::from(attachment.own.is_some());
            if let Some(sleep) = &mut self.sleep {
                sleep.forget(&attachment);
            }
            attachment.guest.part();
            let mut own = attachment.own.map(Submission::into_host);
            for told in attachment.detaching {
                // Whoever waits may have gone.
                let _ = told.send(own.take());
            }
        }
        self.give_everybody_a_turn();
    }

    fn give_everybody_a_turn(&mut self) {
        self.turns.clear();
        for attachment in &mut self.attachments {
            (attachment.has_turn, attachment.news) = (false, true);
        }
        (0..self.attachments.len()).for_each(|number| self.give_turn(number));
    }

    /// A panic is contained where it comes from: a queue, a guest, or a host queue, which counts as gone. What that leaves half done is not
    /// looked at again.
    #[cold]
    fn contain(&mut self, panic: Box<dyn Any + Send>) {
        let Self { shared, attachments, events, .. } = self;
        match std::mem::replace(&mut self.serving, Serving::Nobody) {
            Serving::Guest(number) => {
                let Attachment { guest, missed, .. } = &mut attachments[number];
                attachment::quarantined(guest, events, guest.quarantine(), &*panic);
                *missed = true;
            }
            Serving::OwnHost(number) => {
                attachments[number].own.iter_mut().for_each(|host| host.give_up(&*panic));
            }
            Serving::Host => shared.iter_mut().for_each(|host| host.give_up(&*panic)),
            Serving::Nobody => resume_unwind(panic),
        }
        // Whose turn it was, and who has been told of a failure, is not known any more.
        self.give_everybody_a_turn();
        self.missed = true;
        self.busy = true;
    }

    fn has_news(&self) -> bool {
        self.shared.as_ref().is_some_and(Submission::has_news)
            || self.own_hosts > 0 && self.hosts().any(Submission::has_news)
    }

    /// Tells the VMM what it has not been told of host queues.
    #[cold]
    fn tell_of_hosts(&mut self) {
        let Self { shared, attachments, events, .. } = self;
        for host in
            shared.iter_mut().chain(attachments.iter_mut().filter_map(|attachment| attachment.own.as_mut()))
        {
            if let Some(message) = host.take_panic() {
                events.emit(EventKind::Quarantined { queue: None, message });
            }
            if let Some(failure) = host.take_news() {
                events.emit(EventKind::HostFailed(failure));
            }
        }
    }
}

/// Gives a guest a turn in the next sweep, unless it has one.
#[inline]
fn give_turn<H>(turns: &mut VecDeque<u32>, attachment: &mut Attachment<H>, number: u32) {
    if !std::mem::replace(&mut attachment.has_turn, true) {
        turns.push_back(number);
    }
}

impl Serving {
    /// Calls a host queue in a guest's turn: its own one, or the worker's.
    fn host<T>(&mut self, own: bool, f: impl FnOnce() -> T) -> T {
        let guest = *self;
        *self = match guest {
            Self::Guest(number) if own => Self::OwnHost(number),
            _ => Self::Host,
        };
        let result = f();
        *self = guest;
        result
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
