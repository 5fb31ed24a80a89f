//! Commands as a line of text, and back: `TLBI_NH_ASID VMID=0x0 ASID=0x5`.
//!
//! Fields that only some features bring are left out when zero. Bits that belong to no field follow as
//! `RES0=WORD0:WORD1`, so that every command prints and parses back to itself.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::table::{self, Field, Role, When};
use super::{Command, Opcode};

/// CFGI_STE_RANGE with Range=31 has a name of its own (facts sheet, section 1.6).
const CFGI_ALL: &str = "CFGI_ALL";
const CFGI_ALL_COMMAND: Command = Command([Opcode::CFGI_STE_RANGE.0 as u64, 31]);

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("{:#04x}", self.0)),
        }
    }
}

impl Command {
    /// The architecture's name; the opcode in hexadecimal if it is reserved.
    pub fn name(self) -> String {
        if self.is_all() { CFGI_ALL.into() } else { self.opcode().to_string() }
    }

    fn is_all(self) -> bool {
        self.opcode() == Opcode::CFGI_STE_RANGE && self.bits(1, 4, 0) == 31
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_all = self.is_all();
        f.write_str(&self.name())?;
        let mut rest = [self.0[0] & !0xff, self.0[1]];
        for field in fields(self.opcode()) {
            let value = field.of(*self);
            rest[field.word] &= !field.mask();
            let implied = is_all && (field.name == "Range" || value == 0);
            let shown = value != 0 || (field.when == When::Always && field.role != Role::Zero);
            if shown && !implied {
                write!(f, " {}={:#x}", field.name, value << field.shown_shift)?;
            }
        }
        if rest != [0; 2] {
            write!(f, " RES0={:#x}:{:#x}", rest[0], rest[1])?;
        }
        Ok(())
    }
}

/// Why a line is not a command.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The first word is neither a command's name nor an opcode such as 0x7f.
    #[error("'{0}' is not a command")]
    Name(String),
    /// A word is not FIELD=NUMBER.
    #[error("'{0}' is not FIELD=NUMBER")]
    Word(String),
    /// The command has no such field, or it was given before.
    #[error("no field '{0}' to be set")]
    Field(String),
    /// The value does not fit the field.
    #[error("{0} does not fit its field")]
    Value(String),
}

impl FromStr for Command {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().unwrap_or_default();
        let mut command = named(name).ok_or_else(|| ParseError::Name(name.into()))?;
        // Bits that a word has set already.
        let mut set = [0xff, if name == CFGI_ALL { 0x1f } else { 0 }];
        let mut has_rest = false;
        for word in words {
            let (field, value) = word.split_once('=').ok_or_else(|| ParseError::Word(word.into()))?;
            let bits = if field == "RES0" {
                let (low, high) = value.split_once(':').ok_or_else(|| ParseError::Word(word.into()))?;
                let bits = [number(low, word)?, number(high, word)?];
                let free = fields(command.opcode()).fold([!0xff, !0], |mut free, field| {
                    free[field.word] &= !field.mask();
                    free
                });
                if bits[0] & !free[0] | bits[1] & !free[1] != 0 {
                    return Err(ParseError::Value(word.into()));
                }
                if std::mem::replace(&mut has_rest, true) {
                    return Err(ParseError::Field(word.into()));
                }
                bits
            } else {
                let field = fields(command.opcode()).find(|known| known.name == field);
                let field = field.filter(|field| set[field.word] & field.mask() == 0);
                let field = field.ok_or_else(|| ParseError::Field(word.into()))?;
                set[field.word] |= field.mask();
                let mut bits = [0; 2];
                bits[field.word] =
                    place(field, number(value, word)?).ok_or_else(|| ParseError::Value(word.into()))?;
                bits
            };
            command.0[0] |= bits[0];
            command.0[1] |= bits[1];
        }
        Ok(command)
    }
}

fn fields(opcode: Opcode) -> impl Iterator<Item = &'static Field> {
    table::find(opcode).map_or(&[][..], |spec| spec.fields).iter()
}

fn named(name: &str) -> Option<Command> {
    if name == CFGI_ALL {
        return Some(CFGI_ALL_COMMAND);
    }
    let opcode = match table::COMMANDS.iter().find(|spec| spec.name == name) {
        Some(spec) => spec.opcode.0,
        // Two digits; the standard library takes a sign, too.
        None => name
            .strip_prefix("0x")
            .filter(|hex| hex.len() == 2 && !hex.starts_with('+'))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())?,
    };
    Some(Command([u64::from(opcode), 0]))
}

fn number(text: &str, word: &str) -> Result<u64, ParseError> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    // The standard library takes a sign.
    let signed = digits.starts_with('+');
    u64::from_str_radix(digits, radix).ok().filter(|_| !signed).ok_or_else(|| ParseError::Word(word.into()))
}

/// A value at its place in its word, if it fits.
fn place(field: &Field, value: u64) -> Option<u64> {
    let shifted = value >> field.shown_shift;
    let placed = shifted << field.lsb & field.mask();
    (placed >> field.lsb == shifted && shifted << field.shown_shift == value).then_some(placed)
}
