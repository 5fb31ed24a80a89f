//! The engine: ECMDQs in memory shared with the worker, its rules, the native ring, an SMMU behind it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Release;

use ecmdq_engine::host::HostQueue;
use ecmdq_engine::registers::{CR0, CR0_SMMUEN, ECMDQ_BASE, ECMDQ_CONS, ECMDQ_PROD};
use ecmdq_engine::{Command, Worker};
use ecmdq_ring::handshake::EN;
use ecmdq_ring::{Index, Producer, QueueSize, SharedQueue};
use vm_memory::GuestAddress;

use super::host::{Counts, Inline, STREAMS, features};
use super::{Executed, Guest, QUEUE_LOG2, Server, Transport};
use crate::machine::Machine;
use crate::registers::Registers;

/// One guest with an ECMDQ for each queue.
#[derive(Debug)]
pub enum Engine {}

/// As many guests, with an ECMDQ each.
#[derive(Debug)]
pub enum Guests {}

/// As many guests, with an ECMDQ each, of which only the first one ever sends anything.
#[derive(Debug)]
pub enum BesideIdle {}

/// An ECMDQ as its driver has it.
#[derive(Debug)]
pub struct Ecmdq(Producer<SharedQueue>);

/// The worker, and the host's SMMU.
#[derive(Debug)]
pub struct EngineServer<H> {
    worker: Worker<H>,
    counts: Arc<Counts>,
    /// They hold the guests' memory.
    _machines: Vec<Machine>,
}

impl Transport for Engine {
    type Guest = Ecmdq;
    type Server = EngineServer<Inline>;

    fn open(queues: usize) -> io::Result<(Vec<Ecmdq>, EngineServer<Inline>)> {
        several(Inline::new()?, 1, queues)
    }
}

impl Transport for Guests {
    type Guest = Ecmdq;
    type Server = EngineServer<Inline>;

    fn open(queues: usize) -> io::Result<(Vec<Ecmdq>, EngineServer<Inline>)> {
        several(Inline::new()?, queues, 1)
    }
}

impl Transport for BesideIdle {
    type Guest = Ecmdq;
    type Server = EngineServer<Inline>;

    fn open(queues: usize) -> io::Result<(Vec<Ecmdq>, EngineServer<Inline>)> {
        let (mut ecmdqs, server) = Guests::open(queues)?;
        ecmdqs.truncate(1);
        Ok((ecmdqs, server))
    }
}

/// So many guests with so many ECMDQs each, in front of a host.
pub(super) fn several<H: HostQueue>(
    (host, counts): (H, Arc<Counts>),
    guests: usize,
    queues: usize,
) -> io::Result<(Vec<Ecmdq>, EngineServer<H>)> {
    let log2 = queues.next_power_of_two().ilog2() as u8;
    let mut worker = Worker::new(host);
    let (mut machines, mut ecmdqs) = (Vec::new(), Vec::new());
    for number in 0..guests {
        let machine = Machine::new(number as u16, features().with_ecmdqs(0, log2), &STREAMS)?;
        worker.attach(machine.smmu.clone()).map_err(io::Error::other)?;
        machine.registers.write(CR0, CR0_SMMUEN);
        for queue in 0..queues {
            ecmdqs.push(ecmdq(&machine, queue, log2, &mut worker)?);
        }
        machines.push(machine);
    }
    Ok((ecmdqs, EngineServer::new(worker, counts, machines)))
}

/// Enables an ECMDQ.
fn ecmdq<H: HostQueue>(
    machine: &Machine,
    queue: usize,
    log2: u8,
    worker: &mut Worker<H>,
) -> io::Result<Ecmdq> {
    let nothing = || io::Error::from(io::ErrorKind::InvalidInput);
    let Registers::Trapped(_, control) = &machine.registers else { return Err(nothing()) };
    let size = QueueSize::capped(QUEUE_LOG2, QueueSize::MAX);
    let block = queue * (0x1_0000 >> log2);
    let base = GuestAddress(Machine::RAM_BASE.0 + (size.bytes() * queue) as u64);
    let ring = machine.region(base, size.bytes()).ok_or_else(nothing)?;
    control.store_u64(block + ECMDQ_BASE, base.0 | u64::from(QUEUE_LOG2), Release);
    let (prod, cons) = (block + ECMDQ_PROD, block + ECMDQ_CONS);
    let words = SharedQueue::new(ring, 0, size, control.clone(), prod, cons).ok_or_else(nothing)?;
    let mut producer = Producer::new(words, size, Index::ZERO);
    producer.publish_flags(EN);
    worker.poll();
    Ok(Ecmdq(producer))
}

impl Guest for Ecmdq {
    fn send(&mut self, group: &[Command]) -> bool {
        if (self.0.room(group.len() as u32) as usize) < group.len() {
            return false;
        }
        self.0.write(bytemuck::cast_slice(group));
        self.0.publish();
        true
    }

    fn is_done(&mut self) -> bool {
        self.0.unconsumed() == 0
    }
}

impl<H> EngineServer<H> {
    pub(super) fn new(worker: Worker<H>, counts: Arc<Counts>, machines: Vec<Machine>) -> Self {
        Self { worker, counts, _machines: machines }
    }
}

impl<H: HostQueue> Server for EngineServer<H> {
    fn serve(&mut self) -> bool {
        self.worker.poll()
    }

    /// As a VMM's thread does.
    fn run(&mut self, stop: &AtomicBool) {
        self.worker.run(stop);
    }

    fn executed(&self) -> Executed {
        self.counts.executed()
    }
}
