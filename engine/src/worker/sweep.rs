//! One sweep of a worker: see what each host has completed; look at the doorbells; visit the guests that have something to do, which complete what has
//! been waited for and hand over batches of their queues; hand all of it to the hosts; ask each for one synchronisation for all CMD_SYNCs that
//! were met.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::Worker;
use super::attachment::{self, Attachment};
use super::doorbells::{Looks, QueueId};
use super::handle::Order;
use crate::events::EventKind;
use crate::host::HostQueue;
use crate::submission::Submission;

/// How often a worker that does not sleep looks for host queues that stand still, in sweeps.
const STALL_SWEEPS: u64 = 1 << 14;

/// How many guests' registers a busy worker looks at in a sweep.
const REGISTERS: usize = 4;

/// How many quiet doorbells a busy worker looks at in a sweep, one more for so many units of work, and so many while it waits for the host.
const LOOKS: usize = 16;
const WORK: u64 = 32;
const LOOKS_WHILE_WAITING: usize = 256;

/// Whose code a sweep runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    Nobody,
    /// A guest's, by its place.
    Guest(usize),
    /// That of the guest's own host queue.
    OwnHost(usize),
    /// That of the worker's host queue.
    Host,
}

impl<H: HostQueue> Worker<H> {
    /// Says whether there was anything to do.
    pub(super) fn sweep(&mut self) -> bool {
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
        let Self { shared, attachments, turns, missed, serving, .. } = self;
        if let Some(host) = shared
            && host.wants_a_look()
        {
            let before = host.over();
            *serving = Serving::Host;
            // A failure stays until every guest has been told; else one whose VMM is busy keeps nobody waiting.
            host.begin(!*missed || host.failed().is_none());
            *serving = Serving::Nobody;
            let failed = host.failed().is_some();
            if host.over() != before || failed {
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

    pub(super) fn give_turn(&mut self, number: usize) {
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
    pub(super) fn host<T>(&mut self, own: bool, f: impl FnOnce() -> T) -> T {
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
