//! Linux iommufd as a host queue: commands go to the kernel, a call for up to 63 of them.
//!
//! The call waits for the hardware, so it runs beside the worker: an [`IommufdQueue`] takes commands and gives tickets, an
//! [`IommufdExecutor`] on another thread makes the calls. Between them is a native ring, in which the executor stands for
//! the host's SMMU; a CMD_SYNC is complete when the calls for all before it have returned.
//!
//! Tickets that have piled up while a call was waited for share the next one, as long as nothing fails, and as no command of a later ticket
//! must wait for one of an earlier: see [`HostQueue::sync`].
//!
//! A queue belongs to one guest: the kernel replaces VMID and StreamIDs by the vIOMMU that it is called with. The kernel adds
//! a CMD_SYNC of its own to each call.
//!
//! What holds for every kernel (facts sheet, section 6.5): never more than 63 commands a call, so that a call is done wholly
//! or not at all; never an empty one; never CMD_SYNC; what the kernel says to have handled is not believed. A call that failed is made
//! again in halves until the one command is found that the kernel refuses. Invalidations may be repeated.

mod caller;
#[cfg(feature = "iommufd")]
mod kernel;
#[cfg(feature = "iommufd")]
mod uapi;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam::utils::Backoff;
use parking_lot::RwLock;

use super::{Failure, HostQueue, Identities, NativeRing, RingConsumer, Ticket};
use crate::command::Command;
use crate::sleep::{Sleeper, Waker};
use caller::Caller;

#[cfg(feature = "iommufd")]
pub use kernel::{Nesting, VIommu};

/// The most commands of a call: one group of the kernel's.
pub const GROUP: usize = 63;

/// How often an executor that sleeps looks at what nobody rings for.
const RETRY: Duration = Duration::from_millis(1);

/// One call of `IOMMU_HWPT_INVALIDATE`.
pub trait Invalidate {
    /// Has the kernel execute commands, and waits for that. At least one, and [`GROUP`] at most.
    ///
    /// # Errors
    ///
    /// What the kernel said, as the number of its error ([`io::Error::raw_os_error`]), which decides what is done about it; an error without a number
    /// counts as the end. Nothing is known of which commands it has executed.
    fn invalidate(&self, commands: &[Command]) -> io::Result<()>;
}

/// A guest's commands on their way to the kernel.
#[derive(Debug)]
pub struct IommufdQueue {
    ring: NativeRing,
    executor: Waker,
    /// Set by the worker; read by the executor.
    worker: Arc<RwLock<Option<Waker>>>,
}

/// Makes the calls. The VMM runs it on a thread of its own.
#[derive(Debug)]
pub struct IommufdExecutor<I> {
    smmu: RingConsumer,
    caller: Caller<I>,
    sleeper: Sleeper,
    waker: Waker,
    worker: Arc<RwLock<Option<Waker>>>,
    /// It was told that it cannot sleep.
    sleepless: bool,
}

/// A queue of 2^`log2` commands for a guest, and what executes it.
///
/// # Errors
///
/// As [`NativeRing::with_consumer`].
pub fn queue<I: Invalidate>(invalidate: I, log2: u32) -> io::Result<(IommufdQueue, IommufdExecutor<I>)> {
    let (ring, smmu) = NativeRing::with_consumer(log2)?;
    let caller = Caller::new(invalidate);
    let (waker, mut sleeper, worker) = (Waker::new()?, Sleeper::new(None)?, Arc::new(RwLock::new(None)));
    sleeper.add(waker.eventfd())?;
    let queue = IommufdQueue { ring, executor: waker.clone(), worker: worker.clone() };
    Ok((queue, IommufdExecutor { smmu, caller, sleeper, waker, worker, sleepless: false }))
}

impl HostQueue for IommufdQueue {
    fn identities(&self) -> Identities {
        Identities::Guest
    }

    fn submit(&mut self, commands: &[Command]) -> usize {
        let taken = self.ring.submit(commands);
        self.executor.wake();
        taken
    }

    fn sync(&mut self) -> Ticket {
        let ticket = self.ring.sync();
        self.executor.wake();
        ticket
    }

