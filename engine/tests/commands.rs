//! What a guest may send and what the host gets for it, command by command.
//!
//! The oracle is written field by field from the facts sheet, sections 1.2 to 1.8 and 1.11, and shares nothing
//! with the engine.

use ecmdq_engine::rules::{End, Request, Rules, Signal};
use ecmdq_engine::{Command, Features, HostStreamId, StreamConfig, StreamId, StreamMap, Vmid};
use proptest::prelude::*;
use vm_memory::GuestAddress;

/// What must become of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Host([u64; 2]),
    /// No effect: not the guest's stream, or no such substream.
    Dropped,
    /// Taken, and nobody needs to know.
    Nowhere,
    Config(StreamConfig),
    Sync(Signal),
    Ill,
}

/// The features that matter to commands.
#[derive(Clone, Copy, Debug)]
struct On {
    ril: bool,
    ats: bool,
    asid16: bool,
    ssid_bits: u8,
}

const VMID: u16 = 0xa5c3;
/// VMID in its place.
const SET_VMID: u64 = 0xa5c3 << 32;

/// The guest's StreamIDs and the host's; all bits are used by one or the other.
const STREAMS: [(u32, u32); 3] = [(0x0, 0x8000_0001), (0x1, 0x7fff_fffe), (0x8000_0000, 0x55aa_55aa)];

/// Every combination of features.
fn combinations() -> impl Iterator<Item = On> {
    (0..16).map(|n| {
        let ssid_bits = if n & 8 != 0 { 4 } else { 0 };
        On { ril: n & 1 != 0, ats: n & 2 != 0, asid16: n & 4 != 0, ssid_bits }
    })
}

fn oracle(on: On, [low, high]: [u64; 2]) -> Fate {
    // The guest's VMID does not matter.
    let low_without_vmid = low & !0x0000_ffff_0000_0000;
    let asid = if on.asid16 { low >> 48 } else { low >> 48 & 0xff } << 48;
    match low & 0xff {
        // PREFETCH_CONFIG: SSV 11, SubstreamID 31:12, StreamID 63:32.
        0x01 => fate(low & 0x700 == 0 && high == 0, Fate::Nowhere),
        // PREFETCH_ADDR: also Size 4:0, Stride 9:5, Addr 63:12; NS 11 must be 0.
        0x02 => fate(low & 0x700 == 0 && high & 0xc00 == 0, Fate::Nowhere),
        // CFGI_STE: StreamID, Leaf.
        0x03 => {
            let one = StreamConfig::One(StreamId((low >> 32) as u32));
            fate(low & 0xffff_ff00 == 0 && high & !1 == 0, Fate::Config(one))
        }
        // CFGI_STE_RANGE: StreamID, Range 4:0.
        0x04 => fate(low & 0xffff_ff00 == 0 && high & !0x1f == 0, Fate::Config(ste_range(low, high))),
        // CFGI_CD: SubstreamID, StreamID, Leaf; no SSV.
        0x05 => {
            let forwarded = stream(on, low, |host| [low & 0xffff_ffff | host, high]);
            fate(low & 0xf00 == 0 && high & !1 == 0, forwarded)
        }
        // CFGI_CD_ALL: StreamID.
        0x06 => {
            let forwarded = stream(on, low & !0xffff_f000, |host| [0x06 | host, 0]);
            fate(low & 0xffff_ff00 == 0 && high == 0, forwarded)
        }
        // TLBI_NH_ALL: VMID.
        0x10 => fate(low_without_vmid == 0x10 && high == 0, Fate::Host([0x10 | SET_VMID, 0])),
        // TLBI_NH_ASID: VMID, ASID.
        0x11 => fate(low_without_vmid == 0x11 | asid && high == 0, Fate::Host([0x11 | SET_VMID | asid, 0])),
        // TLBI_NH_VA: VMID, ASID and the range fields.
        0x12 => by_address(on, low_without_vmid & !asid, high, SET_VMID | asid),
        // TLBI_NH_VAA: VMID and the range fields.
        0x13 => by_address(on, low_without_vmid, high, SET_VMID),
        // TLBI_NSNH_ALL: no fields; the host gets TLBI_NH_ALL.
        0x30 => fate(low == 0x30 && high == 0, Fate::Host([0x10 | SET_VMID, 0])),
        0x40 if on.ats => atc_inv(on, low, high),
        0x46 => cmd_sync(low, high),
        _ => Fate::Ill,
    }
}

