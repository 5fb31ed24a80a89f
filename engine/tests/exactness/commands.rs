//! What guests send, in their own terms, and bit by bit (facts sheet, section 1.2).

use ecmdq_engine::Command;
use proptest::prelude::*;

use crate::entries::Kind;
use crate::vm::Shown;

/// A command of a guest. It names neither a host StreamID nor, where it counts, a VMID.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cmd {
    /// With a VMID that must not matter.
    NhAll(u16),
    NsnhAll,
    Asid(u16),
    /// TLBI_NH_VA, or without an ASID TLBI_NH_VAA.
    Address {
        asid: Option<u16>,
        leaf: bool,
        address: u64,
        range: Option<Range>,
    },
    Cd {
        stream: u32,
        substream: u32,
        leaf: bool,
    },
    CdAll(u32),
    /// `substream` with Global.
    Atc {
        stream: u32,
        substream: Option<(u32, bool)>,
        address: u64,
        size: u32,
    },
    Ste(u32),
    /// 2^(Range+1) streams; CFGI_ALL with 31.
    Stes(u32, u32),
    Prefetch(u32),
    Sync,
    Illegal([u64; 2]),
}

/// The fields of a range, TG not 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    pub tg: u32,
    pub num: u64,
    pub scale: u32,
    pub ttl: u32,
}

/// Never legal, whatever the features are.
const ILLEGAL: [[u64; 2]; 8] = [
    [0xff, 0],
    [0x20, 0],
    [0x10 | 1 << 9, 0],
    [0x11, 1],
    [0x12, 0x4000_0400],
    [0x13 | 1 << 12, 0x4000_0000],
    [0x05 | 1 << 10 | 1 << 32, 0],
    [0x46 | 3 << 12, 0],
];

impl Cmd {
    pub fn encode(self) -> Command {
        let of = |stream: u32| u64::from(stream) << 32;
        Command(match self {
            Self::NhAll(vmid) => [0x10 | u64::from(vmid) << 32, 0],
            Self::NsnhAll => [0x30, 0],
            Self::Asid(asid) => [0x11 | u64::from(asid) << 48, 0],
            Self::Address { asid, leaf, address, range } => {
                let low = asid.map_or(0x13, |asid| 0x12 | u64::from(asid) << 48);
                let high = address | u64::from(leaf);
                match range {
                    None => [low, high],
                    Some(Range { tg, num, scale, ttl }) => [
                        low | num << 12 | u64::from(scale) << 20,
                        high | u64::from(tg) << 10 | u64::from(ttl) << 8,
                    ],
                }
            }
            Self::Cd { stream, substream, leaf } => {
                [0x05 | of(stream) | u64::from(substream) << 12, u64::from(leaf)]
            }
            Self::CdAll(stream) => [0x06 | of(stream), 0],
            Self::Atc { stream, substream, address, size } => {
                let ssv = substream
                    .map_or(0, |(id, global)| 1 << 11 | u64::from(global) << 9 | u64::from(id) << 12);
                [0x40 | of(stream) | ssv, address | u64::from(size)]
            }
            Self::Ste(stream) => [0x03 | of(stream), 1],
            Self::Stes(stream, range) => [0x04 | of(stream), u64::from(range)],
            Self::Prefetch(stream) => [0x01 | of(stream), 0],
            Self::Sync => [0x46 | 2 << 12, 0],
            Self::Illegal(words) => words,
        })
    }

    /// Whether nothing behind it may begin before CONS has passed it.
    pub fn is_barrier(self) -> bool {
        matches!(self, Self::Ste(_) | Self::Stes(..) | Self::Illegal(_))
    }

    /// What it may name.
    pub fn kind(self) -> Kind {
        match self {
            Self::NhAll(_) | Self::NsnhAll | Self::Asid(_) | Self::Address { .. } => Kind::Tlb,
            Self::Cd { .. } | Self::CdAll(_) | Self::Ste(_) | Self::Stes(..) => Kind::Config,
            Self::Atc { .. } => Kind::Atc,
            Self::Prefetch(_) | Self::Sync | Self::Illegal(_) => Kind::Nothing,
        }
    }

