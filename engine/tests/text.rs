//! Commands as text, and back.

#[path = "commands/support/mod.rs"]
mod support;

use ecmdq_engine::Command;
use ecmdq_engine::command::ParseError;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use support::*;

fn parsed(line: &str) -> Command {
    line.parse().unwrap_or_else(|error| panic!("'{line}': {error}"))
}

#[track_caller]
fn check_round_trip(words: [u64; 2]) {
    let line = Command(words).to_string();
    assert_eq!(parsed(&line), Command(words), "{line}");
}

#[test]
fn lines_are_commands() {
    let cases: [(&str, [u64; 2]); 15] = [
        ("TLBI_NH_ASID VMID=0x0 ASID=0x5", [0x0005_0000_0000_0011, 0]),
        ("TLBI_NH_ASID ASID=5", [0x0005_0000_0000_0011, 0]),
        ("  TLBI_NH_ASID\tASID=5   VMID=65535 \n", [0x0005_ffff_0000_0011, 0]),
        ("TLBI_NH_VA TG=1 Address=0x80001000 NUM=31 SCALE=0x3f Leaf=1 TTL=3", [0x03f1_f012, 0x8000_1701]),
        ("TLBI_S2_IPA TTL128=1 Address=0xfffffffffff000", [0x2a, 0x00ff_ffff_ffff_f080]),
        ("CFGI_ALL", [0x04, 31]),
        ("CFGI_ALL StreamID=7", [0x0000_0007_0000_0004, 31]),
        ("CFGI_STE_RANGE Range=31", [0x04, 31]),
        ("CFGI_STE SSec=1", [0x403, 0]),
        ("RESUME Ac=1 Ab=1 STAG=0xffff", [0x3044, 0xffff]),
        ("PRI_RESP Resp=2 PRGIndex=0x1ff", [0x41, 0x21ff]),
        ("CMD_SYNC MSIAddress=0x3c CS=1", [0x1046, 0x3c]),
        ("ATC_INV Size=52 RES0=0x400:0x40", [0x440, 0x74]),
        ("0x7f RES0=0x100:0x1", [0x17f, 1]),
        ("0x11 ASID=1", [0x0001_0000_0000_0011, 0]),
    ];
    for (line, words) in cases {
        assert_eq!(parsed(line), Command(words), "{line}");
    }
}

#[test]
fn a_line_that_is_no_command_says_why() {
    type Error = fn(String) -> ParseError;
    let (name, word): (Error, Error) = (ParseError::Name, ParseError::Word);
    let (field, value): (Error, Error) = (ParseError::Field, ParseError::Value);
    let cases: [(&str, Error, &str); 27] = [
        ("", name, ""),
        ("TLBI_NH", name, "TLBI_NH"),
        ("tlbi_nh_all", name, "tlbi_nh_all"),
        ("17", name, "17"),
        ("0x", name, "0x"),
        ("0x100", name, "0x100"),
        ("0xg0", name, "0xg0"),
        ("TLBI_NH_ASID ASID", word, "ASID"),
        ("TLBI_NH_ASID ASID=", word, "ASID="),
        ("TLBI_NH_ASID ASID=x", word, "ASID=x"),
        ("TLBI_NH_ASID ASID=0x", word, "ASID=0x"),
        ("TLBI_NH_ASID ASID=-1", word, "ASID=-1"),
        ("TLBI_NH_ASID ASID=0x10000000000000000", word, "ASID=0x10000000000000000"),
        ("TLBI_NH_ASID ASID = 5", word, "ASID"),
        ("TLBI_NH_ASID RES0=5", word, "RES0=5"),
        ("TLBI_NH_ASID RES0=5:", word, "RES0=5:"),
        ("TLBI_NH_ASID asid=5", field, "asid=5"),
        ("TLBI_NH_ASID Leaf=1", field, "Leaf=1"),
        ("TLBI_NH_ASID ASID=5 ASID=5", field, "ASID=5"),
        ("CFGI_ALL Range=3", field, "Range=3"),
        ("0x7f VMID=1", field, "VMID=1"),
        ("TLBI_NH_ASID ASID=0x10000", value, "ASID=0x10000"),
        ("TLBI_NH_VA Address=0x1800", value, "Address=0x1800"),
        ("TLBI_S2_IPA Address=0x100000000000000", value, "Address=0x100000000000000"),
        ("CMD_SYNC MSIAddress=2", value, "MSIAddress=2"),
        ("TLBI_NH_ASID RES0=0x1:0x0", value, "RES0=0x1:0x0"),
        ("TLBI_NH_ALL RES0=0x100000000:0x0", value, "RES0=0x100000000:0x0"),
    ];
    for (line, error, about) in cases {
        assert_eq!(line.parse::<Command>(), Err(error(about.into())), "'{line}'");
    }
}

#[test]
fn errors_read_well() {
    let error = |line: &str| line.parse::<Command>().unwrap_err().to_string();
    assert_eq!(error("FOO"), "'FOO' is not a command");
    assert_eq!(error("CMD_SYNC CS"), "'CS' is not FIELD=NUMBER");
    assert_eq!(error("CMD_SYNC ASID=1"), "no field 'ASID=1' to be set");
    assert_eq!(error("CMD_SYNC CS=4"), "CS=4 does not fit its field");
}

#[test]
fn every_opcode_with_every_bit_reads_back_as_itself() {
    for opcode in 0..=0xff {
        check_round_trip([opcode, 0]);
        check_round_trip([!0xff | opcode, !0]);
        (8..128).for_each(|bit| check_round_trip(turned([opcode, 0], [bit])));
    }
}

/// Words of lines, good and bad.
fn words() -> impl Strategy<Value = String> {
    let names =
        ["TLBI_NH_VA", "CFGI_ALL", "CMD_SYNC", "0x11", "0xff", "=", "RES0", ":", "ASID", "Address", "CS"];
    let values = ["=1", "=0x0", "=0xffffffffffffffff", "=0x3:0x4", "=", ":", "=99999999999999999999", ""];
    (select(names.to_vec()), select(values.to_vec())).prop_map(|(name, value)| format!("{name}{value}"))
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn random_commands_read_back_as_themselves(words in command()) {
        check_round_trip(words);
    }

    #[test]
    fn the_order_of_fields_does_not_matter(words in command(), keys in vec(any::<u64>(), 16)) {
        let line = Command(words).to_string();
        let mut fields: Vec<_> = line.split(' ').skip(1).zip(&keys).collect();
        fields.sort_by_key(|(_, key)| **key);
        let name = line.split(' ').next().unwrap();
        let shuffled = fields.iter().fold(name.to_string(), |line, (field, _)| format!("{line} {field}"));
        prop_assert_eq!(parsed(&shuffled), Command(words));
    }

    #[test]
    fn any_line_is_a_command_or_an_error(line in ".{0,60}", words in vec(words(), 0..5)) {
        for line in [line, words.join(" ")] {
            if let Ok(command) = line.parse::<Command>() {
                prop_assert_eq!(parsed(&command.to_string()), command);
            }
        }
    }
}

#[test]
fn numbers_have_no_sign_opcodes_two_digits_and_each_word_comes_once() {
    for line in
        ["0x+f", "0x046", "TLBI_NH_ASID ASID=+5", "TLBI_NH_ASID ASID=0x+5", "0x7f RES0=0x0:0x1 RES0=0x0:0x2"]
    {
        assert!(line.parse::<Command>().is_err(), "{line}");
    }
}
