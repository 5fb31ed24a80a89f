//! Stream table entries as a VMM reads them, against tables spelled out by hand (IHI 0070 §5.1, §5.2, §5.5, §6.3.24, §6.3.25).

mod common;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use common::features;
use ecmdq_engine::memory::{GuestRam, Ram};
use ecmdq_engine::{Features, StallModel, Ste, StreamFault, StreamId, StreamTable};
use ecmdq_ring::SharedRegion;
use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x10_0000;
/// V, Config=0b101, a CD at 0x4123_4540.
const STAGE_1: u64 = 0x4123_454b;

type Map = Ram<Arc<GuestMemoryMmap<()>>>;

/// RAM with some words.
fn ram(words: &[(u64, u64)]) -> Map {
    let mapped = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]).unwrap();
    let ram = Ram::new(Arc::new(mapped));
    let all = ram.region(GuestAddress(RAM), RAM_SIZE).unwrap();
    words.iter().for_each(|(at, word)| all.store_u64((at - RAM) as usize, *word, Relaxed));
    ram
}

fn table(base: u64, config: u32) -> StreamTable {
    StreamTable { base, config, cr1: 0xd75 }
}

/// The entry of stream 0 in a table of one, with these two words.
fn of_words(features: &Features, words: [u64; 2]) -> Result<Ste, StreamFault> {
    let ram = ram(&[(RAM, words[0]), (RAM + 8, words[1])]);
    table(RAM, 0).entry(features, &ram, StreamId(0))
}

fn everything() -> Features {
    Features::everything()
}

#[test]
fn a_linear_table_is_an_array_of_entries_of_64_bytes() {
    let ram = ram(&[(RAM + 0x1_0400 + 64 * 5, STAGE_1), (RAM + 0x1_0400 + 64 * 5 + 8, 0xd4)]);
    // LOG2SIZE 4; the allocation hint, and what is below the alignment of 1 KiB, do not count.
    for base in [RAM + 0x1_0400, 1 << 62 | (RAM + 0x1_0400), RAM + 0x1_07c0] {
        let table = table(base, 4);
        let entry = |stream| table.entry(&everything(), &ram, StreamId(stream));
        assert_eq!(entry(5), Ok(Ste::Stage1([STAGE_1, 0xd4])), "{base:#x}");
        assert_eq!(entry(4), Err(StreamFault::BadSte));
        assert_eq!(entry(15), Err(StreamFault::BadSte));
        assert_eq!(entry(16), Err(StreamFault::BadStreamId));
        assert_eq!(entry(u32::MAX), Err(StreamFault::BadStreamId));
    }
}

#[test]
fn what_is_no_memory_is_a_fetch_fault() {
    let ram = ram(&[]);
    let fetch = |at| Err(StreamFault::SteFetch(GuestAddress(at)));
    assert_eq!(table(0x1000, 2).entry(&everything(), &ram, StreamId(0)), fetch(0x1000));
    assert_eq!(table(RAM, 16).entry(&everything(), &ram, StreamId(0x4000)), fetch(RAM + 0x10_0000));
    // The first level; the second.
    assert_eq!(table(0x1000, 0x1_0188).entry(&everything(), &ram, StreamId(0x40)), fetch(0x1008));
    let ram = self::ram(&[(RAM, 0x8000_0007)]);
    assert_eq!(table(RAM, 0x1_0188).entry(&everything(), &ram, StreamId(1)), fetch(0x8000_0040));
}

#[test]
fn a_table_of_two_levels_is_split_at_6_8_or_10_bits() {
    // SPLIT as written, and the bits of the second level that it means.
    for (split, bits) in [(6, 6), (8, 8), (10, 10), (0, 6), (7, 6), (9, 6), (11, 6), (31, 6)] {
        let stream = 3 << bits | 5;
        let second = RAM + 0x2_0000;
        // Span: all of the second level.
        let ram = ram(&[(RAM + 3 * 8, second | (bits + 1)), (second + 64 * 5, STAGE_1)]);
        let table = table(RAM, 0x1_0000 | split << 6 | 16);
        let entry = |stream: u64| table.entry(&everything(), &ram, StreamId(stream as u32));
        assert_eq!(entry(stream), Ok(Ste::Stage1([STAGE_1, 0])), "SPLIT {split}");
        assert_eq!(entry(stream + 1), Err(StreamFault::BadSte));
        assert_eq!(entry(4 << bits), Err(StreamFault::BadStreamId), "the descriptor behind is 0");
        assert_eq!(entry(1 << 16), Err(StreamFault::BadStreamId));
    }
}

