//! How an emulated guest reaches the registers of its SMMU.

use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use crossbeam::utils::Backoff;
use ecmdq_engine::VirtualSmmu;
use ecmdq_engine::registers::*;
use ecmdq_ring::SharedRegion;

use crate::driver::DriverError;

/// How long a driver waits for the SMMU: as long as Linux does.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);

/// The registers as a guest reaches them.
#[derive(Clone, Debug)]
pub enum Registers {
    /// All of them are memory, from page 0 on.
    Memory(SharedRegion),
    /// An access to page 0 or 1 goes to the VMM; the control pages are memory that the guest has mapped.
    Trapped(VirtualSmmu, SharedRegion),
}

impl Registers {
    /// A 32-bit register of page 0 or 1.
    pub fn read(&self, register: usize) -> u32 {
        match self {
            Self::Memory(pages) => pages.load_u32(register, Acquire),
            Self::Trapped(smmu, _) => {
                let mut data = [0; 4];
                smmu.mmio_read(register as u64, &mut data);
                u32::from_le_bytes(data)
            }
        }
    }

    /// A 64-bit register of page 0 or 1.
    pub fn read_u64(&self, register: usize) -> u64 {
        match self {
            Self::Memory(pages) => pages.load_u64(register, Acquire),
            Self::Trapped(smmu, _) => {
                let mut data = [0; 8];
                smmu.mmio_read(register as u64, &mut data);
                u64::from_le_bytes(data)
            }
        }
    }

    /// Writes a 32-bit register of page 0 or 1.
    pub fn write(&self, register: usize, value: u32) {
        match self {
            Self::Memory(pages) => pages.store_u32(register, value, Release),
            Self::Trapped(smmu, _) => smmu.mmio_write(register as u64, &value.to_le_bytes()),
        }
    }

    /// Writes a 64-bit register of page 0 or 1.
    pub fn write_u64(&self, register: usize, value: u64) {
        match self {
            Self::Memory(pages) => pages.store_u64(register, value, Release),
            Self::Trapped(smmu, _) => smmu.mmio_write(register as u64, &value.to_le_bytes()),
        }
    }

    /// Resets the SMMU as a driver does that uses no CMDQ: everything off, then translation on.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoAck`].
    pub fn reset(&self) -> Result<(), DriverError> {
        self.set_cr0(0)?;
        self.set_cr0(CR0_SMMUEN)
    }

    /// Writes CR0, and waits until all of it is acknowledged.
    pub(crate) fn set_cr0(&self, value: u32) -> Result<(), DriverError> {
        self.write(CR0, value);
        acknowledged("CR0", || self.read(CR0ACK) == value)
    }

    /// The registers of an ECMDQ, found as drivers find them (facts sheet, section 4.1): IDR1 says that there are any, IDR6 how
    /// many and on how many pages, and a description where each page is.
    pub(crate) fn ecmdq(&self, number: u32) -> Option<SharedRegion> {
        let (idr1, idr6) = (self.read(IDR1), self.read(IDR6));
        let (pages, queues) = (1 << (idr6 >> 24 & 0xf), 1 << (idr6 >> 16 & 0xf));
        let (page, queue) = (number / queues, number % queues);
        if idr1 & IDR1_ECMDQ == 0 || page >= pages {
            return None;
        }
        let description = self.read_u64(CONTROL_PAGE_BASE + CONTROL_PAGE_STRIDE * page as usize);
        let from_page_0 = (description & PRESET != 0).then_some((description & PAGE_ADDR) as usize)?;
        let block = from_page_0 + queue as usize * (CONTROL_PAGE_SIZE / queues as usize);
        match self {
            Self::Memory(all) => all.part(block, ECMDQ_BYTES),
            Self::Trapped(_, control) => control.part(block.checked_sub(CONTROL_PAGES)?, ECMDQ_BYTES),
        }
    }
}

const IDR1_ECMDQ: u32 = 1 << 31;
/// CMDQ_CONTROL_PAGE_BASE: PRESET, and ADDR, an offset from page 0.
const PRESET: u64 = 1;
const PAGE_ADDR: u64 = 0x00ff_ffff_ffff_0000;
/// BASE, PROD and CONS.
const ECMDQ_BYTES: usize = 16;

/// Waits for the SMMU to acknowledge a register.
pub(crate) fn acknowledged(register: &'static str, done: impl Fn() -> bool) -> Result<(), DriverError> {
    let (start, backoff) = (Instant::now(), Backoff::new());
    while !done() {
        if start.elapsed() > TIMEOUT {
            return Err(DriverError::NoAck(register));
        }
        backoff.snooze();
    }
    Ok(())
}
