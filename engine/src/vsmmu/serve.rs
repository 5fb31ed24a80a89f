//! A sweep over one virtual SMMU: completes what has come to pass, and takes what there is.

use super::calls::Call;
use super::state::State;
use crate::host::{Cause, Failure, HostQueue};
use crate::queue::{CommandError, Visit, Waiting};
use crate::rules::{Applied, End};
use crate::submission::Submission;
use crate::token::Outcome;
use crate::worker::{Allowance, EventKind, price};

/// What came of a guest's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
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

/// How far the turns of a guest's queues have got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns {
    next: usize,
    /// How many there are.
    n: usize,
    /// How many queues may have been taken from.
    served: usize,
    /// The first queue for which there was no credit or no room.
    denied: Option<usize>,
    /// A queue has more than was taken.
    more: bool,
}

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
    /// One visit: registers, completions, and a batch from the queues whose turn it is, or from all of them, then further ones from
    /// those that have more, as long as there are credit and room. `goes_on` says that there is room again for what the last visit was cut
    /// short of.
    pub fn serve<H: HostQueue>(
        &mut self,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
        all: bool,
        goes_on: bool,
    ) -> Served {
        let busy = !self.paused && !self.quarantined && self.serve_queues(to, allowance, all, goes_on);
        match () {
            () if busy => Served::Something,
            () if self.rota.is_quiet() => Served::Nothing,
            () => Served::Waiting,
        }
    }

    /// Says whether there was anything to do.
    fn serve_queues<H: HostQueue>(
        &mut self,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
        all: bool,
        goes_on: bool,
    ) -> bool {
        let mut busy = self.follow_registers();
        if busy {
            allowance.spend(price::HANDSHAKE);
        }
        if self.invalidating.is_some() {
            busy |= self.invalidate(to);
        }
        let mut turns = match self.cut.take() {
            Some(cut) if goes_on => Turns { denied: None, ..cut },
            cut => {
                if let Some(Turns { denied, .. }) = cut {
                    self.rota.end(denied);
                }
                let n = self.rota.begin(all, allowance.spent_before());
                if std::mem::take(&mut self.settled) && !busy && self.is_unchanged(n) {
                    self.settled = true;
                    self.rota.rest();
                    self.rota.end(None);
                    return false;
                }
                Turns { next: 0, n, served: n, denied: None, more: false }
            }
        };
        // Until the VMM follows SMMUEN, nothing is taken that depends on it.
        let takes = self.smmuen_pending.is_none() && self.invalidating.is_none();
        while turns.next < turns.n {
            if turns.denied.is_some() && !self.rota.is_look(turns.next) {
                // The others have their turn in the next sweep, or in one after that: first comes who was denied.
                busy |= self.complete_waiting(to);
                (turns.served, turns.next) = (turns.next, self.rota.first_look());
                continue;
            }
            let number = self.rota.turn(turns.next);
            turns.next += 1;
            self.serving = Some(number);
            let completed = self.slots[number].waits() && self.complete(number, to);
            let took =
                if takes { self.take(number, to, allowance, &mut turns.denied) } else { Took::Nothing };
            turns.more |= took == Took::Part;
            let waits = self.slots[number].waits();
            self.waiting.set(number, waits);
            self.rota.note(number, completed || took != Took::Nothing || waits);
            busy |= completed || matches!(took, Took::Something | Took::Part);
            if took == Took::Denied && to.is_cramped() {
                turns.next -= 1;
                return self.cut_short(turns, to) || busy;
            }
        }
        if turns.more {
            self.take_more(turns.served, to, allowance, &mut turns.denied);
            if to.is_cramped() {
                return self.cut_short(turns, to) || busy;
            }
        }
        self.serving = None;
        self.rota.end(turns.denied);
        let waits = self.waiting.any() || self.gbpa_pending.is_some();
        self.settled = takes && !busy && !waits && turns.denied.is_none() && self.calls.is_empty();
        busy
    }

    /// The outbox has too little room: the turns go on in the next visit, if there is some by then. Says whether anything completed.
    fn cut_short<H: HostQueue>(&mut self, turns: Turns, to: &mut Submission<H>) -> bool {
        let completed = self.complete_waiting(to);
        self.serving = None;
        self.cut = Some(turns);
        completed
    }

    /// Whether none of those that have a turn has a PROD that it did not have when there was nothing to do for it.
    fn is_unchanged(&self, turns: usize) -> bool {
        (0..turns).all(|turn| {
            let slot = &self.slots[self.rota.turn(turn)];
            slot.seen == Some(slot.prod())
        })
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
        if !self.calls.has_room() {
            return false;
        }
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

    /// Tells every queue that a synchronisation failed, once, also while the guest is paused.
    pub fn on_sync_failed(&mut self, round: u64, Failure { cause, command }: Failure) {
        let ours = command.is_none_or(|command| self.rules.is_ours(&self.streams, command));
        let queues = self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut());
        queues.for_each(|queue| queue.on_sync_failed(round, cause, ours));
        // A guest that leaves waits for the next one, which says what else there is to be said of what came before.
        self.leaving = self.leaving.filter(|leaving| *leaving != round || cause == Cause::DeviceGone);
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
                    if to.is_cramped() {
                        self.slots[number].more = true;
                        return;
                    }
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
        if !allowance.has_some() && slot.asks(prod) || !self.calls.has_room() {
            allowance.denied = true;
            denied.get_or_insert(number);
            return Took::Denied;
        }
        let mut busy = Took::Nothing;
        if slot.follow(prod, &self.features, &*self.ram) {
            allowance.spend(price::HANDSHAKE);
            busy = Took::Something;
        }
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
            Visit::Idle => {
                allowance.spend(price::VISIT);
                return busy;
            }
            Visit::Inconsistent => {
                allowance.spend(price::ERROR);
                self.counters.inconsistent.add(1);
                self.tell(EventKind::Inconsistent { queue: number });
            }
            Visit::Abort => {
                allowance.spend(price::ERROR);
                self.counters.aborts.add(1);
                self.stop(number, CommandError::Abt);
            }
            Visit::Taken(applied, fetched) => {
                let spent = applied.cost + applied.taken.saturating_sub(applied.host) as u64;
                let ended_by = match applied.end {
                    End::Batch | End::Sync(_) => 0,
                    End::Request(_) => price::REQUEST,
                    End::Illegal(_) => price::ERROR,
                };
                allowance.spend(spent + ended_by + price::in_vain(fetched - applied.taken));
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
                let token = self.tokens.issue(number);
                self.call(Call::Request(request, token));
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
