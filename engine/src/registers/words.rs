//! Register memory, each word of which has one width.
//!
//! Rust's memory model does not say what an atomic access sees of one of another width to the same bytes. So every access of
//! the engine to register memory goes through [`RegisterWords`], which knows the width of each word: 64 bits for the
//! registers that the architecture makes 64 bits wide, 32 bits for everything else. An access of the guest to a half of a
//! 64-bit register becomes one to the whole word.

use std::sync::atomic::Ordering::{self, Relaxed};

use ecmdq_ring::SharedRegion;

use super::{CONTROL_PAGE_BASE, CONTROL_PAGE_STRIDE, ECMDQ_BASE, WRITABLE};

/// RegisterFile 0 and 1, or the ECMDQ control pages.
#[derive(Clone, Debug)]
pub(crate) struct RegisterWords {
    memory: SharedRegion,
    layout: Layout,
}

/// Where the 64-bit words are.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Frame,
    Control {
        /// The distance from one ECMDQ's registers to the next one's.
        stride: usize,
    },
}

/// Where a word starts, and its size: 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub offset: usize,
    pub bytes: usize,
}

/// The most control pages that there can be, and so descriptions of them.
const MOST_CONTROL_PAGES: usize = 256;

/// The 64-bit registers of [`WRITABLE`], a bit for each 8 bytes from page 0.
const WIDE: u64 = {
    let (mut wide, mut n) = (0, 0);
    while n < WRITABLE.len() {
        if WRITABLE[n].bytes == 8 {
            assert!(WRITABLE[n].offset.is_multiple_of(8));
            wide |= 1 << (WRITABLE[n].offset / 8);
        }
        n += 1;
    }
    wide
};

impl Layout {
    /// Whether a 64-bit word starts at this multiple of 8.
    fn is_wide(self, offset: usize) -> bool {
        match self {
            Self::Frame if offset < 64 * 8 => WIDE >> (offset / 8) & 1 != 0,
            Self::Frame => {
                let descriptions = offset.wrapping_sub(CONTROL_PAGE_BASE);
                descriptions < MOST_CONTROL_PAGES * CONTROL_PAGE_STRIDE
                    && descriptions.is_multiple_of(CONTROL_PAGE_STRIDE)
            }
            Self::Control { stride } => offset % stride == ECMDQ_BASE,
        }
    }
}

impl RegisterWords {
    /// RegisterFile 0 and 1.
    pub fn frame(memory: SharedRegion) -> Self {
        Self { memory, layout: Layout::Frame }
    }

    /// The control pages, with an ECMDQ every `stride` bytes.
    pub fn control(memory: SharedRegion, stride: usize) -> Self {
        Self { memory, layout: Layout::Control { stride } }
    }

    /// The memory, for a queue that accesses its PROD and CONS, which are 32 bits wide, directly.
    pub fn memory(&self) -> &SharedRegion {
        &self.memory
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are no registers.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// The word that has this byte.
    pub fn word(&self, offset: usize) -> Word {
        let wide = self.layout.is_wide(offset & !7);
        let bytes = if wide { 8 } else { 4 };
        Word { offset: offset & !(bytes - 1), bytes }
    }

    /// Loads the word that has this byte.
    pub fn load(&self, offset: usize, order: Ordering) -> u64 {
        match self.word(offset) {
            Word { offset, bytes: 8 } => self.memory.load_u64(offset, order),
            Word { offset, .. } => self.memory.load_u32(offset, order).into(),
        }
    }

    /// Stores the word that has this byte.
    pub fn store(&self, offset: usize, value: u64, order: Ordering) {
        match self.word(offset) {
            Word { offset, bytes: 8 } => self.memory.store_u64(offset, value, order),
            Word { offset, .. } => self.memory.store_u32(offset, value as u32, order),
        }
    }

    /// Makes every word zero. What is zero is left alone: its cache line need not be taken from whoever polls it.
    pub fn clear(&self) {
        // Relaxed: the VMM starts the guest after this, and the lock of the state orders the worker.
        let memory = &self.memory;
        let clear_u32 = |offset| {
            if memory.load_u32(offset, Relaxed) != 0 {
                memory.store_u32(offset, 0, Relaxed);
            }
        };
        for offset in (0..self.len()).step_by(8) {
            if !self.layout.is_wide(offset) {
                clear_u32(offset);
                clear_u32(offset + 4);
            } else if memory.load_u64(offset, Relaxed) != 0 {
                memory.store_u64(offset, 0, Relaxed);
            }
        }
    }

    /// Loads a word that is known to be 32 bits wide.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        debug_assert_eq!(self.word(offset), Word { offset, bytes: 4 });
        self.memory.load_u32(offset, order)
    }

