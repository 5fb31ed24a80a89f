//! A virtqueue: `virtio-queue`, with up to `N` commands of 16 bytes in each descriptor chain. Both sides poll: no notification, no exit.
//!
//! The driver's side is as cheap as one can be: a descriptor a chain, used in order, each with a buffer of its own, so that the
//! ring of heads never changes. All buffers together have room for as many commands as the other queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use ecmdq_engine::Command;
use ecmdq_engine::memory::{self, GuestRam, Ram};
use ecmdq_ring::SharedRegion;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::host::Host;
use super::{BATCH, Executed, Guest, QUEUE_LOG2, Server, Transport};

/// Chains of up to `N` commands, a power of two up to [`BATCH`].
#[derive(Debug)]
pub enum Virtqueue<const N: usize> {}

const ENTRY: usize = size_of::<Command>();
/// Where RAM is.
const BASE: GuestAddress = GuestAddress(0x4000_0000);
// Where things are in a queue's part of it.
const TABLE: usize = 0;
const AVAILABLE: usize = 0x4000;
const USED: usize = 0x5000;
const BUFFERS: usize = 0x8000;
const BYTES: usize = BUFFERS + (ENTRY << QUEUE_LOG2);

/// The driver's side.
#[derive(Debug)]
pub struct Driver<const N: usize> {
    memory: SharedRegion,
    base: u64,
    /// Chains made available, and those used, as far as was looked.
    available: u16,
    used: u16,
}

/// The device's side.
#[derive(Debug)]
pub struct Device {
    queues: Vec<Queue>,
    memory: Arc<GuestMemoryMmap>,
    host: Host,
    /// The last chain of a batch may go beyond it.
    batch: Vec<Command>,
    /// Queues and heads of the chains that were taken.
    taken: Vec<(usize, u16)>,
}

impl<const N: usize> Transport for Virtqueue<N> {
    type Guest = Driver<N>;
    type Server = Device;

    fn open(queues: usize) -> io::Result<(Vec<Driver<N>>, Device)> {
        let (file, _) = memory::memfd("virtqueues", BYTES * queues)?;
        let range = (BASE, BYTES * queues, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?;
        let memory = Arc::new(memory);
        let ram = Ram::new(memory.clone());
        let (mut drivers, mut devices) = (Vec::new(), Vec::new());
        for queue in 0..queues {
            let base = BASE.0 + (queue * BYTES) as u64;
            let region = ram.region(GuestAddress(base), BYTES).ok_or(io::ErrorKind::InvalidInput)?;
            // The ring of heads, behind the flags and the index; 16 bits each.
            for pair in 0..Driver::<N>::DESCRIPTORS.div_ceil(2) {
                let heads = ((2 * pair + 1) << 16 | (2 * pair)) as u32;
                region.store_u32(AVAILABLE + 4 + 4 * pair, heads, Relaxed);
            }
            drivers.push(Driver { memory: region, base, available: 0, used: 0 });
            devices.push(device(base, Driver::<N>::DESCRIPTORS as u16).map_err(io::Error::other)?);
        }
        let (batch, taken) = (vec![Command::default(); 2 * BATCH], Vec::with_capacity(queues << QUEUE_LOG2));
        Ok((drivers, Device { queues: devices, memory, host: Host::new()?, batch, taken }))
    }
}

fn device(base: u64, descriptors: u16) -> Result<Queue, virtio_queue::Error> {
    let at = |offset: usize| GuestAddress(base + offset as u64);
    let mut queue = Queue::new(descriptors)?;
    queue.try_set_desc_table_address(at(TABLE))?;
    queue.try_set_avail_ring_address(at(AVAILABLE))?;
    queue.try_set_used_ring_address(at(USED))?;
    queue.set_ready(true);
    Ok(queue)
}

impl<const N: usize> Driver<N> {
    const DESCRIPTORS: usize = (1 << QUEUE_LOG2) / N;

    fn room(&self) -> usize {
        Self::DESCRIPTORS - usize::from(self.available.wrapping_sub(self.used))
    }
}

impl<const N: usize> Guest for Driver<N> {
    fn send(&mut self, group: &[Command]) -> bool {
        let chains = group.chunks(N);
        if self.room() < chains.len() {
            self.is_done();
        }
        if self.room() < chains.len() {
            return false;
        }
        for chain in chains {
            let descriptor = usize::from(self.available) % Self::DESCRIPTORS;
            let (at, buffer) = (TABLE + 16 * descriptor, BUFFERS + descriptor * N * ENTRY);
            for (i, Command([low, high])) in chain.iter().enumerate() {
                self.memory.store_u64(buffer + i * ENTRY, *low, Relaxed);
                self.memory.store_u64(buffer + i * ENTRY + 8, *high, Relaxed);
            }
            // Where it is and how long; nothing follows, and nothing is written by the device.
            self.memory.store_u64(at, self.base + buffer as u64, Relaxed);
            self.memory.store_u64(at + 8, (chain.len() * ENTRY) as u64, Relaxed);
            self.available = self.available.wrapping_add(1);
        }
        // Release: pairs with the device's acquire load of the index. The flags beside it are zero.
        self.memory.store_u32(AVAILABLE, u32::from(self.available) << 16, Release);
        true
    }

    fn is_done(&mut self) -> bool {
        // Acquire: pairs with the device's release store of the index.
        self.used = (self.memory.load_u32(USED, Acquire) >> 16) as u16;
        self.used == self.available
    }
}

impl Device {
    /// Takes what is available in a queue, a batch at least.
    fn take(&mut self, number: usize) -> Result<(), virtio_queue::Error> {
        let Self { queues, memory, host, batch, taken } = self;
        let memory: &GuestMemoryMmap = memory;
        let mut len = 0;
        for mut chain in queues[number].iter(memory)? {
            taken.push((number, chain.head_index()));
            if let Some(descriptor) = chain.next() {
                let n = (descriptor.len() as usize / ENTRY).min(BATCH);
                let buffer = bytemuck::cast_slice_mut(&mut batch[len..len + n]);
                memory.read_slice(buffer, descriptor.addr()).map_err(virtio_queue::Error::GuestMemory)?;
                len += n;
            }
            if len >= BATCH {
                break;
            }
        }
        host.pass(&batch[..len]);
        Ok(())
    }

    fn serve(&mut self) -> Result<bool, virtio_queue::Error> {
        for number in 0..self.queues.len() {
            self.take(number)?;
        }
        if self.taken.is_empty() {
            return Ok(false);
        }
        self.host.finish();
        for (number, head) in self.taken.drain(..) {
            self.queues[number].add_used(&*self.memory, head, 0)?;
        }
        Ok(true)
    }
}

impl Server for Device {
    fn serve(&mut self) -> bool {
        self.serve().expect("the driver here makes no mistakes")
    }

    fn executed(&self) -> Executed {
        self.host.executed()
    }
}
