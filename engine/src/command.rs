//! The 16-byte command and its opcodes (facts sheet, sections 1.1 and 1.2).

use std::fmt;

use bytemuck::{Pod, Zeroable};

use crate::rules::table;

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

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("{:#04x}", self.0)),
        }
    }
}

/// The name and the fields, for example `TLBI_NH_ASID VMID=0x0 ASID=0x5`. Fields that only some features bring
/// are left out when zero; bits that belong to no field follow as `RES0=WORD0:WORD1`.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.opcode())?;
        let mut rest = [self.0[0] & !0xff, self.0[1]];
        for field in table::find(self.opcode()).map_or(&[][..], |spec| spec.fields) {
            let value = field.of(*self);
            rest[field.word] &= !field.mask();
            if value != 0 || field.when == table::When::Always {
                let value = value << field.shown_shift;
                write!(f, " {}={value:#x}", field.name)?;
            }
        }
        if rest != [0; 2] {
            write!(f, " RES0={:#x}:{:#x}", rest[0], rest[1])?;
        }
        Ok(())
    }
}
