//! What the engine decides on: the private truth of one virtual SMMU, and how it changes.
//!
//! Every register that the guest writes is an input, looked at once a sweep. Registers that the engine writes are outputs
//! and are never read back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ecmdq_ring::Toggle;
use ecmdq_ring::handshake::Handshake;

use super::doorbell::Bell;
use super::pages::Pages;
use super::slot::{Control, Slot};
use super::{Config, ConfigError};
use crate::bits::Bits;
use crate::features::Features;
use crate::host::{Cause, Failure, HostQueue};
use crate::identity::StreamMap;
use crate::interrupts::Interrupts;
use crate::memory::GuestRam;
use crate::queue::{CommandError, CommandQueue, Place, Visit, Waiting};
use crate::registers::*;
use crate::rota::Rota;
use crate::rules::{Applied, End, Rejected, Request, Rules};
use crate::stats::Counters;
use crate::submission::Submission;
use crate::token::{Outcome, Token, Tokens};
use crate::worker::{Allowance, EventKind, Teller};

/// Quiet queues that are looked at now and then, beside those that are not.
const QUEUES: usize = 16;

/// Called by the worker with what the guest asks of the VMM. It must not wait.
pub type OnRequest = Box<dyn FnMut(Request, Token) + Send>;

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

pub(crate) struct State {
    pub pages: Pages,
    pub ram: Box<dyn GuestRam>,
    pub streams: Arc<StreamMap>,
    pub features: Features,
    pub interrupts: Box<dyn Interrupts>,
    pub on_request: OnRequest,
    pub rules: Rules,
    pub counters: Arc<Counters>,
    pub last_rejected: Option<Rejected>,
    /// The bits of CR0 that exist.
    pub(super) cr0_bits: u32,
    pub(super) irq_ctrl_bits: u32,
    /// CR0ACK.
    pub cr0ack: u32,
    /// The value of SMMUEN that the VMM is following.
    pub(super) smmuen_pending: Option<u32>,
    /// After a restore, until the VMM has been asked to follow SMMUEN.
    pub(super) smmuen_untold: bool,
    /// The value of GBPA that the VMM is following, with Update if the guest waits for that.
    pub(super) gbpa_pending: Option<u32>,
    /// The VMM has to be told GBPA, which a saved state brought.
    pub(super) gbpa_untold: bool,
    /// IRQ_CTRLACK.
    pub irq_ctrl: u32,
    pub errors: Toggle,
    /// The CMDQ, and behind it the ECMDQs.
    pub(super) slots: Box<[Slot]>,
    /// Which slots are looked at, and in which order.
    rota: Rota,
    /// Which slots wait for something, or have lately: to be found without a look at each.
    waiting: Bits,
    /// Nothing was to be done in the last sweep, and nothing is waited for: only the guest's own registers can change that, or the VMM,
    /// who clears it.
    pub(super) settled: bool,
    /// The tokens of queue n are at n; behind those of the queues, [`Self::smmuen_token`] and [`Self::gbpa_token`].
    pub(super) tokens: Tokens,
    pub(super) bell: Arc<Bell>,
    /// Nothing happens while it is set.
    pub paused: bool,
    /// Where events go, while a worker serves it.
    pub(super) events: Option<Teller>,
    /// The queue that is being served, should that panic.
    serving: Option<usize>,
    /// A panic left the state in doubt: nothing is served any more, until a reset.
    quarantined: bool,
    /// It leaves its worker: the round that covers all that was taken.
    leaving: Option<u64>,
    /// Where the invalidation of all that the guest may have cached on the host has got to, after a restore.
    pub invalidating: Option<usize>,
}

