//! Every offset, every size (facts sheet, sections 2 and 4.1).

use proptest::prelude::*;

use super::expected::{Smmu, WINDOW};
use super::{Trapped, seed};

const GBPA: usize = 0x44;
const UPDATE: u32 = 1 << 31;
/// CR0 and IRQ_CTRL.
const LOCKING: [usize; 2] = [0x20, 0x50];
/// Pages 0 and 1 where every SMMU has registers.
const NEIGHBOURS: [std::ops::Range<usize>; 2] = [0..0x200, 0x1_0080..0x1_0100];

/// Whether it locks others, or itself, once it is written, as an ECMDQ's PROD does as well.
fn locks(offset: usize) -> bool {
    LOCKING.contains(&offset) || offset == GBPA || offset >= 0x2_0000 && offset & 0xf == 0x8
}

/// What a register reads after `value` was written to it, as it was after reset.
fn after(offset: usize, value: u32, (reset, bits): (u32, u32)) -> u32 {
    let counts = offset != GBPA || value & UPDATE != 0;
    if counts { reset & !bits | value & bits } else { reset }
}

/// All words as the guest reads them.
fn image(trapped: &Trapped) -> Vec<(usize, u32)> {
    (0..WINDOW).step_by(4).map(|offset| (offset, trapped.read(offset))).collect()
}

#[test]
fn every_word_after_reset_and_after_ones() {
    for smmu in Smmu::all() {
        let trapped = Trapped::new(smmu.features);
        for offset in (0..WINDOW).step_by(4) {
            let name = smmu.name;
            assert_eq!(trapped.read(offset), smmu.word(offset).0, "{name}: {offset:#x} after reset");
            trapped.write(offset, u32::MAX);
            let expected = after(offset, u32::MAX, smmu.word(offset));
            assert_eq!(trapped.read(offset), expected, "{name}: {offset:#x} after ones");
            let writable = smmu.word(offset).1 != 0;
            if writable {
                let block = offset & !0xff..(offset & !0xff) + 0x100;
                for other in NEIGHBOURS.into_iter().flatten().chain(block).step_by(4) {
                    let same = other == offset || trapped.read(other) == smmu.word(other).0;
                    assert!(same, "{name}: {offset:#x} changed {other:#x}");
                }
                if locks(offset) { trapped.smmu.reset() } else { trapped.write(offset, 0) }
            }
        }
        let reset = |offset| (offset, smmu.word(offset).0);
        assert_eq!(image(&trapped), (0..WINDOW).step_by(4).map(reset).collect::<Vec<_>>(), "{}", smmu.name);
    }
}

/// With the 256 ECMDQs of one SMMU, of which a few are tried.
#[test]
fn every_register_keeps_the_bits_that_it_has_of_any_value() {
    let smmus = Smmu::all().map(|smmu| (Trapped::new(smmu.features), smmu));
    proptest!(seed::config(64), |(value: u32)| {
        for (trapped, smmu) in &smmus {
            let few = |at: usize| at < 0x2_0000 || [0x00, 0x40, 0xc0, 0xff].contains(&(at >> 8 & 0xff));
            let (last, first): (Vec<_>, Vec<_>) =
                smmu.registers().iter().copied().filter(|(at, ..)| few(*at)).partition(|(at, ..)| locks(*at));
            for (offset, reset, bits) in first.into_iter().chain(last) {
                trapped.write(offset, value);
                let expected = after(offset, value, (reset, bits));
                prop_assert_eq!(trapped.read(offset), expected, "{}: {:#x}", smmu.name, offset);
            }
            trapped.smmu.reset();
        }
    });
}

#[test]
fn wide_registers_are_read_and_written_whole_and_by_halves() {
    let smmus = Smmu::all().map(|smmu| (Trapped::new(smmu.features), smmu));
    proptest!(seed::config(48), |(whole: u64, low: u32, high: u32)| {
        for (trapped, smmu) in &smmus {
            for offset in smmu.wide() {
                let expected = |low: u32, high: u32| {
                    let half = |at, value| u64::from(after(at, value, smmu.word(at)));
                    half(offset, low) | half(offset + 4, high) << 32
                };
                let by_halves = || u64::from(trapped.read(offset)) | u64::from(trapped.read(offset + 4)) << 32;
                trapped.write_u64(offset, whole);
                let written = expected(whole as u32, (whole >> 32) as u32);
                prop_assert_eq!((trapped.read_u64(offset), by_halves()), (written, written), "{:#x}", offset);
                trapped.write(offset + 4, high);
                let written = expected(whole as u32, high);
                prop_assert_eq!((trapped.read_u64(offset), by_halves()), (written, written), "{:#x}", offset);
                trapped.write(offset, low);
                let written = expected(low, high);
                prop_assert_eq!((trapped.read_u64(offset), by_halves()), (written, written), "{:#x}", offset);
            }
        }
    });
}

