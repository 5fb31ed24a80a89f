//! The state of a virtual SMMU, to go on in another process.
//!
//! What is saved is what the guest can see, and where each queue stands. A CMD_SYNC or a command for the VMM that was taken
//! and had not completed is not consumed yet: CONS points at it, and it is taken again. What had been consumed and was
//! not on the host yet is made good by the invalidation of all that the guest may have cached.
//!
//! Registers are read and written relaxed: the lock of the state orders the worker, and the VMM stops the vCPUs before it saves and
//! starts them after it has restored.

mod bytes;

use std::sync::atomic::Ordering::Relaxed;

use ecmdq_ring::Toggle;
use ecmdq_ring::handshake::{EN, ERR, Handshake, REASON_SHIFT};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::lifecycle::Invalidation;
use super::queue::{Control, GuestQueue, QueueRegisters, Ring, effective_base, effective_cons};
use super::state::State;
use super::{NotPaused, VirtualSmmu};
use crate::command::CommandError;
use crate::features::Features;
use crate::memory::GuestRam;
use crate::registers::*;

pub use bytes::SnapshotError;

/// The version of the format that this crate writes, and the newest that it reads. 2 brought [`QueueState::blame`].
const VERSION: u32 = 2;
/// The errors of which a [`QueueState::blame`] can have the bits, and which CONS tells.
const ERRORS: [CommandError; 3] = [CommandError::Ill, CommandError::Abt, CommandError::AtcInvSync];

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
    /// Bit n: its next CMD_SYNC must report the [`CommandError`] n.
    #[serde(default)]
    blame: u8,
    /// The registers. BASE of an enabled queue describes where the queue is, whatever the guest has written there since.
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
        let value = |register: &Writable| frame.load(register.offset, Relaxed);
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
            queues: (0..)
                .zip(&self.queues)
                .filter_map(|(number, queue)| queue.save(number, active, &self.features))
                .collect(),
        }
    }

    fn check(&self, snapshot: &Snapshot) -> Result<(), RestoreError> {
        let Snapshot { version, idrs, registers, cr0ack, irq_ctrlack, gerror, gerrorn, queues } = snapshot;
        if *version == 0 || *version > VERSION {
            return Err(RestoreError::Version(*version));
        }
        for (register, (&saved, here)) in idrs.iter().zip(self.idrs()).enumerate() {
            if saved != here {
                return Err(RestoreError::Features { register, saved, here });
            }
        }
        let corrupt = |wrong: bool, what| if wrong { Err(RestoreError::Corrupt(what)) } else { Ok(()) };
        let mut saved = WRITABLE.iter().filter(|register| !is_cmdq(register));
        for (offset, value) in registers {
            // From where the one before was found: so each is there once, in order.
            let register = saved.find(|register| register.offset == *offset as usize);
            let register =
                register.ok_or(RestoreError::Corrupt("a register that is not saved, or is not in order"))?;
            corrupt(*value == 0 || value & !register.bits(&self.features) != 0, "a register's value")?;
        }
        corrupt(cr0ack & !self.cr0_bits != 0, "CR0ACK")?;
        corrupt(irq_ctrlack & !self.irq_ctrl_bits != 0, "IRQ_CTRLACK")?;
        corrupt(gerror & !GERROR_RAISED != 0, "GERROR")?;
        corrupt(gerrorn & !GERROR_BITS != 0, "GERRORN")?;
        let active = gerror ^ gerrorn;
        let mut next = 0;
        for queue in queues {
            corrupt(queue.number < next, "the queues are not in order")?;
            let slot = self.queues.get(queue.number as usize);
            let slot = slot.ok_or(RestoreError::Corrupt("a queue that does not exist"))?;
            next = queue.number + 1;
            corrupt(!slot.can_be(queue, active, self), "a queue")?;
        }
        // One that is not saved is as after reset.
        let cmdq = queues.first().filter(|queue| queue.number == 0);
        let (enabled, stopped) = cmdq.map_or((false, false), |queue| (queue.enabled, queue.stopped));
        corrupt(stopped != (active & GERROR_CMDQ_ERR != 0), "GERROR.CMDQ_ERR")?;
        corrupt(enabled != (cr0ack & CR0_CMDQEN != 0), "CR0ACK.CMDQEN")
    }

    fn restore(&mut self, snapshot: &Snapshot) {
        let Snapshot { version: _, idrs: _, registers, cr0ack, irq_ctrlack, gerror, gerrorn, queues } =
            snapshot;
        self.reset();
        let frame = &self.pages.frame;
        for (offset, value) in registers {
            frame.store(*offset as usize, *value, Relaxed);
        }
        // SMMUEN takes effect again when the VMM has followed it; meanwhile the guest sees what it saw.
        (self.cr0ack, self.smmuen_untold) = (*cr0ack, true);
        self.gbpa_untold = frame.load_u32(GBPA, Relaxed) != 0;
        self.irq_ctrl = *irq_ctrlack;
        self.errors = Toggle::new(*gerror, *gerrorn);
        frame.store_u32(CR0ACK, self.cr0ack, Relaxed);
        frame.store_u32(IRQ_CTRLACK, self.irq_ctrl, Relaxed);
        frame.store_u32(GERROR, *gerror, Relaxed);
        for queue in queues {
            if let Some(slot) = self.queues.get_mut(queue.number as usize) {
                slot.restore(queue, &self.features, &*self.ram);
            }
        }
        self.interrupt_outputs_again();
        self.invalidating = Some(Invalidation::FIRST);
    }
}

