//! Every offset, every size (facts sheet, sections 2 and 4.1).

use ecmdq_engine::Features;

use super::Trapped;

/// Pages 0 and 1, two control pages, and some more.
const WINDOW: usize = 0x4_0000 + 0x400;

/// A register: offset, value after reset, value after all bits were written as ones.
type Register = (usize, u32, u32);

/// What every SMMU has. Offsets that are not listed read as zero and ignore writes.
const COMMON: &[Register] = &[
    (0x28, 0, 0x0000_0fff),     // CR1
    (0x44, 0, 0x801f_3f1f),     // GBPA, with Update
    (0x64, 0, 0x0000_07fd),     // GERRORN
    (0x68, 0, 0xffff_fffc),     // GERROR_IRQ_CFG0
    (0x6c, 0, 0x00ff_ffff),     //
    (0x70, 0, 0xffff_ffff),     // GERROR_IRQ_CFG1
    (0x74, 0, 0x0000_003f),     // GERROR_IRQ_CFG2
    (0x80, 0, 0xffff_ffc0),     // STRTAB_BASE
    (0x84, 0, 0x40ff_ffff),     //
    (0x88, 0, 0x0003_07ff),     // STRTAB_BASE_CFG
    (0x90, 0, 0xffff_ffff),     // CMDQ_BASE
    (0x94, 0, 0x40ff_ffff),     //
    (0x98, 0, 0x000f_ffff),     // CMDQ_PROD
    (0x9c, 0, 0x7f0f_ffff),     // CMDQ_CONS
    (0xa0, 0, 0xffff_ffff),     // EVENTQ_BASE
    (0xa4, 0, 0x40ff_ffff),     //
    (0xb0, 0, 0xffff_fffc),     // EVENTQ_IRQ_CFG0
    (0xb4, 0, 0x00ff_ffff),     //
    (0xb8, 0, 0xffff_ffff),     // EVENTQ_IRQ_CFG1
    (0xbc, 0, 0x0000_003f),     // EVENTQ_IRQ_CFG2
    (0x1_00a8, 0, 0x800f_ffff), // EVENTQ_PROD
    (0x1_00ac, 0, 0x800f_ffff), // EVENTQ_CONS
];

/// The default features: ID registers, and the fields that depend on them.
const LINUX: &[Register] = &[
    (0x00, 0x0948_301a, 0x0948_301a), // IDR0
    (0x04, 0x01e7_0010, 0x01e7_0010), // IDR1
    (0x0c, 0x0000_0404, 0x0000_0404), // IDR3
    (0x14, 0x0000_0054, 0x0000_0054), // IDR5
    (0x1c, 0x0000_0002, 0x0000_0002), // AIDR
    (0x20, 0, 0x0000_000d),           // CR0: SMMUEN, EVENTQEN, CMDQEN
    (0x2c, 0, 0x0000_000a),           // CR2: RECINVSID, REC_CFG_ATS
    (0x50, 0, 0x0000_0005),           // IRQ_CTRL: GERROR, EVENTQ
];

/// With two control pages of four ECMDQs: 16 KiB from one to the next.
const ECMDQS: &[Register] = &[
    (0x00, 0x0948_301a, 0x0948_301a),
    (0x04, 0x81e7_0010, 0x81e7_0010), // IDR1.ECMDQ
    (0x0c, 0x0000_0404, 0x0000_0404),
    (0x14, 0x0000_0054, 0x0000_0054),
    (0x1c, 0x0000_0003, 0x0000_0003), // SMMUv3.3
    (0x20, 0, 0x0000_000d),
    (0x2c, 0, 0x0000_000a),
    (0x50, 0, 0x0000_0005),
    (0x190, 0x0102_0000, 0x0102_0000),  // IDR6
    (0x4000, 0x0002_0003, 0x0002_0003), // CMDQ_CONTROL_PAGE_BASE0: offset 0x20000, 64 KiB, preset
    (0x4008, 1, 1),                     // CFG0.EN
    (0x400c, 1, 1),                     // STATUS0.ENACK
    (0x4020, 0x0003_0003, 0x0003_0003),
    (0x4028, 1, 1),
    (0x402c, 1, 1),
];

/// With PRI, ATS and EL2 besides.
const EVERYTHING: &[Register] = &[
    (0x20, 0, 0x0000_001f),     // CR0: and PRIQEN, ATSCHK
    (0x2c, 0, 0x0000_000b),     // CR2: and E2H
    (0x50, 0, 0x0000_0007),     // IRQ_CTRL: and PRIQ
    (0xc0, 0, 0xffff_ffff),     // PRIQ_BASE
    (0xc4, 0, 0x40ff_ffff),     //
    (0xd0, 0, 0xffff_fffc),     // PRIQ_IRQ_CFG0
    (0xd4, 0, 0x00ff_ffff),     //
    (0xd8, 0, 0xffff_ffff),     // PRIQ_IRQ_CFG1
    (0xdc, 0, 0x8000_003f),     // PRIQ_IRQ_CFG2
    (0x1_00c8, 0, 0x800f_ffff), // PRIQ_PROD
    (0x1_00cc, 0, 0x800f_ffff), // PRIQ_CONS
];

