//! Everything small enough to be tried in full.

use ecmdq_engine::rules::Request;
use ecmdq_engine::{Command, StreamConfig, StreamId};

use crate::support::*;

const BY_ADDRESS: [u64; 5] = [0x12, 0x13, 0x22, 0x23, 0x2a];

fn engines(combinations: Vec<On>) -> impl Iterator<Item = Engine> {
    combinations.into_iter().map(Engine::new)
}

#[test]
fn the_templates_are_legal_and_have_an_effect() {
    let engine = Engine::new(On::ALL);
    for template in TEMPLATES {
        engine.check(template);
        assert!(!matches!(engine.fate(template), Fate::Ill | Fate::Dropped), "{template:x?}");
    }
}

#[test]
fn every_opcode_with_every_single_bit() {
    for opcode in 0..=0xff {
        for engine in engines(combinations(opcode)) {
            engine.check([opcode, 0]);
            (0..128).for_each(|bit| engine.check(turned([opcode, 0], [bit])));
        }
    }
}

/// The command with every pair of its bits turned over, but for the opcode.
fn check_pairs(engine: &Engine, command: [u64; 2]) {
    for first in 8..128 {
        (first..128).for_each(|second| engine.check(turned(command, [first, second])));
    }
}

#[test]
fn every_opcode_with_every_pair_of_bits() {
    for (opcode, ..) in DEPENDS {
        engines(combinations_with(opcode)).for_each(|engine| check_pairs(&engine, [opcode, 0]));
    }
}

#[test]
fn every_legal_command_with_every_pair_of_bits_turned_over() {
    let less = On::ALL.without(DS | D128 | ASID16 | SMMUEN);
    let (with_quirk, without_substreams) = (On { flags: EVERY, ssid_bits: 20 }, On { ssid_bits: 0, ..less });
    for engine in [On::ALL, with_quirk, without_substreams].map(Engine::new) {
        TEMPLATES.into_iter().for_each(|template| check_pairs(&engine, template));
    }
}

#[test]
fn every_opcode_for_every_legal_command() {
    for [low, high] in TEMPLATES {
        let engine = Engine::new(On::ALL);
        (0..=0xff).for_each(|opcode| engine.check([low & !0xff | opcode, high]));
    }
}

/// Every combination of NUM, SCALE, TTL128, TTL and TG.
fn ranges() -> impl Iterator<Item = [u64; 2]> {
    (0..1u64 << 16).map(|fields| {
        let (num, scale) = (fields & 0x1f, fields >> 5 & 0x3f);
        [num << 12 | scale << 20, (fields >> 11) << 7]
    })
}

/// Every range under every combination of RIL, DS, D128 and the quirk, with all else on.
fn check_ranges(opcode: u64, address: u64) {
    let all = combinations_with(opcode).into_iter();
    for engine in engines(all.filter(|on| on.has(S2P | HYP | MPAM | ASID16)).collect()) {
        ranges().for_each(|[low, high]| engine.check([low | opcode, high | address]));
    }
}

#[test]
fn every_range_of_tlbi_nh_va() {
    check_ranges(0x12, 0xffff_f000_0000_0000);
}

#[test]
fn every_range_of_the_other_tlbis_by_address() {
    let on = On::ALL;
    for engine in [on, on.without(DS), on.without(D128), on.without(DS | D128)].map(Engine::new) {
        for opcode in BY_ADDRESS.into_iter().skip(1) {
            ranges().for_each(|[low, high]| engine.check([low | opcode, high | 0x0000_0000_0001_0001]));
        }
    }
}

#[test]
fn ttl128_never_reaches_the_host_nor_a_granule_without_a_use() {
    let engine = Engine::new(On::ALL);
    for [low, high] in ranges().filter(|[_, high]| high & 0x80 != 0) {
        if let Fate::Host([low, high]) = engine.fate([low | 0x13, high]) {
            assert_eq!(high & 0x380, 0, "TTL128 or TTL in {high:#x}");
            assert_eq!(high & 0xc00 == 0, low & 0x03f1_f000 == 0, "TG and a range go together");
        }
    }
}

/// IHI 0070 G.b, 4.4.1: TTL128 is RES0 when TTL is 0; and 16K without DS takes TTL=1 as 0.
#[test]
fn ttl128_without_a_level_is_illegal() {
    for tg in [0x400, 0x800, 0xc00] {
        assert_eq!(Engine::new(On::ALL).fate([0x1013, tg | 0x80]), Fate::Ill);
    }
    assert_eq!(Engine::new(On::ALL.without(DS)).fate([0x13, 0x980]), Fate::Ill);
}

#[test]
fn every_size_and_substream_of_atc_inv() {
    for engine in engines(combinations(0x40)) {
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
fn every_stag_and_action_of_resume_and_every_response_of_pri_resp() {
    let engine = Engine::new(On::ALL);
    for low in 0..1 << 16 {
        engine.check([0x0000_0001_0000_0044 | (low & 3) << 12, low]);
        engine.check([0x0000_0001_0123_4841, low]);
    }
}

#[test]
fn every_range_of_cfgi_ste_range() {
    let engine = Engine::new(On::ALL);
    for range in 0..32 {
        for stream in [0, 1, 0x1234_5678, 0x8000_0000, 0xffff_ffff] {
            engine.check([0x04 | stream << 32, range]);
        }
    }
    let config = |stream: u64, range| engine.fate([0x04 | stream << 32, range]);
    let streams = |config| Fate::Request(Request::Streams(config));
    let range = |first, log2| streams(StreamConfig::Range { first: StreamId(first), log2 });
    assert_eq!(config(0x1235, 0), range(0x1234, 1));
    assert_eq!(config(0x12ff, 7), range(0x1200, 8));
    assert_eq!(config(0xffff_ffff, 30), range(0x8000_0000, 31));
    assert_eq!(config(0xffff_ffff, 31), streams(StreamConfig::All));
}

fn ending(on: On) -> Vec<u64> {
    let rules = Engine::new(on).rules;
    (0..=0xff).filter(|opcode| rules.ends_batch(Command([*opcode, 0]))).collect()
}

/// What stands behind these may only be read when they are done.
#[test]
fn cmd_sync_and_what_the_vmm_does_end_a_batch_and_nothing_else_does() {
    assert_eq!(ending(On { flags: S1P | RIL | ATS, ssid_bits: 0 }), [0x03, 0x04, 0x46]);
    let all = [0x03, 0x04, 0x07, 0x20, 0x21, 0x22, 0x23, 0x28, 0x2a, 0x41, 0x44, 0x45, 0x46, 0x70];
    assert_eq!(ending(On::ALL), all);
}
