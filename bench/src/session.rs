//! Guests, a worker and a host on threads of their own.

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

use crate::driver::{Driver, DriverError};
use crate::machine::Machine;
use crate::traffic::Traffic;
use crate::verify::{Verdict, Verifier};

/// What a session does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many guests.
    pub guests: u16,
    /// How long they send; each sends its traffic at least once.
    pub time: Duration,
    /// What each sends.
    pub traffic: Traffic,
    /// log2 of the entries of each guest's queue.
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
    /// Why it stopped early.
    pub error: Option<DriverError>,
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
            |g: &GuestReport| g.error.is_none() && g.stats.rejected == 0 && g.stats.commands == g.sent;
        let forwarded: u64 = self.guests.iter().map(|guest| guest.stats.forwarded).sum();
        self.guests.iter().all(guest)
            && forwarded == self.host_commands()
            && self.verdict.as_ref().is_none_or(Verdict::is_clean)
    }
}

/// A set-up that is ready to run.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    machines: Vec<Machine>,
    worker: Worker<NativeRing>,
    host: HostSmmu,
}

impl Session {
    /// Sets everything up; nothing runs yet.
    ///
    /// # Errors
    ///
    /// What the system said when it refused the memory.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let mut features = Features::default();
        features.ats = true;
        let (ring, host) = NativeRing::with_consumer(settings.host_log2)?;
        let mut worker = Worker::new(ring);
        let mut machines = Vec::new();
        for number in 0..settings.guests {
            let machine = Machine::new(number, features, &settings.traffic.streams)?;
            worker.attach(machine.virtual_smmu().map_err(io::Error::other)?);
            machines.push(machine);
        }
        Ok(Self { settings, machines, worker, host })
    }

    /// Readers of the guests' statistics, to watch them while [`Self::run`] goes on.
    pub fn stats_readers(&self) -> Vec<StatsReader> {
        self.worker.guests().iter().map(VirtualSmmu::stats_reader).collect()
    }

    /// Runs the guests to their end, then the worker and the host.
    pub fn run(self) -> Report {
        let Self { settings, machines, mut worker, mut host } = self;
        let verifier = settings.verify.then(|| Verifier::new(machines.len()));
        let stop = AtomicBool::new(false);
        let start_line = Barrier::new(machines.len() + 1);
        let (guests, time) = thread::scope(|scope| {
            let serving = spawn(scope, "worker".into(), || worker.run(&stop));
            let executing = spawn(scope, "host".into(), || execute(&mut host, verifier.as_ref(), &stop));
            let guests: Vec<_> = machines
                .iter()
                .map(|machine| {
                    let (settings, verifier, start_line) = (&settings, verifier.as_ref(), &start_line);
                    let name = format!("guest {}", machine.number);
                    spawn(scope, name, move || drive(machine, settings, verifier, start_line))
                })
                .collect();
            start_line.wait();
            let start = Instant::now();
            let guests: Vec<_> = guests.into_iter().map(join).collect();
            let time = start.elapsed();
            stop.store(true, Relaxed);
            join(serving);
            join(executing);
            (guests, time)
        });
        // What the worker handed over last.
        while host.poll(|batch| verifier.iter().for_each(|v| v.received(batch))) > 0 {}
        let stats = worker.guests().iter().map(VirtualSmmu::stats);
        let guests = guests.into_iter().zip(stats).map(|(guest, stats)| GuestReport { stats, ..guest });
        Report {
            guests: guests.collect(),
            time,
            host: host.by_opcode().collect(),
            verdict: verifier.map(|verifier| verifier.finish()),
        }
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    work: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    thread::Builder::new().name(name).spawn_scoped(scope, work).expect("a thread can be started")
}

/// A thread's result; its panic goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
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

/// One guest: its traffic over and over until the time is up, once at least.
fn drive(
    machine: &Machine,
    settings: &Settings,
    verifier: Option<&Verifier>,
    start_line: &Barrier,
) -> GuestReport {
    let Settings { traffic, queue_log2, .. } = settings;
    let base = Machine::RAM_BASE;
    let driver = machine
        .region(base, 16 << queue_log2)
        .ok_or(DriverError::NoQueue(*queue_log2))
        .and_then(|ring| Driver::enable(&machine.registers, base, ring, *queue_log2));
    start_line.wait();
    let sync_ns = Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("1 ns to 100 s, 3 digits");
    let mut report = GuestReport { stats: Stats::default(), sent: 0, sync_ns, error: None };
    let result = driver.and_then(|mut driver| {
        let start = Instant::now();
        for (i, group) in traffic.groups.iter().cycle().enumerate() {
            if i >= traffic.groups.len() && start.elapsed() >= settings.time {
                break;
            }
            if let Some(verifier) = verifier {
                verifier.sending(machine.number, &group.commands, &traffic.streams);
            }
            let time = driver.send(&group.commands, group.sync)?;
            report.sent += group.commands.len() as u64 + 1;
            report.sync_ns.saturating_record(time.as_nanos() as u64);
        }
        Ok(())
    });
    report.error = result.err();
    report
}
