//! A vCPU: what it does with its queue, for how long, and what came of it.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_engine::{Command, Stats};
use ecmdq_ring::SharedRegion;
use hdrhistogram::Histogram;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use vm_memory::GuestAddress;

use crate::cmdlist::Cmdlist;
use crate::driver::{Driver, DriverError, Sync};
use crate::machine::Machine;
use crate::pin::pin;
use crate::registers::Registers;
use crate::session::{GuestReport, QueueKind};
use crate::traffic::Traffic;
use crate::verify::Verifier;
use crate::workload::{Clock, Pace};

/// How a vCPU reaches a command queue.
pub(crate) enum Port {
    /// It has one to itself.
    Own(Driver),
    /// It shares one.
    Shared(Cmdlist),
}

impl Port {
    /// Sends commands and a CMD_SYNC, waits until it has completed, and tells how long that took.
    pub fn send(&mut self, commands: &[Command], sync: Sync) -> Result<Duration, DriverError> {
        match self {
            Self::Own(driver) => driver.send(commands, sync),
            Self::Shared(cmdlist) => cmdlist.send(commands, sync),
        }
    }

    /// The queue as if it were nobody else's.
    fn into_own(self) -> Driver {
        match self {
            Self::Own(driver) => driver,
            Self::Shared(cmdlist) => cmdlist.into_own(),
        }
    }
}

/// What the vCPUs of a guest have once its driver has started.
pub(crate) fn boot(
    machine: &Machine,
    kind: QueueKind,
    vcpus: u16,
    log2: u32,
) -> Vec<Result<Port, DriverError>> {
    match (kind, &machine.registers) {
        (QueueKind::Cmdq, Registers::Memory(pages)) if vcpus > 1 => {
            let ring = ring(machine, 0, log2);
            let cmdlist = ring.and_then(|(base, ring)| Cmdlist::new(pages, base, ring, log2));
            (0..vcpus).map(|_| cmdlist.clone().map(Port::Shared)).collect()
        }
        (QueueKind::Cmdq, Registers::Memory(pages)) => {
            let ring = ring(machine, 0, log2);
            vec![ring.and_then(|(base, ring)| Driver::cmdq(pages, base, ring, log2).map(Port::Own))]
        }
        (QueueKind::Cmdq, Registers::Trapped(..)) => vec![Err(DriverError::NoQueue(log2))],
        (QueueKind::Ecmdq, registers) => {
            let reset = registers.reset();
            (0..vcpus)
                .map(|number| reset.and_then(|()| ecmdq(machine, number, log2)).map(Port::Own))
                .collect()
        }
    }
}

/// The driver of an ECMDQ; the SMMU has been reset.
fn ecmdq(machine: &Machine, number: u16, log2: u32) -> Result<Driver, DriverError> {
    let (base, ring) = ring(machine, number, log2)?;
    Driver::ecmdq(&machine.registers, number.into(), base, ring, log2)
}

/// Where a queue is in RAM.
fn ring(machine: &Machine, number: u16, log2: u32) -> Result<(GuestAddress, SharedRegion), DriverError> {
    let bytes = 16 << log2;
    let base = GuestAddress(Machine::RAM_BASE.0 + u64::from(number) * bytes);
    let ring = machine.region(base, bytes as usize).ok_or(DriverError::NoQueue(log2))?;
    Ok((base, ring))
}

/// How long, how fast, and in which spirit.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub time: Duration,
    /// With the seed of all that is random about it.
    pub pace: Option<(Pace, u64)>,
    pub hostile: bool,
}

/// Which it is, and what it sends.
pub(crate) struct Vcpu<'a> {
    pub guest: u16,
    pub number: usize,
    pub traffic: &'a Traffic,
}

/// What a vCPU did: see [`GuestReport`].
pub(crate) struct Sent {
    pub sent: u64,
    pub sync_ns: Histogram<u64>,
    pub result: Result<(), DriverError>,
}

/// What the vCPUs of a guest did.
pub(crate) fn report(vcpus: impl Iterator<Item = Sent>) -> GuestReport {
    let mut guest = GuestReport {
        stats: Stats::default(),
        sent: 0,
        sync_ns: histogram(),
        errors: Vec::new(),
        hostile: false,
    };
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

impl Vcpu<'_> {
    /// Waits for the others, then does as planned.
    pub fn drive(
        &self,
        port: Result<Port, DriverError>,
        plan: &Plan,
        verifier: Option<&Verifier>,
        start_line: &Barrier,
    ) -> Sent {
        // As a VMM's vCPU threads often are; here in turn over all processors.
        pin((usize::from(self.guest) + self.number) % thread::available_parallelism().map_or(1, Into::into));
        start_line.wait();
        let mut done = Sent { sent: 0, sync_ns: histogram(), result: Ok(()) };
        done.result = port.and_then(|port| match plan.hostile {
            true => {
                self.flood(port.into_own(), plan.time);
                Ok(())
            }
            false => self.work(port, plan, verifier, &mut done),
        });
        done
    }

    /// Its traffic over and over until the time is up; without a pace, once at least.
    fn work(
        &self,
        mut port: Port,
        plan: &Plan,
        verifier: Option<&Verifier>,
        done: &mut Sent,
    ) -> Result<(), DriverError> {
        let random = |seed: u64| {
            Xoshiro256PlusPlus::seed_from_u64(seed << 32 | u64::from(self.guest) << 16 | self.number as u64)
        };
        let mut clock = plan.pace.map(|(pace, seed)| Clock::new(pace, random(seed)));
        let least = if clock.is_some() { 1 } else { self.traffic.groups.len() };
        let start = Instant::now();
        for (i, group) in self.traffic.groups.iter().cycle().enumerate() {
            if i >= least && start.elapsed() >= plan.time {
                break;
            }
            let due = clock.as_mut().filter(|_| !group.follows).map(Clock::wait);
            if let Some(verifier) = verifier {
                verifier.sending(self.guest, self.number, &group.commands, &self.traffic.streams);
            }
            let time = port.send(&group.commands, group.sync)?;
            done.sent += group.commands.len() as u64 + 1;
            // One that began late, because the last one took long, has waited as well: no coordinated omission.
            let time = due.map_or(time, |due| due.elapsed());
            done.sync_ns.saturating_record(time.as_nanos() as u64);
        }
        Ok(())
    }

    /// What a hostile guest does: commands without end and without a CMD_SYNC, illegal ones, and PRODs that make no sense.
    fn flood(&self, mut driver: Driver, time: Duration) {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(self.guest.into());
        let commands: Vec<_> =
            self.traffic.groups.iter().flat_map(|group| &group.commands).copied().take(64).collect();
        let start = Instant::now();
        while start.elapsed() < time {
            match random.random_range(0..1000) {
                0 => driver.lie(),
                1 => drop(driver.pour(&[Command([0xff, 0])])),
                _ if driver.pour(&commands) == 0 => thread::yield_now(),
                _ => {}
            }
            driver.mend();
        }
    }
}
