//! A sweep over one virtual SMMU: completes what has come to pass, and takes what there is.

use super::state::State;
use crate::host::{Failure, HostQueue};
use crate::queue::{CommandError, Visit, Waiting};
use crate::rules::{Applied, End};
use crate::submission::Submission;
use crate::token::Outcome;
use crate::worker::{Allowance, EventKind};

/// What came of a look at a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Took {
    Nothing,
    Something,
    /// Something, and there is more.
    Part,
    /// There is something, and no credit or no room.
    Denied,
}

impl State {
    /// One sweep: registers, completions, and a batch from the queues whose turn it is, or from all of them, then further ones from
    /// those that have more, as long as there are credit and room. Says whether there was anything.
    pub fn serve<H: HostQueue>(
        &mut self,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
        all: bool,
    ) -> bool {
        let failed = to.failed();
        if let Some((round, failure)) = failed {
            self.hear(round, failure);
        }
        if self.paused || self.quarantined {
            return false;
        }
        let mut busy = self.follow_registers();
        if self.invalidating.is_some() {
            busy |= self.invalidate(to);
        }
        let turns = self.rota.begin(all, allowance.spent_before());
        if std::mem::take(&mut self.settled) && !busy && self.is_unchanged(turns) {
            self.settled = true;
            self.rota.rest();
            self.rota.end(None);
            return false;
        }
        let (mut denied, mut more, mut turn, mut served) = (None, false, 0, turns);
        // Until the VMM follows SMMUEN, nothing is taken that depends on it.
        let takes = self.smmuen_pending.is_none() && self.invalidating.is_none();
        while turn < turns {
            if denied.is_some() && !self.rota.is_look(turn) {
                // The others have their turn in the next sweep, or in one after that: first comes who was denied.
                busy |= self.complete_waiting(to);
                (served, turn) = (turn, self.rota.first_look());
                continue;
            }
            let number = self.rota.turn(turn);
            turn += 1;
            self.serving = Some(number);
            let completed = self.slots[number].waits() && self.complete(number, to);
            let took = if takes { self.take(number, to, allowance, &mut denied) } else { Took::Nothing };
            more |= took == Took::Part;
            let waits = self.slots[number].waits();
            self.waiting.set(number, waits);
            self.rota.note(number, completed || took != Took::Nothing || waits);
            busy |= completed || matches!(took, Took::Something | Took::Part);
        }
        if more {
            self.take_more(served, to, allowance, &mut denied);
        }
        self.serving = None;
        self.rota.end(denied);
        let waits = self.waiting.any() || self.gbpa_pending.is_some();
        self.settled = takes && !busy && !waits && denied.is_none();
        busy
    }

    /// Whether none of those that have a turn has a PROD that it did not have when there was nothing to do for it.
    fn is_unchanged(&self, turns: usize) -> bool {
        (0..turns).all(|turn| {
            let slot = &self.slots[self.rota.turn(turn)];
            slot.seen == Some(slot.prod())
        })
    }

    /// Whether it has had nothing to do for a while, and waits for nothing.
    pub fn is_quiet(&self) -> bool {
        self.rota.is_quiet()
    }

    /// Completes what queues wait for, of which no commands are taken in this sweep.
    fn complete_waiting<H: HostQueue>(&mut self, to: &mut Submission<H>) -> bool {
        let mut completed = false;
        let mut next = self.waiting.next(0);
        while let Some(number) = next {
            self.serving = Some(number);
            completed |= self.complete(number, to);
            self.waiting.set(number, self.slots[number].waits());
            next = self.waiting.next(number + 1);
        }
        completed
    }

    /// Completes the command that a queue waits for, if that has come to pass.
    pub(super) fn complete<H: HostQueue>(&mut self, number: usize, to: &mut Submission<H>) -> bool {
        let Some(queue) = &mut self.slots[number].queue else { return false };
        let (signal, round) = match queue.waiting {
            None => return false,
            Some(Waiting::Vmm) => return self.complete_request(number),
            Some(Waiting::Sync { signal, round }) => (signal, round),
        };
        match round {
            None => queue.waiting = Some(Waiting::Sync { signal, round: Some(to.sync()) }),
            Some(round) if !to.is_over(round) => return false,
            Some(_) => match queue.synchronised() {
                None => {
                    self.counters.commands.add(1);
                    self.counters.syncs.add(1);
                    self.pass_sync(number, signal);
                }
                Some(error) => {
                    self.counters.host_failures.add(1);
                    self.stop(number, error);
                }
            },
        }
        true
    }

