//! Commands, runs of commands, and features, for random tests.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::on::*;

/// Legal commands of every kind, with every field in use.
pub const TEMPLATES: [[u64; 2]; 32] = [
    [0x0000_0001_0000_3801, 0],
    [0x0000_0001_0000_3802, 0xffff_0000_1234_5212],
    [0x8000_0000_0000_0003, 1],
    [0x8000_0000_0000_0004, 7],
    [0x0000_0001_0000_5005, 1],
    [0x8000_0000_0000_0006, 0],
    [0x0000_1234_0000_0007, 0],
    [0x0000_1234_0000_0010, 0],
    [0x0056_1234_0000_0011, 0],
    [0x0056_1234_0000_0012, 0xffff_8000_1234_5001],
    [0x0056_1234_0100_5012, 0xffff_8000_1234_5701],
    [0x0056_1234_0000_5012, 0xffff_8000_1234_4900],
    [0x1256_1234_0000_0012, 0x0000_8000_1234_4901],
    [0x0000_1234_0100_5013, 0x0000_8000_1234_5701],
    [0x0000_1234_0010_0013, 0x0000_8000_1234_0c00],
    [0x0000_1234_0000_0013, 0x0000_8000_1234_0b80],
    [0x0000_0000_0000_0020, 0],
    [0x0056_0000_0000_0021, 0],
    [0x0056_0000_0100_5022, 0xffff_8000_1234_5701],
    [0x0000_0000_0200_5023, 0xffff_8000_1234_5a01],
    [0x0000_1234_0000_0028, 0],
    [0x0000_1234_0000_502a, 0x0080_8000_1234_5701],
    [0x0000_0000_0000_0030, 0],
    [0x0000_0001_0000_3a40, 0x1234_5678_9abc_d00c],
    [0x8000_0000_0000_0040, 0x1234_5678_9abc_d034],
    [0x0000_0001_1234_5841, 0x2155],
    [0x0000_0001_0000_1044, 0xbeef],
    [0x0000_0001_0000_2044, 0x0001],
    [0x0000_0001_0000_0045, 0],
    [0xdead_beef_0fc0_1046, 0x0000_0000_4000_0010],
    [0x0000_0000_0000_2046, 0],
    [0x0000_0000_0000_0070, 0],
];

/// Legal commands of which many may stand behind one another, and the bits in which they may differ.
const IN_RUNS: [([u64; 2], [u64; 2]); 16] = [
    ([0x0000_0001_0000_0001, 0], [0xffff_ffff_ffff_f800, 0]),
    ([0x0000_0001_0000_3005, 1], [0x8000_0001_0000_f000, 1]),
    ([0x8000_0000_0000_0006, 0], [0x8000_0001_0000_0000, 0]),
    ([0x0000_1234_0000_0010, 0], [0x0000_ffff_0000_0000, 0]),
    ([0x0056_1234_0000_0011, 0], [0x00ff_ffff_0000_0000, 0]),
    ([0x0056_1234_0000_0012, 0xffff_8000_1234_5001], [0x00ff_ffff_0000_0000, !0xffe]),
    ([0x0056_1234_0010_5012, 0xffff_8000_1234_5701], [0x00ff_ffff_0031_f000, !0x4fe]),
    ([0x0056_1234_0000_0012, 0x0000_8000_1234_4a01], [0x0000_ffff_0030_3000, !0x2fe]),
    ([0x0000_1234_0000_5013, 0x0000_8000_1234_5801], [0x0000_ffff_0031_f000, !0x87e]),
    ([0x0000_1234_0000_0013, 0x0000_8000_1234_0b80], [0x0000_ffff_0001_f000, !0x27e]),
    ([0x0000_1234_0000_1013, 0x0000_8000_1234_5401], [0x0000_ffff_0000_1000, !0xffe]),
    ([0x0000_1234_0000_0013, 0x0000_8000_1234_5600], [0x0000_ffff_0000_0000, !0xdfe]),
    ([0x0000_0000_0000_0030, 0], [0, 0]),
    ([0x0000_0001_0000_0040, 0x1234_5678_9abc_d034], [0x8000_0001_0000_0000, !0xffe]),
    ([0x0000_0001_0000_0040, 0x1234_5678_9abc_d00c], [0x8000_0001_0000_0000, !0xff0]),
    ([0x0000_0001_0000_3a40, 0x1234_5678_9abc_d00c], [0x8000_0001_0000_fa00, !0xff8]),
];