#[test]
fn span_says_how_far_the_second_level_reaches() {
    let second = RAM + 0x2_0000;
    let entry = |span: u64, stream| {
        let ram = ram(&[(RAM, second | span), (second + 64 * u64::from(stream), STAGE_1)]);
        // SPLIT 8, LOG2SIZE 10.
        table(RAM, 0x1_020a).entry(&everything(), &ram, StreamId(stream))
    };
    let found = Ok(Ste::Stage1([STAGE_1, 0]));
    for (span, last) in [(1, 0), (2, 1), (5, 15), (9, 255)] {
        assert_eq!(entry(span, last), found, "Span {span}");
        if last < 255 {
            assert_eq!(entry(span, last + 1), Err(StreamFault::BadStreamId), "Span {span}");
        }
    }
    // None; more than SPLIT has; reserved.
    for span in [0, 10, 11, 12, 31] {
        assert_eq!(entry(span, 0), Err(StreamFault::BadStreamId), "Span {span}");
    }
}

#[test]
fn each_level_is_aligned_to_its_size() {
    // SPLIT 6, LOG2SIZE 10: 16 descriptors, 128 bytes.
    let ram = ram(&[(RAM + 0x80, RAM + 0x2_0001), (RAM + 0x2_0000, STAGE_1)]);
    let entry = table(RAM + 0xc0, 0x1_018a).entry(&everything(), &ram, StreamId(0));
    assert_eq!(entry, Ok(Ste::Stage1([STAGE_1, 0])));
    // Span 5 is 16 entries, 1 KiB.
    let ram = self::ram(&[(RAM, RAM + 0x2_07c0 + 5), (RAM + 0x2_0400 + 64, STAGE_1)]);
    let entry = table(RAM, 0x1_0188).entry(&everything(), &ram, StreamId(1));
    assert_eq!(entry, Ok(Ste::Stage1([STAGE_1, 0])));
}

#[test]
fn an_smmu_without_two_level_tables_has_linear_ones_whatever_fmt_says() {
    let ram = ram(&[(RAM + 64, STAGE_1)]);
    let features = features(|f| f.st2l = false);
    for config in [0x0_0008, 0x1_0188, 0x2_0188, 0x3_0188] {
        assert!(table(RAM, config).entry(&features, &ram, StreamId(1)).is_ok(), "{config:#x}");
    }
    // Reserved formats are linear with them, too.
    for config in [0x2_0188, 0x3_0188] {
        assert!(table(RAM, config).entry(&everything(), &ram, StreamId(1)).is_ok(), "{config:#x}");
    }
}

#[test]
fn streams_end_at_sidsize_whatever_log2size_says() {
    let features = features(|f| f.sid_bits = 4);
    for log2size in [4, 5, 32, 63] {
        let ram = ram(&[(RAM, 1)]);
        let entry = |stream| table(RAM, log2size).entry(&features, &ram, StreamId(stream));
        assert_eq!(entry(16), Err(StreamFault::BadStreamId), "LOG2SIZE {log2size}");
        assert_ne!(entry(15), Err(StreamFault::BadStreamId), "LOG2SIZE {log2size}");
    }
}

#[test]
fn v_and_config_decide_what_becomes_of_a_stream() {
    let config = |value: u64| of_words(&Features::default(), [value << 1 | 1 | 0x4123_4540, 0]);
    assert_eq!(of_words(&Features::default(), [STAGE_1 & !1, 0]), Err(StreamFault::BadSte));
    assert_eq!([0, 1, 2, 3].map(config), [Ok(Ste::Abort); 4]);
    assert_eq!(config(4), Ok(Ste::Bypass));
    assert_eq!(config(5), Ok(Ste::Stage1([STAGE_1, 0])));
    assert_eq!([6, 7].map(config), [Err(StreamFault::BadSte); 2]);
    let stage2_only = features(|f| (f.s1p, f.s2p) = (false, true));
    assert_eq!(of_words(&stage2_only, [STAGE_1, 0]), Err(StreamFault::BadSte));
}

#[test]
fn what_does_not_count_is_not_in_the_canonical_entry() {
    // As Linux writes it: S1CIR, S1COR, S1CSH, SHCFG incoming; and with all that it never sets.
    let linux = features(|f| f.stall = StallModel::Supported);
    let shown = |words| of_words(&linux, words);
    assert_eq!(shown([STAGE_1, 0x0000_1000_0800_00d4]), Ok(Ste::Stage1([STAGE_1, 0x0800_00d4])));
    assert_eq!(shown([STAGE_1 | 0x0700_0000_0000_0000, !0]), Ok(Ste::Stage1([STAGE_1, 0x0800_00fc])));
    // Without SubstreamIDs S1CDMax, S1Fmt and S1DSS are ignored, without ATS EATS.
    assert_eq!(shown([STAGE_1 | 0x1f << 59 | 3 << 4, 3 | 1 << 28]), Ok(Ste::Stage1([STAGE_1, 0])));
    // So they are without substreams.
    assert_eq!(of_words(&everything(), [STAGE_1 | 2 << 4, 2]), Ok(Ste::Stage1([STAGE_1, 0])));
    // Everything that counts.
    let full = [STAGE_1 | 20 << 59 | 2 << 4, 2 | 0xfc | 1 << 27 | 1 << 28];
    assert_eq!(of_words(&everything(), full), Ok(Ste::Stage1([0xa000_0000_4123_456b, 0x1800_00fe])));
    // Reserved values that behave as 0: S1Fmt, S1DSS, S1CSH.
    let reserved = [STAGE_1 | 4 << 59 | 3 << 4, 3 | 1 << 6];
    assert_eq!(of_words(&everything(), reserved), Ok(Ste::Stage1([STAGE_1 | 4 << 59, 0])));
    let ats = features(|f| f.ats = true);
    assert_eq!(of_words(&ats, [STAGE_1, 3 << 28]), Ok(Ste::Stage1([STAGE_1, 0])));
}

