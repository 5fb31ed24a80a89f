//! What commands depend on, as a set: features, CR0.SMMUEN, quirks.

use std::fmt;

use ecmdq_engine::rules::Quirk;
use ecmdq_engine::{Features, StallModel};

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct On {
    pub flags: u16,
    pub ssid_bits: u8,
}

pub const S1P: u16 = 1 << 0;
pub const S2P: u16 = 1 << 1;
pub const HYP: u16 = 1 << 2;
pub const ATS: u16 = 1 << 3;
pub const PRI: u16 = 1 << 4;
pub const STALL: u16 = 1 << 5;
pub const RIL: u16 = 1 << 6;
pub const DS: u16 = 1 << 7;
pub const D128: u16 = 1 << 8;
pub const ASID16: u16 = 1 << 9;
pub const MPAM: u16 = 1 << 10;
pub const DPT: u16 = 1 << 11;
pub const SMMUEN: u16 = 1 << 12;
pub const ONE_PAGE: u16 = 1 << 13;
pub const EVERY: u16 = (1 << 14) - 1;

const NAMES: [&str; 14] = [
    "S1P", "S2P", "HYP", "ATS", "PRI", "STALL", "RIL", "DS", "D128", "ASID16", "MPAM", "DPT", "SMMUEN",
    "ONE_PAGE",
];

/// The opcodes that can be legal: without which features they are not, which others matter, and whether SSIDSIZE does.
pub const DEPENDS: [(u64, u16, u16, bool); 25] = [
    (0x01, 0, 0, false),
    (0x02, 0, 0, false),
    (0x03, 0, 0, false),
    (0x04, 0, 0, false),
    (0x05, S1P, 0, true),
    (0x06, S1P, 0, false),
    (0x07, MPAM, 0, false),
    (0x10, S1P, 0, false),
    (0x11, S1P, ASID16, false),
    (0x12, S1P, ASID16 | RIL | DS | D128 | ONE_PAGE, false),
    (0x13, S1P, RIL | DS | D128 | ONE_PAGE, false),
    (0x20, S1P | HYP, 0, false),
    (0x21, S1P | HYP, ASID16, false),
    (0x22, S1P | HYP, ASID16 | RIL | DS | D128 | ONE_PAGE, false),
    (0x23, S1P | HYP, RIL | DS | D128 | ONE_PAGE, false),
    (0x28, S2P, 0, false),
    (0x2a, S2P, RIL | DS | D128 | ONE_PAGE, false),
    (0x30, 0, 0, false),
    (0x40, ATS, SMMUEN, true),
    (0x41, PRI, SMMUEN, true),
    (0x44, STALL, 0, false),
    (0x45, STALL, 0, false),
    (0x46, 0, 0, false),
    (0x70, DPT, 0, false),
    // TLBI_S_EL2_ALL is here for those that are never legal.
    (0x50, 0, 0, false),
];

impl On {
    pub const ALL: Self = Self { flags: EVERY & !ONE_PAGE, ssid_bits: 4 };

    /// Whether all of these are on.
    pub fn has(self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    pub fn without(self, flags: u16) -> Self {
        Self { flags: self.flags & !flags, ..self }
    }

    pub fn features(self) -> Features {
        let mut features = Features::none();
        (features.s1p, features.s2p, features.hyp) = (self.has(S1P), self.has(S2P), self.has(HYP));
        (features.ats, features.pri, features.ril) = (self.has(ATS), self.has(PRI), self.has(RIL));
        (features.ds, features.d128, features.asid16) = (self.has(DS), self.has(D128), self.has(ASID16));
        (features.mpam, features.dpt, features.ssid_bits) = (self.has(MPAM), self.has(DPT), self.ssid_bits);
        features.stall = if self.has(STALL) { StallModel::Supported } else { StallModel::None };
        features
    }

    pub fn quirks(self) -> &'static [Quirk] {
        if self.has(ONE_PAGE) { &[Quirk::OnePageRange] } else { &[] }
    }
}

impl fmt::Debug for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = NAMES.iter().enumerate().filter(|(bit, _)| self.has(1 << bit)).map(|(_, name)| *name);
        write!(f, "{} SSIDSIZE={}", names.collect::<Vec<_>>().join(" "), self.ssid_bits)
    }
}

fn depends(opcode: u64) -> (u16, u16, bool) {
    let found = DEPENDS.iter().find(|(known, ..)| *known == opcode);
    found.map_or((0, 0, false), |(_, needs, matters, ssid)| (*needs, *matters, *ssid))
}

/// Every combination of what matters to an opcode, with everything else off and with everything else on.
pub fn combinations(opcode: u64) -> Vec<On> {
    let (needs, matters, ssid) = depends(opcode);
    of_flags(needs | matters, ssid)
}

/// The same, as far as it may be legal.
pub fn combinations_with(opcode: u64) -> Vec<On> {
    let (needs, matters, ssid) = depends(opcode);
    let subsets = of_flags(matters, ssid).into_iter();
    subsets.map(|on| On { flags: on.flags | needs, ..on }).collect()
}

fn of_flags(mask: u16, ssid: bool) -> Vec<On> {
    let mut combinations = Vec::new();
    for flags in (0..=EVERY).filter(|flags| flags & !mask == 0) {
        for (rest, fixed_bits) in [(0, 0), (EVERY & !mask, 20)] {
            let flags = flags | rest;
            let all_bits = if ssid { vec![0, 4, 20] } else { vec![fixed_bits] };
            combinations.extend(all_bits.into_iter().map(|ssid_bits| On { flags, ssid_bits }));
        }
    }
    combinations
}
