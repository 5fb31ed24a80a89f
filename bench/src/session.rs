//! Guests, a worker and a host on threads of their own.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};
use std::{io, panic};

use crossbeam::utils::Backoff;
use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::{Features, Opcode, Stats, StatsReader, VirtualSmmu, Worker};
use hdrhistogram::Histogram;
use serde::Deserialize;

use crate::driver::DriverError;
use crate::live_model::CachesReport;
use crate::machine::Machine;
use crate::traffic::Traffic;
use crate::vcpu::{Plan, Vcpu, boot, report};
use crate::verify::{Verdict, Verifier};
use crate::workload::{Pace, Workload};

/// Which of its queues a guest uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// The CMDQ, through register pages that are memory. There is one, which all vCPUs of a guest share.
    Cmdq,
    /// ECMDQs, one for each vCPU, on control pages that are memory; pages 0 and 1 trap.
    #[default]
    Ecmdq,
}

/// What a session does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many guests.
    pub guests: u16,
    /// How many of them, the last ones, are hostile: what becomes of those is not looked at.
    pub hostile: u16,
    /// Which queues they use.
    pub queue: QueueKind,
    /// vCPUs of each, up to 256: a thread and an ECMDQ for each, or all of them on the CMDQ.
    pub queues: u16,
    /// How long they send; without a pace each vCPU sends its traffic once at least.
    pub time: Duration,
    /// What the vCPUs send: each its own, or all the same.
    pub traffic: Vec<Traffic>,
    /// When groups begin; without it, when the one before has completed.
    pub pace: Option<(Pace, u64)>,
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
    /// From the doorbell to the CMD_SYNC's completion, in nanoseconds; with a pace, from when the commands were due.
    pub sync_ns: Histogram<u64>,
    /// Which of its queues stopped early, and why.
    pub errors: Vec<(u16, DriverError)>,
    /// It did as it liked: errors and rejected commands are what was to be expected.
    pub hostile: bool,
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

impl Settings {
    /// What a workload describes, for so long, all of it compared.
    pub fn of(workload: &Workload, time: Duration) -> Self {
        Self {
            guests: workload.guests,
            hostile: workload.hostile,
            queue: workload.queue,
            queues: workload.vcpus,
            time,
            traffic: (0..workload.vcpus).map(|vcpu| workload.traffic(vcpu)).collect(),
            pace: workload.pace.map(|pace| (pace, workload.seed)),
            queue_log2: workload.queue_log2,
            host_log2: 12,
            verify: true,
        }
    }
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
        let exact =
            |g: &GuestReport| g.errors.is_empty() && g.stats.rejected == 0 && g.stats.commands == g.sent;
        let guest = |g: &GuestReport| g.hostile || exact(g);
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
    host: RingConsumer,
}

impl Session {
    /// Sets everything up; nothing runs yet.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a number of queues that cannot be; what the system said when it refused the memory.
    pub fn new(settings: Settings) -> io::Result<Self> {
        if !(1..=256).contains(&settings.queues) || settings.traffic.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut features = Features::default();
        (features.ats, features.ssid_bits) = (true, 20);
        if settings.queue == QueueKind::Ecmdq {
            features = features.with_ecmdqs(0, settings.queues.next_power_of_two().ilog2() as u8);
        }
        let traffic: Vec<_> = match settings.queues {
            1 => settings.traffic[..1].to_vec(),
            // Numbers up to 255: they fit.
            queues => (0..queues)
                .zip(settings.traffic.iter().cycle())
                .map(|(queue, traffic)| traffic.of_queue(queue as u8))
                .collect(),
        };
        let streams: BTreeSet<_> = traffic.iter().flat_map(|traffic| &traffic.streams).copied().collect();
        let streams: Vec<_> = streams.into_iter().collect();
        let (ring, host) = NativeRing::with_consumer(settings.host_log2)?;
        let mut worker = Worker::new(ring);
        let mut machines = Vec::new();
        for number in 0..settings.guests {
            let machine = Machine::new(number, features, &streams)?;
            worker.attach(machine.smmu.clone()).map_err(io::Error::other)?;
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
        let honest = machines.len() - usize::from(settings.hostile).min(machines.len());
        let verifier = settings.verify.then(|| Verifier::new(honest, queues).beside_hostile());
        let stop = AtomicBool::new(false);
        let start_line = Barrier::new(machines.len() * queues + 1);
        let (guests, time) = thread::scope(|scope| {
            let serving = spawn(scope, "worker".into(), || worker.run(&stop));
            let executing = spawn(scope, "host".into(), || execute(&mut host, verifier.as_ref(), &stop));
            let start_guest = |machine: &'_ Machine| {
                let plan = Plan {
                    time: settings.time,
                    pace: settings.pace,
                    hostile: usize::from(machine.number) >= honest,
                };
                let queues = boot(machine, settings.queue, settings.queues, settings.queue_log2);
                let vcpus = queues.into_iter().zip(&traffic).enumerate().map(|(number, (port, traffic))| {
                    let vcpu = Vcpu { guest: machine.number, number, traffic };
                    let (verifier, start_line, plan) = (verifier.as_ref(), &start_line, plan.clone());
                    let name = format!("guest {}.{number}", machine.number);
                    spawn(scope, name, move || vcpu.drive(port, &plan, verifier, start_line))
                });
                vcpus.collect::<Vec<_>>()
            };
            // One after another boots: there is one thread for that, and the worker answers.
            let guests: Vec<_> = machines.iter().map(start_guest).collect();
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
        let guests = guests.into_iter().zip(stats).enumerate();
        let guests =
            guests.map(|(number, (guest, stats))| GuestReport { stats, hostile: number >= honest, ..guest });
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
fn execute(host: &mut RingConsumer, verifier: Option<&Verifier>, stop: &AtomicBool) {
    let backoff = Backoff::new();
    while !stop.load(Relaxed) {
        if host.poll(|batch| verifier.iter().for_each(|v| v.received(batch))) > 0 {
            backoff.reset();
        } else {
            backoff.snooze();
        }
    }
}
