//! From the doorbell to the outbox: a batch of a queue's commands.
//!
//! Commands behind a CMD_SYNC are taken before it has completed, and share the synchronisation of the host with those in front of it, unless
//! the order of invalidations (`queue/order.rs`) forbids that. What ends a queue's way, an error or a command for the VMM, waits until CONS has reached it.

use std::collections::VecDeque;

use ecmdq_ring::handshake::Step;

use super::calls::Call;
use super::complete::{PendingSync, SYNCS};
use super::queue::Ring;
use super::state::State;
use crate::command::{Command, CommandError, Rank, ranks, ranks_by_address};
use crate::events::EventKind;
use crate::host::HostQueue;
use crate::identity::StreamMap;
use crate::outbox::{MIN_BATCH, Outbox};
use crate::rules::{End, Rejected, Request, Rules, Signal};
use crate::share::{Allowance, MAX_BATCH_COST, price};
use crate::stats::Counters;
use crate::submission::Submission;

/// What came of a look at a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    Nothing,
    Something,
    /// Something, and there is more.
    Part,
    /// There may be something, and no credit or no room.
    Denied,
}

/// What ended a batch, once CONS has reached it.
enum Met {
    Request(Request),
    Illegal(Rejected),
}

impl State {
    /// Takes a batch from a queue.
    #[inline]
    pub(super) fn take<H: HostQueue>(
        &mut self,
        number: usize,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
    ) -> Took {
        let queue = &mut self.queues[number];
        if queue.quarantined || queue.is_off() {
            return Took::Nothing;
        }
        if !self.calls.has_room() {
            return Took::Denied;
        }
        if !allowance.has_some() {
            allowance.deny(to.is_blocked());
            return Took::Denied;
        }
        let prod = queue.prod();
        let mut took = Took::Nothing;
        let step = queue.follow(prod);
        if step != Step::Nothing {
            self.follow_step(number, step);
            allowance.spend(price::HANDSHAKE);
            took = Took::Something;
        }
        let queue = &mut self.queues[number];
        if queue.is_stopped(self.errors.active()) {
            return took;
        }
        let Some(ring) = queue.ring.as_mut().filter(|ring| !ring.held && !ring.waits_for_vmm) else {
            return took;
        };
        let available = match ring.available(prod) {
            Ok(n) => {
                ring.inconsistent = false;
                if n == 0 {
                    return took;
                }
                n
            }
            Err(_) if ring.inconsistent => return took,
            Err(_) => {
                ring.inconsistent = true;
                allowance.spend(price::ERROR);
                self.counters.inconsistent.add(1);
                self.emit(EventKind::Inconsistent { queue: number });
                return Took::Something;
            }
        };
        if !ring.is_backed() {
            return self.abort(number, allowance);
        }
        if self.syncs.len() >= SYNCS {
            return Took::Denied;
        }
        let Some((fetched, out)) = to.room() else {
            allowance.hold_up();
            return Took::Denied;
        };
        // More than there is room for would be fetched in vain.
        let most = allowance.batch().min(out.room().len());
        let n = most.min(available as usize).min(fetched.len());
        ring.fetch(bytemuck::cast_slice_mut(&mut fetched[..n]));
        let Self { syncs, rules, streams, counters, .. } = self;
        let mut batch =
            Batch { ring, out, syncs, rules, streams, queue: number as u32, spent: 0, forwarded: 0 };
        let (taken, met) = batch.take(&fetched[..n], counters);
        allowance.spend(batch.spent + price::in_vain(n - taken));
        counters.batches.add(1);
        counters.forwarded.add(batch.forwarded);
        if ring.syncs == 0 {
            counters.commands.add(ring.consume_to(ring.taken()));
        }
        let more = !ring.held && ring.available(prod) != Ok(0);
        match met {
            Some(met) => self.meet(number, met, allowance),
            None if more => return Took::Part,
            None => {}
        }
        Took::Something
    }

    /// Follows what an ECMDQ's PROD asks for besides commands.
    fn follow_step(&mut self, number: usize, step: Step) {
        let Self { queues, features, ram, .. } = self;
        match step {
            Step::Nothing => {}
            Step::Enable => queues[number].enable(features, &**ram),
            Step::Disable => self.disable(number),
            Step::Resume => queues[number].resume(&**ram),
        }
    }

    /// Disables a queue. What is on its way is forgotten.
    pub(super) fn disable(&mut self, number: usize) {
        self.forget(number);
        self.queues[number].disable();
    }

    /// There are commands where there is no memory.
    fn abort(&mut self, number: usize, allowance: &mut Allowance) -> Took {
        if let Some(ring) = self.queues[number].ring.as_mut().filter(|ring| ring.syncs > 0) {
            ring.held = true;
            return Took::Nothing;
        }
        allowance.spend(price::ERROR);
        self.counters.aborts.add(1);
        self.stop(number, CommandError::Abt);
        Took::Something
    }

