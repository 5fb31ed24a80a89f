//! How a worker that sleeps learns that the guest has work.

use std::fmt;
use std::io;

use parking_lot::RwLock;
use vmm_sys_util::eventfd::EventFd;

use super::VirtualSmmu;
use crate::sleep::Waker;

/// Makes a guest's stores to its doorbell pages trap, so that the worker may sleep. With KVM: a memory slot that is read-only.
///
/// The pages are those that the guest writes without a trap: the ECMDQ control pages, and pages 0 and 1 with
/// [`FrontEnd::Shared`](super::FrontEnd::Shared).
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

/// What writes of registers take turns for, and a worker that goes to sleep.
pub(super) struct Writing {
    pub doorbell: Doorbell,
    /// The traps are armed.
    pub armed: bool,
}

/// The worker of a virtual SMMU, to be woken by whoever has something for it.
#[derive(Default)]
pub(crate) struct Bell(RwLock<Option<Waker>>);

impl Bell {
    pub fn ring(&self) {
        if let Some(waker) = &*self.0.read() {
            waker.wake();
        }
    }

    pub fn set(&self, waker: Option<Waker>) {
        *self.0.write() = waker;
    }
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
    /// The trapped store of somebody has been applied.
    pub fn disarm(&mut self) {
        if let (Doorbell::Traps(traps), true) = (&mut self.doorbell, self.armed) {
            if let Err(error) = traps.disarm() {
                // Once: it is not armed again. Stores that exit are applied all the same.
                log::warn!("a doorbell page traps for ever, since it cannot be disarmed: {error}");
                self.doorbell = Doorbell::Timer;
            }
            self.armed = false;
        }
    }
}

impl VirtualSmmu {
    /// Says how the guest's doorbells reach a worker that sleeps; before the virtual SMMU is attached to one.
    ///
    /// Traps that are replaced while they are armed are disarmed.
    pub fn set_doorbell(&self, doorbell: Doorbell) {
        let mut writing = self.0.writing.lock();
        writing.disarm();
        (writing.doorbell, writing.armed) = (doorbell, false);
    }

    /// The eventfds that the worker has to watch.
    pub(crate) fn with_eventfds<T>(&self, f: impl FnOnce(&[EventFd]) -> T) -> T {
        match &self.0.writing.lock().doorbell {
            Doorbell::Eventfds(eventfds) => f(eventfds),
            _ => f(&[]),
        }
    }

    /// Whom it wakes.
    pub(crate) fn set_waker(&self, waker: Option<Waker>) {
        self.0.bell.set(waker);
    }

    /// Arms the traps, if there are any.
    pub(crate) fn arm(&self) {
        let Some(mut writing) = self.0.writing.try_lock() else { return };
        if writing.armed {
            return;
        }
        if let Doorbell::Traps(traps) = &mut writing.doorbell {
            match traps.arm() {
                Ok(()) => writing.armed = true,
                Err(error) => {
                    log::warn!(
                        "doorbells are looked at by a timer, since they cannot be made to trap: {error}"
                    );
                    writing.doorbell = Doorbell::Timer;
                }
            }
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
        match (&writing.doorbell, writing.armed) {
            (Doorbell::Eventfds(_), _) | (Doorbell::Traps(_), true) => Watch::Rings,
            (Doorbell::Traps(_), false) => Watch::Busy,
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