/// A command with some of its 128 bits turned over.
pub fn turned([low, high]: [u64; 2], bits: impl IntoIterator<Item = u32>) -> [u64; 2] {
    let bits = bits.into_iter().fold(0u128, |bits, bit| bits ^ 1 << bit);
    [low ^ bits as u64, high ^ (bits >> 64) as u64]
}

/// A word whose bits are mostly clear, or anything, or zero.
pub fn word() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b), Just(0)]
}

/// An opcode that can be legal and anything else, or a legal command with a few bits turned over, or anything.
pub fn command() -> impl Strategy<Value = [u64; 2]> {
    let opcode = select(DEPENDS.map(|(opcode, ..)| opcode).to_vec());
    let mutated = (select(TEMPLATES.to_vec()), vec(0u32..128, 0..4));
    prop_oneof![
        (opcode, word(), word()).prop_map(|(opcode, low, high)| [low & !0xff | opcode, high]),
        mutated.prop_map(|(template, bits)| turned(template, bits)),
        [any::<u64>(), any::<u64>()],
    ]
}

/// Up to 64 commands of one kind that differ in some fields, with up to two odd ones among them.
pub fn run() -> impl Strategy<Value = Vec<[u64; 2]>> {
    let masks = prop_oneof![Just([0; 2]), Just([!0, !0xfff]), Just([!0; 2]), [any::<u64>(), any::<u64>()]];
    let words = vec([any::<u64>(), any::<u64>()], 1..=64);
    let odd = (any::<Index>(), prop_oneof![2 => (0u32..128).prop_map(Ok), 1 => command().prop_map(Err)]);
    (select(IN_RUNS.to_vec()), masks, words, vec(odd, 0..=2)).prop_map(|((base, may), masks, words, odd)| {
        let differ = |n: usize, word: u64| (word ^ base[n]) & may[n] & masks[n];
        let differing = |[low, high]: [u64; 2]| [base[0] ^ differ(0, low), base[1] ^ differ(1, high)];
        let mut run: Vec<_> = words.into_iter().map(differing).collect();
        for (index, odd) in odd {
            let command = index.get_mut(&mut run);
            *command = odd.map_or_else(|other| other, |bit| turned(*command, [bit]));
        }
        run
    })
}

/// Mostly everything on.
pub fn guest() -> impl Strategy<Value = On> {
    let flags = prop_oneof![
        2 => Just(EVERY & !ONE_PAGE),
        2 => (0..=EVERY, 0..=EVERY, 0..=EVERY).prop_map(|(a, b, c)| EVERY & !(a & b & c)),
        1 => 0..=EVERY,
    ];
    (flags, select(vec![0, 4, 20])).prop_map(|(flags, ssid_bits)| On { flags, ssid_bits })
}

/// A guest and a host for it: with more features, and perhaps without ranges or ATS. Every host has stage 1.
pub fn host_for(guest: impl Strategy<Value = On>) -> impl Strategy<Value = (On, On)> {
    let lacks = select(vec![0, 0, RIL, ATS, RIL | ATS]);
    (guest, 0..=EVERY, lacks, 0u8..=20).prop_map(|(guest, more, lacks, ssid_bits)| {
        let flags = (guest.flags | more | S1P | SMMUEN) & !lacks & !ONE_PAGE;
        (guest, On { flags, ssid_bits: ssid_bits.max(guest.ssid_bits) })
    })
}
