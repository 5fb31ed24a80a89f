//! Guests, a worker and a host on threads of their own.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};
use std::{io, panic};

use crossbeam::utils::Backoff;
use ecmdq_engine::host::{HostSmmu, NativeRing};
use ecmdq_engine::{Features, Opcode, Stats, StatsReader, VirtualSmmu, Worker};
use hdrhistogram::Histogram;
use vm_memory::GuestAddress;

use crate::driver::{Driver, DriverError};
use crate::live_model::CachesReport;
use crate::machine::Machine;
use crate::registers::Registers;
use crate::traffic::Traffic;
use crate::verify::{Verdict, Verifier};

/// Which of its queues a guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// The CMDQ, through register pages that are memory. There is one, and the driver here has it to itself.
    Cmdq,
    /// ECMDQs, one for each vCPU, on control pages that are memory; pages 0 and 1 trap.
    Ecmdq,
}

/// What a session does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many guests.
    pub guests: u16,
    /// Which queues they use.
    pub queue: QueueKind,
    /// How many each uses, up to 256, with a vCPU for each: a thread.
    pub queues: u16,
    /// How long they send; each queue gets its traffic at least once.
    pub time: Duration,
    /// What each queue is sent.
    pub traffic: Traffic,
    /// log2 of the entries of each queue.
    pub queue_log2: u32,
    /// log2 of the entries of the host's ring.
    pub host_log2: u32,
    /// Whether to compare all that the host receives.
    pub verify: bool,
}

/// What a guest did.
#[derive(Debug)]
pub struct GuestReport {
    /// What the engine counted.
    pub stats: Stats,
    /// Commands that the guest sent, CMD_SYNCs included.
    pub sent: u64,
    /// From the doorbell to the CMD_SYNC's completion, in nanoseconds.
    pub sync_ns: Histogram<u64>,
    /// Which of its queues stopped early, and why.
    pub errors: Vec<(u16, DriverError)>,
}

/// What happened.
#[derive(Debug)]
pub struct Report {
    /// Each guest, in order.
    pub guests: Vec<GuestReport>,
    /// How long they sent.
    pub time: Duration,
    /// Commands that the host received, by opcode.
    pub host: Vec<(Opcode, u64)>,
    /// The comparison, if one was asked for.
    pub verdict: Option<Verdict>,
    /// What became of the entries of a [model SMMU](crate::LiveModel), if the host is one.
    pub caches: Option<CachesReport>,
}

impl Report {
    /// Commands that the host received, without its CMD_SYNCs.
    pub fn host_commands(&self) -> u64 {
        self.host.iter().filter(|(opcode, _)| *opcode != Opcode::CMD_SYNC).map(|(_, n)| n).sum()
    }

    /// CMD_SYNCs that the host received.
    pub fn host_syncs(&self) -> u64 {
        self.host.iter().find(|(opcode, _)| *opcode == Opcode::CMD_SYNC).map_or(0, |(_, n)| *n)
    }

    /// Whether every command that was sent was taken, and every one forwarded was received, exactly.
    pub fn is_clean(&self) -> bool {
        let guest =
            |g: &GuestReport| g.errors.is_empty() && g.stats.rejected == 0 && g.stats.commands == g.sent;
        let forwarded: u64 = self.guests.iter().map(|guest| guest.stats.forwarded).sum();
        self.guests.iter().all(guest)
            && forwarded == self.host_commands()
            && self.verdict.as_ref().is_none_or(Verdict::is_clean)
            && self.caches.as_ref().is_none_or(|caches| caches.wrong == 0)
    }
}

/// A set-up that is ready to run.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    /// What each queue of a guest is sent.
    traffic: Vec<Traffic>,
    machines: Vec<Machine>,
    worker: Worker<NativeRing>,
    host: HostSmmu,
}

