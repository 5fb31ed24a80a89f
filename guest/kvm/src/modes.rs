//! The ways in which a doorbell reaches the worker.

use std::io;
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{Command, Doorbell, FrontEnd, Idle, Running, Waker, Worker};
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::{Batch, KICK, Kick, Machine};

/// Invalidations in a batch, and batches.
const BATCH: u32 = 1000;
const BATCHES: usize = 20;
/// Invalidations after which the guest is idle for long enough that the worker sleeps.
const WAKES: usize = 30;
const PAUSE: Duration = Duration::from_millis(20);

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

fn serve(machine: &Machine, idle: Idle) -> io::Result<Running<AtOnce>> {
    let mut worker = Worker::new(AtOnce::default()).with_sleep(idle)?;
    worker.attach(machine.smmu.clone()).map_err(io::Error::other)?;
    let running = worker.spawn("worker", None)?;
    machine.enable()?;
    Ok(running)
}

/// Batches without a pause.
fn steady(
    name: &'static str,
    machine: &mut Machine,
    running: &Running<AtOnce>,
    expected: RangeInclusive<u64>,
) -> io::Result<Row> {
    machine.invalidate(BATCH)?;
    let before = running.handle().sleeps();
    let mut batches = (0..BATCHES).map(|_| machine.invalidate(BATCH)).collect::<io::Result<Vec<_>>>()?;
    batches.sort_by_key(|batch| batch.time);
    let exits = batches.iter().map(|batch| batch.exits).sum();
    let ns = batches[BATCHES / 2].time.as_nanos() as u64 / u64::from(BATCH);
    let invalidations = BATCHES as u64 * u64::from(BATCH);
    let sleeps = running.handle().sleeps() - before;
    Ok(Row { name, invalidations, exits, expected, ns, sleeps })
}

fn trapped() -> io::Result<Row> {
    let mut machine = Machine::new(FrontEnd::Trapped, Kick::Nowhere)?;
    let running = serve(&machine, Idle::always_spin())?;
    let invalidations = BATCHES as u64 * u64::from(BATCH);
    steady("every doorbell traps", &mut machine, &running, invalidations..=invalidations)
}

fn ioeventfd() -> io::Result<Row> {
    let mut machine = Machine::new(FrontEnd::Direct, Kick::Ioeventfd)?;
    let eventfd = EventFd::new(EFD_NONBLOCK)?;
    machine.vm.register_ioevent(&eventfd, &IoEventAddress::Mmio(KICK), NoDatamatch)?;
    machine.smmu.set_doorbell(Doorbell::Eventfds(vec![eventfd]));
    let running = serve(&machine, Idle::always_sleep())?;
    steady("ioeventfd, worker sleeps", &mut machine, &running, 0..=0)
}

fn shared() -> io::Result<Row> {
    let mut machine = Machine::new(FrontEnd::Direct, Kick::Nowhere)?;
    let running = serve(&machine, Idle::always_spin())?;
    steady("shared memory", &mut machine, &running, 0..=0)
}

/// The guest is idle until the worker sleeps, then invalidates once; and again; then without a pause.
fn traps_once() -> io::Result<Vec<Row>> {
    let mut machine = Machine::new(FrontEnd::Direct, Kick::Nowhere)?;
    let Some(slot) = machine.slot.clone().filter(|_| machine.can_trap_once()) else {
        println!("without read-only memory slots there is no page that traps once");
        return Ok(Vec::new());
    };
    machine.smmu.set_doorbell(Doorbell::Traps(Box::new(slot)));
    // So long that a vCPU that loses its processor in a batch does not count as idle.
    let idle = Idle { spin: Duration::from_millis(5), ..Idle::default() };
    let running = serve(&machine, idle)?;
    let handle = running.handle();
    let before = handle.sleeps();
    let mut wakes = Vec::<Batch>::new();
    for _ in 0..WAKES {
        // Until it has gone to sleep since the last invalidation.
        let slept = handle.sleeps();
        while handle.sleeps() == slept {
            thread::sleep(PAUSE);
        }
        wakes.push(machine.invalidate(1)?);
    }
    wakes.sort_by_key(|wake| wake.time);
    let idle = Row {
        name: "traps once, after a sleep",
        invalidations: WAKES as u64,
        exits: wakes.iter().map(|wake| wake.exits).sum(),
        expected: WAKES as u64..=WAKES as u64,
        ns: wakes[WAKES / 2].time.as_nanos() as u64,
        sleeps: handle.sleeps() - before,
    };
    let mut busy = steady("traps once, while busy", &mut machine, &running, 0..=0)?;
    // None, unless somebody else had the vCPU's processor for so long that the worker slept; that may have begun before.
    busy.expected = 0..=busy.sleeps + 1;
    Ok(vec![idle, busy])
}
