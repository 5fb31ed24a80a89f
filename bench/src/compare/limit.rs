//! The limit: the same rings in the same memory, 16 bytes copied and the VMID's bits replaced for each command, nothing checked.

use std::hint::black_box;
use std::io;

use ecmdq_engine::{Command, memory};
use ecmdq_ring::{Consumer, Entry, Index, Producer, QueueSize, SharedQueue, SharedRegion};

use super::{BATCH, Executed, Guest, HOST_LOG2, QUEUE_LOG2, Server, Transport};

/// The raw ring of each guest, and that of the host.
#[derive(Debug)]
pub enum Limit {}

/// The guest's end of a raw ring.
#[derive(Debug)]
pub struct RawGuest(Producer<SharedQueue>);

/// The other ends.
#[derive(Debug)]
pub struct RawServer {
    queues: Vec<Consumer<SharedQueue>>,
    native: Producer<SharedQueue>,
    host: Consumer<SharedQueue>,
    batch: [Entry; BATCH],
    executed: Box<[Entry; 256]>,
    commands: u64,
}

/// A ring in memory as an ECMDQ's is: shared, in pages, its PROD and CONS in 16 bytes of a control page.
fn ring(
    memory: &SharedRegion,
    at: usize,
    log2: u32,
    registers: usize,
) -> io::Result<(SharedQueue, QueueSize)> {
    let size = QueueSize::capped(log2, QueueSize::MAX);
    let queue = SharedQueue::new(memory.clone(), at, size, memory.clone(), registers + 8, registers + 12);
    Ok((queue.ok_or(io::ErrorKind::InvalidInput)?, size))
}

impl Transport for Limit {
    type Guest = RawGuest;
    type Server = RawServer;

    fn open(queues: usize) -> io::Result<(Vec<RawGuest>, RawServer)> {
        const CONTROL_PAGE: usize = 0x1_0000;
        let (bytes, stride) = (16 << QUEUE_LOG2, CONTROL_PAGE / queues.next_power_of_two());
        let (_file, memory) = memory::memfd("raw-rings", CONTROL_PAGE + queues * bytes)?;
        let pair = |number: usize| {
            let (queue, size) = ring(&memory, CONTROL_PAGE + number * bytes, QUEUE_LOG2, number * stride)?;
            let guest = RawGuest(Producer::new(queue.clone(), size, Index::ZERO));
            Ok::<_, io::Error>((guest, Consumer::new(queue, size, Index::ZERO)))
        };
        let pairs: Vec<_> = (0..queues).map(pair).collect::<Result<_, _>>()?;
        let (guests, queues) = pairs.into_iter().unzip();
        let (_file, memory) = memory::memfd("raw-host-ring", CONTROL_PAGE + (16 << HOST_LOG2))?;
        let (host, size) = ring(&memory, CONTROL_PAGE, HOST_LOG2, 0)?;
        let native = Producer::new(host.clone(), size, Index::ZERO);
        let host = Consumer::new(host, size, Index::ZERO);
        let (batch, executed) = ([[0; 2]; BATCH], Box::new([[0; 2]; 256]));
        Ok((guests, RawServer { queues, native, host, batch, executed, commands: 0 }))
    }
}

impl Guest for RawGuest {
    fn send(&mut self, group: &[Command]) -> bool {
        let group: &[Entry] = bytemuck::cast_slice(group);
        if (self.0.room(group.len() as u32) as usize) < group.len() {
            return false;
        }
        self.0.write(group);
        self.0.publish();
        true
    }

    fn is_done(&mut self) -> bool {
        self.0.unconsumed() == 0
    }
}

impl Server for RawServer {
    fn serve(&mut self) -> bool {
        let Self { queues, native, host, batch, executed, commands } = self;
        let mut busy = false;
        for queue in queues {
            let Ok(n @ 1..) = queue.fetch(queue.prod(), batch) else { continue };
            for entry in &mut batch[..n] {
                entry[0] = entry[0] & !0x0000_ffff_0000_0000 | 1 << 32;
            }
            native.write(&batch[..n]);
            native.publish();
            while let Ok(n @ 1..) = host.fetch(host.prod(), &mut executed[..]) {
                black_box(&executed[..n]);
                *commands += n as u64;
                host.consume(n);
            }
            queue.consume(n);
            busy = true;
        }
        busy
    }

    /// CMD_SYNCs are commands like others to it.
    fn executed(&self) -> Executed {
        Executed { commands: self.commands, syncs: 0 }
    }
}
