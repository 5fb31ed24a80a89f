//! Commands of the guest spelled out (IHI 0070, chapter 4).

use ecmdq_engine::Command;

use crate::tables::SUBSTREAMS;

/// The StreamID of a context in its place.
fn stream(context: usize) -> u64 {
    ((context / SUBSTREAMS) as u64) << 32
}

/// Its SubstreamID in its place.
fn substream(context: usize) -> u64 {
    ((context % SUBSTREAMS) as u64) << 12
}

pub fn cfgi_cd(context: usize) -> Command {
    Command([0x05 | stream(context) | substream(context), 1])
}

/// The descriptors of all PASIDs of the context's stream.
pub fn cfgi_cd_all(context: usize) -> Command {
    Command([0x06 | stream(context), 0])
}

pub fn nh_all() -> Command {
    Command([0x10, 0])
}

pub fn nh_asid(space: usize) -> Command {
    Command([0x11 | (space as u64) << 48, 0])
}

pub fn nh_va(space: usize, page: usize) -> Command {
    Command([0x12 | (space as u64) << 48, (page as u64) << 12 | 1])
}

/// A page of every ASID.
pub fn nh_vaa(page: usize) -> Command {
    Command([0x13, (page as u64) << 12 | 1])
}

const SSV: u64 = 1 << 11;
const GLOBAL: u64 = 1 << 9;

pub fn atc_inv(context: usize, page: usize) -> Command {
    Command([0x40 | stream(context) | substream(context) | SSV, (page as u64) << 12])
}

/// Every address.
pub fn atc_inv_all(context: usize) -> Command {
    Command([0x40 | stream(context) | substream(context) | SSV, 52])
}

/// Every address of every PASID of the context's stream.
pub fn atc_inv_global(context: usize) -> Command {
    Command([0x40 | stream(context) | SSV | GLOBAL, 52])
}

pub fn prefetch(context: usize) -> Command {
    Command([0x01 | stream(context), 0])
}

pub fn sync() -> Command {
    Command([0x46, 0])
}
