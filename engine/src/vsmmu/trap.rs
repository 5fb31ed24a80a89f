//! Trapped accesses: a register file in front of the register memory, with the architecture's guards.

use std::sync::atomic::Ordering::{Acquire, Release};

use crossbeam::utils::Backoff;
use ecmdq_ring::SharedRegion;
use ecmdq_ring::handshake::{EN, ERR};

use super::pages::Pages;
use super::slot::MSI_ON_ITS_WAY;
use super::{Shared, VirtualSmmu};
use crate::registers::*;

/// Where the descriptions of control pages may be.
const DESCRIPTIONS: std::ops::Range<usize> = CONTROL_PAGE_BASE..CONTROL_PAGE_BASE + 256 * CONTROL_PAGE_STRIDE;

/// What an access may hit: a register or a half of one.
#[derive(Clone, Copy)]
enum Access {
    /// At this offset of pages 0 and 1.
    Frame(usize),
    /// On the control pages: where the block of an ECMDQ starts, and where in the block.
    Ecmdq(usize, usize),
}

impl VirtualSmmu {
    /// The guest reads the registers at `offset` bytes from page 0: pages 0 and 1, behind them the control pages.
    ///
    /// Aligned accesses of 4 bytes, and of 8 bytes to 64-bit registers, read the register; any other access, and one to no
    /// register, reads zero (facts sheet, section 2). Any thread may call it; it takes no lock. Where the guest reads CONS
    /// while an MSI is being written, it waits for that.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match (self.0.access(offset, data.len()), data.len()) {
            (None, _) => {}
            (Some(access), 4) => data.copy_from_slice(&self.0.read_u32(access).to_le_bytes()),
            (Some(access), _) => data.copy_from_slice(&self.0.read_u64(access).to_le_bytes()),
        }
    }

    /// The guest writes the registers at `offset` bytes from page 0; see [`Self::mmio_read`].
    ///
    /// What the architecture has ignored (read-only registers, registers whose guard forbids it now, fields that do not
    /// exist, other sizes) is ignored. What it sets off happens when the worker sees it, as the acknowledging registers
    /// show. Any thread may call it.
    pub fn mmio_write(&self, offset: u64, data: &[u8]) {
        let Some(access) = self.0.access(offset, data.len()) else { return };
        let writing = self.0.writing.lock();
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let (region, offset) = self.0.memory(access);
        // What is not writable now may be the worker's: then nothing is stored, not even what was there, since the worker may
        // have stored something newer meanwhile. What is writable now the worker leaves alone.
        // Release: pairs with the worker's acquire loads, so that registers are seen written in the guest's order.
        if data.len() == 8 {
            let old = region.load_u64(offset, Acquire);
            match self.0.writable_bits(access, old, value) {
                0 => {}
                bits => region.store_u64(offset, old & !bits | value & bits, Release),
            }
        } else {
            let old = region.load_u32(offset, Acquire);
            match self.0.writable_bits(access, old.into(), value) as u32 {
                0 => {}
                bits => region.store_u32(offset, old & !bits | value as u32 & bits, Release),
            }
        }
        match self.0.traps(access) {
            true => drop(writing),
            false => self.0.disarm(writing),
        }
        self.0.bell.ring();
    }
}

