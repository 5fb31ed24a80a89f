//! What a worker does while there is nothing to do: spin, give the processor away now and then, sleep.
//!
//! Going to sleep: arm the doorbell pages that must trap, announce it, look at everything once more, sleep. Arming costs the
//! guest an exit, so it follows a sweep that found nothing, and a sleep that is called off (by the look after arming) is not
//! prepared again before another back-off: at most one arm of a page for each sleep or back-off. Whoever has something
//! for the worker (a trapped write, a completed token, a call of the VMM, a host queue) makes it visible and looks for the
//! announcement; see `ecmdq_ring::SleepWord`.

use std::hint;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::Worker;
use super::attachment::Attachment;
use crate::events::EventKind;
use crate::host::HostQueue;
use crate::sleep::{Sleeper, SleeperKind, Waker};
use crate::vsmmu::Watch;

/// Sweeps without anything to do after which the clock is read, and the processor may rest for a moment.
const QUIET_SWEEPS: u32 = 8;
/// When a worker sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// How long it polls without a pause after there was last something to do.
    pub spin: Duration,
    /// How long after that it gives the processor away between two looks.
    pub back_off: Duration,
    /// How often it looks, while it sleeps, at doorbells that cannot wake it, and at host queues that cannot and have something
    /// to complete.
    pub look_every: Duration,
    /// After how long it tells the VMM that a host queue has completed nothing.
    pub stalled: Duration,
    /// What it sleeps on; `None` for io_uring, or epoll where that is refused.
    pub sleeper: Option<SleeperKind>,
}

impl Default for Idle {
    /// Spins for 50 us, backs off for 200 us more, then sleeps; looks every millisecond.
    fn default() -> Self {
        Self {
            spin: Duration::from_micros(50),
            back_off: Duration::from_micros(200),
            look_every: Duration::from_millis(1),
            stalled: Duration::from_secs(1),
            sleeper: None,
        }
    }
}

impl Idle {
    /// Never sleeps, and never gives the processor away.
    pub fn always_spin() -> Self {
        Self { spin: Duration::MAX, ..Self::default() }
    }

    /// Sleeps as soon as there is nothing to do.
    pub fn always_sleep() -> Self {
        Self { spin: Duration::ZERO, back_off: Duration::ZERO, ..Self::default() }
    }
}

/// A worker that may sleep, as [`Worker::prepare_to_sleep`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nap {
    /// How long at most, even if nobody wakes it.
    pub at_most: Option<Duration>,
}

/// What a worker needs to sleep.
#[derive(Debug)]
pub(super) struct Sleep {
    idle: Idle,
    sleeper: Sleeper,
    waker: Waker,
    /// It has announced to sleep.
    announced: bool,
    /// Host queues that do not wake it.
    deaf: bool,
}

impl Sleep {
    pub fn watch<H: HostQueue>(&mut self, attachment: &mut Attachment<H>) {
        if let Some(own) = &mut attachment.own {
            self.deaf |= !own.set_waker(&self.waker);
        }
        let keys = attachment.guest.with_eventfds(|eventfds| {
            eventfds.iter().map(|eventfd| self.sleeper.add(eventfd)).collect::<io::Result<Vec<_>>>()
        });
        match keys {
            Ok(keys) => attachment.keys = keys,
            Err(error) => {
                log::warn!("doorbells are looked at by a timer, since they cannot be waited for: {error}");
                attachment.guest.set_doorbell(crate::Doorbell::Timer);
            }
        }
    }

    pub fn forget<H>(&mut self, attachment: &Attachment<H>) {
        for key in &attachment.keys {
            if let Err(error) = self.sleeper.remove(*key) {
                log::warn!("a doorbell is still waited for: {error}");
            }
        }
    }

    /// Whoever drives the worker does so again.
    pub fn awake(&mut self) {
        if std::mem::take(&mut self.announced) {
            self.waker.word().awake();
            // Events that ended the caller's sleep must not end the next one.
            let _ = self.sleeper.wait(Some(Duration::ZERO));
        }
    }
}

impl<H: HostQueue> Worker<H> {
    /// Lets the worker sleep: makes all descriptors that it needs for that.
    ///
    /// # Errors
    ///
    /// What the system said when it refused one.
    pub fn with_sleep(mut self, idle: Idle) -> io::Result<Self> {
        let (mut sleeper, waker) = (Sleeper::new(idle.sleeper)?, Waker::new()?);
        sleeper.add(waker.eventfd())?;
        self.orders.set_waker(waker.clone());
        let mut sleep = Sleep { idle, sleeper, waker, announced: false, deaf: false };
        if let Some(shared) = &mut self.shared {
            sleep.deaf |= !shared.set_waker(&sleep.waker);
        }
        for attachment in &mut self.attachments {
            sleep.watch(attachment);
            attachment.guest.set_worker(Some(self.orders.notified()));
        }
        self.sleep = Some(sleep);
        Ok(self)
    }

    /// What it sleeps on; `None` if it never does.
    pub fn sleeper(&self) -> Option<SleeperKind> {
        self.sleep.as_ref().map(|sleep| sleep.sleeper.kind())
    }

