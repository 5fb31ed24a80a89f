//! The ways in which a doorbell reaches the worker.

use std::io;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{Command, Doorbell, FrontEnd, Idle, Running, Waker, Worker};
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::{Batch, KICK, Kick, Machine};
use crate::watchdog::begin;

/// Invalidations in a batch, and batches: fewer on a machine that is so busy that they would take longer than this.
const BATCH: u32 = 100;
const BATCHES: usize = 200;
const ENOUGH: Duration = Duration::from_secs(20);
/// Invalidations after which the guest is idle for long enough that the worker sleeps.
const WAKES: usize = 30;

/// A row of the table.
pub struct Row {
    pub name: &'static str,
    pub invalidations: u64,
    pub exits: u64,
    /// How many exits there must be.
    pub expected: RangeInclusive<u64>,
    pub ns: u64,
    pub sleeps: u64,
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

/// All of them.
pub fn run() -> io::Result<Vec<Row>> {
    let mut rows = vec![trapped()?, ioeventfd()?, shared()?];
    rows.extend(traps_once()?);
    Ok(rows)
}

fn serve(name: &'static str, machine: &Machine, idle: Idle) -> io::Result<Running<AtOnce>> {
    begin(name, "the ECMDQ is enabled");
    let mut worker = Worker::new(AtOnce::default()).with_sleep(idle)?;
    worker.attach(machine.smmu.clone()).map_err(io::Error::other)?;
    let running = worker.spawn("worker", None)?;
    machine.enable()?;
    Ok(running)
}

/// Batches without a pause, and no exits.
fn steady(name: &'static str, machine: &mut Machine, running: &Running<AtOnce>) -> io::Result<Row> {
    let mut batch = || {
        begin(name, "a batch of invalidations is complete");
        machine.invalidate(BATCH)
    };
    batch()?;
    let before = running.handle().sleeps();
    let (start, mut batches) = (Instant::now(), Vec::new());
    while batches.is_empty() || batches.len() < BATCHES && start.elapsed() < ENOUGH {
        batches.push(batch()?);
    }
    batches.sort_by_key(|batch| batch.time);
    let exits = batches.iter().map(|batch| batch.exits).sum();
    let ns = batches[batches.len() / 2].time.as_nanos() as u64 / u64::from(BATCH);
    let invalidations = batches.len() as u64 * u64::from(BATCH);
    let sleeps = running.handle().sleeps() - before;
    Ok(Row { name, invalidations, exits, expected: 0..=0, ns, sleeps })
}

fn trapped() -> io::Result<Row> {
    let name = "every doorbell traps";
    let mut machine = Machine::new(FrontEnd::Trapped, Kick::Nowhere)?;
    let running = serve(name, &machine, Idle::always_spin())?;
    let row = steady(name, &mut machine, &running)?;
    Ok(Row { expected: row.invalidations..=row.invalidations, ..row })
}

fn ioeventfd() -> io::Result<Row> {
    let name = "ioeventfd, worker sleeps";
    let mut machine = Machine::new(FrontEnd::Direct, Kick::Ioeventfd)?;
    let eventfd = EventFd::new(EFD_NONBLOCK)?;
    machine.vm.register_ioevent(&eventfd, &IoEventAddress::Mmio(KICK), NoDatamatch)?;
    machine.smmu.set_doorbell(Doorbell::Eventfds(vec![eventfd]));
    let running = serve(name, &machine, Idle::always_sleep())?;
    steady(name, &mut machine, &running)
}

fn shared() -> io::Result<Row> {
    let name = "shared memory";
    let mut machine = Machine::new(FrontEnd::Direct, Kick::Nowhere)?;
    let running = serve(name, &machine, Idle::always_spin())?;
    steady(name, &mut machine, &running)
}

/// The guest is idle until the worker sleeps, then invalidates once; and again; then without a pause.
fn traps_once() -> io::Result<Vec<Row>> {
    let mut machine = Machine::new(FrontEnd::Direct, Kick::Nowhere)?;
    let Some(slot) = machine.slot.clone().filter(|_| machine.can_trap_once()) else {
        println!("without read-only memory slots there is no page that traps once");
        return Ok(Vec::new());
    };
    machine.smmu.set_doorbell(Doorbell::Traps(Box::new(slot.clone())));
    // So long that a vCPU that loses its processor in a batch does not count as idle.
    let idle = Idle { spin: Duration::from_millis(5), ..Idle::default() };
    let quiet = idle.spin + idle.back_off;
    let name = "traps once, after a sleep";
    let running = serve(name, &machine, idle)?;
    let handle = running.handle();
    let before = handle.sleeps();
    let mut wakes = Vec::<Batch>::new();
    for _ in 0..WAKES {
        begin(name, "the worker sleeps");
        // It counts a sleep when the page is armed and it will look no more. One that sleeps already is woken to sleep again.
        let slept = handle.sleeps();
        handle.wake();
        while handle.sleeps() == slept {
            thread::sleep(Duration::from_millis(1));
        }
        begin(name, "an invalidation is complete");
        wakes.push(machine.invalidate(1)?);
    }
    wakes.sort_by_key(|wake| wake.time);
    let idle = Row {
        name,
        invalidations: WAKES as u64,
        exits: wakes.iter().map(|wake| wake.exits).sum(),
        expected: WAKES as u64..=WAKES as u64,
        ns: wakes[WAKES / 2].time.as_nanos() as u64,
        sleeps: handle.sleeps() - before,
    };
    let (start, armed) = (Instant::now(), slot.arms());
    let mut busy = steady("traps once, while busy", &mut machine, &running)?;
    // None, unless somebody else had the vCPU's processor for so long that the guest counted as idle. An exit needs a page that
    // was armed, now or before; and the worker arms it once for a sleep, or a back-off that did not end in one. Both take
    // time in which the guest is quiet.
    let (arms, quiets) = (slot.arms() - armed, start.elapsed().as_nanos() / quiet.as_nanos());
    busy.expected = 0..=arms.min(u64::try_from(quiets).unwrap_or(u64::MAX) + 1) + 1;
    Ok(vec![idle, busy])
}
