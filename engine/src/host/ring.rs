//! A native SMMUv3 command ring as a host queue.

use std::io;

use ecmdq_ring::{Index, Producer, QueueSize, SharedQueue};

use super::{HostQueue, HostSmmu, Ticket};
use crate::command::{Command, Opcode};
use crate::memory;

/// A command ring in the hardware's own format, with one producer.
///
/// Its CMD_SYNCs signal by CONS alone: a ticket is the count of entries up to and including the CMD_SYNC, and
/// has been reached when CONS has passed that many.
#[derive(Debug)]
pub struct NativeRing {
    producer: Producer<SharedQueue>,
    /// Entries written since the beginning.
    written: u64,
    last_sync: Ticket,
}

const CMD_SYNC: Command = Command([Opcode::CMD_SYNC.0 as u64, 0]);

impl NativeRing {
    /// A ring of 2^`log2` entries in a memfd of its own, and the consumer that stands for the host's SMMU.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a log2 size of 0 or above 19; what the system said when it refused the memory.
    pub fn with_consumer(log2: u32) -> io::Result<(Self, HostSmmu)> {
        let size = QueueSize::from_log2(log2).filter(|size| size.log2() > 0);
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        // PROD and CONS a page apart from the slots and from each other: one writer a cache line.
        const PAGE: usize = 4096;
        let (_file, memory) = memory::memfd("ecmdq-host-ring", 2 * PAGE + size.bytes())?;
        let words = SharedQueue::new(memory.clone(), 2 * PAGE, size, memory, 0, PAGE);
        let words = words.ok_or(io::ErrorKind::InvalidInput)?;
        let producer = Producer::new(words.clone(), size, Index::ZERO);
        Ok((Self { producer, written: 0, last_sync: Ticket(0) }, HostSmmu::new(words, size)))
    }

    fn write(&mut self, commands: &[Command]) -> usize {
        let n = self.producer.write(bytemuck::cast_slice(commands));
        if n > 0 {
            self.producer.publish();
            self.written += n as u64;
        }
        n
    }
}

impl HostQueue for NativeRing {
    fn submit(&mut self, commands: &[Command]) -> usize {
        // One slot stays free for the CMD_SYNC that follows, so that `sync` never finds the ring full.
        let wanted = commands.len() as u32;
        let room = self.producer.room(wanted + 1).saturating_sub(1);
        self.write(&commands[..room.min(wanted) as usize])
    }

    fn sync(&mut self) -> Ticket {
        if self.written > self.last_sync.0 {
            self.write(&[CMD_SYNC]);
            self.last_sync = Ticket(self.written);
        }
        self.last_sync
    }

    fn completed(&mut self) -> Ticket {
        Ticket(self.written - u64::from(self.producer.unconsumed()))
    }
}
