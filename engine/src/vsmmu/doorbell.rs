//! How a worker that sleeps learns that the guest has work.

use std::fmt;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::MutexGuard;
use vmm_sys_util::eventfd::EventFd;

use super::{Shared, VirtualSmmu};
use crate::events::panic_message;

/// Makes a guest's stores to its doorbell pages trap, so that the worker may sleep. With KVM: a memory slot that is read-only.
///
/// The pages are those that the guest writes without a trap: the ECMDQ control pages, and pages 0 and 1 with
/// [`FrontEnd::Shared`](super::FrontEnd::Shared).
///
/// Nothing of the virtual SMMU is locked during a call: an implementation may take any lock, and call the virtual SMMU.
pub trait DoorbellTraps: Send {
    /// From when it returns, every store of the guest to the pages exits, and is handed to [`VirtualSmmu::mmio_write`]. Loads
    /// need not exit. Called by a worker that is about to sleep, never twice without [`disarm`](Self::disarm) in between.
    ///
    /// # Errors
    ///
    /// What the system said. The worker looks at this guest's doorbells by a timer from then on.
    fn arm(&mut self) -> io::Result<()>;

    /// The pages are plain memory again. Called by whoever hands over the first store that exits, before that returns; the
    /// store has been applied.
    ///
    /// # Errors
    ///
    /// What the system said. The pages are not armed again; the worker looks at this guest's doorbells by a timer from then on.
    fn disarm(&mut self) -> io::Result<()>;
}

/// How a guest's doorbells reach a worker that sleeps. Accesses that are handed to [`VirtualSmmu::mmio_write`] always do.
#[derive(Default)]
pub enum Doorbell {
    /// Not at all: pages that the guest writes without a trap are looked at every
    /// [`Idle::look_every`](crate::Idle::look_every).
    #[default]
    Timer,
    /// By eventfds. With KVM: ioeventfds, which drop the value that the guest stored; PROD must be in memory that the
    /// engine reads.
    Eventfds(Vec<EventFd>),
    /// By a trap that is armed before the worker sleeps: the next store exits, once.
    Traps(Box<dyn DoorbellTraps>),
}

/// What writes of registers take turns for, and a worker that goes to sleep. It is never locked while the VMM's traps are
/// called: they are taken out of it for that.
#[derive(Default)]
pub(super) struct Writing {
    /// `Timer` while the traps are taken out.
    doorbell: Doorbell,
    traps: Traps,
    /// How often the doorbell was replaced: traps that were taken out before are not put back.
    replaced: u64,
}

/// Where the traps are in their cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Traps {
    #[default]
    Disarmed,
    /// The worker is arming them; whether a store was applied meanwhile, after which they are disarmed again.
    Arming {
        rung: bool,
    },
    Armed,
    /// Whoever handed over a store is disarming them.
    Disarming,
}

/// Whether a worker may sleep as far as a guest is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// It may: the guest's next doorbell rings.
    Rings,
    /// It may for a while: the doorbell must be looked at.
    Timer,
    /// It may not: somebody is ringing now.
    Busy,
}

impl Writing {
    /// Takes the traps out, if there are any, to be called.
    fn take_out(&mut self, traps: Traps) -> Option<(Box<dyn DoorbellTraps>, u64)> {
        match mem::take(&mut self.doorbell) {
            Doorbell::Traps(taken) => {
                self.traps = traps;
                Some((taken, self.replaced))
            }
            other => {
                self.doorbell = other;
                None
            }
        }
    }
}

impl Shared {
    /// The trapped store of somebody has been applied, by whom `writing` was locked.
    pub(super) fn disarm(&self, mut writing: MutexGuard<'_, Writing>) {
        let taken = match &mut writing.traps {
            Traps::Armed => writing.take_out(Traps::Disarming),
            Traps::Arming { rung } => {
                *rung = true;
                None
            }
            Traps::Disarmed | Traps::Disarming => None,
        };
        drop(writing);
        if let Some((traps, replaced)) = taken {
            self.call_disarm(traps, replaced);
        }
    }