    /// For a VMM that drives the worker from its event loop: a descriptor that is readable when a worker that has
    /// [prepared to sleep](Self::prepare_to_sleep) must be [polled](Self::poll) again.
    ///
    /// # Errors
    ///
    /// `Unsupported` unless the worker was made [`with_sleep`](Self::with_sleep) on [`SleeperKind::Epoll`].
    pub fn pollable(&self) -> io::Result<RawFd> {
        let sleep = self.sleep.as_ref();
        sleep.and_then(|sleep| sleep.sleeper.pollable()).ok_or(io::ErrorKind::Unsupported.into())
    }

    /// Whether the caller may stop polling until [`Self::pollable`] is readable, or the time of the [`Nap`] is over; `None` if there
    /// is something to do, or the last sweep had something to do, or the worker cannot sleep: then it wants to be polled again.
    pub fn prepare_to_sleep(&mut self) -> Option<Nap> {
        self.sleep.as_ref()?;
        if self.busy || self.missed {
            return None;
        }
        self.look_for_stalls();
        self.attachments.iter().for_each(|attachment| attachment.guest.arm());
        self.announce();
        // So that everything is looked at.
        self.busy = false;
        let nap = if self.sweep() || self.missed { None } else { self.nap() };
        if nap.is_none()
            && let Some(sleep) = &mut self.sleep
        {
            sleep.announced = false;
            sleep.waker.word().awake();
        }
        nap
    }

    fn announce(&mut self) {
        if let Some(sleep) = &mut self.sleep {
            sleep.announced = true;
            sleep.waker.word().announce();
        }
    }

    /// How long it may sleep; `None` if it may not.
    fn nap(&mut self) -> Option<Nap> {
        let Self { sleep, attachments, shared, .. } = self;
        let sleep = sleep.as_ref()?;
        let mut at_most = None::<Duration>;
        let mut until = |time: Duration| at_most = Some(at_most.map_or(time, |before| before.min(time)));
        for attachment in attachments.iter() {
            match attachment.guest.watch() {
                Watch::Rings => {}
                Watch::Timer => until(sleep.idle.look_every),
                Watch::Busy => return None,
            }
            let wait = attachment.allowance.wait();
            if !wait.is_zero() {
                until(wait);
            }
        }
        for host in shared.iter().chain(attachments.iter().filter_map(|attachment| attachment.own.as_ref())) {
            if host.waits_for_room() || sleep.deaf && host.is_outstanding() {
                until(sleep.idle.look_every);
            } else if host.is_outstanding() {
                // A host queue that stands still wakes nobody.
                until(sleep.idle.stalled);
            }
        }
        Some(Nap { at_most })
    }

    /// Serves its guests until `stop` is set, or a [handle](super::WorkerHandle::stop) says so: spins while there is something to
    /// do, and does as [`Idle`] says when there is not. Without [`with_sleep`](Self::with_sleep) it only gives the processor
    /// away. A worker that may sleep must be [woken](super::WorkerHandle::wake) to see `stop`.
    pub fn run(&mut self, stop: &AtomicBool) {
        let idle = self
            .sleep
            .as_ref()
            .map_or(Idle { spin: Duration::from_micros(5), ..Idle::default() }, |sleep| sleep.idle);
        let (mut quiet_since, mut quiet_sweeps) = (None, 0_u32);
        // Relaxed: `stop` carries nothing but itself.
        while !self.orders.is_stopped() && !stop.load(Relaxed) {
            let busy = self.sweep();
            if busy {
                (quiet_since, quiet_sweeps) = (None, 0);
                continue;
            }
            // Reading the clock, and giving way to the other half of the core, take as long as a sweep.
            quiet_sweeps += 1;
            if !u32::is_multiple_of(quiet_sweeps, QUIET_SWEEPS) {
                continue;
            }
            let now = Instant::now();
            let quiet = now - *quiet_since.get_or_insert(now);
            if quiet < idle.spin {
                hint::spin_loop();
            } else if self.sleep.is_none() || quiet - idle.spin < idle.back_off {
                thread::yield_now();
            } else {
                if !self.sleep(stop) {
                    (quiet_since, quiet_sweeps) = (None, 0);
                }
            }
        }
        self.orders.has_stopped();
    }

    /// Whether it slept: not if there was something to do after all.
    fn sleep(&mut self, stop: &AtomicBool) -> bool {
        let Some(nap) = self.prepare_to_sleep() else { return false };
        let Some(sleep) = &mut self.sleep else { return false };
        // Relaxed: looked at once more since the announcement, whose fence orders it.
        if !self.orders.is_stopped() && !stop.load(Relaxed) {
            self.orders.count_sleep();
            if let Err(error) = sleep.sleeper.wait(nap.at_most) {
                // Once: it polls from then on.
                log::error!("a worker cannot sleep: {error}");
                sleep.waker.word().awake();
                self.sleep = None;
                return false;
            }
        }
        sleep.announced = false;
        sleep.waker.word().awake();
        true
    }

    /// Tells of host queues that get nowhere, once in each [`Idle::stalled`].
    pub(super) fn look_for_stalls(&mut self) {
        let limit = self.sleep.as_ref().map_or_else(Idle::default, |sleep| sleep.idle).stalled;
        let now = Instant::now();
        let Self { shared, attachments, events, .. } = self;
        for host in
            shared.iter_mut().chain(attachments.iter_mut().filter_map(|attachment| attachment.own.as_mut()))
        {
            if let Some(stalled) = host.stalled(now, limit) {
                events.emit(EventKind::HostStalled(stalled));
            }
        }
    }
}
