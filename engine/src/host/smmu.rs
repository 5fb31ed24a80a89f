//! The consuming end of a native ring: what stands for the host's SMMU where there is none.

use ecmdq_ring::{Consumer, Index, QueueSize, SharedQueue};

use crate::command::{Command, Opcode};

/// Takes commands from a native ring as an SMMU does, and counts them by opcode.
///
/// It completes at once what it takes: there is no cache behind it.
#[derive(Debug)]
pub struct HostSmmu {
    consumer: Consumer<SharedQueue>,
    received: Box<[u64; 256]>,
}

const BATCH: usize = 256;

impl HostSmmu {
    pub(super) fn new(words: SharedQueue, size: QueueSize) -> Self {
        Self { consumer: Consumer::new(words, size, Index::ZERO), received: Box::new([0; 256]) }
    }

    /// Takes up to 256 commands and shows them to `sink` before they count as executed; says how many.
    pub fn poll(&mut self, mut sink: impl FnMut(&[Command])) -> usize {
        let mut batch = [[0; 2]; BATCH];
        // Our own producer keeps PROD consistent; were it not, an SMMU may take nothing as well.
        let n = self.consumer.fetch(self.consumer.prod(), &mut batch, |_| false).unwrap_or(0);
        if n > 0 {
            let commands: &[Command] = bytemuck::cast_slice(&batch[..n]);
            for command in commands {
                self.received[usize::from(command.opcode().0)] += 1;
            }
            sink(commands);
            self.consumer.consume(n);
        }
        n
    }

    /// How many commands came, CMD_SYNCs included.
    pub fn total(&self) -> u64 {
        self.received.iter().sum()
    }

    /// How many commands of an opcode came.
    pub fn received(&self, opcode: Opcode) -> u64 {
        self.received[usize::from(opcode.0)]
    }

    /// The opcodes that came, and how often.
    pub fn by_opcode(&self) -> impl Iterator<Item = (Opcode, u64)> + '_ {
        (0..=255).map(Opcode).map(|opcode| (opcode, self.received(opcode))).filter(|(_, n)| *n > 0)
    }
}
