//! What the engine decides on: the private truth of one virtual SMMU, and how it changes.
//!
//! Every register that the guest writes is an input, looked at once a sweep. Registers that the engine writes are outputs
//! and are never read back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ecmdq_ring::Toggle;
use ecmdq_ring::handshake::Handshake;

use super::calls::{Call, Callbacks, Calls};
use super::doorbell::Bell;
use super::pages::Pages;
use super::serve::{Served, Turns};
use super::slot::{Control, Slot};
use super::{Config, ConfigError};
use crate::bits::Bits;
use crate::features::Features;
use crate::host::HostQueue;
use crate::identity::StreamMap;
use crate::memory::GuestRam;
use crate::queue::{CommandError, CommandQueue, Place};
use crate::registers::*;
use crate::rota::Rota;
use crate::rules::{Rejected, Request, Rules};
use crate::stats::Counters;
use crate::submission::Submission;
use crate::token::{Token, Tokens};
use crate::worker::{EventKind, Teller};

/// Quiet queues that are looked at now and then, beside those that are not.
const QUEUES: usize = 16;
/// Queues that are not quiet and have a turn in a visit, at the most: a look at each costs time, whether it has anything or not.
const TURNS: usize = 512;

/// Called by the worker with what the guest asks of the VMM. It must not wait for the worker.
///
/// Nothing is locked while it runs: it may call the virtual SMMU and worker handles, and may take any lock. A request that was on its
/// way may arrive just after [`VirtualSmmu::pause`](super::VirtualSmmu::pause) or [`reset`](super::VirtualSmmu::reset) has returned; after a reset its token
/// has no effect.
pub type OnRequest = Box<dyn FnMut(Request, Token) + Send>;

pub(crate) struct State {
    pub pages: Pages,
    pub ram: Box<dyn GuestRam>,
    pub streams: Arc<StreamMap>,
    pub features: Features,
    /// What the VMM is to be told when the state is no longer locked.
    pub(super) calls: Calls,
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
    pub(super) rota: Rota,
    /// What the last visit was cut short of, for want of room.
    pub(super) cut: Option<Turns>,
    /// Which slots wait for something, or have lately: to be found without a look at each.
    pub(super) waiting: Bits,
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
    pub serving: Option<usize>,
    /// A panic left the state in doubt: nothing is served any more, until a reset.
    pub(super) quarantined: bool,
    /// It leaves its worker: the round that covers all that was taken.
    pub(super) leaving: Option<u64>,
    /// Where the invalidation of all that the guest may have cached on the host has got to, after a restore.
    pub invalidating: Option<usize>,
}

impl State {
    pub(super) fn new(config: Config) -> Result<(Self, Callbacks), ConfigError> {
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
            calls: Calls::new(),
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
            rota: Rota::new(queues, QUEUES, TURNS),
            cut: None,
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
        Ok((state, Callbacks::new(on_request, interrupts)))
    }

    /// As after power-on. What was taken before goes on to the host; tokens of before have no effect.
    pub fn reset(&mut self) {
        self.tokens.revoke();
        self.calls.forget_requests();
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
        self.last_rejected = None;
        // From the beginning: the guest's streams may be others from now on.
        self.invalidating = self.invalidating.map(|_| 0);
        self.rules.set_smmu_enabled(false);
        self.pages.reset(&self.features);
    }

    /// Tells the VMM.
    pub(super) fn tell(&mut self, kind: EventKind) {
        if let Some(events) = &mut self.events {
            events.tell(kind);
        }
    }

    /// After a panic: this queue is served no more, or nothing is if it is none. Returns it.
    pub fn quarantine(&mut self, queue: Option<usize>) -> Option<usize> {
        // Whose turn it was is not known any more: everybody has one.
        self.rota.resize(self.slots.len());
        self.cut = None;
        for number in 0..self.slots.len() {
            self.waiting.set(number, self.slots[number].waits());
        }
        let Some(number) = queue else {
            self.quarantined = true;
            return None;
        };
        self.slots[number].quarantined = true;
        // The architecture's way to say that a queue does not go on. It uses the guest's memory, which may be what panicked.
        let stopped = catch_unwind(AssertUnwindSafe(|| self.stop(number, CommandError::Abt)));
        self.quarantined |= stopped.is_err();
        Some(number)
    }

    /// Its worker goes without having synchronised what it took: all that the guest may have cached is invalidated before its next
    /// CMD_SYNC. A CMD_SYNC that waits for the host is taken again.
    pub fn abandon(&mut self) {
        self.leaving = None;
        self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut()).for_each(CommandQueue::abandon);
        self.invalidating = Some(0);
    }

    /// Notes a call of the VMM's code.
    pub(super) fn call(&mut self, call: Call) {
        self.calls.note(self.serving, call);
    }

    /// Whether the VMM is to be called.
    pub fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// One visit to a guest that leaves its worker: nothing more is taken. It has left when all that was taken has been synchronised, so
    /// that another worker may have the guest.
    pub fn leave<H: HostQueue>(&mut self, to: &mut Submission<H>) -> Served {
        let mut busy = self.leaving.is_none();
        let round = *self.leaving.get_or_insert_with(|| to.sync());
        if !self.paused && !self.quarantined {
            for number in 0..self.slots.len() {
                self.serving = Some(number);
                busy |= self.complete(number, to);
            }
            self.serving = None;
        }
        if !to.is_over(round) {
            return if busy { Served::Something } else { Served::Waiting };
        }
        self.leaving = None;
        self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut()).for_each(CommandQueue::leave);
        Served::Left
    }
}
