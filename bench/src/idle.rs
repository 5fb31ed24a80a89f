//! What a worker costs that has nothing to do, how long it takes to wake, and what being able to sleep costs one that is busy.

use std::fs;
use std::hint::spin_loop;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::registers::{ECMDQ_BASE, ECMDQ_CONS, ECMDQ_PROD};
use ecmdq_engine::{Command, Doorbell, Features, Idle, SleeperKind, Waker, Worker};
use ecmdq_ring::SharedRegion;
use hdrhistogram::Histogram;
use rustix::thread::gettid;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::Machine;
use crate::pin::{GUEST, SERVER, pin};
use crate::registers::Registers;
use crate::session::{join, spawn};

const QUEUES_LOG2: u8 = 8;
/// Queues that are idle while one rings.
pub const IDLE_QUEUES: usize = 1 << QUEUES_LOG2;
const LOG2: u32 = 8;
const EN: u32 = 1 << 31;
const INDEX: u32 = (2 << LOG2) - 1;
/// A queue's ring of 2^8 entries.
const RING: u64 = 16 << LOG2;
/// Doorbells that are timed, and the pause before each: longer than a worker waits until it sleeps.
const RINGS: u32 = 2000;
const PAUSE: Duration = Duration::from_micros(400);
/// How often each policy is timed, and how long.
const SLICES: usize = 30;
const SLICE: Duration = Duration::from_millis(50);

/// What was measured.
#[derive(Debug)]
pub struct IdleReport {
    /// How long there was nothing to do.
    pub time: Duration,
    /// The processor time of the worker's thread in that time; `None` where the system does not say.
    pub processor: Option<Duration>,
    /// What it sleeps on.
    pub sleeper: Option<SleeperKind>,
    /// How often it slept in that time.
    pub sleeps: u64,
    /// From a doorbell by an eventfd until the command has been taken, in nanoseconds.
    pub wake_ns: Histogram<u64>,
    /// From the write of an eventfd until another thread, which waits for it, has stored a word.
    pub bare_ns: Histogram<u64>,
    /// Commands a second of one queue, by a worker that may sleep and by one that always spins: the median of slices in turn.
    pub adaptive: f64,
    /// The other.
    pub spinning: f64,
}

/// A host that has completed everything whenever it is asked.
#[derive(Debug, Default)]
struct AtOnce(u64);

impl HostQueue for AtOnce {
    fn submit(&mut self, commands: &[Command]) -> usize {
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        self.0 += 1;
        Ticket(self.0)
    }

    fn completed(&mut self) -> Ticket {
        Ticket(self.0)
    }

    fn set_waker(&mut self, _: &Waker) -> bool {
        true
    }
}

/// A guest with 256 ECMDQs, all of them enabled. It rings an eventfd, as KVM does for it, or nothing.
struct Guest {
    machine: Machine,
    control: SharedRegion,
    ring: SharedRegion,
    doorbell: EventFd,
    rings: bool,
    prod: u32,
}

impl Guest {
    fn new(rings: bool) -> io::Result<Self> {
        let machine = Machine::new(0, Features::default().with_ecmdqs(0, QUEUES_LOG2), &[])?;
        let Registers::Trapped(_, control) = &machine.registers else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let doorbell = EventFd::new(0)?;
        if rings {
            machine.smmu.set_doorbell(Doorbell::Eventfds(vec![doorbell.try_clone()?]));
        }
        let ring = machine.region(Machine::RAM_BASE, RING as usize).ok_or(io::ErrorKind::InvalidInput)?;
        for slot in 0..1 << LOG2 {
            ring.store_u64(16 * slot, 0x0005_0000_0000_0012, Relaxed);
            ring.store_u64(16 * slot + 8, 1, Relaxed);
        }
        let control = control.clone();
        for queue in 0..IDLE_QUEUES {
            let GuestAddress(base) = Machine::RAM_BASE;
            let at = queue * (0x1_0000 >> QUEUES_LOG2);
            control.store_u64(at + ECMDQ_BASE, (base + RING * queue as u64) | u64::from(LOG2), Release);
            control.store_u32(at + ECMDQ_PROD, EN, Release);
        }
        Ok(Self { machine, control, ring, doorbell, rings, prod: 0 })
    }

    /// `n` TLBIs on queue 0, and a CMD_SYNC if wanted; the doorbell; until all of it has been taken.
    fn send(&mut self, n: u32, sync: bool) {
        if sync {
            let slot = 16 * ((self.prod + n) & INDEX >> 1) as usize;
            self.ring.store_u64(slot, 0x46, Relaxed);
            self.ring.store_u64(slot + 8, 0, Relaxed);
        }
        let before = self.prod;
        self.prod = (self.prod + n + u32::from(sync)) & INDEX;
        self.control.store_u32(ECMDQ_PROD, EN | self.prod, Release);
        if self.rings {
            // The counter has room for 2^64 of them.
            let _ = self.doorbell.write(1);
        }
        while self.control.load_u32(ECMDQ_CONS, Acquire) & INDEX != self.prod {
            spin_loop();
        }
        if sync {
            let slot = 16 * ((before + n) & INDEX >> 1) as usize;
            self.ring.store_u64(slot, 0x0005_0000_0000_0012, Relaxed);
            self.ring.store_u64(slot + 8, 1, Relaxed);
        }
    }

