//! Where a virtual SMMU finds the worker that serves it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use parking_lot::RwLock;

use super::Waker;

/// The worker of a virtual SMMU, to be told by whoever has something for it.
#[derive(Debug, Default)]
pub(crate) struct WakerSlot {
    notified: AtomicBool,
    worker: RwLock<Option<Notified>>,
}

/// What a worker looks at, and how it is woken if it sleeps.
#[derive(Clone, Debug)]
pub(crate) struct Notified {
    /// Set when any of its guests is notified, or there is an order.
    pub any: Arc<AtomicBool>,
    pub waker: Option<Waker>,
}

impl WakerSlot {
    /// The worker has a look at the virtual SMMU.
    pub fn notify(&self) {
        // Release: pairs with the acquire in `take`, here and for the worker: what there is to be seen is seen.
        self.notified.store(true, Release);
        if let Some(worker) = &*self.worker.read() {
            worker.any.store(true, Release);
            worker.wake();
        }
    }

    /// The worker looks at the doorbells, as it does all the time while it is awake.
    pub fn wake(&self) {
        if let Some(worker) = &*self.worker.read() {
            worker.wake();
        }
    }

    /// It has another worker from now on, or none.
    pub fn set(&self, worker: Option<Notified>) {
        *self.worker.write() = worker;
    }

    /// Whether it has been notified since this was last asked.
    pub fn take(&self) -> bool {
        take(&self.notified)
    }
}

impl Notified {
    /// Whether there has been anything since this was last asked.
    #[inline]
    pub fn take(&self) -> bool {
        take(&self.any)
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

#[inline]
fn take(flag: &AtomicBool) -> bool {
    // Relaxed: while there is nothing, it is a load. Acquire: pairs with the release in `notify`.
    flag.load(Relaxed) && flag.swap(false, Acquire)
}
