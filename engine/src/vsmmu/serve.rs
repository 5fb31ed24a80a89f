//! A visit of the worker to one virtual SMMU: registers, completions, then commands of the queues that are ready.

use super::ready::Ready;
use super::state::State;
use super::take::Took;
use crate::host::HostQueue;
use crate::share::{Allowance, price};
use crate::submission::Submission;

/// What came of a visit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Visit {
    /// There was something to do.
    pub busy: bool,
    /// The next visit must not wait until a doorbell rings.
    pub again: bool,
    /// The next visit must look for news as well.
    pub news: bool,
    /// A CMD_SYNC waits for this round; `u64::MAX` if none does.
    pub waits_for: u64,
    /// All that was taken has been synchronised, and the guest leaves its worker.
    pub left: bool,
}

impl State {
    /// One visit. `ready` are the queues that are to be looked at, in their order. `news` says that the guest has written registers that are no
    /// queue's own, or that the VMM has done something.
    #[inline]
    pub fn serve<H: HostQueue>(
        &mut self,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
        ready: &mut Ready,
        news: bool,
    ) -> Visit {
        if !self.is_served() {
            // Whoever ends that has everything looked at.
            ready.clear();
            return Visit { waits_for: u64::MAX, ..Visit::default() };
        }
        let news = news && self.look(allowance, ready);
        let mut busy = self.complete_syncs(to.over(), ready) | news;
        if self.invalidating.is_some() {
            busy |= self.invalidate(to);
        }
        // Until the VMM follows SMMUEN, nothing is taken that depends on it.
        if self.smmuen_pending.is_none() && self.invalidating.is_none() {
            busy |= self.take_all(to, allowance, ready);
        }
        self.serving = None;
        let waits_for = self.syncs.front().map_or(u64::MAX, |sync| sync.round);
        // What is over and has not been completed waits for room for calls of the VMM's code, which are made before the next visit.
        let again = !ready.is_empty() || self.invalidating.is_some() || to.is_over(waits_for);
        Visit { busy, again, news, waits_for, left: false }
    }

    /// Follows the registers that are no queue's own, and what the VMM has done. Says whether there was anything: then what the guest has written
    /// meanwhile is followed in the next visit.
    #[inline(never)]
    fn look(&mut self, allowance: &mut Allowance, ready: &mut Ready) -> bool {
        let changed = self.follow_registers();
        if changed {
            allowance.spend(price::HANDSHAKE);
            ready.push(0);
        }
        if std::mem::take(&mut self.looks) {
            (0..self.queues.len()).for_each(|number| ready.push(number));
        }
        changed | self.complete_requests(ready)
    }

    /// Takes a batch of each queue that is ready, and further ones of those that have more, in turn, as long as there are credit and room: the
    /// share is the guest's, however many queues it has.
    #[inline]
    fn take_all<H: HostQueue>(
        &mut self,
        to: &mut Submission<H>,
        allowance: &mut Allowance,
        ready: &mut Ready,
    ) -> bool {
        let mut busy = false;
        while let Some(number) = ready.first() {
            self.serving = Some(number);
            let took = self.take(number, to, allowance);
            busy |= matches!(took, Took::Something | Took::Part);
            match took {
                Took::Nothing => {
                    allowance.spend_credit(price::VISIT);
                    ready.pop();
                }
                Took::Something => ready.pop(),
                // It ends: each batch that leaves more has cost something.
                Took::Part => ready.rotate(),
                Took::Denied => break,
            }
        }
        busy
    }

    /// One visit to a guest that leaves its worker: nothing more is taken. It has left when all that was taken has been synchronised, so
    /// that another worker may have the guest.
    pub fn leave<H: HostQueue>(&mut self, to: &mut Submission<H>, ready: &mut Ready) -> Visit {
        let mut busy = self.leaving.is_none();
        let round = *self.leaving.get_or_insert_with(|| to.sync());
        if self.is_served() {
            busy |= self.complete_syncs(to.over(), ready);
            busy |= self.complete_requests(ready);
            self.serving = None;
        }
        let left = to.is_over(round) && (self.calls.has_room() || !self.is_served());
        if left {
            self.leaving = None;
            self.forget_all();
        }
        Visit { busy, again: true, news: true, waits_for: u64::MAX, left }
    }

    /// What was taken of its queues beyond CONS is taken again by the next worker.
    pub(super) fn forget_all(&mut self) {
        self.syncs.clear();
        for queue in &mut self.queues {
            queue.forget();
            queue.ring.iter_mut().for_each(|ring| ring.history.forget_rounds());
        }
    }
}