#[test]
fn illegal_entries_are_bad() {
    type Change = fn(&mut Features);
    let cases: [(&str, Change, [u64; 2]); 7] = [
        ("S1CDMax above SSIDSIZE", |f| f.ssid_bits = 4, [STAGE_1 | 5 << 59, 0]),
        ("two levels without CD2L", |f| (f.ssid_bits, f.cd2l) = (4, false), [STAGE_1 | 4 << 59 | 1 << 4, 0]),
        ("S1STALLD without stalls", |_| (), [STAGE_1, 1 << 27]),
        ("S1STALLD with nothing else", |f| f.stall = StallModel::Forced, [STAGE_1, 1 << 27]),
        ("split-stage ATS", |f| f.ats = true, [STAGE_1, 2 << 28]),
        ("ATS with permission tables", |f| (f.ats, f.dpt) = (true, true), [STAGE_1, 3 << 28]),
        ("a CD beyond OAS", |_| (), [STAGE_1 | 1 << 44, 0]),
    ];
    for (what, change, words) in cases {
        assert_eq!(of_words(&features(change), words), Err(StreamFault::BadSte), "{what}");
    }
    // Linux takes 52 bits.
    let wide = features(|f| f.oas = 7);
    assert_eq!(of_words(&wide, [STAGE_1 | 1 << 52, 0]), Err(StreamFault::BadSte));
    assert_eq!(of_words(&wide, [STAGE_1 | 1 << 51, 0]), Ok(Ste::Stage1([STAGE_1 | 1 << 51, 0])));
}

#[test]
fn faults_have_the_numbers_of_their_events() {
    let faults = [StreamFault::BadStreamId, StreamFault::SteFetch(GuestAddress(0)), StreamFault::BadSte];
    assert_eq!(faults.map(StreamFault::event), [2, 3, 4]);
}

/// Notes what is looked at.
struct Watched(Map, Mutex<Vec<(u64, usize)>>);

impl GuestRam for Watched {
    fn region(&self, at: GuestAddress, len: usize) -> Option<SharedRegion> {
        self.1.lock().unwrap().push((at.0, len));
        self.0.region(at, len)
    }

    fn store_u32(&self, _: GuestAddress, _: u32) -> bool {
        panic!("nothing is stored")
    }

    fn refresh(&mut self) {}
}

/// The bits that Linux takes of the two words.
const ALLOWED: [u64; 2] = [0xf80f_ffff_ffff_ffff, 0x3800_00ff];

/// What a hostile guest has filled.
const FILLED: u64 = 0x4000;

fn near_ram() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), (0..2 * FILLED).prop_map(|at| RAM + at)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn whatever_a_guest_writes_is_read_within_bounds_and_told_to_linux_in_its_own_terms(
        base in near_ram(),
        config in prop_oneof![any::<u32>(), 0..0x2_0000u32],
        stream in prop_oneof![any::<u32>(), 0..0x400u32],
        idrs in any::<[u32; 6]>(),
        fill in near_ram(),
        pair in any::<[u64; 2]>(),
    ) {
        let words = (0..FILLED / 16).flat_map(|n| {
            let at = RAM + 16 * n;
            // First-level descriptors and entries of every kind.
            let (low, high) = if n % 3 == 0 { (fill, fill) } else { (pair[0] ^ n, pair[1]) };
            [(at, low), (at + 8, high)]
        });
        let ram = Watched(ram(&words.collect::<Vec<_>>()), Mutex::default());
        let mut features = Features::from_idrs(idrs);
        (features.sid_bits, features.ssid_bits) = (features.sid_bits.min(32), features.ssid_bits.min(20));
        let entry = table(base, config).entry(&features, &ram, StreamId(stream));
        let seen = ram.1.into_inner().unwrap();
        prop_assert!(seen.len() <= 2, "two levels at the most");
        for (at, len) in seen {
            prop_assert!((len == 8 || len == 64) && at % len as u64 == 0 && at < 1 << 56);
        }
        if let Ok(Ste::Stage1([low, high])) = entry {
            prop_assert_eq!([low & !ALLOWED[0], high & !ALLOWED[1]], [0, 0]);
            prop_assert_eq!((low & 0xf, high >> 28 & 0b10), (0b1011, 0));
        }
    }
}
