//! What a driver does, as commands (facts sheet, sections 1.2 and 7.5).

use ecmdq_engine::{Command, StreamId};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use serde::Deserialize;

use crate::driver::Sync;
use crate::trace;
use crate::traffic::{Group, Traffic};

/// The streams that the commands name: that of a device, and those of the recorded streams.
pub(super) const STREAMS: [StreamId; 3] = [DEVICE, StreamId(0x8), StreamId(0x100)];
const DEVICE: StreamId = StreamId(0x42);
const ASID: u64 = 1;
/// Pages of 4 KiB that are mapped and unmapped.
const PAGES: u64 = 1 << 24;

/// Something that a driver does.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Action {
    /// A strict unmap of so many pages of 4 KiB: a TLBI_NH_VA each, or as few ranges as it takes; a CMD_SYNC.
    Unmap {
        pages: u64,
        #[serde(default)]
        ranges: bool,
    },
    /// What many lazy unmaps come to in the end: TLBI_NH_ASID, or TLBI_NH_ALL; a CMD_SYNC.
    Flush {
        #[serde(default)]
        all: bool,
    },
    /// A process's address space changes under a device: a range of up to so many pages; a CMD_SYNC; ATC_INV of the span; a CMD_SYNC.
    Sva { most_pages: u64 },
    /// An unmap for a device with an ATC: as `Unmap`; then ATC_INV; a CMD_SYNC.
    Ats {
        pages: u64,
        #[serde(default)]
        ranges: bool,
    },
    /// A context descriptor changes: CFGI_CD, a CMD_SYNC; all of the ASID's TLB entries, a CMD_SYNC.
    Config,
    /// The next group of a recorded stream of this repository.
    Replay { trace: String },
}

/// How far the recorded streams have been sent.
#[derive(Default)]
pub(super) struct Progress(Vec<(String, Traffic, usize)>);

impl Progress {
    fn next(&mut self, name: &str) -> Option<Group> {
        let Self(all) = self;
        if !all.iter().any(|(known, ..)| known == name) {
            all.push((name.into(), Traffic::from_commands(trace::named(name)), 0));
        }
        let (_, traffic, at) = all.iter_mut().find(|(known, ..)| known == name)?;
        let group = traffic.groups.get(*at % traffic.groups.len().max(1)).cloned();
        *at += 1;
        group
    }
}

impl Action {
    /// What is wrong with it.
    pub fn problem(&self) -> Option<&'static str> {
        match self {
            Self::Unmap { pages, .. } | Self::Ats { pages, .. } | Self::Sva { most_pages: pages } => {
                (!(1..=512).contains(pages)).then_some("pages must be within 1 to 512")
            }
            Self::Replay { trace } => {
                trace::named(trace).is_empty().then_some("there is no such recorded stream")
            }
            Self::Flush { .. } | Self::Config => None,
        }
    }

    /// Appends the groups of commands that end with a CMD_SYNC each.
    pub fn groups(
        &self,
        random: &mut Xoshiro256PlusPlus,
        progress: &mut Progress,
        sync: Sync,
        groups: &mut Vec<Group>,
    ) {
        let mut add = |commands| groups.push(Group { commands, sync });
        let asid = ASID << 48;
        match *self {
            Self::Unmap { pages, ranges } => add(unmap(first(random, pages), pages, ranges)),
            Self::Flush { all: false } => add(vec![Command([0x11 | asid, 0])]),
            Self::Flush { all: true } => add(vec![Command([0x10, 0])]),
            Self::Sva { most_pages } => {
                let pages = random.random_range(1..=most_pages);
                let first = first(random, pages);
                add(unmap(first, pages, true));
                add(vec![atc_inv(first, pages)]);
            }
            Self::Ats { pages, ranges } => {
                let first = first(random, pages);
                add(unmap(first, pages, ranges));
                add(vec![atc_inv(first, pages)]);
            }
            Self::Config => {
                add(vec![Command([0x05 | u64::from(DEVICE.0) << 32, 1])]);
                add(vec![Command([0x11 | asid, 0])]);
            }
            Self::Replay { ref trace } => groups.extend(progress.next(trace)),
        }
    }
}

/// Where a mapping of so many pages begins: aligned as allocators of IO addresses align it, to the next power of two.
fn first(random: &mut Xoshiro256PlusPlus, pages: u64) -> u64 {
    random.random_range(0..PAGES) & !(pages.next_power_of_two() - 1)
}

/// TLBI_NH_VA with Leaf for so many pages.
fn unmap(first: u64, pages: u64, ranges: bool) -> Vec<Command> {
    let low = 0x12 | ASID << 48;
    if !ranges {
        return (first..first + pages).map(|page| Command([low, page << 12 | 1])).collect();
    }
    // TG is 4K, TTL is 3: the pages are leaves.
    let (mut page, mut left, mut commands) = (first, pages, Vec::new());
    while left > 0 {
        let scale = left.trailing_zeros();
        let num = left >> scale & 31;
        commands.push(Command([low | (num - 1) << 12 | u64::from(scale) << 20, page << 12 | 0x701]));
        page += num << scale;
        left -= num << scale;
    }
    commands
}

/// ATC_INV of the smallest aligned span that has all of the pages.
fn atc_inv(first: u64, pages: u64) -> Command {
    let log2 = u64::BITS - (first ^ (first + pages - 1)).leading_zeros();
    Command([0x40 | u64::from(DEVICE.0) << 32, first >> log2 << log2 << 12 | u64::from(log2)])
}