    fn submit_and_sync(&mut self, commands: &[Command]) -> (usize, Option<Ticket>) {
        let submitted = self.ring.submit_and_sync(commands);
        self.executor.wake();
        submitted
    }

    fn completed(&mut self) -> Ticket {
        self.ring.completed()
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        self.ring.failure(ticket)
    }

    fn set_waker(&mut self, waker: &Waker) -> bool {
        *self.worker.write() = Some(waker.clone());
        true
    }
}

impl<I: Invalidate> IommufdExecutor<I> {
    /// Makes a call, or more if one fails, for the next commands; waits for the hardware. Says how many commands and
    /// CMD_SYNCs are done; none if there are none, or the kernel wants the call again later.
    pub fn step(&mut self) -> usize {
        let Self { smmu, caller, worker, .. } = self;
        let done = smmu.poll_with(|commands| caller.execute(commands));
        // An error is something to be looked at as well.
        if (done > 0 || smmu.is_stopped())
            && let Some(worker) = &*worker.read()
        {
            worker.wake();
        }
        done
    }

    /// Steps until `stop` is set; sleeps while there is nothing to do. Whoever sets `stop` must [wake](Self::waker) it.
    pub fn run(&mut self, stop: &AtomicBool) {
        let backoff = Backoff::new();
        // Relaxed: `stop` carries nothing but itself.
        while !stop.load(Relaxed) {
            self.turn(&backoff, stop);
        }
    }

    /// A step, and a rest if there was nothing to do or to be had. Says whether it slept.
    fn turn(&mut self, backoff: &Backoff, stop: &AtomicBool) -> bool {
        if self.step() > 0 {
            backoff.reset();
        } else if backoff.is_completed() {
            self.sleep(stop);
            return true;
        } else {
            backoff.snooze();
        }
        false
    }

    /// How many commands have been executed, CMD_SYNCs included.
    pub fn total(&self) -> u64 {
        self.smmu.total()
    }

    /// Wakes it.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn sleep(&mut self, stop: &AtomicBool) {
        self.waker.word().announce();
        // The kernel was asked just now, if it wants to be asked later.
        if (self.caller.wants_again() || self.step() == 0) && !stop.load(Relaxed) {
            // What the kernel wants to be asked again, or an error that the worker has not acknowledged, rings no more.
            let at_most = (!self.smmu.is_empty()).then_some(RETRY);
            if let Err(error) = self.sleeper.wait(at_most) {
                if !std::mem::replace(&mut self.sleepless, true) {
                    log::error!("an executor cannot sleep: {error}");
                }
                std::thread::yield_now();
            }
        }
        self.waker.word().awake();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::sync::atomic::AtomicBool;

    use crossbeam::utils::Backoff;
    use rustix::io::Errno;

    use super::{Invalidate, queue};
    use crate::command::Command;
    use crate::host::HostQueue;

    /// A kernel that has no memory for so many calls, and then has.
    #[derive(Debug)]
    struct Poor(Cell<u32>);

    impl Invalidate for Poor {
        fn invalidate(&self, _: &[Command]) -> io::Result<()> {
            let left = self.0.get();
            self.0.set(left.saturating_sub(1));
            if left > 0 { Err(Errno::NOMEM.into()) } else { Ok(()) }
        }
    }

    #[test]
    fn while_the_kernel_has_no_memory_it_is_asked_once_for_each_sleep() {
        let (mut queue, mut executor) = queue(Poor(Cell::new(100)), 6).unwrap();
        assert_eq!(queue.submit(&[Command([0x10, 0]); 3]), 3);
        let ticket = queue.sync();
        let (backoff, stop, mut slept) = (Backoff::new(), AtomicBool::new(false), 0);
        // 4 are the commands and their CMD_SYNC.
        while executor.total() < 4 {
            slept += u32::from(executor.turn(&backoff, &stop));
        }
        // The back-off is over after some 10 calls.
        assert!(slept >= 80, "100 calls and {slept} sleeps");
        assert_eq!((queue.completed(), queue.failure(ticket)), (ticket, None));
    }
}