impl Shared {
    /// What an access hits, if it is one that registers answer.
    fn access(&self, offset: u64, len: usize) -> Option<Access> {
        if len != 4 && len != 8 || !offset.is_multiple_of(len as u64) {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        let (access, wide) = match offset.checked_sub(CONTROL_PAGES) {
            None => {
                let mut registers = WRITABLE.iter().filter(|register| register.bytes == 8);
                let described = DESCRIPTIONS.contains(&offset) && offset.is_multiple_of(CONTROL_PAGE_STRIDE);
                (Access::Frame(offset), described || registers.any(|register| register.offset == offset))
            }
            Some(offset) => {
                let in_block = offset % Pages::ecmdq_stride(&self.features);
                let inside = offset < self.pages.control.len() && in_block < 16;
                (inside.then_some(Access::Ecmdq(offset - in_block, in_block))?, in_block == ECMDQ_BASE)
            }
        };
        (len == 4 || wide).then_some(access)
    }

    fn memory(&self, access: Access) -> (&SharedRegion, usize) {
        match access {
            Access::Frame(offset) => (&self.pages.frame, offset),
            Access::Ecmdq(block, offset) => (&self.pages.control, block + offset),
        }
    }

    fn read_u64(&self, access: Access) -> u64 {
        let (region, offset) = self.memory(access);
        region.load_u64(offset, Acquire)
    }

    /// A 32-bit register, without what is under its surface.
    fn read_u32(&self, access: Access) -> u32 {
        let (region, offset) = self.memory(access);
        // Where the guest can write CONS itself, the bit under the surface is none of ours, and may stay for ever.
        let waits = match access {
            Access::Frame(register) => self.pages.frame_traps && register == CMDQ_CONS,
            Access::Ecmdq(_, register) => self.pages.control_traps && register == ECMDQ_CONS,
        };
        let backoff = Backoff::new();
        loop {
            // Acquire: pairs with the worker's release stores; what CONS says to be complete is.
            let value = region.load_u32(offset, Acquire);
            if !waits || value & MSI_ON_ITS_WAY == 0 {
                return value;
            }
            backoff.snooze();
        }
    }

    /// Whether the guest reaches the register by traps only.
    fn traps(&self, access: Access) -> bool {
        match access {
            Access::Frame(_) => self.pages.frame_traps,
            Access::Ecmdq(..) => self.pages.control_traps,
        }
    }

    /// The bits that a write changes.
    fn writable_bits(&self, access: Access, old: u64, value: u64) -> u64 {
        match access {
            Access::Frame(offset) => self.frame_bits(offset, old, value),
            Access::Ecmdq(block, offset) => self.ecmdq_bits(block, offset),
        }
    }

    fn frame_bits(&self, offset: usize, old: u64, value: u64) -> u64 {
        let inside = |r: &&Writable| (r.offset..r.offset + r.bytes).contains(&offset);
        let Some(register) = WRITABLE.iter().find(inside) else { return 0 };
        let bits = register.bits(&self.features) >> (8 * (offset - register.offset));
        let frame = &self.pages.frame;
        // An enable counts until its acknowledgement has gone as well.
        let enabled = |control, bits: u32| {
            let ack = control + 4;
            (frame.load_u32(control, Acquire) | frame.load_u32(ack, Acquire)) & bits != 0
        };
        let update = u64::from(GBPA_UPDATE);
        match register.guard {
            Guard::Always => bits,
            Guard::Handshake => bits & !(old ^ u64::from(frame.load_u32(offset + 4, Acquire))),
            Guard::Update if !old & value & update != 0 => bits,
            Guard::Disabled(by) if !enabled(CR0, by) => bits,
            Guard::Masked(by) if !enabled(IRQ_CTRL, by) => bits,
            Guard::Update | Guard::Disabled(_) | Guard::Masked(_) => 0,
            Guard::Attributes => {
                let table = if enabled(CR0, CR0_SMMUEN) { CR1_TABLE } else { 0 };
                let queues = if enabled(CR0, CR0_QUEUES) || self.any_ecmdq() { CR1_QUEUE } else { 0 };
                bits & !u64::from(table | queues)
            }
        }
    }

    fn ecmdq_bits(&self, block: usize, offset: usize) -> u64 {
        let control = &self.pages.control;
        let prod = control.load_u32(block + ECMDQ_PROD, Acquire);
        let cons = control.load_u32(block + ECMDQ_CONS, Acquire);
        let disabled = (prod | cons) & EN == 0;
        match offset {
            ECMDQ_PROD if (prod ^ cons) & EN == 0 => u64::from(EN | ERR | INDEX),
            ECMDQ_CONS if disabled => u64::from(ERR | 7 << CONS_ERR_SHIFT | INDEX),
            0..ECMDQ_PROD if disabled => QUEUE_BASE >> (8 * (offset - ECMDQ_BASE)),
            _ => 0,
        }
    }

    /// Whether any ECMDQ is enabled, or on its way.
    fn any_ecmdq(&self) -> bool {
        let control = &self.pages.control;
        let word = |at| control.load_u32(at, Acquire);
        let mut blocks = (0..control.len()).step_by(Pages::ecmdq_stride(&self.features));
        blocks.any(|block| (word(block + ECMDQ_PROD) | word(block + ECMDQ_CONS)) & EN != 0)
    }
}