    /// Tells every queue that a synchronisation failed, also while the guest is paused: nobody says so twice.
    pub(super) fn hear(&mut self, round: u64, Failure { cause, command }: Failure) {
        let ours = command.is_none_or(|command| self.rules.is_ours(&self.streams, command));
        let queues = self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut());
        queues.for_each(|queue| queue.on_sync_failed(round, cause, ours));
    }

    /// Completes the command for the VMM that a queue waits for, if the VMM has acted.
    fn complete_request(&mut self, number: usize) -> bool {
        let Some(outcome) = self.tokens.outcome(number) else { return false };
        let slot = &mut self.slots[number];
        let Some(queue) = &mut slot.queue else { return false };
        queue.waiting = None;
        match outcome {
            Outcome::Completed => {
                slot.pass();
                self.counters.commands.add(1);
            }
            Outcome::Rejected => self.fail_request(number, CommandError::Ill),
            // When the guest acknowledges, the command is fetched again, and the VMM asked again.
            Outcome::Dropped => self.fail_request(number, CommandError::Abt),
        }
        true
    }

    fn fail_request(&mut self, number: usize, error: CommandError) {
        self.counters.requests_failed.add(1);
        self.stop(number, error);
    }

    /// Further batches of the queues that have more, one of each in turn: the share is the guest's, however many queues it has.
    fn take_more<H: HostQueue>(
        &mut self,
        turns: usize,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
        denied: &mut Option<usize>,
    ) {
        let mut again = true;
        while std::mem::take(&mut again) {
            for turn in 0..turns {
                let number = self.rota.turn(turn);
                // It ends: each batch that leaves more has cost something.
                if std::mem::take(&mut self.slots[number].more) {
                    self.serving = Some(number);
                    again |= self.take(number, to, allowance, denied) == Took::Part;
                    self.waiting.set(number, self.slots[number].waits());
                }
            }
        }
    }

    /// Takes a batch from a queue. `denied` is the first queue for which there was no credit or no room.
    fn take<H: HostQueue>(
        &mut self,
        number: usize,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
        denied: &mut Option<usize>,
    ) -> Took {
        let slot = &mut self.slots[number];
        let prod = slot.prod();
        // Unless something is found.
        slot.seen = Some(prod);
        if slot.quarantined || slot.is_off() {
            return Took::Nothing;
        }
        let busy = slot.follow(prod, &self.features, &*self.ram);
        let busy = if busy { Took::Something } else { Took::Nothing };
        if slot.is_stopped(self.errors.active()) {
            return busy;
        }
        let Some(queue) = slot.queue.as_mut().filter(|queue| queue.waiting.is_none()) else { return busy };
        if !queue.wants(prod) {
            return busy;
        }
        if !to.is_blocked() && !allowance.has_some() {
            allowance.denied = true;
            denied.get_or_insert(number);
            return Took::Denied;
        }
        let round = to.round();
        let Some(out) = to.room() else {
            allowance.hold_up();
            denied.get_or_insert(number);
            return Took::Denied;
        };
        match queue.visit(prod, allowance.batch(), out, round, &self.rules, &self.streams) {
            Visit::Idle => return busy,
            Visit::Inconsistent => {
                self.counters.inconsistent.add(1);
                self.tell(EventKind::Inconsistent { queue: number });
            }
            Visit::Abort => {
                self.counters.aborts.add(1);
                self.stop(number, CommandError::Abt);
            }
            Visit::Taken(applied) => {
                let spent = applied.cost + applied.taken.saturating_sub(applied.host) as u64;
                allowance.spend(spent);
                slot.more = spent > 0 && matches!(applied.end, End::Batch) && queue.used(prod) != Some(0);
                let took = if slot.more { Took::Part } else { Took::Something };
                if let End::Sync(signal) = applied.end {
                    queue.waiting = Some(Waiting::Sync { signal, round: Some(to.sync()) });
                }
                self.account(number, applied);
                return took;
            }
        }
        Took::Something
    }

    fn account(&mut self, number: usize, applied: Applied) {
        self.counters.batches.add(1);
        self.counters.forwarded.add(applied.host);
        self.counters.dropped.add(applied.dropped);
        self.counters.widened.add(applied.widened);
        let waited_for = matches!(applied.end, End::Sync(_) | End::Request(_));
        self.counters.commands.add(applied.taken - usize::from(waited_for));
        match applied.end {
            End::Batch | End::Sync(_) => {}
            End::Request(request) => {
                self.counters.requests.add(1);
                if let Some(queue) = &mut self.slots[number].queue {
                    queue.waiting = Some(Waiting::Vmm);
                }
                (self.on_request)(request, self.tokens.issue(number));
                // Most are done by now.
                self.complete_request(number);
            }
            End::Illegal(rejected) => {
                self.counters.rejected.add(1);
                self.last_rejected = Some(rejected);
                self.tell(EventKind::Rejected { queue: number, rejected });
                self.stop_silently(number, CommandError::Ill);
            }
        }
    }
}