impl State {
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let Config { features, host_features, quirks, vmid, streams, ram, front_end, interrupts, on_request } =
            config;
        features.check()?;
        let rules = Rules::new(&features, &host_features, vmid, &quirks)?;
        let pages = Pages::new(front_end, &features)?;
        let stride = Pages::ecmdq_stride(&features);
        let cmdq =
            Place { registers: pages.frame.clone(), base: CMDQ_BASE, prod: CMDQ_PROD, cons: CMDQ_CONS };
        let ecmdqs = (0..features.ecmdqs()).map(|q| {
            let at = q * stride;
            let registers = pages.control.clone();
            Place { registers, base: at + ECMDQ_BASE, prod: at + ECMDQ_PROD, cons: at + ECMDQ_CONS }
        });
        let slots: Box<[_]> = [Slot::new(cmdq, Control::Cmdq { code: 0 })]
            .into_iter()
            .chain(ecmdqs.map(|place| Slot::new(place, Control::Ecmdq(Handshake::default()))))
            .collect();
        let bits =
            |offset| WRITABLE.iter().find(|r| r.offset == offset).map_or(0, |r| r.bits(&features) as u32);
        let queues = slots.len();
        let bell = Arc::<Bell>::default();
        let mut state = Self {
            cr0_bits: bits(CR0),
            irq_ctrl_bits: bits(IRQ_CTRL),
            pages,
            ram,
            streams,
            features,
            interrupts,
            on_request,
            rules,
            counters: Arc::default(),
            last_rejected: None,
            cr0ack: 0,
            smmuen_pending: None,
            smmuen_untold: false,
            gbpa_pending: None,
            gbpa_untold: false,
            irq_ctrl: 0,
            errors: Toggle::default(),
            slots,
            rota: Rota::new(queues, QUEUES),
            waiting: Bits::new(queues),
            settled: false,
            tokens: Tokens::new(queues + 2, bell.clone()),
            bell,
            paused: false,
            events: None,
            serving: None,
            quarantined: false,
            leaving: None,
            invalidating: None,
        };
        state.reset();
        Ok(state)
    }

    /// As after power-on. What was taken before goes on to the host; tokens of before have no effect.
    pub fn reset(&mut self) {
        self.tokens.revoke();
        (self.serving, self.quarantined) = (None, false);
        for slot in &mut self.slots {
            (slot.queue, slot.quarantined) = (None, false);
            slot.control = match slot.control {
                Control::Cmdq { .. } => Control::Cmdq { code: 0 },
                Control::Ecmdq(_) => Control::Ecmdq(Handshake::default()),
            };
        }
        (self.cr0ack, self.irq_ctrl, self.errors) = (0, 0, Toggle::default());
        (self.smmuen_pending, self.smmuen_untold) = (None, false);
        (self.gbpa_pending, self.gbpa_untold) = (None, false);
        (self.last_rejected, self.invalidating) = (None, None);
        self.rules.set_smmu_enabled(false);
        self.pages.reset(&self.features);
    }

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
    fn complete<H: HostQueue>(&mut self, number: usize, to: &mut Submission<H>) -> bool {
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
    fn hear(&mut self, round: u64, Failure { cause, command }: Failure) {
        let ours = command.is_none_or(|command| self.rules.is_ours(&self.streams, command));
        let queues = self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut());
        queues.for_each(|queue| queue.hear(round, cause, ours));
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

    /// Tells the VMM.
    pub(super) fn tell(&mut self, kind: EventKind) {
        if let Some(events) = &mut self.events {
            events.tell(kind);
        }
    }

    /// After a panic: the queue that was being served is served no more, or nothing is if there was none. Says which.
    pub fn quarantine(&mut self) -> Option<usize> {
        let Some(number) = self.serving.take() else {
            self.quarantined = true;
            return None;
        };
        self.slots[number].quarantined = true;
        // The architecture's way to say that a queue does not go on. It calls the VMM, which may be what panicked.
        let stopped = catch_unwind(AssertUnwindSafe(|| self.stop(number, CommandError::Abt)));
        self.quarantined |= stopped.is_err();
        Some(number)
    }

    /// One sweep of a guest that leaves its worker. Nothing more is taken. Says whether there was anything to do, and whether all that
    /// was taken has been synchronised, so that another worker may have the guest.
    pub fn leave<H: HostQueue>(&mut self, to: &mut Submission<H>) -> (bool, bool) {
        if let Some((round, failure)) = to.failed() {
            self.hear(round, failure);
            // Nothing is known of what came before.
            self.leaving =
                self.leaving.filter(|leaving| *leaving != round || failure.cause != Cause::Transient);
        }
        let mut busy = self.leaving.is_none();
        let round = *self.leaving.get_or_insert_with(|| to.sync());
        if !self.paused && !self.quarantined {
            for number in 0..self.slots.len() {
                busy |= self.complete(number, to);
            }
        }
        if !to.is_over(round) {
            return (busy, false);
        }
        self.leaving = None;
        self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut()).for_each(CommandQueue::leave);
        (true, true)
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
