//! The consuming end of a native ring: what stands for the host's SMMU where there is none.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use ecmdq_ring::handshake::{Handshake, Step};
use ecmdq_ring::{Consumer, Index, QueueSize, QueueWords, SharedQueue, SharedRegion, Toggle};

use super::{MsiWord, RingFormat};
use crate::command::CommandError;
use crate::command::{Command, Opcode, same_opcode};
use crate::registers::{CONS_ERR_SHIFT, GERROR_CMDQ_ERR};

/// Takes commands from a native ring as an SMMU does, and counts them by opcode.
///
/// It completes at once what it takes: there is no cache behind it.
#[derive(Debug)]
pub struct RingConsumer {
    consumer: Consumer<SharedQueue>,
    registers: SharedRegion,
    control: Control,
    msi: Option<MsiWord>,
    batch: Box<[[u64; 2]; BATCH]>,
    received: Box<[u64; 256]>,
}

/// How errors are told.
#[derive(Debug)]
enum Control {
    Cmdq { gerror: usize, gerrorn: usize, errors: Toggle },
    Ecmdq(Handshake),
}

const BATCH: usize = 256;

impl RingConsumer {
    /// The consumer of a ring that is enabled and empty at `start`.
    pub(super) fn new(
        words: SharedQueue,
        size: QueueSize,
        start: Index,
        registers: SharedRegion,
        format: RingFormat,
        msi: Option<MsiWord>,
    ) -> Self {
        let control = match format {
            RingFormat::Cmdq { gerror, gerrorn } => {
                Control::Cmdq { gerror, gerrorn, errors: Toggle::default() }
            }
            RingFormat::Ecmdq => {
                // Relaxed: the ring is empty, and nobody writes yet.
                Control::Ecmdq(Handshake::restored(words.load_prod(Relaxed), words.load_cons(Relaxed), false))
            }
        };
        let mut consumer = Consumer::new(words, size, start);
        if let Control::Ecmdq(handshake) = &control {
            consumer.publish_flags(handshake.flags());
        }
        Self {
            consumer,
            registers,
            control,
            msi,
            batch: Box::new([[0; 2]; BATCH]),
            received: Box::new([0; 256]),
        }
    }

    /// Takes up to 256 commands and shows them to `sink` before they count as executed; says how many.
    pub fn poll(&mut self, mut sink: impl FnMut(&[Command])) -> usize {
        self.poll_with(|commands| {
            sink(commands);
            (commands.len(), None)
        })
    }

    /// The same with an SMMU that may fail: `execute` says how many commands from the front it executed, and what is wrong
    /// with the next one. Nothing more is taken until the error is acknowledged.
    pub fn poll_with(
        &mut self,
        mut execute: impl FnMut(&[Command]) -> (usize, Option<CommandError>),
    ) -> usize {
        let prod = self.consumer.prod();
        if !self.runs(prod) {
            return 0;
        }
        let Self { consumer, registers, control, msi, batch, received } = self;
        // Our own producers keep PROD consistent; were it not, an SMMU may take nothing as well.
        let fetched = consumer.fetch(prod, &mut batch[..]).unwrap_or(0);
        let commands: &[Command] = bytemuck::cast_slice(&batch[..fetched]);
        if commands.is_empty() {
            return 0;
        }
        let (n, error) = execute(commands);
        let executed = commands.get(..n).unwrap_or(commands);
        count(received, executed);
        consumer.consume(executed.len());
        if let Some(error) = error {
            control.fail(error, consumer, registers);
        }
        if let Some(msi) = msi {
            executed.iter().for_each(|command| msi.signal(*command));
        }
        executed.len()
    }

    /// Whether no error is active.
    fn runs(&mut self, prod: u32) -> bool {
        match &mut self.control {
            Control::Ecmdq(handshake) => {
                if handshake.follow(prod) == Step::Resume {
                    self.consumer.publish_flags(handshake.flags());
                }
                !handshake.is_stopped()
            }
            Control::Cmdq { gerrorn, errors, .. } => {
                // Acquire: what was mended before the acknowledgement is seen.
                errors.follow(self.registers.load_u32(*gerrorn, Acquire));
                errors.active() & GERROR_CMDQ_ERR == 0
            }
        }
    }

    /// Whether everything has been taken.
    pub fn is_empty(&self) -> bool {
        self.consumer.size().index(self.consumer.prod()) == self.consumer.cons()
    }

    /// Whether it has told an error that was not acknowledged when it last looked.
    pub fn is_stopped(&self) -> bool {
        match &self.control {
            Control::Ecmdq(handshake) => handshake.is_stopped(),
            Control::Cmdq { errors, .. } => errors.active() & GERROR_CMDQ_ERR != 0,
        }
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

impl Control {
    fn fail(&mut self, error: CommandError, consumer: &mut Consumer<SharedQueue>, registers: &SharedRegion) {
        match self {
            Self::Ecmdq(handshake) => {
                handshake.fail(error as u8);
                consumer.publish_flags(handshake.flags());
            }
            Self::Cmdq { gerror, errors, .. } => {
                consumer.publish_flags((error as u32) << CONS_ERR_SHIFT);
                errors.raise(GERROR_CMDQ_ERR);
                // Release: CONS was stored before.
                registers.store_u32(*gerror, errors.raised(), Release);
            }
        }
    }
}

impl MsiWord {
    /// Writes what a CMD_SYNC says, if it says to write here.
    fn signal(&self, command: Command) {
        let irq = command.opcode() == Opcode::CMD_SYNC && command.bits(0, 13, 12) == 1;
        if irq && self.address == command.0[1] {
            // Release: CONS was stored before.
            self.region.store_u32(self.offset, command.bits(0, 63, 32) as u32, Release);
        }
    }
}

/// Counts commands by opcode: most come in runs of one.
fn count(received: &mut [u64; 256], commands: &[Command]) {
    for part in commands.chunks(32) {
        if let Some(Opcode(opcode)) = same_opcode(part) {
            received[usize::from(opcode)] += part.len() as u64;
        } else {
            part.iter().for_each(|command| received[usize::from(command.opcode().0)] += 1);
        }
    }
}
