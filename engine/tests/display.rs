//! How commands and refusals read.

use ecmdq_engine::rules::{End, Rejected, Rules};
use ecmdq_engine::{Command, Features, Opcode, StreamMap, Vmid};

#[test]
fn commands_read_as_their_name_and_fields() {
    let cases: [([u64; 2], &str); 29] = [
        ([0x42_0000_5801, 0], "PREFETCH_CONFIG SSV=0x1 SubstreamID=0x5 StreamID=0x42"),
        (
            [0x42_0000_0002, 0x1234_5043],
            "PREFETCH_ADDR SSV=0x0 SubstreamID=0x0 StreamID=0x42 Size=0x3 Stride=0x2 Address=0x12345000",
        ),
        ([0x42_0000_0003, 1], "CFGI_STE StreamID=0x42 Leaf=0x1"),
        ([0x40_0000_0004, 5], "CFGI_STE_RANGE StreamID=0x40 Range=0x5"),
        ([0x42_0000_7005, 0], "CFGI_CD SubstreamID=0x7 StreamID=0x42 Leaf=0x0"),
        ([0x04, 31], "CFGI_ALL"),
        ([0x42_0000_0004, 31], "CFGI_ALL StreamID=0x42"),
        ([0x42_0000_0403, 0], "CFGI_STE SSec=0x1 StreamID=0x42 Leaf=0x0"),
        ([0x7_0000_0007, 0], "CFGI_VMS_PIDM VMID=0x7"),
        ([0xffff_ffff_0000_0006, 0], "CFGI_CD_ALL StreamID=0xffffffff"),
        ([0x7_0000_0010, 0], "TLBI_NH_ALL VMID=0x7"),
        ([0x1234_0007_0000_0011, 0], "TLBI_NH_ASID VMID=0x7 ASID=0x1234"),
        ([0x5_0007_0000_0012, 0x8000_1001], "TLBI_NH_VA VMID=0x7 ASID=0x5 Leaf=0x1 Address=0x80001000"),
        (
            [0x5_0007_0130_3012, 0x8000_1701],
            "TLBI_NH_VA NUM=0x3 SCALE=0x13 VMID=0x7 ASID=0x5 Leaf=0x1 TTL=0x3 TG=0x1 Address=0x80001000",
        ),
        ([0x13, 0xffff_8000_0000_0000], "TLBI_NH_VAA VMID=0x0 Leaf=0x0 Address=0xffff800000000000"),
        ([0x13, 0x80], "TLBI_NH_VAA VMID=0x0 Leaf=0x0 TTL128=0x1 Address=0x0"),
        ([0x5_0000_0000_0021, 0], "TLBI_EL2_ASID ASID=0x5"),
        (
            [0x7_0200_002a, 0x00ff_0000_0000_1400],
            "TLBI_S2_IPA SCALE=0x20 VMID=0x7 Leaf=0x0 TG=0x1 Address=0xff000000001000",
        ),
        ([0x30, 0], "TLBI_NSNH_ALL"),
        (
            [0x42_0000_1a40, 0x1_0034],
            "ATC_INV Global=0x1 SSV=0x1 SubstreamID=0x1 StreamID=0x42 Size=0x34 Address=0x10000",
        ),
        ([0x42_0000_5841, 0x2007], "PRI_RESP SSV=0x1 SubstreamID=0x5 StreamID=0x42 PRGIndex=0x7 Resp=0x2"),
        ([0x42_0000_2044, 9], "RESUME Ac=0x0 Ab=0x1 StreamID=0x42 STAG=0x9"),
        ([0x42_0000_0045, 0], "STALL_TERM StreamID=0x42"),
        ([0x46, 0], "CMD_SYNC CS=0x0 MSH=0x0 MSIAttr=0x0 MSIData=0x0 MSIAddress=0x0"),
        (
            [0x9_0fc0_1046, 0x4000_0010],
            "CMD_SYNC CS=0x1 MSH=0x3 MSIAttr=0xf MSIData=0x9 MSIAddress=0x40000010",
        ),
        ([0x110, 0], "TLBI_NH_ALL VMID=0x0 RES0=0x100:0x0"),
        ([0x30, 0x20], "TLBI_NSNH_ALL RES0=0x0:0x20"),
        ([0, 0], "0x00"),
        ([0x1_0000_00ff, 2], "0xff RES0=0x100000000:0x2"),
    ];
    for (words, expected) in cases {
        assert_eq!(Command(words).to_string(), expected);
    }
}

