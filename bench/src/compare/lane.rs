//! A way, and what is sent along it.

use std::hint::spin_loop;
use std::io;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_engine::{Command, Opcode};
use hdrhistogram::Histogram;

use super::{Executed, Guest, Schedule, Server, Transport};
use crate::pin::{Busy, GUEST, SERVER, pin};
use crate::session::{join, spawn};

/// When a queue gets its next group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As soon as there is room.
    Room,
    /// When the last one has completed, each queue in its turn.
    Completion,
    /// When the last one has completed, whichever queue that is: all are looked at in turn, as vCPUs that know nothing of each other do.
    OwnCompletion,
}

/// What each queue is sent, over and over.
#[derive(Clone, Debug)]
pub struct Load {
    groups: Vec<Vec<Command>>,
    wait: Wait,
}

impl Load {
    /// Groups of `n` TLBI_NH_VA without a CMD_SYNC.
    pub fn stream(n: usize) -> Self {
        Self { groups: vec![tlbis(n).collect()], wait: Wait::Room }
    }

    /// Groups of `n` TLBI_NH_VA and a CMD_SYNC, each waited for.
    pub fn synced(n: usize) -> Self {
        Self { groups: vec![tlbis(n).chain([SYNC]).collect()], wait: Wait::Completion }
    }

    /// The same of vCPUs that do not wait for each other.
    pub fn of_vcpus(n: usize) -> Self {
        Self { wait: Wait::OwnCompletion, ..Self::synced(n) }
    }

    /// A recorded stream as the driver sent it: each CMD_SYNC is waited for.
    pub fn recorded(stream: &[Command]) -> Self {
        let groups = stream.split_inclusive(|command| command.opcode() == Opcode::CMD_SYNC);
        Self { groups: groups.map(by_cons).collect(), wait: Wait::Completion }
    }

    /// The same stream in groups of `n`, sent as there is room: as if as many vCPUs shared the queue as wait for a CMD_SYNC.
    pub fn crowded(stream: &[Command], n: usize) -> Self {
        Self { groups: stream.chunks_exact(n).map(by_cons).collect(), wait: Wait::Room }
    }

    fn len(&self, groups: usize) -> u64 {
        let all: usize = self.groups.iter().map(Vec::len).sum();
        let rest: usize = self.groups[..groups % self.groups.len()].iter().map(Vec::len).sum();
        (groups / self.groups.len() * all + rest) as u64
    }
}

const SYNC: Command = Command([0x2046, 0]);

/// TLBI_NH_VA of one page each, of ASID 1.
fn tlbis(n: usize) -> impl Iterator<Item = Command> {
    (0..n as u64).map(|page| Command([0x0001_0000_0000_0012, page << 12 | 1]))
}

/// With CMD_SYNCs that are waited for by CONS: where recorded MSIs went there is nothing here.
fn by_cons(group: &[Command]) -> Vec<Command> {
    let by_cons = |command: &Command| if command.opcode() == Opcode::CMD_SYNC { SYNC } else { *command };
    group.iter().map(by_cons).collect()
}

/// What was sent, and how long it took until the last command had completed.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Commands in all.
    pub commands: u64,
    /// From the first doorbell.
    pub time: Duration,
    /// The part of the time in which a side was kept off its processor, by other threads or by other machines on the same host: what
    /// was measured says as much less. 0 where a side sleeps.
    pub kept_off: f64,
}

/// A [`Transport`] of any kind that is open.
pub trait Lane: Send {
    /// Sends so many groups, to each queue in turn.
    fn run(&mut self, load: &Load, groups: usize) -> Ran;

    /// Sends `n` TLBIs and a CMD_SYNC on the first queue, waits until it has completed, and so on; records how long each took. Says
    /// what a side was [kept off](Ran::kept_off).
    fn round_trips(&mut self, n: usize, schedule: Schedule, times: &mut Histogram<u64>) -> f64;

    /// What the host has executed.
    fn executed(&self) -> Executed;
}