fn fate(legal: bool, fate: Fate) -> Fate {
    if legal { fate } else { Fate::Ill }
}

/// 2^(Range+1) streams from the StreamID with its low Range+1 bits cleared; Range 31 is CFGI_ALL.
fn ste_range(low: u64, high: u64) -> StreamConfig {
    let log2 = (high & 0x1f) as u32 + 1;
    let first = low >> 32 >> log2 << log2;
    if log2 == 32 { StreamConfig::All } else { StreamConfig::Range { first: StreamId(first as u32), log2 } }
}

/// A command for the stream in its upper half and the substream in bits 31:12.
fn stream(on: On, low: u64, forwarded: impl Fn(u64) -> [u64; 2]) -> Fate {
    let substream = low >> 12 & 0xf_ffff;
    let host = STREAMS.iter().find(|(guest, _)| u64::from(*guest) == low >> 32);
    match host {
        Some((_, host)) if substream < 1 << on.ssid_bits => Fate::Host(forwarded(u64::from(*host) << 32)),
        _ => Fate::Dropped,
    }
}

/// `low` is without VMID and ASID, which the host gets as `set`.
fn by_address(on: On, low: u64, high: u64, set: u64) -> Fate {
    let (op, num, scale) = (low & 0xff, low >> 12 & 0x1f, low >> 20 & 0x1f);
    let (leaf, ttl, tg, address) = (high & 1, high >> 8 & 3, high >> 10 & 3, high >> 12);
    // Bit 25 of word 0 (SCALE with DS) and bit 7 of word 1 (TTL128) are reserved here.
    let fields_only =
        low == op | num << 12 | scale << 20 && high == leaf | ttl << 8 | tg << 10 | address << 12;
    let no_range = num == 0 && scale == 0;
    // 16K has no leaf at level 1 without DS: that TTL counts as 0.
    let ttl_counts = if tg == 2 && ttl == 1 { 0 } else { ttl };
    let legal = match tg {
        _ if !on.ril => no_range && ttl == 0 && tg == 0,
        0 => no_range && ttl == 0,
        _ => !(no_range && ttl_counts == 0),
    };
    let host = [low | set, leaf | ttl_counts << 8 | tg << 10 | address << 12];
    fate(fields_only && legal, Fate::Host(host))
}

/// Global 9, SSV 11, SubstreamID, StreamID; Size 5:0, Address 63:12.
fn atc_inv(on: On, low: u64, high: u64) -> Fate {
    let (ssv, size) = (low >> 11 & 1, high & 0x3f);
    let legal = low & 0x500 == 0 && high & 0xfc0 == 0 && size <= 52;
    // Without SSV, or without substreams, SubstreamID and Global are ignored, and the host gets none.
    let with_substream = ssv == 1 && on.ssid_bits > 0;
    let fields = if with_substream { low & 0xffff_fa00 } else { 0 };
    let seen = low & !0xffff_ffff | fields;
    fate(legal, stream(on, seen, |host| [0x40 | fields | host, high]))
}

/// CS 13:12, MSH 23:22, MSIAttr 27:24, MSIData 63:32; MSIAddress 55:2.
fn cmd_sync(low: u64, high: u64) -> Fate {
    let legal = low & 0xf03f_cf00 == 0 && high & 0xff00_0000_0000_0003 == 0;
    match low >> 12 & 3 {
        0 => fate(legal, Fate::Sync(Signal::None)),
        1 => {
            let irq = Signal::Irq { address: GuestAddress(high), data: (low >> 32) as u32 };
            fate(legal, Fate::Sync(irq))
        }
        2 => fate(legal, Fate::Sync(Signal::Sev)),
        _ => Fate::Ill,
    }
}

/// The engine under one combination of features.
struct Engine {
    on: On,
    rules: Rules,
    streams: StreamMap,
}

