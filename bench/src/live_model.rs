//! Guests and workers in front of a model SMMU, all on threads of their own: do guests lose exactly what they name?
//!
//! Each vCPU fills the caches with entries of its own, sends commands and a CMD_SYNC, and looks: what they name is gone, what they do
//! not name is there, and so is a sample of what other vCPUs and guests have and do not name now. The names of all
//! guests clash.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_engine::host::ModelSmmu;
use ecmdq_engine::host::model::{Caches, Entry, Pace};
use ecmdq_engine::{Features, Opcode, StatsReader, VirtualSmmu, Worker};

use crate::cached::{Cached, Names, Sent as Sending};
use crate::driver::{DriverError, Sync};
use crate::machine::Machine;
use crate::session::{GuestReport, QueueKind, Report, Settings, join, spawn};
use crate::vcpu::{Port, Sent, boot, histogram, report};

/// What became of the entries in a model SMMU's caches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CachesReport {
    /// Entries that the guests filled.
    pub filled: u64,
    /// Entries that were removed.
    pub removed: u64,
    /// Entries that were looked at.
    pub looked_at: u64,
    /// Of these, those that were there and should not have been, or the other way round.
    pub wrong: u64,
    /// The first that was wrong.
    pub first: Option<String>,
}

/// A set-up that is ready to run.
#[derive(Debug)]
pub struct LiveModel {
    settings: Settings,
    machines: Vec<Machine>,
    workers: Vec<Worker<ModelSmmu>>,
    queues: Vec<ModelSmmu>,
}

/// Two workers, each with a queue of the host's.
const WORKERS: usize = 2;
/// How many entries of another vCPU are looked at after each CMD_SYNC.
const SAMPLE: usize = 16;
/// The most commands before a CMD_SYNC.
const MOST: u64 = 20;

impl LiveModel {
    /// Sets everything up; nothing runs yet. The settings' traffic and the size of the host's ring do not count.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a number of queues that cannot be; what the system said when it refused the memory.
    pub fn new(settings: Settings) -> io::Result<Self> {
        if !(1..=256).contains(&settings.queues) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut features = Features::default();
        features.ats = true;
        let model = ModelSmmu::new(&features);
        let queues: Vec<_> = (0..WORKERS).map(|_| model.another_queue()).collect();
        queues.iter().for_each(|queue| queue.set_pace(Pace::PerLook(256)));
        let mut workers: Vec<_> = queues.iter().map(|queue| Worker::new(queue.clone())).collect();
        if settings.queue == QueueKind::Ecmdq {
            features = features.with_ecmdqs(0, settings.queues.next_power_of_two().ilog2() as u8);
        }
        let streams: Vec<_> = (0..settings.queues).map(|queue| Names { queue }.stream()).collect();
        let mut machines = Vec::new();
        for number in 0..settings.guests {
            let machine = Machine::new(number, features, &streams)?;
            workers[usize::from(number) % WORKERS].attach(machine.smmu.clone()).map_err(io::Error::other)?;
            machines.push(machine);
        }
        Ok(Self { settings, machines, workers, queues })
    }

    /// Readers of the guests' statistics, to watch them while [`Self::run`] goes on.
    pub fn stats_readers(&self) -> Vec<StatsReader> {
        self.machines.iter().map(|machine| machine.smmu.stats_reader()).collect()
    }

    /// Runs the guests to their end, then the workers.
    pub fn run(self) -> Report {
        let Self { settings, machines, mut workers, queues: model } = self;
        let vcpus = usize::from(settings.queues);
        let accounts: Vec<_> = machines
            .iter()
            .flat_map(|machine| (0..settings.queues).map(|queue| Mutex::new(Account::new(machine, queue))))
            .collect();
        let verdict = Mutex::new(CachesReport::default());
        let stop = AtomicBool::new(false);
        let start_line = Barrier::new(accounts.len() + 1);
        let (guests, time) = thread::scope(|scope| {
            let serving =
                workers.iter_mut().map(|worker| spawn(scope, "worker".into(), || worker.run(&stop)));
            let serving: Vec<_> = serving.collect();
            let start = |machine: &Machine| {
                let ports = boot(machine, settings.queue, settings.queues, settings.queue_log2);
                let vcpus = (0..).zip(ports).map(|(number, port)| {
                    let own = usize::from(machine.number) * vcpus + usize::from(number);
                    let (accounts, model, verdict) = (&accounts[..], &model[0], &verdict);
                    let vcpu = Vcpu { number, own, accounts, model, verdict, settings: &settings };
                    let start_line = &start_line;
                    spawn(scope, format!("guest {}.{number}", machine.number), move || {
                        vcpu.drive(port, start_line)
                    })
                });
                vcpus.collect::<Vec<_>>()
            };
            let guests: Vec<_> = machines.iter().map(start).collect();
            start_line.wait();
            let begin = Instant::now();
            let guests: Vec<_> =
                guests.into_iter().map(|vcpus| report(vcpus.into_iter().map(join))).collect();
            let time = begin.elapsed();
            stop.store(true, Relaxed);
            serving.into_iter().for_each(join);
            (guests, time)
        });
        let stats = machines.iter().map(|machine| VirtualSmmu::stats(&machine.smmu));
        let guests = guests.into_iter().zip(stats).map(|(guest, stats)| GuestReport { stats, ..guest });
        let caches = model[0].caches();
        let syncs = model.iter().map(|queue| queue.syncs().1).sum();
        let (filled, removed) = (caches.filled(), caches.removed());
        let verdict = verdict.into_inner().unwrap_or_else(PoisonError::into_inner);
        Report {
            guests: guests.collect(),
            time,
            host: caches.by_opcode().chain([(Opcode::CMD_SYNC, syncs)]).collect(),
            verdict: None,
            caches: settings.verify.then_some(CachesReport { filled, removed, ..verdict }),
        }
    }
}

