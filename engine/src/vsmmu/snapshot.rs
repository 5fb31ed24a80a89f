//! The state of a virtual SMMU, to go on in another process.
//!
//! What is saved is what the guest can see, and where each queue stands. A CMD_SYNC or a command for the VMM that was taken
//! and had not completed is not consumed yet: CONS points at it, and it is taken again. What had been consumed and was
//! not on the host yet is made good by the invalidation of all that the guest may have cached.

use std::sync::atomic::Ordering::{Acquire, Release};

use ecmdq_ring::Toggle;
use ecmdq_ring::handshake::{EN, ERR, Handshake, REASON_SHIFT};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::slot::{Control, Slot};
use super::state::State;
use super::{NotPaused, VirtualSmmu};
use crate::queue::CommandQueue;
use crate::registers::*;

/// The version of the format that this crate writes, and the newest that it reads.
const VERSION: u32 = 1;

/// The state of a virtual SMMU. It is independent of host, process and front end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    version: u32,
    /// IDR0 to IDR5, and IDR6: what the guest was shown.
    idrs: [u32; 7],
    /// The registers of pages 0 and 1 that the guest writes, by offset, those of its queue apart; zeros are left out.
    registers: Vec<(u32, u64)>,
    cr0ack: u32,
    irq_ctrlack: u32,
    gerror: u32,
    /// GERRORN as it was last looked at: the guest may have acknowledged an error since, by the register.
    gerrorn: u32,
    /// The queues that are not as after reset; 0 is the CMDQ.
    queues: Vec<QueueState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueState {
    number: u32,
    enabled: bool,
    stopped: bool,
    /// The registers. Of an enabled queue, what counts of BASE.
    base: u64,
    prod: u32,
    cons: u32,
}

/// Why a [`Snapshot`] was refused; the virtual SMMU is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The virtual SMMU is being served.
    #[error(transparent)]
    NotPaused(#[from] NotPaused),
    /// A later version of this crate has written it.
    #[error("the snapshot has version {0}, this is for versions up to {VERSION}")]
    Version(u32),
    /// The guest was shown other features than this virtual SMMU has.
    #[error("the snapshot is of an SMMU with IDR{register}={saved:#x}, this one has {here:#x}")]
    Features {
        /// The ID register.
        register: usize,
        /// Its value in the snapshot.
        saved: u32,
        /// Its value here.
        here: u32,
    },
    /// A value that no virtual SMMU can have.
    #[error("the snapshot is corrupt: {0}")]
    Corrupt(&'static str),
}

impl VirtualSmmu {
    /// Saves the state. The guest's vCPUs should have stopped: what they write later is not in it.
    ///
    /// # Errors
    ///
    /// [`NotPaused`] unless [`Self::pause`] was called.
    pub fn save(&self) -> Result<Snapshot, NotPaused> {
        self.0.control(|state| if state.paused { Ok(state.save()) } else { Err(NotPaused) })
    }

    /// Takes over a saved state, in place of its own; the guest's memory must be there already. Call
    /// [`Self::resume`] when the guest may go on: before its first command, the host is told to invalidate all that it may
    /// have cached for the guest, and if the guest's SMMU is enabled the VMM gets [`Request::Enable`](crate::rules::Request::Enable).
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; then nothing has changed.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), RestoreError> {
        let _no_writes = self.0.writing.lock();
        self.0.control(|state| {
            if !state.paused {
                return Err(NotPaused.into());
            }
            state.check(snapshot)?;
            state.restore(snapshot);
            Ok(())
        })
    }
}

fn is_cmdq(register: &&Writable) -> bool {
    matches!(register.offset, CMDQ_BASE | CMDQ_PROD | CMDQ_CONS)
}

impl State {
    fn idrs(&self) -> [u32; 7] {
        let [a, b, c, d, e, f] = self.features.idrs();
        [a, b, c, d, e, f, self.features.idr6()]
    }

    fn save(&self) -> Snapshot {
        let frame = &self.pages.frame;
        let value = |register: &Writable| frame.load(register.offset, Acquire);
        let registers = WRITABLE.iter().filter(|register| !is_cmdq(register));
        let active = self.errors.active();
        Snapshot {
            version: VERSION,
            idrs: self.idrs(),
            registers: registers
                .map(|register| (register.offset as u32, value(register) & register.bits(&self.features)))
                .filter(|(_, value)| *value != 0)
                .collect(),
            cr0ack: self.cr0ack,
            irq_ctrlack: self.irq_ctrl,
            gerror: self.errors.raised(),
            gerrorn: self.errors.acknowledged() & GERROR_BITS,
            queues: (0..).zip(&self.slots).filter_map(|(number, slot)| slot.save(number, active)).collect(),
        }
    }

