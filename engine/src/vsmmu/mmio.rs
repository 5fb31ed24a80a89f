//! Trapped accesses: a register file in front of the register memory, with the architecture's guards.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crossbeam::utils::Backoff;
use ecmdq_ring::handshake::{EN, ERR};

use super::queue::MSI_ON_ITS_WAY;
use super::register_file::RegisterFile;
use super::{Shared, VirtualSmmu};
use crate::registers::*;

/// What an access hits: a word of register memory, or a half of one that is 64 bits wide.
#[derive(Clone, Copy)]
struct Access<'a> {
    words: &'a RegisterWords,
    word: Word,
    /// Where the access begins, in bits from the start of the word, and the bits that it has.
    shift: usize,
    mask: u64,
    /// On a control page, where the block of the ECMDQ starts.
    block: Option<usize>,
    /// Whether the guest reaches the register by traps only.
    traps: bool,
}

impl VirtualSmmu {
    /// The guest reads the registers at `offset` bytes from page 0: pages 0 and 1, behind them the control pages.
    ///
    /// Aligned accesses of 4 bytes, and of 8 bytes to 64-bit registers, read the register; any other access, and one to no
    /// register, reads zero (facts sheet, section 2). Any thread may call it; it takes no lock. Where the guest reads CONS
    /// while an MSI is being written, it waits for that.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(access) = self.0.access(offset, data.len()) {
            let value = access.read() >> access.shift;
            data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        }
    }

    /// The guest writes the registers at `offset` bytes from page 0; see [`Self::mmio_read`].
    ///
    /// What the architecture has ignored (read-only registers, registers whose guard forbids it now, fields that do not
    /// exist, other sizes) is ignored. What it sets off happens when the worker sees it, as the acknowledging registers
    /// show. Any thread may call it.
    pub fn mmio_write(&self, offset: u64, data: &[u8]) {
        let Some(access) = self.0.access(offset, data.len()) else { return };
        let Access { words, word, shift, mask, .. } = access;
        let writing = self.0.writing.lock();
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)) << shift;
        // What is not writable now may be the worker's: then nothing is stored, not even what was there, since the worker may
        // have stored something newer meanwhile. What is writable now the worker leaves alone, so that the other half of a
        // 64-bit register can be stored as it was.
        // Release: pairs with the worker's acquire loads, so that registers are seen written in the guest's order.
        let old = words.load(word.offset, Acquire);
        match self.0.writable_bits(access, old, value) & mask {
            0 => {}
            bits => words.store(word.offset, old & !bits | value & bits, Release),
        }
        match access.traps {
            true => drop(writing),
            false => self.0.disarm(writing),
        }
        let rings = access.block.map_or(word.offset == CMDQ_PROD, |block| word.offset - block == ECMDQ_PROD);
        // Doorbells are looked at all the time.
        if rings { self.0.worker.wake() } else { self.0.worker.notify() }
    }
}

impl Access<'_> {
    /// The word, without what is under its surface.
    fn read(&self) -> u64 {
        let register = self.word.offset;
        let is_cons = self.block.map_or(register == CMDQ_CONS, |block| register - block == ECMDQ_CONS);
        let backoff = Backoff::new();
        loop {
            // Acquire: pairs with the worker's release stores; what CONS says to be complete is.
            let value = self.words.load(register, Acquire);
            // Where the guest can write CONS itself, the bit under the surface is none of ours, and may stay for ever.
            let waits = is_cons && self.traps;
            if !waits || value & u64::from(MSI_ON_ITS_WAY) == 0 {
                return value;
            }
            backoff.snooze();
        }
    }
}

impl Shared {
    /// What an access hits, if it is one that registers answer.
    fn access(&self, offset: u64, len: usize) -> Option<Access<'_>> {
        if len != 4 && len != 8 || !offset.is_multiple_of(len as u64) {
            return None;
        }
        let RegisterFile { frame, control, frame_traps, control_traps, .. } = &self.pages;
        let offset = usize::try_from(offset).ok()?;
        let (words, at, block, traps) = match offset.checked_sub(CONTROL_PAGES) {
            None => (frame, offset, None, *frame_traps),
            Some(at) => {
                let in_block = at % RegisterFile::ecmdq_stride(&self.features);
                let inside = at < control.len() && in_block < 16;
                (control, at, Some(inside.then_some(at - in_block)?), *control_traps)
            }
        };
        let word = words.word(at);
        let mask = u64::MAX >> (64 - 8 * len);
        let shift = 8 * (at - word.offset);
        (len <= word.bytes).then_some(Access { words, word, shift, mask: mask << shift, block, traps })
    }

    /// The bits of the word that a write of the whole of it would change.
    fn writable_bits(&self, access: Access<'_>, old: u64, value: u64) -> u64 {
        match access.block {
            None => self.frame_bits(access.word.offset, old, value),
            Some(block) => self.ecmdq_bits(block, access.word.offset - block),
        }
    }

    fn frame_bits(&self, offset: usize, old: u64, value: u64) -> u64 {
        let Some(register) = WRITABLE.iter().find(|register| register.offset == offset) else { return 0 };
        let bits = register.bits(&self.features);
        let frame = &self.pages.frame;
        // An enable counts until its acknowledgement has gone as well. Relaxed: the lock orders the vCPUs that write the
        // control register. Acquire: pairs with the worker's release store of the acknowledgement, here and below.
        let enabled = |control, bits: u32| {
            let ack = control + 4;
            (frame.load_u32(control, Relaxed) | frame.load_u32(ack, Acquire)) & bits != 0
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
        // Relaxed: only guests write it. Acquire: pairs with the worker's release store of CONS: what was enabled is not used
        // any more.
        let prod = control.load_u32(block + ECMDQ_PROD, Relaxed);
        let cons = control.load_u32(block + ECMDQ_CONS, Acquire);
        let disabled = (prod | cons) & EN == 0;
        match offset {
            ECMDQ_PROD if (prod ^ cons) & EN == 0 => u64::from(EN | ERR | INDEX),
            ECMDQ_CONS if disabled => u64::from(ERR | 7 << CONS_ERR_SHIFT | INDEX),
            ECMDQ_BASE if disabled => QUEUE_BASE,
            _ => 0,
        }
    }

    /// Whether any ECMDQ is enabled, or on its way.
    fn any_ecmdq(&self) -> bool {
        let control = &self.pages.control;
        // Acquire: as in `ecmdq_bits`.
        let word = |at| control.load_u32(at, Acquire);
        let mut blocks = (0..control.len()).step_by(RegisterFile::ecmdq_stride(&self.features));
        blocks.any(|block| (word(block + ECMDQ_PROD) | word(block + ECMDQ_CONS)) & EN != 0)
    }
}