    /// Stores a word that is known to be 32 bits wide.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        debug_assert_eq!(self.word(offset), Word { offset, bytes: 4 });
        self.memory.store_u32(offset, value, order);
    }

    /// Loads a word that is known to be 64 bits wide.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        debug_assert_eq!(self.word(offset), Word { offset, bytes: 8 });
        self.memory.load_u64(offset, order)
    }

    /// Stores a word that is known to be 64 bits wide.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        debug_assert_eq!(self.word(offset), Word { offset, bytes: 8 });
        self.memory.store_u64(offset, value, order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All words, in order.
    fn all(words: &RegisterWords) -> impl Iterator<Item = Word> {
        let next = |word: &Word| Some(words.word(word.offset + word.bytes));
        std::iter::successors(Some(words.word(0)), next).take_while(|word| word.offset < words.len())
    }

    fn wide(words: &RegisterWords) -> Vec<usize> {
        all(words).filter(|word| word.bytes == 8).map(|word| word.offset).collect()
    }

    #[test]
    fn the_64_bit_registers_are_words_of_64_bits_and_all_others_of_32() {
        let frame = RegisterWords::frame(SharedRegion::from_words(vec![0; 0x2_0000 / 8]));
        let registers = [0x68, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0];
        let descriptions = (0..256).map(|page| 0x4000 + 32 * page);
        assert_eq!(wide(&frame), registers.into_iter().chain(descriptions).collect::<Vec<_>>());
        for (stride, expected) in
            [(0x1_0000, vec![0, 0x1_0000]), (0x8000, vec![0, 0x8000, 0x1_0000, 0x1_8000])]
        {
            let memory = SharedRegion::from_words(vec![0; 0x2_0000 / 8]);
            assert_eq!(wide(&RegisterWords::control(memory, stride)), expected);
        }
    }

    #[test]
    fn words_cover_the_memory_without_a_gap_and_each_byte_finds_its_own() {
        let frame = RegisterWords::frame(SharedRegion::from_words(vec![0; 0x2_0000 / 8]));
        let mut next = 0;
        for word in all(&frame) {
            assert_eq!(word.offset, next);
            next += word.bytes;
            assert!((word.offset..next).all(|byte| frame.word(byte) == word));
        }
        assert_eq!(next, 0x2_0000);
    }

    #[test]
    fn a_word_is_loaded_and_stored_as_a_whole_by_any_byte_of_it() {
        let frame = RegisterWords::frame(SharedRegion::from_words(vec![0; 0x2_0000 / 8]));
        frame.store(0x94, 0x1122_3344_5566_7788, Relaxed);
        assert_eq!(frame.load_u64(0x90, Relaxed), 0x1122_3344_5566_7788);
        frame.store(0x98, 0x1122_3344_5566_7788, Relaxed);
        assert_eq!((frame.load(0x98, Relaxed), frame.load(0x9c, Relaxed)), (0x5566_7788, 0));
    }

    #[test]
    #[should_panic]
    #[cfg(debug_assertions)]
    fn an_access_to_half_a_register_does_not_pass_unnoticed() {
        let frame = RegisterWords::frame(SharedRegion::from_words(vec![0; 0x2_0000 / 8]));
        frame.load_u32(0x94, Ordering::Relaxed);
    }
}