    fn call_disarm(&self, mut traps: Box<dyn DoorbellTraps>, replaced: u64) {
        let disarmed = contained(|| traps.disarm());
        let mut writing = self.writing.lock();
        if writing.replaced == replaced {
            writing.traps = Traps::Disarmed;
            match disarmed {
                Ok(()) => writing.doorbell = Doorbell::Traps(traps),
                // Once: it is not armed again. Stores that exit are applied all the same.
                Err(error) => {
                    log::warn!("a doorbell page traps for ever, since it cannot be disarmed: {error}")
                }
            }
        }
    }
}

/// A call of the VMM's traps. One that panics has failed.
fn contained(call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(io::Error::other(panic_message(&*panic))))
}

impl VirtualSmmu {
    /// Says how the guest's doorbells reach a worker that sleeps; before the virtual SMMU is attached to one.
    ///
    /// Traps that are replaced while they are armed are disarmed.
    pub fn set_doorbell(&self, doorbell: Doorbell) {
        let mut writing = self.0.writing.lock();
        writing.replaced += 1;
        let armed = mem::take(&mut writing.traps) == Traps::Armed;
        let before = mem::replace(&mut writing.doorbell, doorbell);
        drop(writing);
        if let (Doorbell::Traps(mut traps), true) = (before, armed)
            && let Err(error) = contained(|| traps.disarm())
        {
            log::warn!("a doorbell page traps for ever, since it cannot be disarmed: {error}");
        }
    }

    /// The eventfds that the worker has to watch.
    pub(crate) fn with_eventfds<T>(&self, f: impl FnOnce(&[EventFd]) -> T) -> T {
        match &self.0.writing.lock().doorbell {
            Doorbell::Eventfds(eventfds) => f(eventfds),
            _ => f(&[]),
        }
    }

    /// Arms the traps, if there are any.
    pub(crate) fn arm(&self) {
        let Some(mut writing) = self.0.writing.try_lock() else { return };
        if writing.traps != Traps::Disarmed {
            return;
        }
        let Some((mut traps, replaced)) = writing.take_out(Traps::Arming { rung: false }) else { return };
        drop(writing);
        let armed = contained(|| traps.arm());
        let mut writing = self.0.writing.lock();
        let goes_on = writing.replaced == replaced && writing.traps == Traps::Arming { rung: false };
        match armed {
            Ok(()) if goes_on => {
                (writing.doorbell, writing.traps) = (Doorbell::Traps(traps), Traps::Armed);
            }
            Ok(()) => {
                // A store came before the traps were armed, or they have been replaced.
                drop(writing);
                self.0.call_disarm(traps, replaced);
            }
            Err(error) if writing.replaced == replaced => {
                log::warn!("doorbells are looked at by a timer, since they cannot be made to trap: {error}");
                writing.traps = Traps::Disarmed;
            }
            Err(_) => {}
        }
    }

    /// Whether the worker may sleep. Asked after [`Self::arm`], and after it has announced to sleep: a trap that went off
    /// meanwhile may have had nothing to say, but the next doorbell no longer rings.
    pub(crate) fn watch(&self) -> Watch {
        let pages = &self.0.pages;
        if pages.frame_traps && (pages.control_traps || pages.control.is_empty()) {
            return Watch::Rings;
        }
        let Some(writing) = self.0.writing.try_lock() else { return Watch::Busy };
        match (&writing.doorbell, writing.traps) {
            (_, Traps::Arming { .. } | Traps::Disarming) => Watch::Busy,
            (Doorbell::Traps(_), Traps::Armed) | (Doorbell::Eventfds(_), _) => Watch::Rings,
            (Doorbell::Traps(_), Traps::Disarmed) => Watch::Busy,
            (Doorbell::Timer, _) => Watch::Timer,
        }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timer => f.write_str("Timer"),
            Self::Eventfds(eventfds) => f.debug_tuple("Eventfds").field(eventfds).finish(),
            Self::Traps(_) => f.write_str("Traps"),
        }
    }
}
