//! What the engine decides on: the private truth of one virtual SMMU, and how it changes.
//!
//! Every register that the guest writes is an input, looked at once a sweep. Registers that the engine writes are outputs
//! and are never read back.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ecmdq_ring::Toggle;
use ecmdq_ring::handshake::Handshake;

use super::calls::{Call, Callbacks, Calls};
use super::complete::{PendingSync, SYNCS};
use super::lifecycle::Invalidation;
use super::queue::{Control, GuestQueue, QueueRegisters};
use super::register_file::RegisterFile;
use super::{BindHostError, Config, ConfigError};
use crate::bits::Bits;
use crate::command::CommandError;
use crate::events::{EventKind, EventSink};
use crate::features::Features;
use crate::identity::StreamMap;
use crate::memory::GuestRam;
use crate::registers::*;
use crate::rules::{Rejected, Request, Rules};
use crate::sleep::WakerSlot;
use crate::stats::Counters;
use crate::token::{Token, Tokens};

/// Called by the worker with what the guest asks of the VMM. It must not wait for the worker.
///
/// Nothing is locked while it runs: it may call the virtual SMMU and worker handles, and may take any lock. A request that was on its
/// way may arrive just after [`VirtualSmmu::pause`](super::VirtualSmmu::pause) or [`reset`](super::VirtualSmmu::reset) has returned; after a reset its token
/// has no effect.
pub type OnRequest = Box<dyn FnMut(Request, Token) + Send>;

pub(crate) struct State {
    pub pages: RegisterFile,
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
    /// The output queues whose interrupt the worker has to send, by their bits in IRQ_CTRL.
    pub(super) interrupts_due: u32,
    pub errors: Toggle,
    /// The CMDQ, and behind it the ECMDQs.
    pub(super) queues: Box<[GuestQueue]>,
    /// CMD_SYNCs under way, in the order in which they were taken.
    pub(super) syncs: VecDeque<PendingSync>,
    /// Queues that wait for the VMM.
    pub(super) requests: Bits,
    /// The VMM has changed something: all queues are to be looked at, whether their doorbells ring or not.
    pub looks: bool,
    /// The tokens of queue n are at n; behind those of the queues, those of CR0.SMMUEN and of GBPA.
    pub(super) tokens: Tokens,
    pub(super) worker: Arc<WakerSlot>,
    /// Nothing happens while it is set.
    pub paused: bool,
    /// Where events go, while a worker serves it.
    pub(super) events: Option<EventSink>,
    /// The queue that is being served, should that panic.
    pub serving: Option<usize>,
    /// A panic left the state in doubt: nothing is served any more, until a reset.
    pub(super) quarantined: bool,
    /// It leaves its worker: the round that covers all that was taken.
    pub(super) leaving: Option<u64>,
    /// Where the invalidation of all that the guest may have cached on the host has got to, after a restore.
    pub(super) invalidating: Option<Invalidation>,
}

impl State {
    pub(super) fn new(config: Config) -> Result<(Self, Callbacks), ConfigError> {
        let Config { features, host_features, quirks, vmid, streams, ram, front_end, interrupts, on_request } =
            config;
        features.check()?;
        let rules = Rules::new(&features, &host_features, vmid, &quirks)?;
        let pages = RegisterFile::new(front_end, &features)?;
        let stride = RegisterFile::ecmdq_stride(&features);
        let at = |words: &RegisterWords, base, prod, cons| QueueRegisters {
            words: words.clone(),
            base,
            prod,
            cons,
        };
        let cmdq = at(&pages.frame, CMDQ_BASE, CMDQ_PROD, CMDQ_CONS);
        let ecmdqs = (0..features.ecmdqs()).map(|number| {
            let block = number * stride;
            at(&pages.control, block + ECMDQ_BASE, block + ECMDQ_PROD, block + ECMDQ_CONS)
        });
        let queues: Box<[_]> = [GuestQueue::new(cmdq, Control::Cmdq { code: 0 })]
            .into_iter()
            .chain(ecmdqs.map(|registers| GuestQueue::new(registers, Control::Ecmdq(Handshake::default()))))
            .collect();
        let bits =
            |offset| WRITABLE.iter().find(|r| r.offset == offset).map_or(0, |r| r.bits(&features) as u32);
        let len = queues.len();
        let worker = Arc::<WakerSlot>::default();
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
            interrupts_due: 0,
            errors: Toggle::default(),
            queues,
            syncs: VecDeque::with_capacity(SYNCS),
            requests: Bits::new(len),
            looks: true,
            tokens: Tokens::new(len + 2, worker.clone()),
            worker,
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
        self.syncs.clear();
        self.looks = true;
        for queue in &mut self.queues {
            (queue.ring, queue.quarantined) = (None, false);
            queue.control = match queue.control {
                Control::Cmdq { .. } => Control::Cmdq { code: 0 },
                Control::Ecmdq(_) => Control::Ecmdq(Handshake::default()),
            };
        }
        (self.cr0ack, self.irq_ctrl, self.interrupts_due, self.errors) = (0, 0, 0, Toggle::default());
        (self.smmuen_pending, self.smmuen_untold) = (None, false);
        (self.gbpa_pending, self.gbpa_untold) = (None, false);
        self.last_rejected = None;
        // From the beginning: the guest's streams may be others from now on.
        self.invalidating = self.invalidating.map(|_| Invalidation::FIRST);
        self.rules.set_smmu_enabled(false);
        self.pages.reset(&self.features);
    }

    pub(super) fn bind_host(&mut self, host: &Features) -> Result<(), BindHostError> {
        let enabled = self.cr0ack != 0 || self.smmuen_pending.is_some();
        if enabled || self.queues.iter().any(|queue| queue.ring.is_some()) {
            return Err(BindHostError::Enabled);
        }
        Ok(self.rules.bind_host(&self.features, host)?)
    }

    /// Tells the VMM.
    pub(super) fn emit(&mut self, kind: EventKind) {
        if let Some(events) = &mut self.events {
            events.emit(kind);
        }
    }

    /// After a panic: this queue is served no more, or nothing is if it is none. Returns it.
    pub fn quarantine(&mut self, queue: Option<usize>) -> Option<usize> {
        let Some(number) = queue else {
            self.quarantined = true;
            return None;
        };
        self.queues[number].quarantined = true;
        self.forget(number);
        // The architecture's way to say that a queue does not go on. It uses the guest's memory, which may be what panicked.
        let stopped = catch_unwind(AssertUnwindSafe(|| self.stop(number, CommandError::Abt)));
        self.quarantined |= stopped.is_err();
        Some(number)
    }

    /// Its worker goes without having synchronised what it took: all that the guest may have cached is invalidated before its next
    /// CMD_SYNC. A CMD_SYNC that waits for the host is taken again.
    pub fn abandon(&mut self) {
        self.leaving = None;
        self.forget_all();
        self.invalidating = Some(Invalidation::FIRST);
    }

    /// Whether anything is done for the guest at all.
    #[inline]
    pub(super) fn is_served(&self) -> bool {
        !self.paused && !self.quarantined
    }

    /// Notes a call of the VMM's code.
    pub(super) fn call(&mut self, call: Call) {
        self.calls.note(self.serving, call);
    }

    /// Whether the VMM is to be called.
    pub fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }
}
