//! ECMDQs: where they are, how they are enabled, what they take, how they fail (facts sheet, section 4), with all pages
//! shared and with control pages mapped from their file.

#[path = "../common/mod.rs"]
mod common;

mod drivers;
mod errors;
mod handshake;
mod independence;
mod layout;
mod rings;
mod support;