/// What a vCPU has cached: each entry, and whether it is there for certain.
struct Account {
    who: String,
    entries: Vec<(Cached, Entry, bool)>,
}

impl Account {
    fn new(machine: &Machine, queue: u16) -> Self {
        let names = Names { queue };
        let (vmid, stream) =
            (Machine::vmid(machine.number), Machine::host_stream(machine.number, names.stream()));
        let entry = |cached| (cached, names.on_host(cached, vmid, stream), false);
        let who = format!("guest {}, queue {queue}", machine.number);
        Self { who, entries: names.all().into_iter().map(entry).collect() }
    }

    /// Fills whatever is not there for certain.
    fn fill(&mut self, caches: &mut Caches) {
        for (_, entry, there) in self.entries.iter_mut().filter(|(.., there)| !there) {
            caches.insert(*entry);
            *there = true;
        }
    }

    /// What these name may go from now on.
    fn name(&mut self, sent: &[Sending]) {
        for (cached, _, there) in &mut self.entries {
            *there &= !sent.iter().any(|sent| sent.names(*cached));
        }
    }

    /// Looks at some of the entries. Those that are not there for certain must be gone, if the guest waits for nothing.
    fn look(
        &self,
        caches: &Caches,
        which: impl Iterator<Item = usize>,
        waits: bool,
        told: &mut CachesReport,
    ) {
        for (cached, entry, there) in which.map(|n| &self.entries[n % self.entries.len()]) {
            if waits && !there {
                continue;
            }
            told.looked_at += 1;
            if caches.contains(*entry) != *there {
                told.wrong += 1;
                let what =
                    if *there { "has gone, and was not named" } else { "was named, and is still there" };
                told.first.get_or_insert_with(|| format!("{}: {cached:?} {what}", self.who));
            }
        }
    }
}

/// A vCPU and what it looks at.
struct Vcpu<'a> {
    number: u16,
    /// Which of the accounts is its own.
    own: usize,
    accounts: &'a [Mutex<Account>],
    model: &'a ModelSmmu,
    verdict: &'a Mutex<CachesReport>,
    settings: &'a Settings,
}

impl Vcpu<'_> {
    /// Commands until the time is up, 64 CMD_SYNCs at least.
    fn drive(&self, port: Result<Port, DriverError>, start_line: &Barrier) -> Sent {
        self.account(self.own, |account| account.fill(&mut self.model.caches()));
        start_line.wait();
        let mut done = Sent { sent: 0, sync_ns: histogram(), result: Ok(()) };
        done.result = port.and_then(|mut port| {
            let (start, names) = (Instant::now(), Names { queue: self.number });
            let mut random = Random(self.own as u64 + 1);
            for n in 0.. {
                if n >= 64 && start.elapsed() >= self.settings.time {
                    break;
                }
                let alone = self.settings.queues == 1;
                let sent: Vec<_> =
                    (0..=random.next() % MOST).map(|_| Sending::any(random.next(), alone)).collect();
                self.account(self.own, |account| account.name(&sent));
                let commands: Vec<_> = sent.iter().map(|sent| names.encode(*sent)).collect();
                let time: Result<Duration, DriverError> =
                    port.send(&commands, if n % 2 == 0 { Sync::Msi } else { Sync::Cons });
                done.sync_ns.saturating_record(time?.as_nanos() as u64);
                done.sent += commands.len() as u64 + 1;
                self.look(n);
            }
            Ok(())
        });
        done
    }

    /// After a CMD_SYNC: looks at what is its own, all of it, fills that again, and looks at what is another's.
    fn look(&self, n: usize) {
        let mut told = CachesReport::default();
        self.account(self.own, |account| {
            let mut caches = self.model.caches();
            if self.settings.verify {
                account.look(&caches, 0..account.entries.len(), false, &mut told);
            }
            account.fill(&mut caches);
        });
        if !self.settings.verify {
            return;
        }
        let other = (self.own + 1 + n % self.accounts.len().saturating_sub(1).max(1)) % self.accounts.len();
        if other != self.own {
            let first = n * SAMPLE;
            self.account(other, |account| {
                account.look(&self.model.caches(), first..first + SAMPLE, true, &mut told);
            });
        }
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        verdict.looked_at += told.looked_at;
        verdict.wrong += told.wrong;
        verdict.first = verdict.first.take().or(told.first);
    }

    /// An account while its owner can neither send nor fill.
    fn account(&self, number: usize, act: impl FnOnce(&mut Account)) {
        act(&mut self.accounts[number].lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Numbers without a pattern, the same ones at each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }
}
