//! Orders to a worker from other threads, and a thread of its own for it.

use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_setaffinity};
use thiserror::Error;

use super::Worker;
use crate::host::HostQueue;
use crate::share::Share;
use crate::sleep::{Notified, Waker};
use crate::vsmmu::VirtualSmmu;

/// Why a guest was not attached to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// A virtual SMMU is served by one worker.
    #[error("the guest has a worker: detach it from that, and wait until it has left")]
    HasWorker,
    /// The worker was made without a host queue.
    #[error("the worker has no host queue: attach the guest with one of its own")]
    NoHostQueue,
    /// The handle's worker was dropped.
    #[error("the worker is no more: attach the guest to another one")]
    NoWorker,
}

/// What a worker is to do.
pub(super) enum Order<H> {
    /// The guest has been claimed for this worker.
    Attach(VirtualSmmu, Option<H>, Share),
    Detach(VirtualSmmu, Sender<Option<H>>),
}

/// Orders that the worker has not seen.
pub(super) struct Orders<H> {
    /// The worker is to look for orders, and whatever else there is for it.
    any: Arc<AtomicBool>,
    /// `None` once the worker is no more.
    waiting: Mutex<Option<Vec<Order<H>>>>,
    /// [`Worker::run`] is to return.
    stop: AtomicBool,
    waker: OnceLock<Waker>,
    /// How often the worker has slept: it writes that.
    sleeps: AtomicU64,
    /// Whether the worker has a host queue for guests that bring none.
    has_host: bool,
}

impl<H> Orders<H> {
    /// `has_host` says whether the worker has a host queue for guests that bring none.
    pub fn new(has_host: bool) -> Self {
        Self {
            any: Arc::default(),
            waiting: Mutex::new(Some(Vec::new())),
            stop: AtomicBool::new(false),
            waker: OnceLock::new(),
            sleeps: AtomicU64::new(0),
            has_host,
        }
    }

    /// Gives the order back if the worker is no more.
    fn give(&self, order: Order<H>) -> Result<(), Order<H>> {
        match &mut *self.waiting.lock() {
            Some(waiting) => waiting.push(order),
            None => return Err(order),
        }
        // Release: pairs with the worker's acquire when it takes the flag.
        self.any.store(true, Release);
        self.wake();
        Ok(())
    }

    /// All of them.
    pub fn take(&self) -> Vec<Order<H>> {
        self.waiting.lock().as_mut().map(mem::take).unwrap_or_default()
    }

    /// How the worker is notified.
    pub fn notified(&self) -> Notified {
        Notified { any: self.any.clone(), waker: self.waker.get().cloned() }
    }

    /// The worker is no more: its last orders.
    pub fn close(&self) -> Vec<Order<H>> {
        self.waiting.lock().take().unwrap_or_default()
    }

    /// Whether [`Worker::run`] is to return.
    pub fn is_stopped(&self) -> bool {
        // Relaxed: it carries nothing but itself. Whoever sleeps looks at it behind the fence of its announcement.
        self.stop.load(Relaxed)
    }

    /// [`Worker::run`] returns.
    pub fn has_stopped(&self) {
        self.stop.store(false, Relaxed);
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    /// It goes to sleep.
    pub fn count_sleep(&self) {
        // Relaxed, and no exchange: one writer, and readers need no order.
        self.sleeps.store(self.sleeps.load(Relaxed) + 1, Relaxed);
    }

    pub fn sleeps(&self) -> u64 {
        self.sleeps.load(Relaxed)
    }

    /// Once.
    pub fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// Claims a guest for this worker, which serves it with the host queue that it brings, or its own.
    pub fn claim(&self, guest: &VirtualSmmu, brings_host: bool) -> Result<(), AttachError> {
        if !brings_host && !self.has_host {
            return Err(AttachError::NoHostQueue);
        }
        if guest.claim() { Ok(()) } else { Err(AttachError::HasWorker) }
    }
}

/// Gives orders to a worker, from any thread; clones are handles to the same worker. One that outlives its worker does nothing.
pub struct WorkerHandle<H>(Arc<Orders<H>>);

impl<H: HostQueue> WorkerHandle<H> {
    pub(super) fn new(orders: Arc<Orders<H>>) -> Self {
        Self(orders)
    }

