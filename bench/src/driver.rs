//! A guest's SMMU driver, as far as the command queue goes.

use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use crossbeam::utils::Backoff;
use ecmdq_engine::Command;
use ecmdq_engine::registers::*;
use ecmdq_ring::{Index, Producer, QueueSize, SharedQueue, SharedRegion};
use thiserror::Error;
use vm_memory::GuestAddress;

/// How a CMD_SYNC is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// By an MSI into the CMD_SYNC's own slot, as Linux does where it can.
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
    /// CR0 was not acknowledged.
    #[error("CR0 was not acknowledged within a second")]
    NoAck,
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
        /// CMDQ_CONS.ERR.
        code: u32,
        /// CMDQ_CONS.RD.
        cons: u32,
        /// What is there.
        command: Command,
    },
}

/// A driver that has its queue to itself.
#[derive(Debug)]
pub struct Driver {
    registers: SharedRegion,
    producer: Producer<SharedQueue>,
    base: GuestAddress,
}

const TIMEOUT: Duration = Duration::from_secs(1);
const CS_IRQ_ISH_WB: u64 = 0x0fc0_1046;
const CS_SEV_ISH_WB: u64 = 0x0fc0_2046;

impl Driver {
    /// Resets the SMMU as a driver does, and enables a queue of 2^`log2` entries at `base`, whose memory is `ring`.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoQueue`], [`DriverError::NoAck`].
    pub fn enable(
        registers: &SharedRegion,
        base: GuestAddress,
        ring: SharedRegion,
        log2: u32,
    ) -> Result<Self, DriverError> {
        let cmdqs = registers.load_u32(IDR1, Acquire) >> 21 & 0x1f;
        let size = QueueSize::from_log2(log2).filter(|_| log2 <= cmdqs);
        let size = size.ok_or(DriverError::NoQueue(log2))?;
        let words = SharedQueue::new(ring, 0, size, registers.clone(), CMDQ_PROD, CMDQ_CONS);
        let words = words.ok_or(DriverError::NoQueue(log2))?;
        let driver =
            Self { registers: registers.clone(), producer: Producer::new(words, size, Index::ZERO), base };
        driver.set_cr0(0)?;
        registers.store_u64(CMDQ_BASE, base.0 | u64::from(log2), Release);
        registers.store_u32(CMDQ_PROD, 0, Release);
        registers.store_u32(CMDQ_CONS, 0, Release);
        driver.set_cr0(CR0_CMDQEN)?;
        driver.set_cr0(CR0_CMDQEN | CR0_SMMUEN)?;
        Ok(driver)
    }

    /// Sends commands and a CMD_SYNC in one go, waits until it has completed, and tells how long that took.
    ///
    /// `commands` must leave room for the CMD_SYNC in the queue.
    ///
    /// # Errors
    ///
    /// [`DriverError::SyncTimeout`], [`DriverError::Command`].
    pub fn send(&mut self, commands: &[Command], sync: Sync) -> Result<Duration, DriverError> {
        // The queue is empty: `send` waits for all that it sends.
        self.producer.write(bytemuck::cast_slice(commands));
        let slot = self.producer.size().slot(self.producer.prod());
        let own = self.base.0 + 16 * u64::from(slot);
        let command = match sync {
            Sync::Msi => [CS_IRQ_ISH_WB, own],
            Sync::Cons => [CS_SEV_ISH_WB, 0],
        };
        self.producer.write(&[command]);
        let start = Instant::now();
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
        let cons = self.registers.load_u32(CMDQ_CONS, Acquire);
        let error = self.registers.load_u32(GERROR, Acquire) ^ self.registers.load_u32(GERRORN, Acquire);
        if error & GERROR_CMDQ_ERR != 0 {
            let size = self.producer.size();
            let slot = 16 * size.slot(size.index(cons)) as usize;
            let ring = self.producer.words().ring();
            let command = Command([ring.load_u64(slot, Acquire), ring.load_u64(slot + 8, Acquire)]);
            return Err(DriverError::Command {
                code: cons >> CONS_ERR_SHIFT,
                cons: cons & 0xf_ffff,
                command,
            });
        }
        if start.elapsed() > TIMEOUT {
            return Err(DriverError::SyncTimeout { prod: self.producer.prod().raw(), cons });
        }
        Ok(())
    }

    fn set_cr0(&self, value: u32) -> Result<(), DriverError> {
        self.registers.store_u32(CR0, value, Release);
        let (start, backoff) = (Instant::now(), Backoff::new());
        while self.registers.load_u32(CR0ACK, Acquire) != value {
            if start.elapsed() > TIMEOUT {
                return Err(DriverError::NoAck);
            }
            backoff.snooze();
        }
        Ok(())
    }
}