    /// CONS has reached a command that ends a batch.
    fn meet(&mut self, number: usize, met: Met, allowance: &mut Allowance) {
        match met {
            Met::Request(request) => {
                allowance.spend(price::REQUEST);
                self.counters.requests.add(1);
                if let Some(ring) = &mut self.queues[number].ring {
                    ring.waits_for_vmm = true;
                }
                self.requests.insert(number);
                let token = self.tokens.issue(number);
                self.call(Call::Request(request, token));
            }
            Met::Illegal(rejected) => {
                allowance.spend(price::ERROR);
                self.counters.rejected.add(1);
                self.last_rejected = Some(rejected);
                self.emit(EventKind::Rejected { queue: number, rejected });
                self.stop_silently(number, CommandError::Ill);
            }
        }
    }
}

/// A batch on its way from a ring to the outbox.
struct Batch<'a> {
    ring: &'a mut Ring,
    out: &'a mut Outbox,
    syncs: &'a mut VecDeque<PendingSync>,
    rules: &'a Rules,
    streams: &'a StreamMap,
    queue: u32,
    /// In units of cost.
    spent: u64,
    forwarded: usize,
}

impl Batch<'_> {
    /// Takes commands, group after group: how many, and what ended it if CONS has reached that.
    #[inline]
    fn take(&mut self, commands: &[Command], counters: &Counters) -> (usize, Option<Met>) {
        let mut rest = commands;
        let met = loop {
            if rest.is_empty() || self.syncs.len() >= SYNCS {
                break None;
            }
            if let Some(group) = self.rules.group(rest, self.out.room())
                && self.spent + group.cost <= MAX_BATCH_COST
            {
                let n = group.commands;
                if n > 0 && !self.send(n, group.cost) {
                    break None;
                }
                self.ring.take(n + 1);
                self.spent += group.cost + 1;
                rest = &rest[n + 1..];
                self.sync(group.signal, counters);
                continue;
            }
            let mut applied = self.rules.apply_to_any(self.streams, rest, self.out.room());
            if self.spent + applied.cost > MAX_BATCH_COST {
                // Only the first of them, which cannot cost more than that; or another time.
                if self.spent > 0 {
                    break None;
                }
                if rest.len() > MIN_BATCH {
                    applied = self.rules.apply_to_any(self.streams, &rest[..MIN_BATCH], self.out.room());
                }
            }
            if applied.host > 0 && !self.send(applied.host, applied.cost) {
                break None;
            }
            if applied.dropped + applied.widened > 0 {
                counters.dropped.add(applied.dropped);
                counters.widened.add(applied.widened);
            }
            // What waits for the VMM stays where it is.
            let taken = applied.taken - usize::from(matches!(applied.end, End::Request(_)));
            self.ring.take(taken);
            self.spent += applied.cost + taken.saturating_sub(applied.host) as u64;
            rest = &rest[taken..];
            match applied.end {
                End::Sync(signal) => self.sync(signal, counters),
                End::Batch if taken == 0 => break None,
                End::Batch => {}
                End::Request(_) | End::Illegal(_) if self.ring.syncs > 0 => {
                    self.ring.held = true;
                    break None;
                }
                End::Request(request) => break Some(Met::Request(request)),
                End::Illegal(rejected) => break Some(Met::Illegal(rejected)),
            }
        };
        (commands.len() - rest.len(), met)
    }

    /// Adds `n` commands that were written to the outbox, behind a synchronisation of the host if the order demands one, for which there may be
    /// no room.
    #[inline]
    fn send(&mut self, n: usize, cost: u64) -> bool {
        let commands = &self.out.room()[..n];
        // Only TLBIs by address cost a unit each.
        let (low, high) = if cost == n as u64 { ranks_by_address(commands) } else { ranks(commands) };
        if self.ring.order.needs_barrier(high, self.out.round()) {
            if !self.out.has_barrier() {
                return false;
            }
            self.out.barrier();
            self.ring.order.barrier();
        }
        self.ring.order.sent(low);
        self.ring.history.sent(self.out.round(), high == Rank::Atc);
        self.out.keep(n);
        self.forwarded += n;
        true
    }

    /// A CMD_SYNC was taken.
    #[inline]
    fn sync(&mut self, signal: Signal, counters: &Counters) {
        let (round, at) = (self.out.sync(), self.ring.last_taken());
        self.ring.order.close(round);
        self.syncs.push_back(PendingSync { queue: self.queue, at, signal, round });
        if self.ring.syncs == 0 {
            counters.commands.add(self.ring.consume_to(at));
        }
        self.ring.syncs += 1;
    }
}