    /// As [`Worker::attach_sharing`], in the worker's next sweep.
    ///
    /// # Errors
    ///
    /// [`AttachError`], at once.
    pub fn attach(&self, guest: VirtualSmmu, host: Option<H>, share: Share) -> Result<(), AttachError> {
        self.0.claim(&guest, host.is_some())?;
        match self.0.give(Order::Attach(guest, host, share)) {
            Err(Order::Attach(guest, ..)) => {
                guest.part();
                Err(AttachError::NoWorker)
            }
            _ => Ok(()),
        }
    }

    /// As [`Worker::detach`].
    pub fn detach(&self, guest: &VirtualSmmu) -> Detaching<H> {
        let (told, left) = bounded(1);
        // A worker that is no more has left its guests: `told` is dropped.
        let _ = self.0.give(Order::Detach(guest.clone(), told));
        Detaching(left)
    }

    /// Has [`Worker::run`] return; if it does not run, the next call of it returns at once.
    pub fn stop(&self) {
        // Relaxed: see `is_stopped`.
        self.0.stop.store(true, Relaxed);
        self.0.wake();
    }

    /// How often the worker has gone to sleep.
    pub fn sleeps(&self) -> u64 {
        self.0.sleeps()
    }

    /// Has the worker look at everything, asleep or not.
    pub fn wake(&self) {
        self.0.wake();
    }
}

/// A guest that leaves its worker.
#[derive(Debug)]
#[must_use = "until the guest has left, its worker uses its memory"]
pub struct Detaching<H>(Receiver<Option<H>>);

impl<H> Detaching<H> {
    /// Waits until it has left, or its worker is no more. On the worker's own thread that would be for ever. Returns the host
    /// queue that it had for itself, for its next worker.
    pub fn wait(self) -> Option<H> {
        self.0.recv().ok().flatten()
    }

    /// Whether it has left, or its worker is no more.
    pub fn has_left(&self) -> bool {
        // Dropped, too, when the worker is.
        !self.0.is_empty() || self.0.try_recv().is_err_and(|error| error == TryRecvError::Disconnected)
    }
}

/// A worker on a thread that was made for it. Dropping it stops the worker, and waits for the thread.
#[derive(Debug)]
pub struct Running<H: HostQueue> {
    handle: WorkerHandle<H>,
    thread: Option<JoinHandle<Worker<H>>>,
}

impl<H: HostQueue + Send + 'static> Worker<H> {
    /// Runs the worker on a new thread with this name, on this processor if one is given. For those who have no opinion about
    /// threads; a VMM that has calls [`Self::run`] on one of its own.
    ///
    /// # Errors
    ///
    /// What the system said when it refused the thread.
    pub fn spawn(mut self, name: &str, processor: Option<usize>) -> io::Result<Running<H>> {
        let handle = self.handle();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            if let Some(processor) = processor {
                let mut set = CpuSet::new();
                set.set(processor);
                if let Err(error) = sched_setaffinity(None, &set) {
                    log::warn!("a worker cannot be pinned to processor {processor}: {error}");
                }
            }
            self.run(&AtomicBool::new(false));
            self
        })?;
        Ok(Running { handle, thread: Some(thread) })
    }
}

impl<H: HostQueue> Running<H> {
    /// A handle to it.
    pub fn handle(&self) -> WorkerHandle<H> {
        self.handle.clone()
    }

    /// Stops it, and returns it; `None` if it panicked, which is a bug.
    pub fn stop(mut self) -> Option<Worker<H>> {
        self.handle.stop();
        self.thread.take()?.join().ok()
    }
}

impl<H: HostQueue> Drop for Running<H> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            let _ = thread.join();
        }
    }
}

impl<H> Clone for WorkerHandle<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<H> fmt::Debug for WorkerHandle<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").finish_non_exhaustive()
    }
}

impl<H> fmt::Debug for Orders<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orders").field("any", &self.any).finish_non_exhaustive()
    }
}