    /// The nearest command that a guest may send that is shown this.
    pub fn fit(self, shown: &Shown) -> Self {
        match self {
            Self::Asid(asid) => Self::Asid(asid & shown.asids()),
            Self::Address { asid, leaf, address, range } => {
                let range = range.filter(|_| shown.ril);
                let asid = asid.map(|asid| asid & shown.asids());
                Self::Address { asid, leaf, address: range.map_or(address, |r| r.aligned(address)), range }
            }
            Self::Atc { stream, .. } if !shown.ats => Self::CdAll(stream),
            same => same,
        }
    }
}

impl Range {
    /// log2 of the bytes of a leaf of the hinted level, else of a granule.
    pub fn leaf_log2(self) -> u32 {
        match (self.tg, self.ttl) {
            (1, 1) => 30,
            (1, 2) => 21,
            (1, _) => 12,
            (2, 1) => 36,
            (2, 2) => 25,
            (2, _) => 14,
            (3, 1) => 42,
            (3, 2) => 29,
            (_, _) => 16,
        }
    }

    /// The address as the hint wants it: else what is named is unpredictable (facts sheet, section 1.7).
    fn aligned(self, address: u64) -> u64 {
        address >> self.leaf_log2() << self.leaf_log2()
    }
}

/// Where addresses are: around 1 GiB, and at the top of the address space.
pub const WINDOWS: [u64; 2] = [0x4000_0000, 0xffff_ffff_ffff_0000];

/// Any command: its kind, and the rest in one number, so that many are generated fast.
pub fn command() -> impl Strategy<Value = Cmd> {
    (0..64u8, any::<u32>()).prop_map(|(kind, rest)| decode(kind, rest))
}

fn decode(kind: u8, rest: u32) -> Cmd {
    let field = |lsb: u32, below: u32| (rest >> lsb) as u8 % below as u8;
    let (bits, scale, num, page, who) =
        (rest as u8, field(8, 12), field(12, 32), field(17, 80), field(25, 6));
    let bit = |n: u32| bits >> n & 1 != 0;
    let asid = [1, 2, 0x101, 3, 1, 2][usize::from(who)];
    let (stream, substream) = (u32::from(who % 5), [0, 1, 2, 65, 64, 200][usize::from(num) % 6]);
    let window = WINDOWS[usize::from(bits & 7 == 7)];
    let address = match bit(3) {
        _ if window != WINDOWS[0] => window + (u64::from(page % 16) << 12),
        // Beside the pages, blocks.
        true => window + (u64::from(page % 4) << [21, 25, 29, 30][usize::from(page / 4 % 4)]),
        false => window + (u64::from(page) << 12),
    };
    let by_address = |asid| {
        let (tg, ttl) = ([1, 1, 2, 3][usize::from(bits >> 4 & 3)], u32::from(bits >> 6));
        // One page needs a hint, and 16K pages have none at level 1 without IDR5.DS.
        let num = if scale == 0 && num == 0 && matches!((tg, ttl), (_, 0) | (2, 1)) { 1 } else { num };
        let range = Range { tg, num: num.into(), scale: scale.into(), ttl };
        Cmd::Address { asid, leaf: bit(0), address, range: (kind >= 20).then_some(range) }
    };
    match kind {
        0..=2 => Cmd::Sync,
        3 => Cmd::Prefetch(stream),
        4 => Cmd::NhAll(who.into()),
        5 => Cmd::NsnhAll,
        6..=8 => Cmd::Asid(asid),
        9..=16 => by_address(Some(asid)),
        17..=19 => by_address(None),
        20..=36 => by_address(Some(asid)),
        37..=42 => by_address(None),
        43..=46 => Cmd::Cd { stream, substream, leaf: bit(0) },
        47..=48 => Cmd::CdAll(stream),
        49..=60 => {
            let size = [0, 1, 2, 4, 9, 18, 40, 52][usize::from(scale % 8)];
            Cmd::Atc { stream, substream: bit(1).then_some((substream, bit(2))), address, size }
        }
        61 => Cmd::Ste(stream),
        62 => Cmd::Stes(stream, [31, 0, 1, 2][usize::from(num % 4)]),
        _ => Cmd::Illegal(ILLEGAL[usize::from(num) % ILLEGAL.len()]),
    }
}