const FILLED: u8 = 0x96;

/// Puts a pattern into all that can be written, and enables nothing.
fn fill(trapped: &Trapped, smmu: &Smmu) {
    for (offset, _, bits) in smmu.registers() {
        let is_prod = *offset >= 0x2_0000 && offset & 0xf == 0x8;
        if !LOCKING.contains(offset) {
            trapped.write(
                *offset,
                u32::from_le_bytes([FILLED; 4]) & if is_prod { 0x7fff_ffff } else { u32::MAX },
            );
            assert!(*bits == 0 || trapped.read(*offset) != 0, "{offset:#x} is not filled");
        }
    }
}

/// An access of `size` bytes that is not 4 bytes, or 8 bytes to a 64-bit register, on its own alignment: reads zero. Then it
/// tries to write.
fn try_access(trapped: &Trapped, offset: u64, size: usize, name: &str) {
    let mut data = [0xee; 16];
    trapped.smmu.mmio_read(offset, &mut data[..size]);
    assert_eq!(data[..size], [0; 16][..size], "{name}: {size} bytes at {offset:#x}");
    trapped.smmu.mmio_write(offset, &[!FILLED; 16][..size]);
}

/// Registers hold something, so that reads that should be zero could be something else, and writes could change it. Within
/// 64 bytes of a register each offset is tried, elsewhere each seventh one.
#[test]
fn any_other_size_or_alignment_reads_zero_and_writes_nothing() {
    for smmu in Smmu::all() {
        let trapped = Trapped::new(smmu.features);
        fill(&trapped, &smmu);
        let before = image(&trapped);
        let wide = smmu.wide();
        let beyond = [u64::from(u32::MAX) - 16, 1 << 32, u64::MAX - 32, u64::MAX - 16].map(|at| at..at + 16);
        let near = |at: usize| (at.saturating_sub(64)..at + 64).step_by(4).any(|at| smmu.word(at) != (0, 0));
        let lines =
            (0..WINDOW).step_by(64).flat_map(|at| (at..at + 64).step_by(if near(at) { 1 } else { 7 }));
        for offset in lines.map(|at| at as u64).chain(beyond.into_iter().flatten()).chain([u64::MAX]) {
            let is_wide = wide.binary_search(&(offset as usize)).is_ok();
            for size in 0..=16 {
                let fine = size == 4 && offset % 4 == 0 || size == 8 && is_wide;
                if !fine {
                    try_access(&trapped, offset, size, smmu.name);
                }
            }
        }
        assert_eq!(image(&trapped), before, "{}", smmu.name);
    }
}

/// Section 2: undefined offsets are RES0, and there is nothing behind the last page.
#[test]
fn there_is_nothing_beyond_the_pages() {
    for smmu in Smmu::all() {
        let trapped = Trapped::new(smmu.features);
        let end =
            if smmu.features.ecmdq { 0x1_0000 << smmu.features.control_pages_log2 } else { 0 } + 0x2_0000;
        let before = image(&trapped);
        for offset in [end, end + 8, end + 0x4000, 0x1000_0000, 0xffff_fff8, 1 << 32, 1 << 63, u64::MAX - 7] {
            trapped.smmu.mmio_write(offset, &[0xff; 4]);
            trapped.smmu.mmio_write(offset, &[0xff; 8]);
            for size in [4, 8] {
                let mut data = [0xee; 8];
                trapped.smmu.mmio_read(offset, &mut data[..size]);
                assert_eq!(data[..size], [0; 8][..size], "{}: {size} bytes at {offset:#x}", smmu.name);
            }
        }
        assert_eq!(image(&trapped), before, "{}", smmu.name);
    }
}
