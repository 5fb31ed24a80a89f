//! The 16-byte command and its opcodes (facts sheet, sections 1.1 and 1.2).

use std::fmt;

use bytemuck::{Pod, Zeroable};

mod cost;
mod error;
mod rank;
pub mod table;
mod text;

pub(crate) use cost::{DEAREST, cost};
pub use error::CommandError;
pub(crate) use rank::{Rank, rank, ranks, ranks_by_address};
pub use text::ParseError;

/// One SMMUv3 command: two 64-bit words in the hardware's own format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Command(pub [u64; 2]);

/// The opcode of a command, any of 256 values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opcode(pub u8);

macro_rules! opcodes {
    ($($name:ident = $value:literal)*) => {
        #[allow(missing_docs, reason = "the names are the architecture's")]
        impl Opcode {
            $(pub const $name: Self = Self($value);)*
        }
    };
}

opcodes! {
    PREFETCH_CONFIG = 0x01
    PREFETCH_ADDR = 0x02
    CFGI_STE = 0x03
    CFGI_STE_RANGE = 0x04
    CFGI_CD = 0x05
    CFGI_CD_ALL = 0x06
    TLBI_NH_ALL = 0x10
    TLBI_NH_ASID = 0x11
    TLBI_NH_VA = 0x12
    TLBI_NH_VAA = 0x13
    TLBI_NSNH_ALL = 0x30
    ATC_INV = 0x40
    PRI_RESP = 0x41
    RESUME = 0x44
    STALL_TERM = 0x45
    CMD_SYNC = 0x46
}

impl Command {
    /// The opcode, bits `[7:0]` of the first word.
    pub const fn opcode(self) -> Opcode {
        Opcode(self.0[0] as u8)
    }

    /// The bits `msb..=lsb` of word 0 or 1.
    pub const fn bits(self, word: usize, msb: u32, lsb: u32) -> u64 {
        (self.0[word] >> lsb) & (u64::MAX >> (63 - (msb - lsb)))
    }

    /// The StreamID field of a command that has one, bits `[63:32]` of the first word.
    pub const fn stream(self) -> u32 {
        (self.0[0] >> 32) as u32
    }
}

/// The opcode of all of these commands, if it is the same and they are four or more: most come in runs of one opcode. It takes three
/// instructions a command.
#[inline]
pub(crate) fn same_opcode(commands: &[Command]) -> Option<Opcode> {
    let [Command(first), _, _, _, ..] = commands else { return None };
    // Whole commands, of which all but the opcode is ignored in the end, and several at a time: the compiler uses vectors.
    let differ =
        |Command(a): Command, Command(b): &Command| Command([a[0] | b[0] ^ first[0], a[1] | b[1] ^ first[1]]);
    let mut differs = [Command([0; 2]); 4];
    let (fours, rest) = commands.as_chunks::<4>();
    for four in fours {
        for (differs, command) in differs.iter_mut().zip(four) {
            *differs = differ(*differs, command);
        }
    }
    let low = rest.iter().fold(Command([0; 2]), differ).0[0];
    let low = differs.iter().fold(low, |low, differs| low | differs.0[0]);
    (low & 0xff == 0).then_some(Opcode(first[0] as u8))
}

impl Opcode {
    /// The architecture's name, or `None` for a reserved opcode.
    pub fn name(self) -> Option<&'static str> {
        table::find(self).map(|spec| spec.name)
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
