//! Linux iommufd as a host queue: commands go to the kernel, a call for up to 63 of them.
//!
//! The call waits for the hardware, so it runs beside the worker: an [`IommufdQueue`] takes commands and gives tickets, an
//! [`IommufdExecutor`] on another thread makes the calls. Between them is a native ring, in which the executor stands for
//! the host's SMMU; a CMD_SYNC is complete when the calls for all before it have returned.
//!
//! Tickets that have piled up while a call was waited for share the next one, as long as nothing fails.
//!
//! A queue belongs to one guest: the kernel replaces VMID and StreamIDs by the vIOMMU that it is called with. The kernel adds
//! a CMD_SYNC of its own to each call.
//!
//! What holds for every kernel (facts sheet, section 6.5): never more than 63 commands a call, so that a call is done wholly
//! or not at all; never an empty one; never CMD_SYNC; what the kernel says to have handled is not believed. A call that failed is made
//! again in halves until the one command is found that the kernel refuses. Invalidations may be repeated.

#[cfg(feature = "iommufd")]
mod kernel;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam::utils::Backoff;
use parking_lot::RwLock;
use rustix::io::Errno;

use super::{Failure, HostQueue, HostSmmu, Identities, NativeRing, Ticket};
use crate::command::{Command, Opcode};
use crate::queue::CommandError;
use crate::sleep::{Sleeper, Waker};

#[cfg(feature = "iommufd")]
pub use kernel::{Nesting, VIommu};

/// The most commands of a call: one group of the kernel's.
pub const GROUP: usize = 63;

/// How often a call is made again when the hardware does not answer, which takes the kernel a second each time.
const TRIES: u32 = 8;

/// How often an executor that sleeps looks at what nobody rings for.
const RETRY: Duration = Duration::from_millis(1);