#[test]
fn opcodes_read_as_names_and_reserved_ones_as_numbers() {
    assert_eq!(Opcode::ATC_INV.to_string(), "ATC_INV");
    assert_eq!(format!("{:?}", Opcode(0x06)), "CFGI_CD_ALL");
    assert_eq!(Opcode(0x0e).to_string(), "0x0e");
    assert_eq!(format!("[{:>10}|{:<6}]", Opcode(0x46), Opcode(0x80)), "[  CMD_SYNC|0x80  ]");
    assert_eq!((Opcode(0x30).name(), Opcode(0x2b).name()), (Some("TLBI_NSNH_ALL"), None));
}

/// All names (facts sheet, section 1.1).
const NAMES: [(u8, &str); 34] = [
    (0x01, "PREFETCH_CONFIG"),
    (0x02, "PREFETCH_ADDR"),
    (0x03, "CFGI_STE"),
    (0x04, "CFGI_STE_RANGE"),
    (0x05, "CFGI_CD"),
    (0x06, "CFGI_CD_ALL"),
    (0x07, "CFGI_VMS_PIDM"),
    (0x10, "TLBI_NH_ALL"),
    (0x11, "TLBI_NH_ASID"),
    (0x12, "TLBI_NH_VA"),
    (0x13, "TLBI_NH_VAA"),
    (0x18, "TLBI_EL3_ALL"),
    (0x1a, "TLBI_EL3_VA"),
    (0x20, "TLBI_EL2_ALL"),
    (0x21, "TLBI_EL2_ASID"),
    (0x22, "TLBI_EL2_VA"),
    (0x23, "TLBI_EL2_VAA"),
    (0x28, "TLBI_S12_VMALL"),
    (0x2a, "TLBI_S2_IPA"),
    (0x30, "TLBI_NSNH_ALL"),
    (0x40, "ATC_INV"),
    (0x41, "PRI_RESP"),
    (0x44, "RESUME"),
    (0x45, "STALL_TERM"),
    (0x46, "CMD_SYNC"),
    (0x50, "TLBI_S_EL2_ALL"),
    (0x51, "TLBI_S_EL2_ASID"),
    (0x52, "TLBI_S_EL2_VA"),
    (0x53, "TLBI_S_EL2_VAA"),
    (0x58, "TLBI_S_S12_VMALL"),
    (0x5a, "TLBI_S_S2_IPA"),
    (0x60, "TLBI_SNH_ALL"),
    (0x70, "DPTI_ALL"),
    (0x73, "DPTI_PA"),
];

#[test]
fn every_opcode_has_its_name_and_the_others_their_number() {
    for opcode in 0..=0xff {
        let name = NAMES.iter().find(|(known, _)| *known == opcode);
        let expected = name.map_or(format!("{opcode:#04x}"), |(_, name)| name.to_string());
        assert_eq!(Opcode(opcode).to_string(), expected);
        assert_eq!(Command([opcode.into(), 0]).name(), expected);
    }
    assert_eq!(Command([0x04, 31]).name(), "CFGI_ALL");
}

fn rejected(command: [u64; 2]) -> Rejected {
    let rules = Rules::new(&ats(), &ats(), Vmid(1), &[]).unwrap();
    match rules.apply(&StreamMap::new(1), &[Command(command)], &mut []).end {
        End::Illegal(rejected) => rejected,
        end => panic!("not rejected: {end:?}"),
    }
}

fn ats() -> Features {
    let mut features = Features::default();
    features.ats = true;
    features
}

#[test]
fn refusals_say_why() {
    let cases = [
        ([0x20, 0], "not a command of this SMMU"),
        ([0x110, 0x3], "reserved bits 0x100 in word 0, 0x3 in word 1"),
        ([0x0400_0413, 0x80], "reserved bits 0x4000400 in word 0, 0x80 in word 1"),
        ([0x3046, 0], "CS=0x3"),
        ([0x40, 53], "Size=0x35"),
        ([0x13, 0x100], "TTL=0x1"),
        ([0x20_0013, 0], "SCALE=0x2"),
        ([0x1f013, 0], "NUM=0x1f"),
        ([0x13, 0x400], "TG=0x1"),
        ([0x13, 0x900], "TG=0x2"),
    ];
    for (command, expected) in cases {
        assert_eq!(rejected(command).reason.to_string(), expected);
    }
}

#[test]
fn a_rejected_command_reads_as_name_reason_and_words() {
    assert_eq!(
        rejected([0x1_0000_0110, 3]).to_string(),
        "TLBI_NH_ALL: reserved bits 0x100 in word 0, 0x3 in word 1 (0x0000000100000110 0x0000000000000003)"
    );
    assert_eq!(
        rejected([0x80, 0]).to_string(),
        "0x80: not a command of this SMMU (0x0000000000000080 0x0000000000000000)"
    );
}