/// The four words of an ECMDQ's block.
const BLOCK: [Register; 4] = [
    (0x0, 0, 0xffff_ffff), // ECMDQ_BASE
    (0x4, 0, 0x40ff_ffff),
    (0x8, 0, 0x808f_ffff), // ECMDQ_PROD: EN, ERRACK, WR
    (0xc, 0, 0x078f_ffff), // ECMDQ_CONS: ERR_REASON, ERR, RD; not ENACK
];

/// Reads every word after reset, writes ones to each by itself, and compares with the table.
fn sweep(features: Features, table: &[Register], stride: Option<usize>) {
    let trapped = Trapped::new(features);
    let expected = |offset: usize| -> (u32, u32) {
        let block = stride.filter(|_| (0x2_0000..0x4_0000).contains(&offset)).map(|stride| offset % stride);
        let listed = match block {
            Some(block) => BLOCK.iter().find(|(at, ..)| *at == block),
            None => table.iter().chain(COMMON).find(|(at, ..)| *at == offset),
        };
        listed.map_or((0, 0), |(_, reset, ones)| (*reset, *ones))
    };
    for offset in (0..WINDOW).step_by(4) {
        let (reset, ones) = expected(offset);
        assert_eq!(trapped.read(offset), reset, "{offset:#x} after reset");
        trapped.write(offset, u32::MAX);
        assert_eq!(trapped.read(offset), ones, "{offset:#x} after ones");
        if ones != reset {
            // Nothing else has changed.
            for other in (0..0x200).chain(0x1_0000..0x1_0100).chain(0x2_0000..0x2_0010).step_by(4) {
                let (reset, _) = expected(other);
                assert!(other == offset || trapped.read(other) == reset, "{offset:#x} changed {other:#x}");
            }
            trapped.smmu.reset();
        }
    }
}

#[test]
fn every_word_of_the_default_smmu() {
    sweep(Features::linux(), LINUX, None);
}

#[test]
fn every_word_of_an_smmu_with_ecmdqs() {
    sweep(Features::linux().with_ecmdqs(1, 2), ECMDQS, Some(0x4000));
}

#[test]
fn pri_ats_and_el2_bring_their_registers_and_fields() {
    let trapped = Trapped::new(Features::everything());
    for (offset, _, ones) in EVERYTHING {
        trapped.write(*offset, u32::MAX);
        assert_eq!(trapped.read(*offset), *ones, "{offset:#x}");
        trapped.smmu.reset();
    }
}

/// Accesses that are not 4 bytes, or 8 bytes to a 64-bit register, on their own alignment.
#[test]
fn any_other_size_or_alignment_reads_zero_and_writes_nothing() {
    const WIDE: [usize; 9] = [0x68, 0x80, 0x90, 0xa0, 0xb0, 0x4000, 0x4020, 0x2_0000, 0x2_4000];
    let trapped = Trapped::new(Features::linux().with_ecmdqs(1, 2));
    let places = (0..0x200).chain(0x4000..0x4040).chain(0x1_00a0..0x1_00b0).chain(0x2_0000..0x2_0020);
    let image = || -> Vec<u32> { (0..WINDOW).step_by(64).map(|at| trapped.read(at)).collect() };
    let near = |at: usize| -> Vec<u32> { (at & !7..at + 24).step_by(4).map(|at| trapped.read(at)).collect() };
    let before = image();
    for offset in places.chain([0x2_4000, 0x3_fff8, WINDOW, 0xffff_fff8]) {
        for size in 0..=16 {
            let aligned = size > 0 && offset % size == 0;
            let fine = size == 4 && aligned || size == 8 && aligned && WIDE.contains(&offset);
            if fine {
                continue;
            }
            let nearby = near(offset & !3);
            let mut data = vec![0xee; size];
            trapped.smmu.mmio_read(offset as u64, &mut data);
            assert!(data.iter().all(|byte| *byte == 0), "{size} bytes at {offset:#x}");
            trapped.smmu.mmio_write(offset as u64, &vec![0xff; size]);
            assert_eq!(near(offset & !3), nearby, "{size} bytes at {offset:#x}");
        }
    }
    assert_eq!(image(), before);
}

#[test]
fn wide_registers_are_read_and_written_whole_and_by_halves() {
    let trapped = Trapped::new(Features::linux().with_ecmdqs(1, 2));
    for offset in [0x68, 0x80, 0x90, 0xa0, 0xb0, 0x2_0000, 0x2_4000, 0x3_c000] {
        let value = 0x0012_3456_789a_bcc0_u64;
        trapped.smmu.mmio_write(offset as u64, &value.to_le_bytes());
        assert_eq!(
            (trapped.read(offset), trapped.read(offset + 4)),
            (0x789a_bcc0, 0x0012_3456),
            "{offset:#x}"
        );
        trapped.write(offset + 4, 0x0065_4321);
        trapped.write(offset, 0x1111_1100);
        let mut data = [0; 8];
        trapped.smmu.mmio_read(offset as u64, &mut data);
        assert_eq!(u64::from_le_bytes(data), 0x0065_4321_1111_1100, "{offset:#x}");
    }
}
