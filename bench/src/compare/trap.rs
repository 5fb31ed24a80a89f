//! The engine behind traps, as VMMs drain command queues today: a doorbell is a register write that exits; the vCPU hands it to the
//! thread of the device by an eventfd, and stands still until that has drained the queue and says so by another one.
//!
//! Only the exit itself is missing, so the real thing takes longer.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use ecmdq_engine::registers::{CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CR0, CR0_CMDQEN, CR0_SMMUEN};
use ecmdq_engine::{Command, Worker};
use ecmdq_ring::{Index, QueueSize, SharedRegion};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::host::{Counts, Inline, STREAMS, features};
use super::{Executed, Guest, QUEUE_LOG2, Server, Transport};
use crate::machine::Machine;

/// One guest for each queue, with a CMDQ behind traps.
#[derive(Debug)]
pub enum Trap {}

/// A register write that has exited, and the way back to the vCPU.
#[derive(Debug)]
struct Exit {
    /// The value for CMDQ_PROD.
    value: AtomicU64,
    done: OwnedFd,
}

/// The exit that has none: no PROD is like it.
const NOTHING: u64 = u64::MAX;

/// A vCPU and its driver.
#[derive(Debug)]
pub struct Vcpu {
    ring: SharedRegion,
    prod: Index,
    exit: Arc<Exit>,
    doorbell: Arc<OwnedFd>,
}

/// The device's thread.
#[derive(Debug)]
pub struct Device {
    guests: Vec<(Machine, Arc<Exit>)>,
    worker: Worker<Inline>,
    counts: Arc<Counts>,
    doorbell: Arc<OwnedFd>,
}

fn ring(eventfd: &OwnedFd) {
    // The counter has room for 2^64 of them.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// Waits for a ring.
fn take(eventfd: &OwnedFd) {
    let _ = rustix::io::read(eventfd, &mut [0; 8]);
}

fn size() -> QueueSize {
    QueueSize::capped(QUEUE_LOG2, QueueSize::MAX)
}

impl Transport for Trap {
    type Guest = Vcpu;
    type Server = Device;

    fn open(queues: usize) -> io::Result<(Vec<Vcpu>, Device)> {
        let (host, counts) = Inline::new()?;
        let mut worker = Worker::new(host);
        let doorbell = Arc::new(eventfd(0, EventfdFlags::empty())?);
        let (mut vcpus, mut guests) = (Vec::new(), Vec::new());
        for number in 0..queues {
            // With an ECMDQ, so that pages 0 and 1 trap.
            let machine = Machine::new(number as u16, features().with_ecmdqs(0, 0), &STREAMS)?;
            worker.attach(machine.smmu.clone()).map_err(io::Error::other)?;
            let base = Machine::RAM_BASE.0 | u64::from(QUEUE_LOG2);
            machine.smmu.mmio_write(CMDQ_BASE as u64, &base.to_le_bytes());
            machine.registers.write(CR0, CR0_CMDQEN | CR0_SMMUEN);
            worker.poll();
            let ring =
                machine.region(Machine::RAM_BASE, size().bytes()).ok_or(io::ErrorKind::InvalidInput)?;
            let exit =
                Arc::new(Exit { value: AtomicU64::new(NOTHING), done: eventfd(0, EventfdFlags::empty())? });
            vcpus.push(Vcpu { ring, prod: Index::ZERO, exit: exit.clone(), doorbell: doorbell.clone() });
            guests.push((machine, exit));
        }
        Ok((vcpus, Device { guests, worker, counts, doorbell }))
    }
}

impl Guest for Vcpu {
    /// There is always room: nothing is left when a register write returns.
    fn send(&mut self, group: &[Command]) -> bool {
        for Command([low, high]) in group {
            let slot = 16 * size().slot(self.prod) as usize;
            self.ring.store_u64(slot, *low, Release);
            self.ring.store_u64(slot + 8, *high, Release);
            self.prod = size().advance(self.prod, 1);
        }
        // Release: pairs with the acquire load of the device's thread.
        self.exit.value.store(u64::from(self.prod.raw()), Release);
        ring(&self.doorbell);
        take(&self.exit.done);
        true
    }

    fn is_done(&mut self) -> bool {
        true
    }
}

impl Server for Device {
    const SLEEPS: bool = true;

    fn serve(&mut self) -> bool {
        // So that whoever wants it to stop need not ring.
        let timeout = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let mut fds = [PollFd::new(&*self.doorbell, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)).unwrap_or(0) == 0 {
            return false;
        }
        take(&self.doorbell);
        for (machine, exit) in &self.guests {
            // Acquire: pairs with the vCPU's release store, so that what it wrote to RAM is seen.
            let value = exit.value.swap(NOTHING, Acquire);
            let Ok(prod) = u32::try_from(value) else { continue };
            machine.registers.write(CMDQ_PROD, prod);
            while machine.registers.read(CMDQ_CONS) != prod {
                self.worker.poll();
            }
            ring(&exit.done);
        }
        true
    }

    fn executed(&self) -> Executed {
        self.counts.executed()
    }
}
