//! A guest's SMMU driver, as far as a command queue goes.

use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use crossbeam::utils::Backoff;
use ecmdq_engine::Command;
use ecmdq_engine::registers::*;
use ecmdq_ring::handshake::{EN, ERR, REASON_SHIFT};
use ecmdq_ring::{Index, Producer, QueueSize, QueueWords, SharedQueue, SharedRegion};
use serde::Deserialize;
use thiserror::Error;
use vm_memory::GuestAddress;

use crate::registers::{Registers, TIMEOUT, acknowledged};

/// How a CMD_SYNC is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// By an MSI into the CMD_SYNC's own slot, as Linux does where it can.
    #[default]
    Msi,
    /// By polling CONS.
    Cons,
}

/// Why the driver gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The queue does not lie in the memory given, or the SMMU does not take one of its size.
    #[error("no queue of 2^{0} entries can be had")]
    NoQueue(u32),
    /// The SMMU has no ECMDQ of this number, or its control page is not where it says.
    #[error("there is no ECMDQ {0}")]
    NoEcmdq(u32),
    /// A register was not acknowledged.
    #[error("{0} was not acknowledged within a second")]
    NoAck(&'static str),
    /// A CMD_SYNC did not complete.
    #[error("CMD_SYNC timeout at PROD {prod:#x}, CONS {cons:#x}")]
    SyncTimeout {
        /// PROD when it happened.
        prod: u32,
        /// The CONS register then.
        cons: u32,
    },
    /// The SMMU stopped at a command.
    #[error("command error {code} at CONS {cons:#x}: {command}")]
    Command {
        /// CMDQ_CONS.ERR, or ECMDQ_CONS.ERR_REASON.
        code: u32,
        /// RD.
        cons: u32,
        /// What is there.
        command: Command,
    },
}

/// A driver that has its queue to itself.
#[derive(Debug)]
pub struct Driver {
    kind: Kind,
    producer: Producer<SharedQueue>,
    base: GuestAddress,
}

/// What tells of errors.
#[derive(Debug)]
enum Kind {
    /// GERROR and GERRORN.
    Cmdq(Registers),
    /// The queue's own PROD and CONS.
    Ecmdq,
}

const CS_IRQ_ISH_WB: u64 = 0x0fc0_1046;
const CS_SEV_ISH_WB: u64 = 0x0fc0_2046;

impl Driver {
    /// Resets the SMMU as a driver does, and enables a CMDQ of 2^`log2` entries at `base`, whose memory is `ring`.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoQueue`], [`DriverError::NoAck`].
    pub fn cmdq(
        pages: &SharedRegion,
        base: GuestAddress,
        ring: SharedRegion,
        log2: u32,
    ) -> Result<Self, DriverError> {
        let registers = Registers::Memory(pages.clone());
        let producer = producer(&registers, ring, log2, pages, CMDQ_PROD)?;
        enable_cmdq(&registers, base, log2)?;
        Ok(Self { kind: Kind::Cmdq(registers), producer, base })
    }

    /// Of a CMDQ that is enabled and was empty.
    pub(crate) fn over(
        words: SharedQueue,
        size: QueueSize,
        base: GuestAddress,
        registers: Registers,
    ) -> Self {
        Self { kind: Kind::Cmdq(registers), producer: Producer::new(words, size, Index::ZERO), base }
    }

    /// Enables an ECMDQ of 2^`log2` entries at `base`, whose memory is `ring` (facts sheet, section 4.5). The SMMU has been
    /// [reset](Registers::reset).
    ///
    /// # Errors
    ///
    /// [`DriverError::NoEcmdq`], [`DriverError::NoQueue`], [`DriverError::NoAck`].
    pub fn ecmdq(
        registers: &Registers,
        number: u32,
        base: GuestAddress,
        ring: SharedRegion,
        log2: u32,
    ) -> Result<Self, DriverError> {
        let block = registers.ecmdq(number).ok_or(DriverError::NoEcmdq(number))?;
        let mut producer = producer(registers, ring, log2, &block, ECMDQ_PROD)?;
        let enack = || block.load_u32(ECMDQ_CONS, Acquire) & EN;
        // BASE and CONS can be written while the queue is disabled only.
        producer.publish_flags(0);
        acknowledged("ECMDQ_PROD", || enack() == 0)?;
        block.store_u64(ECMDQ_BASE, base.0 | u64::from(log2), Release);
        block.store_u32(ECMDQ_CONS, 0, Release);
        producer.publish_flags(EN);
        acknowledged("ECMDQ_PROD", || enack() == EN)?;
        Ok(Self { kind: Kind::Ecmdq, producer, base })
    }

    /// Sends commands and a CMD_SYNC, in one go if they fit the queue, waits until it has completed, and tells how long that took
    /// since the first doorbell.
    ///
    /// # Errors
    ///
    /// [`DriverError::SyncTimeout`], [`DriverError::Command`].
    pub fn send(&mut self, commands: &[Command], sync: Sync) -> Result<Duration, DriverError> {
        // The queue is empty: `send` waits for all that it sends.
        let entries = bytemuck::cast_slice(commands);
        let fit = self.producer.write(entries);
        let start = Instant::now();
        self.write(&entries[fit..], start)?;
        let slot = self.producer.size().slot(self.producer.prod());
        let command = cmd_sync(sync, self.base.0 + 16 * u64::from(slot));
        self.write(&[command.0], start)?;
        // An ECMDQ's doorbell says EN and ERRACK again: they are in the same register.
        self.producer.publish();
        match sync {
            Sync::Msi => self.wait(start, |driver| {
                driver.producer.words().ring().load_u32(16 * slot as usize, Acquire) == 0
            })?,
            Sync::Cons => {}
        }
        // After an MSI, CONS must have passed the CMD_SYNC already.
        self.wait(start, |driver| driver.producer.unconsumed() == 0)?;
        Ok(start.elapsed())
    }

