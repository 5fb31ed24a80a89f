//! What a driver does, as commands (facts sheet, sections 1.2 and 7.5).

use std::path::Path;

use ecmdq_engine::{Command, StreamId};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use serde::Deserialize;

use crate::driver::Sync;
use crate::trace::{self, TraceError};
use crate::traffic::{Group, Traffic};

/// The device that all commands name which are not recorded.
pub(super) const DEVICE: StreamId = StreamId(0x42);
/// Of the kernel's mappings; those of processes come behind it.
const ASID: u64 = 1;
/// Processes that share their address space with the device.
const PROCESSES: u64 = 8;
/// What is mapped and unmapped lies below this.
const END: u64 = 1 << 36;
/// log2 of the bytes of a page of ATC_INV, and of the processes' pages.
const PAGE: u64 = 12;

/// Something that a driver does.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Action {
    /// A strict unmap: TLBI_NH_VA of all its pages; a CMD_SYNC.
    Unmap(Mapping),
    /// What many lazy unmaps come to in the end: TLBI_NH_ASID, or TLBI_NH_ALL; a CMD_SYNC.
    Flush {
        #[serde(default)]
        all: bool,
    },
    /// A process's address space changes under a device: a range of up to so many pages of 4K; a CMD_SYNC; ATC_INV of the span for
    /// the process's SubstreamID; a CMD_SYNC.
    Sva { most_pages: u64 },
    /// An unmap for a device with an ATC: as `Unmap`; then ATC_INV; a CMD_SYNC.
    Ats(Mapping),
    /// A context descriptor changes: CFGI_CD, a CMD_SYNC; all of the ASID's TLB entries, a CMD_SYNC.
    Config {},
    /// The device is attached elsewhere: CFGI_STE, a CMD_SYNC; ATC_INV of all addresses, a CMD_SYNC.
    Attach {},
    /// The next group of a recorded stream: one of this repository, or a file of raw commands beside the description.
    Replay {
        trace: String,
        #[serde(skip)]
        recorded: Traffic,
    },
}

/// What is unmapped.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mapping {
    pages: u64,
    #[serde(default)]
    size: Size,
    /// As few ranges as it takes, in place of a command for each page.
    #[serde(default)]
    ranges: bool,
}

/// Of a page or block.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Size {
    #[default]
    #[serde(rename = "4K")]
    Page4K,
    #[serde(rename = "64K")]
    Page64K,
    /// A block where pages have 4K.
    #[serde(rename = "2M")]
    Block2M,
}

impl Size {
    /// log2 of its bytes, and of those of its granule.
    fn log2(self) -> (u64, u64) {
        match self {
            Self::Page4K => (12, 12),
            Self::Page64K => (16, 16),
            Self::Block2M => (21, 12),
        }
    }
}

impl Mapping {
    fn bytes(&self) -> u64 {
        self.pages << self.size.log2().0
    }

    /// TLBI_NH_VA with Leaf for all of it.
    fn unmap(&self, address: u64) -> Vec<Command> {
        let (page, granule) = self.size.log2();
        match self.ranges {
            true => {
                let ttl = 4 - (page - 3) / (granule - 3);
                ranges(ASID, address, self.bytes() >> granule, granule, ttl << 8 | 1)
            }
            false => {
                let each = (address..address + self.bytes()).step_by(1 << page);
                each.map(|page| Command([0x12 | ASID << 48, page | 1])).collect()
            }
        }
    }
}

impl Action {
    /// Reads the recorded stream that it names, if any; `beside` is where the description is.
    pub fn load(&mut self, beside: &Path) -> Result<(), TraceError> {
        if let Self::Replay { trace, recorded } = self {
            *recorded = match trace::named(trace) {
                none if none.is_empty() => Traffic::from_trace(&beside.with_file_name(trace))?,
                commands => Traffic::from_commands(commands),
            };
        }
        Ok(())
    }