impl Engine {
    fn new(on: On) -> Self {
        let mut features = Features::default();
        (features.ril, features.ats, features.asid16) = (on.ril, on.ats, on.asid16);
        features.ssid_bits = on.ssid_bits;
        let pairs = STREAMS.map(|(guest, host)| (StreamId(guest), HostStreamId(host)));
        let streams = StreamMap::from_pairs(pairs).unwrap();
        Self { on, rules: Rules::new(&features, &features, Vmid(VMID), &[]).unwrap(), streams }
    }

    /// What the engine makes of one command alone.
    fn fate(&self, command: [u64; 2]) -> Fate {
        let mut host = [Command::default(); 64];
        let applied = self.rules.apply(&self.streams, &[Command(command)], &mut host);
        match (applied.taken, applied.host, applied.dropped, applied.end) {
            (1, 1, 0, End::Batch) => Fate::Host(host[0].0),
            (1, 0, 1, End::Batch) => Fate::Dropped,
            (1, 0, 0, End::Batch) => Fate::Nowhere,
            (1, 0, 0, End::Request(Request::Streams(config))) => Fate::Config(config),
            (1, 0, 0, End::Sync(signal)) => Fate::Sync(signal),
            (0, 0, 0, End::Illegal(rejected)) if rejected.command.0 == command => Fate::Ill,
            _ => panic!("{applied:?} makes no sense for one command"),
        }
    }

    #[track_caller]
    fn check(&self, command: [u64; 2]) {
        let (got, expected) = (self.fate(command), oracle(self.on, command));
        let [low, high] = command;
        assert_eq!(got, expected, "{low:#018x} {high:#018x} ({}) with {:?}", Command(command), self.on);
    }
}

/// One legal command of every kind, with every field in use.
const TEMPLATES: [[u64; 2]; 13] = [
    [0x0000_0001_0000_3801, 0],
    [0x0000_0001_0000_3802, 0xffff_0000_1234_5212],
    [0x8000_0000_0000_0003, 1],
    [0x8000_0000_0000_0004, 7],
    [0x0000_0001_0000_5005, 1],
    [0x8000_0000_0000_0006, 0],
    [0x0000_1234_0000_0010, 0],
    [0x0056_1234_0000_0011, 0],
    [0x0056_1234_0100_5012, 0xffff_8000_1234_5701],
    [0x0000_1234_0100_5013, 0x0000_8000_1234_5701],
    [0x0000_0000_0000_0030, 0],
    [0x0000_0001_0000_3a40, 0x1234_5678_9abc_d00c],
    [0xdead_beef_0fc0_1046, 0x0000_0000_4000_0010],
];

#[test]
fn the_templates_are_legal_and_have_an_effect() {
    let on = On { ril: true, ats: true, asid16: true, ssid_bits: 4 };
    for template in TEMPLATES {
        assert!(!matches!(Engine::new(on).fate(template), Fate::Ill | Fate::Dropped), "{template:x?}");
    }
}

#[test]
fn every_opcode_with_every_single_bit() {
    for engine in combinations().map(Engine::new) {
        for opcode in 0..=0xff {
            engine.check([opcode, 0]);
            for bit in 0..64 {
                engine.check([opcode, 1 << bit]);
                engine.check([opcode | 1 << bit, 0]);
            }
        }
    }
}

#[test]
fn every_legal_command_with_one_or_two_bits_turned_over() {
    for engine in combinations().map(Engine::new) {
        for [low, high] in TEMPLATES {
            for first in 0..128u32 {
                for second in first..128 {
                    let turned = 1u128 << first | 1 << second;
                    engine.check([low ^ turned as u64, high ^ (turned >> 64) as u64]);
                }
            }
        }
    }
}

#[test]
fn every_range() {
    for engine in combinations().map(Engine::new).filter(|engine| engine.on.ssid_bits == 0) {
        for fields in 0..1u64 << 15 {
            let (num, scale) = (fields & 0x1f, fields >> 5 & 0x3f);
            let (ttl, tg) = (fields >> 11 & 3, fields >> 13 & 3);
            let low = num << 12 | scale << 20;
            let high = 0xffff_f000_0000_0000 | tg << 10 | ttl << 8;
            engine.check([0x12 | low, high]);
            engine.check([0x13 | low, high | 1]);
        }
    }
}