    /// Adds all entries; while the queue is full, rings and waits for room.
    fn write(&mut self, mut entries: &[[u64; 2]], start: Instant) -> Result<(), DriverError> {
        while !entries.is_empty() {
            let n = self.producer.write(entries);
            entries = &entries[n..];
            if n == 0 {
                self.producer.publish();
                self.wait(start, |driver| driver.producer.room(1) > 0)?;
            }
        }
        Ok(())
    }

    /// What a hostile driver does: adds what fits, rings, and waits for nothing.
    pub(crate) fn pour(&mut self, commands: &[Command]) -> usize {
        let n = self.producer.write(bytemuck::cast_slice(commands));
        self.producer.publish();
        n
    }

    /// Rings with a PROD that is further from CONS than the queue is long, unless it is almost full.
    pub(crate) fn lie(&mut self) {
        let size = self.producer.size();
        let beyond = size.advance(self.producer.prod(), size.entries() + 1);
        // Release: as any doorbell.
        self.producer.words().store_prod(beyond.raw() | self.producer.flags(), Release);
    }

    /// Acknowledges the error that is active, if one is, with a CMD_SYNC in place of the command, as Linux does.
    pub(crate) fn mend(&mut self) {
        let cons = self.cons();
        let size = self.producer.size();
        let replace = || self.producer.words().store_entry(size.slot(size.index(cons)), [CS_SEV_ISH_WB, 0]);
        match &self.kind {
            Kind::Cmdq(registers)
                if (registers.read(GERROR) ^ registers.read(GERRORN)) & GERROR_CMDQ_ERR != 0 =>
            {
                replace();
                registers.write(GERRORN, registers.read(GERROR));
            }
            Kind::Ecmdq if (cons ^ self.producer.flags()) & ERR != 0 => {
                replace();
                self.producer.publish_flags(self.producer.flags() ^ ERR);
            }
            Kind::Cmdq(_) | Kind::Ecmdq => {}
        }
    }

    fn wait(&mut self, start: Instant, done: impl Fn(&mut Self) -> bool) -> Result<(), DriverError> {
        let backoff = Backoff::new();
        while !done(self) {
            if backoff.is_completed() {
                self.check(start)?;
            }
            backoff.snooze();
        }
        Ok(())
    }

    fn check(&self, start: Instant) -> Result<(), DriverError> {
        let (words, size) = (self.producer.words(), self.producer.size());
        let error = match &self.kind {
            Kind::Cmdq(registers) => queue_error(registers, words, size),
            Kind::Ecmdq => {
                let cons = self.cons();
                let active = (cons ^ self.producer.flags()) & ERR != 0;
                active.then(|| command_error(words, size, cons, cons >> REASON_SHIFT & 7))
            }
        };
        match error {
            Some(error) => Err(error),
            None if start.elapsed() > TIMEOUT => {
                Err(DriverError::SyncTimeout { prod: self.producer.prod().raw(), cons: self.cons() })
            }
            None => Ok(()),
        }
    }

    /// The CONS register.
    fn cons(&self) -> u32 {
        // Acquire: with an error, everything before it is seen.
        self.producer.words().load_cons(Acquire)
    }
}

/// Resets the SMMU as a driver does, and enables its CMDQ.
pub(crate) fn enable_cmdq(registers: &Registers, base: GuestAddress, log2: u32) -> Result<(), DriverError> {
    registers.set_cr0(0)?;
    registers.write_u64(CMDQ_BASE, base.0 | u64::from(log2));
    registers.write(CMDQ_PROD, 0);
    registers.write(CMDQ_CONS, 0);
    registers.set_cr0(CR0_CMDQEN)?;
    registers.set_cr0(CR0_CMDQEN | CR0_SMMUEN)
}

/// A CMD_SYNC in the slot at an address.
pub(crate) fn cmd_sync(sync: Sync, slot: u64) -> Command {
    Command(match sync {
        Sync::Msi => [CS_IRQ_ISH_WB, slot],
        Sync::Cons => [CS_SEV_ISH_WB, 0],
    })
}

/// The error of the CMDQ that is active.
pub(crate) fn queue_error(
    registers: &Registers,
    words: &SharedQueue,
    size: QueueSize,
) -> Option<DriverError> {
    // GERROR before CONS: what CONS says of an error is visible with it.
    let active = registers.read(GERROR) ^ registers.read(GERRORN);
    // Acquire: with an error, everything before it is seen.
    let cons = words.load_cons(Acquire);
    let stopped = active & GERROR_CMDQ_ERR != 0;
    stopped.then(|| command_error(words, size, cons, cons >> CONS_ERR_SHIFT))
}

fn command_error(words: &SharedQueue, size: QueueSize, cons: u32, code: u32) -> DriverError {
    let entry = words.load_entry(size.slot(size.index(cons)));
    DriverError::Command { code, cons: cons & INDEX, command: Command(entry) }
}

/// The producer of an empty queue whose PROD, and CONS behind it, are at `prod` of `words`.
fn producer(
    registers: &Registers,
    ring: SharedRegion,
    log2: u32,
    words: &SharedRegion,
    prod: usize,
) -> Result<Producer<SharedQueue>, DriverError> {
    let cmdqs = registers.read(IDR1) >> 21 & 0x1f;
    let size = QueueSize::from_log2(log2).filter(|_| log2 <= cmdqs);
    let size = size.ok_or(DriverError::NoQueue(log2))?;
    let queue = SharedQueue::new(ring, 0, size, words.clone(), prod, prod + 4);
    Ok(Producer::new(queue.ok_or(DriverError::NoQueue(log2))?, size, Index::ZERO))
}