/// The two sides of a [`Transport`].
#[derive(Debug)]
pub struct Pair<G, S> {
    guests: Vec<G>,
    server: S,
}

impl<G: Guest + Send, S: Server + Send> Pair<G, S> {
    /// Opens so many queues.
    ///
    /// # Errors
    ///
    /// As [`Transport::open`].
    pub fn open<T: Transport<Guest = G, Server = S>>(queues: usize) -> io::Result<Self> {
        let (guests, server) = T::open(queues)?;
        Ok(Self { guests, server })
    }

    /// Has the server serve on its processor while `work` is done with the guests on theirs. Says what a side was
    /// [kept off](Ran::kept_off).
    fn serve_while<R: Send>(&mut self, work: impl FnOnce(&mut [G]) -> R + Send) -> (R, f64) {
        let Self { guests, server } = self;
        let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
        let (stop, ready) = (&stop, &ready);
        thread::scope(|scope| {
            let server = spawn(scope, "server".into(), move || {
                pin(SERVER);
                ready.wait();
                let busy = Busy::start();
                server.run(stop);
                // What has no CMD_SYNC behind it may still be on its way.
                while server.serve() {}
                busy.kept_off()
            });
            let guests = spawn(scope, "guests".into(), move || {
                pin(GUEST);
                ready.wait();
                let busy = Busy::start();
                (work(guests), busy.kept_off())
            });
            let (result, kept_off) = join(guests);
            // Relaxed: it carries nothing but itself.
            stop.store(true, Relaxed);
            let kept_off = kept_off.max(join(server));
            (result, if S::SLEEPS { 0.0 } else { kept_off })
        })
    }
}

impl<G: Guest + Send, S: Server + Send> Lane for Pair<G, S> {
    fn run(&mut self, load: &Load, groups: usize) -> Ran {
        let (time, kept_off) = self.serve_while(|guests| {
            let start = Instant::now();
            let all = load.groups.iter().cycle().take(groups);
            if load.wait == Wait::OwnCompletion {
                send_in_turns(guests, all);
                return start.elapsed();
            }
            let (all, queues) = (all.enumerate(), guests.len());
            // Each queue gets each group: they follow each other by rounds of all queues.
            for (i, group) in all {
                let guest = &mut guests[i % queues];
                if load.wait == Wait::Completion {
                    spin_until(|| guest.is_done());
                }
                spin_until(|| guest.send(group));
            }
            guests.iter_mut().for_each(|guest| spin_until(|| guest.is_done()));
            start.elapsed()
        });
        Ran { commands: load.len(groups), time, kept_off }
    }

    fn round_trips(&mut self, n: usize, schedule: Schedule, times: &mut Histogram<u64>) -> f64 {
        let group: Vec<_> = tlbis(n).chain([SYNC]).collect();
        let ((), kept_off) = self.serve_while(|guests| {
            schedule.keep(times, || {
                spin_until(|| guests[0].send(&group));
                spin_until(|| guests[0].is_done());
            });
        });
        kept_off
    }

    fn executed(&self) -> Executed {
        self.server.executed()
    }
}

/// Whoever is done gets the next group, until all are.
fn send_in_turns<'a>(guests: &mut [impl Guest], groups: impl Iterator<Item = &'a Vec<Command>>) {
    let mut groups = groups.peekable();
    spin_until(|| {
        let mut all_done = true;
        for guest in &mut *guests {
            if !guest.is_done() {
                all_done = false;
            } else if let Some(group) = groups.peek() {
                all_done = false;
                // Without room it is another one's, or comes later.
                if guest.send(group) {
                    groups.next();
                }
            }
        }
        all_done
    });
}

/// Where both sides are on one processor, the other one must run now and then.
pub(super) fn spin_until(mut done: impl FnMut() -> bool) {
    let mut spins = 0_u32;
    while !done() {
        spin_loop();
        spins += 1;
        if spins.is_multiple_of(1 << 14) {
            thread::yield_now();
        }
    }
}