#[test]
fn every_size_and_substream_of_atc_inv() {
    for engine in combinations().map(Engine::new) {
        for size in 0..64 {
            for global_ssv in [0, 0x200, 0x800, 0xa00] {
                for substream in [0, 1, 15, 16, 0xf_ffff] {
                    engine.check([0x40 | global_ssv | substream << 12, size]);
                }
            }
        }
    }
}

#[test]
fn every_range_of_cfgi_ste_range() {
    let engine = Engine::new(On { ril: true, ats: true, asid16: true, ssid_bits: 0 });
    for range in 0..32 {
        for stream in [0, 1, 0x1234_5678, 0x8000_0000, 0xffff_ffff] {
            engine.check([0x04 | stream << 32, range]);
        }
    }
    let config = |stream: u64, range| engine.fate([0x04 | stream << 32, range]);
    let range = |first, log2| Fate::Config(StreamConfig::Range { first: StreamId(first), log2 });
    assert_eq!(config(0x1235, 0), range(0x1234, 1));
    assert_eq!(config(0x12ff, 7), range(0x1200, 8));
    assert_eq!(config(0xffff_ffff, 30), range(0x8000_0000, 31));
    assert_eq!(config(0xffff_ffff, 31), Fate::Config(StreamConfig::All));
}

/// What stands behind these may only be read when they are done.
#[test]
fn cmd_sync_and_stream_table_changes_end_a_batch_and_nothing_else_does() {
    let rules = Engine::new(On { ril: true, ats: true, asid16: true, ssid_bits: 0 }).rules;
    let ends: Vec<_> = (0..=0xff).filter(|opcode| rules.ends_batch(Command([*opcode, 0]))).collect();
    assert_eq!(ends, [0x03, 0x04, 0x46]);
}

/// A word whose bits are mostly clear, mostly set, or anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b), Just(0)]
}

/// An opcode of the table and anything else, or a legal command with a few bits turned over.
fn command() -> impl Strategy<Value = [u64; 2]> {
    let opcode = proptest::sample::select(TEMPLATES.map(|[low, _]| low & 0xff).to_vec());
    let template = proptest::sample::select(TEMPLATES.to_vec());
    prop_oneof![
        (opcode, word(), word()).prop_map(|(opcode, low, high)| [low & !0xff | opcode, high]),
        (template, proptest::collection::vec(0u32..128, 0..4)).prop_map(|([low, high], bits)| {
            let turned = bits.iter().fold(0u128, |turned, bit| turned ^ 1 << bit);
            [low ^ turned as u64, high ^ (turned >> 64) as u64]
        }),
        [any::<u64>(), any::<u64>()],
    ]
}

fn on() -> impl Strategy<Value = On> {
    (0usize..16).prop_map(|n| combinations().nth(n).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn random_and_mutated_commands(on in on(), command in command()) {
        Engine::new(on).check(command);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A batch is its commands one by one, up to the first that ends it.
    #[test]
    fn a_batch_is_its_commands_one_by_one(
        on in on(),
        commands in proptest::collection::vec(command(), 0..64),
    ) {
        let engine = Engine::new(on);
        let (mut host, mut dropped, mut taken, mut end) = (Vec::new(), 0, 0, None);
        for command in &commands {
            match oracle(on, *command) {
                Fate::Host(canonical) => host.push(Command(canonical)),
                Fate::Dropped => dropped += 1,
                Fate::Nowhere => {}
                last => end = Some(last),
            }
            taken += usize::from(end != Some(Fate::Ill));
            if end.is_some() {
                break;
            }
        }
        let batch: Vec<_> = commands.iter().copied().map(Command).collect();
        let mut canonical = [Command::default(); 64];
        let applied = engine.rules.apply(&engine.streams, &batch, &mut canonical);
        prop_assert_eq!((applied.taken, applied.dropped), (taken, dropped));
        prop_assert_eq!(&canonical[..applied.host], &host[..]);
        prop_assert_eq!(end, match applied.end {
            End::Batch => None,
            End::Sync(signal) => Some(Fate::Sync(signal)),
            End::Request(Request::Streams(config)) => Some(Fate::Config(config)),
            End::Request(other) => panic!("{other:?}"),
            End::Illegal(rejected) => {
                prop_assert_eq!(rejected.command.0, commands[taken]);
                Some(Fate::Ill)
            }
        });
    }
}