    fn check(&self, snapshot: &Snapshot) -> Result<(), RestoreError> {
        if snapshot.version == 0 || snapshot.version > VERSION {
            return Err(RestoreError::Version(snapshot.version));
        }
        for (register, (saved, here)) in snapshot.idrs.into_iter().zip(self.idrs()).enumerate() {
            if saved != here {
                return Err(RestoreError::Features { register, saved, here });
            }
        }
        let corrupt = |wrong: bool, what| if wrong { Err(RestoreError::Corrupt(what)) } else { Ok(()) };
        for (offset, value) in &snapshot.registers {
            let known = WRITABLE.iter().filter(|r| !is_cmdq(r)).find(|r| r.offset == *offset as usize);
            let bits = known.map_or(0, |register| register.bits(&self.features));
            corrupt(value & !bits != 0, "a register has bits that do not exist")?;
        }
        corrupt(snapshot.cr0ack & !self.cr0_bits != 0, "CR0ACK")?;
        corrupt(snapshot.irq_ctrlack & !self.irq_ctrl_bits != 0, "IRQ_CTRLACK")?;
        corrupt((snapshot.gerror | snapshot.gerrorn) & !GERROR_BITS != 0, "GERROR")?;
        let mut next = 0;
        for queue in &snapshot.queues {
            corrupt(queue.number < next, "the queues are not in order")?;
            let slot = self.slots.get(queue.number as usize);
            let slot = slot.ok_or(RestoreError::Corrupt("a queue that does not exist"))?;
            next = queue.number + 1;
            corrupt(!slot.can_be(queue, snapshot, self), "a queue")?;
        }
        let cmdq = snapshot.queues.first().is_some_and(|queue| queue.number == 0 && queue.enabled);
        corrupt(cmdq != (snapshot.cr0ack & CR0_CMDQEN != 0), "CR0ACK.CMDQEN")
    }

    fn restore(&mut self, snapshot: &Snapshot) {
        self.reset();
        let frame = &self.pages.frame;
        for (offset, value) in &snapshot.registers {
            frame.store(*offset as usize, *value, Release);
        }
        // SMMUEN takes effect again when the VMM has followed it; meanwhile the guest sees what it saw.
        (self.cr0ack, self.smmuen_untold) = (snapshot.cr0ack, true);
        self.gbpa_untold = frame.load_u32(GBPA, Acquire) != 0;
        self.irq_ctrl = snapshot.irq_ctrlack;
        self.errors = Toggle::new(snapshot.gerror, snapshot.gerrorn);
        frame.store_u32(CR0ACK, self.cr0ack, Release);
        frame.store_u32(IRQ_CTRLACK, self.irq_ctrl, Release);
        frame.store_u32(GERROR, snapshot.gerror, Release);
        for queue in &snapshot.queues {
            if let Some(slot) = self.slots.get_mut(queue.number as usize) {
                slot.restore(queue);
                if queue.enabled {
                    let mut ring = CommandQueue::new(queue.base, queue.cons, &self.features);
                    ring.back(&slot.place, &*self.ram);
                    slot.queue = Some(ring);
                    slot.publish();
                }
            }
        }
        self.invalidating = Some(0);
    }
}

impl Slot {
    /// Its state, unless it is that after reset.
    fn save(&self, number: u32, active: u32) -> Option<QueueState> {
        let Slot { place, queue, .. } = self;
        let registers = &place.registers;
        let (base, cons) = match queue {
            Some(queue) => (queue.base(), queue.cons().raw() | self.flags()),
            None => (
                registers.load_u64(place.base, Acquire) & QUEUE_BASE,
                // The guest can write it now: not all that it says needs to be so.
                registers.load_u32(place.cons, Acquire) & self.cons_bits() & !self.enack(),
            ),
        };
        let (enabled, stopped) = (queue.is_some(), self.is_stopped(active));
        let state = QueueState { number, enabled, stopped, base, prod: self.prod(), cons };
        (enabled || stopped || (base, state.prod, cons) != (0, 0, 0)).then_some(state)
    }

    /// Whether a queue can be in this state.
    fn can_be(&self, queue: &QueueState, snapshot: &Snapshot, smmu: &State) -> bool {
        let size = CommandQueue::new(queue.base, queue.cons, &smmu.features);
        let index = queue.cons & INDEX;
        let errors = snapshot.gerror ^ snapshot.gerrorn;
        let control = match &self.control {
            Control::Cmdq { .. } => queue.stopped == (errors & GERROR_CMDQ_ERR != 0),
            Control::Ecmdq(_) => queue.enabled == (queue.cons & self.enack() != 0),
        };
        queue.base & !QUEUE_BASE == 0
            && queue.cons & !self.cons_bits() == 0
            && (!queue.enabled || index == size.cons().raw())
            && control
    }

    /// The bits that CONS has.
    fn cons_bits(&self) -> u32 {
        match self.control {
            Control::Cmdq { .. } => INDEX | 0x7f << CONS_ERR_SHIFT,
            Control::Ecmdq(_) => INDEX | ERR | 7 << REASON_SHIFT | EN,
        }
    }

    /// Which of them says that the queue is enabled.
    fn enack(&self) -> u32 {
        match self.control {
            Control::Cmdq { .. } => 0,
            Control::Ecmdq(_) => EN,
        }
    }

    fn restore(&mut self, queue: &QueueState) {
        let registers = &self.place.registers;
        registers.store_u64(self.place.base, queue.base, Release);
        registers.store_u32(self.place.cons, queue.cons, Release);
        registers.store_u32(self.place.prod, queue.prod, Release);
        self.control = match self.control {
            Control::Cmdq { .. } => {
                Control::Cmdq { code: if queue.stopped { queue.cons >> CONS_ERR_SHIFT & 0x7f } else { 0 } }
            }
            Control::Ecmdq(_) => Control::Ecmdq(Handshake::restored(queue.prod, queue.cons, queue.stopped)),
        };
    }
}