impl GuestQueue {
    /// Its state, unless it is that after reset.
    fn save(&self, number: u32, active: u32, features: &Features) -> Option<QueueState> {
        // A panic of one process is none of another.
        let Self {
            registers: QueueRegisters { words, base, cons, .. },
            control: _,
            ring,
            order: _,
            quarantined: _,
        } = self;
        let register = words.load_u64(*base, Relaxed) & QUEUE_BASE;
        let (base, cons, blame) = match ring {
            Some(ring) => {
                let unchanged = effective_base(register, features) == ring.base();
                let base = if unchanged { register } else { ring.base() };
                (base, ring.cons().raw() | self.flags(), ring.history.blame_bits())
            }
            // The guest can write CONS now: not all that it says needs to be so.
            None => (register, words.load_u32(*cons, Relaxed) & self.cons_bits() & !self.enack(), 0),
        };
        let (enabled, stopped) = (ring.is_some(), self.is_stopped(active));
        let state = QueueState { number, enabled, stopped, blame, base, prod: self.prod(), cons };
        (!state.is_reset()).then_some(state)
    }

    /// Whether a queue can be in this state, in which `active` are the active bits of GERROR.
    fn can_be(&self, state: &QueueState, active: u32, smmu: &State) -> bool {
        // PROD is the guest's, and says what it likes.
        let QueueState { number: _, enabled, stopped, blame, base, prod: _, cons } = *state;
        let (code, told) = (cons >> CONS_ERR_SHIFT & 0x7f, error_code(cons));
        let control = match &self.control {
            Control::Cmdq { .. } => {
                stopped == (active & GERROR_CMDQ_ERR != 0) && (!enabled || stopped || code == 0)
            }
            Control::Ecmdq(_) => enabled == (cons & self.enack() != 0),
        };
        // What a disabled queue says is what the guest wrote.
        let running = !enabled || cons & INDEX == effective_cons(base, cons, &smmu.features) && code == told;
        let blames = ERRORS.map(|error| 1 << error as u8).iter().fold(0, |bits, bit| bits | bit);
        let blame = blame & !blames == 0 && (enabled || blame == 0);
        let bits = base & !QUEUE_BASE == 0 && cons & !self.cons_bits() == 0;
        bits && control && running && blame && !state.is_reset()
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

    fn restore(&mut self, state: &QueueState, features: &Features, ram: &dyn GuestRam) {
        let QueueState { number: _, enabled, stopped, blame, base, prod, cons } = *state;
        let registers = &self.registers;
        registers.words.store_u64(registers.base, base, Relaxed);
        registers.words.store_u32(registers.cons, cons, Relaxed);
        registers.words.store_u32(registers.prod, prod, Relaxed);
        // A code that the guest wrote while the queue was disabled, and that is none, is not told when it is enabled.
        let code = error_code(cons);
        self.control = match self.control {
            Control::Cmdq { .. } => Control::Cmdq { code: if stopped { code } else { 0 } },
            Control::Ecmdq(_) => {
                let cons = cons & !(7 << REASON_SHIFT) | code << REASON_SHIFT;
                Control::Ecmdq(Handshake::restored(prod, cons, stopped))
            }
        };
        if enabled {
            let mut ring = Ring::new(base, cons, features, registers.clone());
            ring.history.set_blame_bits(blame);
            self.ring = Some(ring);
            self.find_memory(ram);
        }
    }
}

impl QueueState {
    /// Whether it is as after reset: then it is not saved.
    fn is_reset(&self) -> bool {
        let Self { number: _, enabled, stopped, blame, base, prod, cons } = *self;
        !enabled && !stopped && (blame, base, prod, cons) == (0, 0, 0, 0)
    }
}

/// The code of the error in CONS, or 0 if there is no such error.
fn error_code(cons: u32) -> u32 {
    let code = cons >> CONS_ERR_SHIFT & 7;
    if ERRORS.iter().any(|error| *error as u32 == code) { code } else { 0 }
}
