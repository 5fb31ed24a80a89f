//! One command queue as the guest sees it: its registers, whether it is enabled, whether it is stopped.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use ecmdq_ring::handshake::{Handshake, Step};

use crate::features::Features;
use crate::memory::GuestRam;
use crate::queue::{CommandError, CommandQueue, Place};
use crate::registers::{CONS_ERR_SHIFT, GERROR_CMDQ_ERR};

/// A bit that reads as zero in CMDQ_CONS and ECMDQ_CONS. Where CONS is read by traps only, it says, under the surface, that
/// the MSI of the CMD_SYNC that CONS has just passed is on its way: the trap waits until it has been written.
pub(super) const MSI_ON_ITS_WAY: u32 = 1 << 22;

/// What enables, disables and stops a queue.
#[derive(Debug)]
pub(super) enum Control {
    /// CR0.CMDQEN, GERROR and GERRORN; the code of CONS.ERR, 0 while no command error is active.
    Cmdq { code: u32 },
    /// Its own PROD and CONS.
    Ecmdq(Handshake),
}

/// A command queue, enabled or not.
#[derive(Debug)]
pub(super) struct Slot {
    pub place: Place,
    pub control: Control,
    /// `None` while it is disabled.
    pub queue: Option<CommandQueue>,
    /// It was being served when something panicked: nothing is taken from it until a reset.
    pub quarantined: bool,
    /// Its last batch was not all that there is.
    pub more: bool,
    /// What PROD was when there was nothing to do for it: as long as it is that, and nothing else has changed, there is nothing.
    pub seen: Option<u32>,
}

impl Slot {
    /// The bits of CONS above the index.
    pub fn flags(&self) -> u32 {
        match &self.control {
            Control::Cmdq { code } => code << CONS_ERR_SHIFT,
            Control::Ecmdq(handshake) => handshake.flags(),
        }
    }

    /// Whether something must come to pass before it goes on.
    pub fn waits(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.waiting.is_some())
    }

    /// Whether an error keeps it from taking commands. `active` are the active bits of GERROR.
    pub fn is_stopped(&self, active: u32) -> bool {
        match &self.control {
            Control::Cmdq { .. } => active & GERROR_CMDQ_ERR != 0,
            Control::Ecmdq(handshake) => handshake.is_stopped(),
        }
    }

    /// A slot whose registers are there, disabled.
    pub fn new(place: Place, control: Control) -> Self {
        Self { place, control, queue: None, quarantined: false, more: false, seen: None }
    }

    /// Whether it is disabled, and its own registers cannot enable it.
    pub fn is_off(&self) -> bool {
        self.queue.is_none() && matches!(self.control, Control::Cmdq { .. })
    }

    /// The PROD register.
    pub fn prod(&self) -> u32 {
        // Acquire: pairs with the guest's barrier before its doorbell, so that the entries below PROD, and BASE when the
        // doorbell sets EN, are seen.
        self.place.registers.load_u32(self.place.prod, Acquire)
    }

    /// Enables the queue that BASE and CONS describe: they are inputs at this moment only.
    pub fn enable(&mut self, features: &Features, ram: &dyn GuestRam) {
        // Relaxed: ordered by the acquire load of what enabled it.
        let base = self.place.registers.load_u64(self.place.base, Relaxed);
        let cons = self.place.registers.load_u32(self.place.cons, Relaxed);
        if let Control::Ecmdq(handshake) = &mut self.control {
            handshake.enable(cons);
        }
        let mut queue = CommandQueue::new(base, cons, features);
        queue.back(&self.place, ram);
        // The bits of CONS that the index does not have read as zero; an error that is active keeps its code.
        queue.publish(self.flags(), &self.place);
        self.queue = Some(queue);
    }

    /// Disables the queue: nothing more is taken, and what is waited for is forgotten. CONS points at it still.
    pub fn disable(&mut self) {
        let flags = self.flags();
        if let Some(mut queue) = self.queue.take() {
            queue.publish(flags, &self.place);
        }
    }

    /// Whether an ECMDQ's PROD asks for something besides commands.
    pub fn asks(&self, prod: u32) -> bool {
        match self.control {
            Control::Cmdq { .. } => false,
            Control::Ecmdq(mut handshake) => handshake.follow(prod) != Step::Nothing,
        }
    }

    /// Follows what an ECMDQ's PROD asks for besides commands; says whether there was anything.
    pub fn follow(&mut self, prod: u32, features: &Features, ram: &dyn GuestRam) -> bool {
        let Control::Ecmdq(handshake) = &mut self.control else { return false };
        match handshake.follow(prod) {
            Step::Nothing => return false,
            Step::Enable => self.enable(features, ram),
            Step::Disable => self.disable(),
            Step::Resume => self.resume(ram),
        }
        true
    }

    /// Stops the queue at the command at CONS. ERR and RD are visible before whatever tells of them.
    pub fn stop(&mut self, error: CommandError) {
        match &mut self.control {
            Control::Cmdq { code } => *code = error as u32,
            Control::Ecmdq(handshake) => handshake.fail(error as u8),
        }
        self.publish();
    }

    /// An error was acknowledged: the memory, and the command at CONS, are looked at again.
    pub fn resume(&mut self, ram: &dyn GuestRam) {
        if let Control::Cmdq { code } = &mut self.control {
            *code = 0;
        }
        if let Some(queue) = &mut self.queue {
            queue.back(&self.place, ram);
        }
        self.publish();
    }

    /// Publishes CONS if the queue is enabled.
    pub fn publish(&mut self) {
        let flags = self.flags();
        if let Some(queue) = &mut self.queue {
            queue.publish(flags, &self.place);
        }
    }

    /// Passes the command at CONS, which was waited for.
    pub fn pass(&mut self) {
        let flags = self.flags();
        if let Some(queue) = &mut self.queue {
            queue.pass(flags, &self.place);
        }
    }

    /// As [`Self::pass`], and holds back whoever reads CONS by a trap until [`Self::publish`].
    pub fn pass_before_msi(&mut self) {
        let flags = self.flags() | MSI_ON_ITS_WAY;
        if let Some(queue) = &mut self.queue {
            queue.publish(flags, &self.place);
            queue.pass(flags, &self.place);
        }
    }
}