    fn wait_enabled(&self) {
        let _ = self.doorbell.write(1);
        let last = (IDLE_QUEUES - 1) * (0x1_0000 >> QUEUES_LOG2);
        while self.control.load_u32(last + ECMDQ_CONS, Acquire) & EN == 0 {
            thread::yield_now();
        }
    }
}

/// The time that a thread of this process has spent on a processor.
fn processor_time(thread: i32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Measures a worker with 256 idle queues for `time`, then its wake-ups, then the price of its policy.
///
/// # Errors
///
/// What the system said when it refused memory, a descriptor, or a thread.
pub fn idle(time: Duration, sleeper: Option<SleeperKind>) -> io::Result<IdleReport> {
    let mut guest = Guest::new(true)?;
    let mut worker = Worker::new(AtOnce::default()).with_sleep(Idle { sleeper, ..Idle::default() })?;
    worker.attach(guest.machine.smmu.clone()).map_err(io::Error::other)?;
    let (handle, sleeper, stop) = (worker.handle(), worker.sleeper(), AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let (processor, sleeps, wake_ns, bare_ns) = thread::scope(|scope| {
        let stop = &stop;
        pin(GUEST);
        scope.spawn(move || {
            pin(SERVER);
            let _ = tell.send(gettid().as_raw_nonzero().get());
            worker.run(stop);
        });
        let thread = told.recv().map_err(io::Error::other)?;
        guest.wait_enabled();
        thread::sleep(Duration::from_millis(50));
        let before = (processor_time(thread), handle.sleeps());
        thread::sleep(time);
        let after = (processor_time(thread), handle.sleeps());
        let processor = after.0.zip(before.0).map(|(after, before)| after.saturating_sub(before));
        let (wake_ns, bare_ns) = time_wakes(&mut guest)?;
        stop.store(true, Relaxed);
        handle.wake();
        Ok::<_, io::Error>((processor, after.1 - before.1, wake_ns, bare_ns))
    })?;
    let policies = [Idle { sleeper, ..Idle::default() }, Idle::always_spin()];
    let mut rates = [Vec::new(), Vec::new()];
    for slice in 0..SLICES {
        // Each is the first of a pair as often as the other.
        for which in [slice % 2, 1 - slice % 2] {
            rates[which].push(rate(policies[which])?);
        }
    }
    let [adaptive, spinning] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[SLICES / 2]
    });
    Ok(IdleReport { time, processor, sleeper, sleeps, wake_ns, bare_ns, adaptive, spinning })
}

/// From a doorbell by an eventfd until a worker that sleeps has taken the command, and from the write of a bare eventfd until another
/// thread has stored a word, in nanoseconds; and the pause before each.
pub(crate) fn wakes() -> io::Result<(Histogram<u64>, Histogram<u64>, Duration)> {
    let mut guest = Guest::new(true)?;
    let mut worker = Worker::new(AtOnce::default()).with_sleep(Idle::default())?;
    worker.attach(guest.machine.smmu.clone()).map_err(io::Error::other)?;
    let _running = worker.spawn("worker", Some(SERVER))?;
    guest.wait_enabled();
    let (engine, bare) = thread::scope(|scope| {
        join(spawn(scope, "guest".into(), || {
            pin(GUEST);
            time_wakes(&mut guest)
        }))
    })?;
    Ok((engine, bare, PAUSE))
}

/// Times doorbells of a worker that sleeps, and bare eventfds, in turn.
fn time_wakes(guest: &mut Guest) -> io::Result<(Histogram<u64>, Histogram<u64>)> {
    let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other);
    let (mut engine, mut bare) = (histogram()?, histogram()?);
    let (eventfd, word) = (EventFd::new(0)?, AtomicU64::new(0));
    thread::scope(|scope| {
        let (waiting, word) = (eventfd.try_clone()?, &word);
        scope.spawn(move || {
            pin(SERVER);
            for n in 1..=u64::from(RINGS) {
                let _ = waiting.read();
                word.store(n, Release);
            }
        });
        let time = |histogram: &mut Histogram<u64>, ring: &mut dyn FnMut()| {
            thread::sleep(PAUSE);
            let start = Instant::now();
            ring();
            histogram.saturating_record(start.elapsed().as_nanos() as u64);
        };
        for n in 1..=u64::from(RINGS) {
            time(&mut engine, &mut || guest.send(1, false));
            time(&mut bare, &mut || {
                let _ = eventfd.write(1);
                while word.load(Acquire) != n {
                    spin_loop();
                }
            });
        }
        Ok((engine, bare))
    })
}

/// Commands a second of one queue that always has something: 16 TLBIs and a CMD_SYNC, waited for.
fn rate(idle: Idle) -> io::Result<f64> {
    let mut guest = Guest::new(false)?;
    let mut worker = Worker::new(AtOnce::default()).with_sleep(idle)?;
    worker.attach(guest.machine.smmu.clone()).map_err(io::Error::other)?;
    let _running = worker.spawn("worker", Some(SERVER))?;
    guest.wait_enabled();
    let (start, mut commands) = (Instant::now(), 0_u64);
    while start.elapsed() < SLICE {
        for _ in 0..100 {
            guest.send(16, true);
            commands += 17;
        }
    }
    Ok(commands as f64 / start.elapsed().as_secs_f64())
}