/// One call of `IOMMU_HWPT_INVALIDATE`.
pub trait Invalidate {
    /// Has the kernel execute commands, and waits for that. At least one, and [`GROUP`] at most.
    ///
    /// # Errors
    ///
    /// What the kernel said; nothing is known of which commands it has executed.
    fn invalidate(&self, commands: &[Command]) -> Result<(), Errno>;
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
    smmu: HostSmmu,
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
    let caller = Caller { invalidate, late: 0, atc_timeout: false, apart: 0 };
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
            if self.step() > 0 {
                backoff.reset();
            } else if backoff.is_completed() {
                self.sleep(stop);
            } else {
                backoff.snooze();
            }
        }
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
        if self.step() == 0 && !stop.load(Relaxed) {
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

#[derive(Debug)]
struct Caller<I> {
    invalidate: I,
    /// How often in a row the hardware did not answer in time, with nothing done in between.
    late: u32,
    /// An ATC_INV timed out: the next CMD_SYNC fails.
    atc_timeout: bool,
    /// How many entries are to be done ticket by ticket, since a call for all of them failed.
    apart: usize,
}

/// Why not all of a group was executed.
enum Stop {
    /// Nothing of it is known to be done: it is tried again later.
    Later,
    /// All before this one is done, and the kernel refuses it.
    Refused(usize),
    /// The kernel will execute nothing any more.
    Gone,
}

impl<I: Invalidate> Caller<I> {
    /// How many entries from the front are done, and what is wrong with the next.
    fn execute(&mut self, entries: &[Command]) -> (usize, Option<CommandError>) {
        if let Some(done) = self.over_tickets(entries) {
            return (done, None);
        }
        let (done, error) = self.up_to_ticket(entries);
        self.apart = self.apart.saturating_sub(done);
        (done, error)
    }

    /// One call for the commands before several CMD_SYNCs: how many entries that does. None if there are no several, or
    /// what went wrong must be told to the right one.
    fn over_tickets(&mut self, entries: &[Command]) -> Option<usize> {
        let first = entries.iter().position(|entry| is(entry, Opcode::CMD_SYNC))?;
        let is_last = entries[first..].iter().all(|entry| is(entry, Opcode::CMD_SYNC));
        if is_last || self.apart > 0 || self.atc_timeout {
            return None;
        }
        let mut group = [Command::default(); GROUP];
        let mut n = 0;
        let mut take = |entry: &Command| {
            if !is(entry, Opcode::CMD_SYNC) {
                let Some(place) = group.get_mut(n) else { return false };
                *place = *entry;
                n += 1;
            }
            true
        };
        let done = entries.iter().take_while(|entry| take(entry)).count();
        match self.invalidate.invalidate(&group[..n]) {
            Ok(()) => {
                self.late = 0;
                Some(done)
            }
            Err(Errno::INTR | Errno::AGAIN | Errno::NOMEM) => Some(0),
            Err(_) => {
                self.apart = done;
                None
            }
        }
    }

    /// The same for the commands up to the next CMD_SYNC, or for that.
    fn up_to_ticket(&mut self, entries: &[Command]) -> (usize, Option<CommandError>) {
        let group = entries.iter().take(GROUP).take_while(|command| !is(command, Opcode::CMD_SYNC)).count();
        if group == 0 {
            // A CMD_SYNC: the calls for all before it have returned.
            return if std::mem::take(&mut self.atc_timeout) {
                (0, Some(CommandError::AtcInvSync))
            } else {
                (1, None)
            };
        }
        let (done, error) = match self.group(&entries[..group]) {
            Ok(()) => (group, None),
            Err(Stop::Refused(at)) => (at, Some(CommandError::Ill)),
            Err(Stop::Later) => return (0, None),
            Err(Stop::Gone) => return (0, Some(CommandError::Abt)),
        };
        // Only here, not after each call: half of a group that is done over and over is no progress.
        self.late = 0;
        (done, error)
    }

    /// Executes a group; on an error in parts.
    fn group(&mut self, commands: &[Command]) -> Result<(), Stop> {
        match self.invalidate.invalidate(commands) {
            Ok(()) => Ok(()),
            // The kernel looks at commands one by one, and says so when it does not like one.
            Err(Errno::IO) => self.halves(commands),
            Err(Errno::TIMEDOUT) if commands.iter().any(|command| is(command, Opcode::ATC_INV)) => {
                self.without_atc_inv(commands)
            }
            Err(Errno::TIMEDOUT) if self.late < TRIES => {
                self.late += 1;
                Err(Stop::Later)
            }
            // These say nothing of the hardware, and pass.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOMEM) => Err(Stop::Later),
            // The device, the vIOMMU or the descriptor has gone, or never was what it should be; or the SMMU is dead.
            Err(_) => Err(Stop::Gone),
        }
    }

    /// Looks for the one command that the kernel refuses. What is not `Refused` makes the whole group be done again.
    fn halves(&mut self, commands: &[Command]) -> Result<(), Stop> {
        if commands.len() == 1 {
            return Err(Stop::Refused(0));
        }
        let (first, second) = commands.split_at(commands.len() / 2);
        self.group(first)?;
        self.group(second).map_err(|stop| match stop {
            Stop::Refused(at) => Stop::Refused(first.len() + at),
            other => other,
        })
    }

    /// Endpoints did not answer, or the SMMU did not, which only a call without ATC_INVs can tell.
    fn without_atc_inv(&mut self, commands: &[Command]) -> Result<(), Stop> {
        let mut rest = [Command::default(); GROUP];
        let mut places = [0; GROUP];
        let mut n = 0;
        for (place, command) in commands.iter().enumerate().filter(|(_, c)| !is(c, Opcode::ATC_INV)) {
            (rest[n], places[n]) = (*command, place);
            n += 1;
        }
        let result = if n == 0 { Ok(()) } else { self.group(&rest[..n]) };
        let result = result.map_err(|stop| match stop {
            Stop::Refused(at) => Stop::Refused(places[at]),
            other => other,
        });
        // Otherwise the ATC_INVs are sent once more, with all else.
        self.atc_timeout |= matches!(result, Ok(()) | Err(Stop::Refused(_)));
        result
    }
}

fn is(command: &Command, opcode: Opcode) -> bool {
    command.opcode() == opcode
}