impl Session {
    /// Sets everything up; nothing runs yet.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a number of queues that cannot be; what the system said when it refused the memory.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let most = match settings.queue {
            QueueKind::Cmdq => 1,
            QueueKind::Ecmdq => 256,
        };
        if !(1..=most).contains(&settings.queues) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut features = Features::default();
        features.ats = true;
        if settings.queue == QueueKind::Ecmdq {
            features = features.with_ecmdqs(0, settings.queues.next_power_of_two().ilog2() as u8);
        }
        let traffic: Vec<_> = match settings.queues {
            1 => vec![settings.traffic.clone()],
            // Numbers up to 255: they fit.
            queues => (0..queues).map(|queue| settings.traffic.of_queue(queue as u8)).collect(),
        };
        let streams: BTreeSet<_> = traffic.iter().flat_map(|traffic| &traffic.streams).copied().collect();
        let streams: Vec<_> = streams.into_iter().collect();
        let (ring, host) = NativeRing::with_consumer(settings.host_log2)?;
        let mut worker = Worker::new(ring);
        let mut machines = Vec::new();
        for number in 0..settings.guests {
            let machine = Machine::new(number, features, &streams)?;
            worker.attach(machine.smmu.clone());
            machines.push(machine);
        }
        Ok(Self { settings, traffic, machines, worker, host })
    }

    /// Readers of the guests' statistics, to watch them while [`Self::run`] goes on.
    pub fn stats_readers(&self) -> Vec<StatsReader> {
        self.worker.guests().map(VirtualSmmu::stats_reader).collect()
    }

    /// Runs the guests to their end, then the worker and the host.
    pub fn run(self) -> Report {
        let Self { settings, traffic, machines, mut worker, mut host } = self;
        let queues = usize::from(settings.queues);
        let verifier = settings.verify.then(|| Verifier::new(machines.len(), queues));
        let stop = AtomicBool::new(false);
        let start_line = Barrier::new(machines.len() * queues + 1);
        let (guests, time) = thread::scope(|scope| {
            let serving = spawn(scope, "worker".into(), || worker.run(&stop));
            let executing = spawn(scope, "host".into(), || execute(&mut host, verifier.as_ref(), &stop));
            let start_vcpu = |machine, booted, number| {
                let Settings { queue: kind, queue_log2: log2, .. } = settings;
                let queue = Queue { machine, booted, number, kind, log2 };
                let traffic = &traffic[usize::from(number)];
                let (verifier, start_line, time) = (verifier.as_ref(), &start_line, settings.time);
                let name = format!("guest {}.{number}", machine.number);
                spawn(scope, name, move || queue.drive(traffic, time, verifier, start_line))
            };
            let guests: Vec<Vec<_>> = machines
                .iter()
                .map(|machine| {
                    let booted = match settings.queue {
                        // Its driver does it.
                        QueueKind::Cmdq => Ok(()),
                        QueueKind::Ecmdq => machine.registers.reset(),
                    };
                    (0..settings.queues).map(|number| start_vcpu(machine, booted, number)).collect()
                })
                .collect();
            start_line.wait();
            let start = Instant::now();
            let guests: Vec<_> =
                guests.into_iter().map(|vcpus| report(vcpus.into_iter().map(join))).collect();
            let time = start.elapsed();
            stop.store(true, Relaxed);
            join(serving);
            join(executing);
            (guests, time)
        });
        // What the worker handed over last.
        while host.poll(|batch| verifier.iter().for_each(|v| v.received(batch))) > 0 {}
        let stats = worker.guests().map(VirtualSmmu::stats);
        let guests = guests.into_iter().zip(stats).map(|(guest, stats)| GuestReport { stats, ..guest });
        Report {
            guests: guests.collect(),
            time,
            host: host.by_opcode().collect(),
            verdict: verifier.map(|verifier| verifier.finish()),
            caches: None,
        }
    }
}

pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    work: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    thread::Builder::new().name(name).spawn_scoped(scope, work).expect("a thread can be started")
}

/// A thread's result; its panic goes on here.
pub(crate) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
}

/// The host's SMMU, until `stop`.
fn execute(host: &mut HostSmmu, verifier: Option<&Verifier>, stop: &AtomicBool) {
    let backoff = Backoff::new();
    while !stop.load(Relaxed) {
        if host.poll(|batch| verifier.iter().for_each(|v| v.received(batch))) > 0 {
            backoff.reset();
        } else {
            backoff.snooze();
        }
    }
}

/// What a vCPU did: see [`GuestReport`].
pub(crate) struct Sent {
    pub sent: u64,
    pub sync_ns: Histogram<u64>,
    pub result: Result<(), DriverError>,
}

/// What the vCPUs of a guest did.
pub(crate) fn report(vcpus: impl Iterator<Item = Sent>) -> GuestReport {
    let mut guest =
        GuestReport { stats: Stats::default(), sent: 0, sync_ns: histogram(), errors: Vec::new() };
    for (queue, Sent { sent, sync_ns, result }) in (0..).zip(vcpus) {
        guest.sent += sent;
        guest.sync_ns += sync_ns;
        guest.errors.extend(result.err().map(|error| (queue, error)));
    }
    guest
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("1 ns to 100 s, 3 digits")
}

/// A queue of a guest, and the vCPU that drives it.
pub(crate) struct Queue<'a> {
    pub machine: &'a Machine,
    /// How the reset of its SMMU went.
    pub booted: Result<(), DriverError>,
    pub number: u16,
    pub kind: QueueKind,
    pub log2: u32,
}

impl Queue<'_> {
    pub fn driver(&self) -> Result<Driver, DriverError> {
        let Self { machine, booted, number, kind, log2 } = *self;
        booted?;
        let number = u32::from(number);
        let bytes = 16 << log2;
        let base = GuestAddress(Machine::RAM_BASE.0 + u64::from(number) * bytes);
        let ring = machine.region(base, bytes as usize).ok_or(DriverError::NoQueue(log2))?;
        match (kind, &machine.registers) {
            (QueueKind::Cmdq, Registers::Memory(pages)) => Driver::cmdq(pages, base, ring, log2),
            (QueueKind::Cmdq, Registers::Trapped(..)) => Err(DriverError::NoQueue(log2)),
            (QueueKind::Ecmdq, registers) => Driver::ecmdq(registers, number, base, ring, log2),
        }
    }

    /// Its traffic over and over until the time is up, once at least.
    fn drive(
        &self,
        traffic: &Traffic,
        time: Duration,
        verifier: Option<&Verifier>,
        start_line: &Barrier,
    ) -> Sent {
        let driver = self.driver();
        start_line.wait();
        let mut done = Sent { sent: 0, sync_ns: histogram(), result: Ok(()) };
        done.result = driver.and_then(|mut driver| {
            let start = Instant::now();
            for (i, group) in traffic.groups.iter().cycle().enumerate() {
                if i >= traffic.groups.len() && start.elapsed() >= time {
                    break;
                }
                if let Some(verifier) = verifier {
                    let queue = usize::from(self.number);
                    verifier.sending(self.machine.number, queue, &group.commands, &traffic.streams);
                }
                let time = driver.send(&group.commands, group.sync)?;
                done.sent += group.commands.len() as u64 + 1;
                done.sync_ns.saturating_record(time.as_nanos() as u64);
            }
            Ok(())
        });
        done
    }
}
