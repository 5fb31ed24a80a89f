//! The real worker on one thread with its guests and its host, in turns: every vCPU that waits for nothing rings, the worker polls
//! once, the host does all that it was given.

use std::io;
use std::sync::atomic::Ordering::Release;
use std::time::{Duration, Instant};

use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::registers::ECMDQ_BASE;
use ecmdq_engine::registers::{ECMDQ_CONS, ECMDQ_PROD};
use ecmdq_engine::{Features, Opcode, VirtualSmmu, Worker};
use ecmdq_ring::handshake::EN;
use ecmdq_ring::{Entry, Index, Producer, QueueSize, SharedQueue};

use crate::machine::Machine;

/// log2 of the entries of a queue.
const LOG2: u32 = 10;

/// Guests with ECMDQs, and what serves them.
#[derive(Debug)]
pub struct LockStep {
    vcpus: Vec<Vcpu>,
    worker: Worker<NativeRing>,
    host: RingConsumer,
    /// What each group consists of.
    groups: Vec<Vec<Entry>>,
    polls: u64,
    time: Duration,
    /// What was counted before [`Self::reset`].
    before: Tally,
}

#[derive(Debug)]
struct Vcpu {
    producer: Producer<SharedQueue>,
    /// Its next group.
    group: usize,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Polls of the worker: sweeps.
    pub sweeps: u64,
    /// Commands that were taken, without CMD_SYNCs.
    pub commands: u64,
    /// CMD_SYNCs that were completed.
    pub syncs: u64,
    /// CMD_SYNCs that the host got.
    pub host_syncs: u64,
    /// The time in the worker.
    pub time: Duration,
}

impl Tally {
    /// The time of a sweep, in ns, with that of reading the clock.
    pub(super) fn sweep_ns(&self) -> f64 {
        self.time.as_nanos() as f64 / self.sweeps as f64
    }
}

impl LockStep {
    /// So many guests, with so many ECMDQs each, a power of two. vCPU q of guest g starts with group g + q of those named, by their
    /// TLBIs before the CMD_SYNC; without any, nobody rings.
    ///
    /// # Errors
    ///
    /// What the system said when it refused the memory; `InvalidInput` for a group or a number of queues that cannot be.
    pub fn new(guests: usize, queues: usize, groups: &[u32]) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let size = QueueSize::from_log2(LOG2).ok_or_else(invalid)?;
        let largest = groups.iter().copied().max().unwrap_or(0);
        if !queues.is_power_of_two() || largest >= size.entries() {
            return Err(invalid());
        }
        // Room for what comes in a sweep, and no more than that, so that it stays in the cache where it can.
        let room = guests * queues * (largest as usize + 1).next_power_of_two() * 2;
        let (ring, host) = NativeRing::with_consumer(room.ilog2().clamp(8, 19))?;
        let (mut worker, mut vcpus) = (Worker::new(ring), Vec::new());
        let features = Features::default().with_ecmdqs(0, queues.ilog2() as u8);
        for guest in 0..guests {
            let machine = Machine::new(guest as u16, features, &[])?;
            for queue in 0..queues {
                let producer = enable(&machine, queue as u32, size).ok_or_else(invalid)?;
                vcpus.push(Vcpu { producer, group: guest + queue });
            }
            worker.attach(machine.smmu).map_err(io::Error::other)?;
        }
        // Enabling many queues takes a guest's share of several sweeps. After that all are in step, with the first one's turn next where
        // they are few: the second poll sweeps twice.
        let polls = if guests * queues <= 32 { guests * queues - 1 } else { 2 + queues / 16 };
        (0..polls).for_each(|_| _ = worker.poll());
        let groups = groups.iter().map(|n| group(*n)).collect();
        let (time, before) = (Duration::ZERO, Tally::default());
        Ok(Self { vcpus, worker, host, groups, polls: 0, time, before })
    }

    /// All in turn, so many times.
    pub fn run(&mut self, turns: u64) {
        for _ in 0..turns {
            for Vcpu { producer, group } in &mut self.vcpus {
                if !self.groups.is_empty() && producer.unconsumed() == 0 {
                    producer.write(&self.groups[*group % self.groups.len()]);
                    producer.publish();
                    *group += 1;
                }
            }
            let start = Instant::now();
            self.worker.poll();
            self.time += start.elapsed();
            while self.host.poll(|_| ()) > 0 {}
        }
        self.polls += turns;
    }

    /// What was done since the last time that it was asked.
    pub fn take(&mut self) -> Tally {
        let stats = self.worker.guests().map(VirtualSmmu::stats);
        let (commands, syncs) = stats.fold((0, 0), |all, one| (all.0 + one.commands, all.1 + one.syncs));
        let now = Tally {
            sweeps: self.polls,
            commands: commands - syncs,
            syncs,
            host_syncs: self.host.received(Opcode::CMD_SYNC),
            time: self.time,
        };
        let before = std::mem::replace(&mut self.before, now);
        Tally {
            sweeps: now.sweeps - before.sweeps,
            commands: now.commands - before.commands,
            syncs: now.syncs - before.syncs,
            host_syncs: now.host_syncs - before.host_syncs,
            time: now.time - before.time,
        }
    }
}

/// TLBI_NH_VA of one page each, and a CMD_SYNC that is waited for by CONS.
fn group(n: u32) -> Vec<Entry> {
    let tlbi = (0..u64::from(n)).map(|page| [0x0001_0000_0000_0012, page << 12 | 1]);
    tlbi.chain([[0x2046, 0]]).collect()
}

/// Enables an ECMDQ, which the worker sees when it sweeps next.
fn enable(machine: &Machine, number: u32, size: QueueSize) -> Option<Producer<SharedQueue>> {
    let registers = machine.registers.ecmdq(number)?;
    let base = Machine::RAM_BASE.0 + u64::from(number) * size.bytes() as u64;
    let ring = machine.region(vm_memory::GuestAddress(base), size.bytes())?;
    registers.store_u64(ECMDQ_BASE, base | u64::from(LOG2), Release);
    let queue = SharedQueue::new(ring, 0, size, registers, ECMDQ_PROD, ECMDQ_CONS)?;
    let mut producer = Producer::new(queue, size, Index::ZERO);
    producer.publish_flags(EN);
    Some(producer)
}