    /// What is wrong with it.
    pub fn problem(&self) -> Option<&'static str> {
        match self {
            Self::Unmap(Mapping { pages, .. }) | Self::Ats(Mapping { pages, .. }) => Some(pages),
            Self::Sva { most_pages } => Some(most_pages),
            _ => None,
        }
        .filter(|pages| !(1..=512).contains(*pages))
        .map(|_| "pages must be within 1 to 512")
    }

    /// The streams that it names.
    pub fn streams(&self) -> &[StreamId] {
        match self {
            Self::Replay { recorded, .. } => &recorded.streams,
            _ => &[DEVICE],
        }
    }

    /// What is sent to do it for the `n`th time: groups that end with a CMD_SYNC each, the first one when it is due.
    pub fn groups(&self, n: usize, random: &mut Xoshiro256PlusPlus, sync: Sync) -> Vec<Group> {
        let commands = match self {
            Self::Unmap(mapping) => vec![mapping.unmap(place(random, mapping.bytes()))],
            Self::Flush { all: false } => vec![vec![nh_asid()]],
            Self::Flush { all: true } => vec![vec![Command([0x10, 0])]],
            Self::Sva { most_pages } => {
                let pages = random.random_range(1..=*most_pages);
                let process = random.random_range(1..=PROCESSES);
                let address = place(random, pages << PAGE);
                // SSV, and the SubstreamID.
                let substream = 1 << 11 | process << 12;
                vec![
                    mm_range(ASID + process, address, pages),
                    vec![atc_inv(substream, address, pages << PAGE)],
                ]
            }
            Self::Ats(mapping) => {
                let address = place(random, mapping.bytes());
                vec![mapping.unmap(address), vec![atc_inv(0, address, mapping.bytes())]]
            }
            Self::Config {} => vec![vec![of_device(0x05, 1)], vec![nh_asid()]],
            Self::Attach {} => vec![vec![of_device(0x03, 1)], vec![of_device(0x40, 52)]],
            Self::Replay { recorded, .. } => return vec![recorded.groups[n % recorded.groups.len()].clone()],
        };
        let group = |(i, commands)| Group { commands, sync, follows: i > 0 };
        commands.into_iter().enumerate().map(group).collect()
    }
}

/// Where so many bytes are mapped: aligned as allocators of IO addresses align it, to the next power of two.
fn place(random: &mut Xoshiro256PlusPlus, bytes: u64) -> u64 {
    random.random_range(0..END) & !(bytes.next_power_of_two() - 1)
}

/// What Linux sends for pages of a process: it does not know which levels they are at, so without Leaf and TTL. One page would then be
/// NUM, SCALE and TTL of zero, which is reserved: so it is two (facts sheet, section 7.5).
fn mm_range(asid: u64, address: u64, pages: u64) -> Vec<Command> {
    let pages = if pages & 31 == 1 { pages + 1 } else { pages };
    ranges(asid, address, pages, PAGE, 0)
}

/// TLBI_NH_VA for so many granules, as Linux splits them; `hints` are TTL and Leaf.
fn ranges(asid: u64, mut address: u64, mut granules: u64, granule: u64, hints: u64) -> Vec<Command> {
    let tg = (granule - 10) / 2;
    let mut commands = Vec::new();
    while granules > 0 {
        let scale = u64::from(granules.trailing_zeros());
        let num = granules >> scale & 31;
        let low = 0x12 | asid << 48 | (num - 1) << 12 | scale << 20;
        commands.push(Command([low, address | tg << 10 | hints]));
        address += num << scale << granule;
        granules -= num << scale;
    }
    commands
}

/// ATC_INV of the smallest aligned span that has all of the bytes.
fn atc_inv(substream: u64, address: u64, bytes: u64) -> Command {
    let (first, last) = (address >> PAGE, (address + bytes - 1) >> PAGE);
    let log2 = u64::from(u64::BITS - (first ^ last).leading_zeros());
    of_device(0x40 | substream, first >> log2 << log2 << PAGE | log2)
}

fn of_device(low: u64, high: u64) -> Command {
    Command([low | u64::from(DEVICE.0) << 32, high])
}

fn nh_asid() -> Command {
    Command([0x11 | ASID << 48, 0])
}
